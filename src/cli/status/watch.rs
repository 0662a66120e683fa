//! `status --watch`: looks, shows, rests, and looks again, until it is stopped or its batch is done.
//!
//! Reading and showing are apart: while a look waits for a database that does not answer, the screen
//! still says so, follows the size of the window, and ends at once when it is told to.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{self, SignalKind};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::lens::{Lens, Look};
use super::lines::{Lines, json_of};
use super::screen::Screen;
use super::view::{Canvas, Scene, render, room};
use crate::cli::exit::{Exit, Stop};
use crate::cli::open::{Absent, Context};
use crate::cli::out::{Out, say};
use crate::store::StoreError;

/// A look that takes longer is told of.
const SLOW: Duration = Duration::from_secs(3);
/// A look that took long is rested from for so many times as long: the daemons need the database, too.
const REST: u32 = 4;
/// Shortest pause after a look that failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Batches that a program is told of.
const BATCHES: usize = 20;

/// Watches all jobs, or one batch until its last job is done.
pub async fn run(batch: Option<&str>, interval: Duration, context: &Context) -> anyhow::Result<Exit> {
    let config = context.load()?;
    let opened = context.opened(&config, Absent::Refuse).await?;
    // A look is several statements, each of which the database may take so long for.
    let patience = config.database.store.operation_max.max(SLOW * 2);
    let scene =
        Scene { place: config.database.url.to_string(), batch: batch.map(str::to_owned), ..Scene::default() };
    let lens = Arc::new(Lens::new(config, &opened, batch.map(str::to_owned)));
    let mut watch = Watch {
        lens,
        patience,
        signals: Signals::listen().context("failed to listen for signals")?,
        face: None,
        json: context.json,
        scene,
        failing: None,
        counting: JoinSet::new(),
    };
    watch.run(interval).await
}

struct Watch {
    lens: Arc<Lens>,
    patience: Duration,
    signals: Signals,
    /// Taken with the first look: a batch that is not there needs no screen.
    face: Option<Face>,
    json: bool,
    scene: Scene,
    /// Since when the database does not answer.
    failing: Option<Instant>,
    counting: JoinSet<()>,
}

/// Where it is shown.
enum Face {
    Screen(Screen),
    Lines(Lines, Out),
    Json(Out),
}

impl Face {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json(Out::stdout());
        }
        match Screen::of_stdout() {
            Some(screen) => Self::Screen(screen),
            None => Self::Lines(Lines::default(), Out::stdout()),
        }
    }
}

impl Watch {
    async fn run(&mut self, interval: Duration) -> anyhow::Result<Exit> {
        self.count();
        loop {
            let began = Instant::now();
            let Some(seen) = self.look().await? else { return self.finish(Exit::Good) };
            let good = seen.is_ok();
            if let Some(exit) = self.take(seen)? {
                return self.finish(exit);
            }
            self.show()?;
            let rest = interval.saturating_sub(began.elapsed());
            let rest = if good { rest.max(began.elapsed() * REST) } else { rest.max(TRY_AGAIN) };
            let until = tokio::time::Instant::now() + rest;
            if self.wait(sleep_until(until)).await?.is_none() {
                return self.finish(Exit::Good);
            }
        }
    }

    /// Counts whole, beside the looks.
    fn count(&mut self) {
        self.counting = JoinSet::new();
        let lens = Arc::clone(&self.lens);
        self.counting.spawn(async move { lens.count_whole().await });
    }

    /// Looks, in a task of its own: what a signal interrupts is the waiting for it.
    async fn look(&mut self) -> anyhow::Result<Option<Result<Look, StoreError>>> {
        let began = Instant::now();
        let mut task = JoinSet::new();
        let lens = Arc::clone(&self.lens);
        let room = match &self.face {
            Some(Face::Screen(screen)) => room(screen.size().0),
            _ => BATCHES,
        };
        task.spawn(async move { lens.look(room).await });
        loop {
            let Some(waited) = self.wait(timeout(SLOW, task.join_next())).await? else { return Ok(None) };
            match waited {
                Ok(Some(seen)) => return Ok(Some(seen.context("the look at the jobs ended early")?)),
                Ok(None) => return Err(Stop::failure("the look at the jobs ended early")),
                Err(_) if began.elapsed() < self.patience => {
                    self.fails(began, "it is silent");
                    self.show()?;
                }
                Err(_) => {
                    // Nobody knows what its connections are in the middle of.
                    task.abort_all();
                    self.lens.forget();
                    self.count();
                    let sentence = format!("nothing came within {} s", self.patience.as_secs());
                    return Ok(Some(Err(StoreError::Unavailable(sentence))));
                }
            }
        }
    }

    /// Notes that nothing is seen, since then at least.
    fn fails(&mut self, since: Instant, why: &str) {
        let since = *self.failing.get_or_insert(since);
        let told = self.scene.trouble.is_some();
        self.scene.trouble = Some((since.elapsed().as_secs(), why.to_owned()));
        if !told && !matches!(self.face, Some(Face::Screen(_))) {
            say(&format!("no answer from the database, trying again: {why}"));
        }
    }

    /// Takes what was seen; tells with which code to end, if this was all.
    fn take(&mut self, seen: Result<Look, StoreError>) -> anyhow::Result<Option<Exit>> {
        let look = match seen {
            Ok(look) => look,
            Err(error) => {
                self.fails(Instant::now(), &error.to_string());
                return Ok(None);
            }
        };
        if self.failing.take().is_some() && !matches!(self.face, Some(Face::Screen(_))) {
            say("the database answers again");
        }
        self.scene.trouble = None;
        let mut exit = None;
        if let (Some(name), Some(batch)) = (&self.scene.batch, look.batches.first()) {
            if batch.total().n == 0 && self.scene.look.is_some() {
                return Err(Stop::failure(format!("batch \"{name}\" is gone: its jobs were deleted")));
            }
            if batch.total().n == 0 {
                return Err(super::no_such_batch(name));
            }
            if batch.left().n == 0 {
                exit = Some(if batch.otherwise().n == 0 { Exit::Good } else { Exit::NotComplete });
            }
        }
        self.scene.look = Some(look);
        self.face.get_or_insert_with(|| Face::new(self.json));
        // On a screen, the last look is what stays when it is given back.
        if exit.is_some() && !matches!(self.face, Some(Face::Screen(_))) {
            self.show()?;
        }
        Ok(exit)
    }

    fn show(&mut self) -> anyhow::Result<()> {
        let batch = self.scene.batch.as_deref();
        match (self.face.get_or_insert_with(|| Face::new(self.json)), &self.scene.look) {
            (Face::Screen(screen), _) => {
                let lines = render(&self.scene, canvas(screen));
                screen.draw(&lines)?;
            }
            (Face::Json(out), look) => {
                let object = match (&self.scene.trouble, look) {
                    (None, Some(look)) => json_of(look, batch),
                    (trouble, _) => {
                        let (seconds, why) = trouble.clone().unwrap_or_default();
                        serde_json::json!({"error": why, "silent_seconds": seconds})
                    }
                };
                out.line(&object.to_string())?;
                out.flush()?;
            }
            (Face::Lines(lines, out), Some(look)) if self.scene.trouble.is_none() => {
                for line in lines.of(look, batch) {
                    out.line(&line)?;
                }
                out.flush()?;
            }
            (Face::Lines(..), _) => {}
        }
        Ok(())
    }

    /// Gives the terminal back, and leaves on it what was seen last.
    fn finish(&mut self, exit: Exit) -> anyhow::Result<Exit> {
        if let Some(Face::Screen(screen)) = &mut self.face {
            let lines = render(&self.scene, canvas(screen));
            screen.leave()?;
            let mut out = io::stdout().lock();
            writeln!(out, "{}", lines.join("\n"))?;
            out.flush()?;
        }
        Ok(exit)
    }

    /// Waits for something, or for the word to stop; what else a terminal says is done meanwhile.
    async fn wait<T>(&mut self, what: impl Future<Output = T>) -> anyhow::Result<Option<T>> {
        tokio::pin!(what);
        loop {
            let told = tokio::select! {
                done = &mut what => return Ok(Some(done)),
                told = self.signals.next() => told,
            };
            match (told, &mut self.face) {
                (Told::Stop, _) => return Ok(None),
                (Told::Resized, Some(Face::Screen(_))) => self.show()?,
                (Told::Suspend, face) => {
                    if let Some(Face::Screen(screen)) = face {
                        screen.leave()?;
                    }
                    kill_process(getpid(), Signal::STOP).context("failed to stop")?;
                    // From here somebody has let it go on.
                    if let Some(Face::Screen(_)) = &self.face {
                        self.show()?;
                    }
                }
                (Told::Resized, _) => {}
            }
        }
    }
}

fn canvas(screen: &Screen) -> Canvas {
    let (rows, columns) = screen.size();
    Canvas { rows, columns, colour: screen.has_colours() }
}

/// What a terminal or a person tells a process.
enum Told {
    Stop,
    Resized,
    Suspend,
}

struct Signals {
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
    resize: unix::Signal,
    suspend: unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            quit: unix::signal(SignalKind::quit())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hang_up: unix::signal(SignalKind::hangup())?,
            resize: unix::signal(SignalKind::window_change())?,
            suspend: unix::signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.quit.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hang_up.recv() => Told::Stop,
            _ = self.resize.recv() => Told::Resized,
            _ = self.suspend.recv() => Told::Suspend,
        }
    }
}
