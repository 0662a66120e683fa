//! The pace in a world of its own: daemons that share a budget, and an API that keeps its limits as
//! real token buckets. Virtual seconds, seeded dice, no sleeping.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use promptmill::domain::pace::{
    Budget, Each, Estimates, Hold, Limit, Overload, Pace, RateLimits, Spent, TAKE_EVERY, Ticket,
};

/// From the daemon to the API and back.
const HALF_TRIP: Duration = Duration::from_millis(25);
/// A budget's UPDATE.
const UPDATE_TIME: Duration = Duration::from_millis(5);
/// Output is counted in so many parts while it is produced.
const PARTS: u32 = 5;
const JOBS: usize = 5000;
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Job {
    queue: &'static str,
    bytes: usize,
    /// Tokens that count: without cache reads.
    input: f64,
    output: f64,
    first: Duration,
    whole: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Scene {
    daemons: usize,
    /// Calls in flight of one daemon at most.
    concurrency: usize,
    /// What the API really allows, a minute.
    limits: Each<f64>,
    /// What the API's own buckets hold.
    depth: Duration,
    /// Whether the API says so.
    headers: bool,
    /// What the configuration says, in parts of what the API allows.
    configured: Option<f64>,
    seed: u64,
}

#[derive(Debug)]
struct Outcome {
    makespan: Duration,
    /// Of an oracle that knows every job and sends it at the instant at which the limits let it.
    ideal: Duration,
    refused: usize,
    sent: usize,
}

impl Outcome {
    fn ratio(&self) -> f64 {
        self.makespan.as_secs_f64() / self.ideal.as_secs_f64()
    }

    fn refused_share(&self) -> f64 {
        self.refused as f64 / self.sent as f64
    }
}

fn jobs(dice: &mut fastrand::Rng) -> Vec<Job> {
    let job = |dice: &mut fastrand::Rng| {
        // Log-uniform: as many of 100 to 900 tokens as of 900 to 8,000.
        let between = |dice: &mut fastrand::Rng, from: f64, to: f64| from * (to / from).powf(dice.f64());
        let whole = between(dice, 0.2, 20.0);
        let tokens = between(dice, 100.0, 8000.0);
        let (queue, speed) = if dice.bool() { ("terse", 40.0) } else { ("wordy", 120.0) };
        let cached = if dice.f64() < 0.3 { 0.5 } else { 1.0 };
        Job {
            queue,
            bytes: (tokens * (2.8 + 1.7 * dice.f64())) as usize,
            input: tokens * cached,
            output: whole * speed,
            first: Duration::from_secs_f64((0.2 + 0.8 * dice.f64()).min(whole)),
            whole: Duration::from_secs_f64(whole),
        }
    };
    (0..JOBS).map(|_| job(dice)).collect()
}

/// Costs of all jobs: to choose limits by.
fn totals(jobs: &[Job]) -> Each<f64> {
    jobs.iter().fold(Each::default(), |sum, job| Each {
        requests: sum.requests + 1.0,
        input: sum.input + job.input,
        output: sum.output + job.output,
    })
}

fn ideal(jobs: &[Job], limits: Each<f64>) -> Duration {
    let mut spent = Each::<f64>::default();
    let mut last = 0.0_f64;
    for job in jobs {
        let due =
            spent.zip(limits).map(|(spent, limit)| spent / limit * 60.0).into_iter().fold(0.0, f64::max);
        last = last.max(due + job.whole.as_secs_f64());
        spent = totals(&[*job]).zip(spent).map(|(one, sum)| one + sum);
    }
    Duration::from_secs_f64(last)
}

/// The API's bucket: written apart from ours, and as the stand-in's.
#[derive(Debug, Clone, Copy)]
struct Tank {
    limit: f64,
    cap: f64,
    level: f64,
    at: Duration,
}

impl Tank {
    fn new(limit: f64, depth: Duration) -> Self {
        let cap = limit / 60.0 * depth.as_secs_f64();
        Self { limit, cap, level: cap, at: Duration::ZERO }
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level = (self.level + passed * self.limit / 60.0).min(self.cap);
        self.at = now;
    }

    fn wait(&self, amount: f64) -> f64 {
        ((amount.min(self.cap) - self.level) / self.limit * 60.0).max(0.0)
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A daemon looks whether it may send.
    Look(usize),
    /// A daemon asks for its part of the budget, and later has it.
    Take(usize),
    Granted(usize, promptmill::domain::pace::Take),
    Arrive(usize, u64),
    Produced(f64),
    First(usize, u64, Option<RateLimits>),
    End(usize, u64),
    Refused(usize, u64, Option<RateLimits>, Option<Duration>),
    /// A refused job may be claimed again.
    Back(Job),
}

struct Daemon {
    pace: Pace,
    estimates: Estimates,
    calls: HashMap<u64, (Ticket, Job)>,
    looking: Option<Duration>,
    admitted: usize,
}

struct World {
    scene: Scene,
    dice: fastrand::Rng,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    what: BTreeMap<u64, Event>,
    waiting: VecDeque<Job>,
    daemons: Vec<Daemon>,
    budget: Budget,
    tanks: Each<Tank>,
    sent: usize,
    refused: usize,
    done: usize,
    number: u64,
}

impl World {
    fn new(scene: Scene, jobs: &[Job]) -> Self {
        let start = Instant::now();
        let pace = || {
            let mut pace = Pace::new(start);
            if let Some(parts) = scene.configured {
                pace.configure(scene.limits.map(|limit| Some(limit * parts)));
            }
            pace
        };
        let daemon = || Daemon {
            pace: pace(),
            estimates: Estimates::default(),
            calls: HashMap::new(),
            looking: None,
            admitted: 0,
        };
        let mut world = Self {
            scene,
            dice: fastrand::Rng::with_seed(scene.seed),
            start,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
            waiting: jobs.iter().copied().collect(),
            daemons: (0..scene.daemons).map(|_| daemon()).collect(),
            budget: Budget::default(),
            tanks: scene.limits.map(|limit| Tank::new(limit, scene.depth)),
            sent: 0,
            refused: 0,
            done: 0,
            number: 0,
        };
        for which in 0..scene.daemons {
            let begin = world.dice.f64();
            world.after(SECOND.mul_f64(begin), Event::Take(which));
            world.after(SECOND.mul_f64(begin), Event::Look(which));
        }
        world
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.number += 1;
        self.events.push(Reverse((self.now + wait, self.number)));
        self.what.insert(self.number, event);
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    fn run(&mut self) {
        let jobs = self.waiting.len();
        while self.done < jobs {
            let Reverse((at, number)) = self.events.pop().expect("something is to come while jobs are left");
            assert!(at < Duration::from_hours(2), "{} of {jobs} done in two hours", self.done);
            self.now = at;
            let event = self.what.remove(&number).expect("each event happens once");
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Look(which) => self.look(which),
            Event::Take(which) => {
                let take = self.daemons[which].pace.take(now);
                self.after(UPDATE_TIME, Event::Granted(which, take));
                let next = TAKE_EVERY.mul_f64(0.8 + 0.4 * self.dice.f64());
                self.after(next, Event::Take(which));
            }
            Event::Granted(which, take) => {
                let grants = self.budget.take(&take, now);
                self.daemons[which].pace.granted(grants);
                self.look(which);
            }
            Event::Arrive(which, call) => self.arrive(which, call),
            Event::Produced(output) => {
                self.tanks.output.refill(self.now);
                self.tanks.output.level -= output;
            }
            Event::First(which, call, limits) => {
                let daemon = &mut self.daemons[which];
                if let Some(limits) = limits {
                    daemon.pace.learn(&limits, now);
                }
                daemon.pace.content(&daemon.calls[&call].0, now);
                self.look(which);
            }
            Event::End(which, call) => {
                let daemon = &mut self.daemons[which];
                let (ticket, job) = daemon.calls.remove(&call).expect("in flight");
                daemon.estimates.learn(job.queue, "m", job.bytes, job.input, job.output);
                daemon.pace.end(ticket, Spent::Answered { input: job.input, output: job.output }, now, 0.0);
                self.done += 1;
                self.look(which);
            }
            Event::Refused(which, call, limits, hint) => {
                let dice = self.dice.f64();
                let daemon = &mut self.daemons[which];
                let (ticket, job) = daemon.calls.remove(&call).expect("in flight");
                if let Some(limits) = limits {
                    daemon.pace.learn(&limits, now);
                }
                daemon.pace.end(ticket, Spent::Refused(Overload::Limit, hint), now, dice);
                self.refused += 1;
                self.after(hint.unwrap_or(SECOND).mul_f64(1.0 + dice), Event::Back(job));
                self.look(which);
            }
            Event::Back(job) => {
                self.waiting.push_front(job);
                for which in 0..self.daemons.len() {
                    self.look(which);
                }
            }
        }
    }

    fn look(&mut self, which: usize) {
        let now = self.instant();
        if self.daemons[which].looking.is_some_and(|at| at <= self.now) {
            self.daemons[which].looking = None;
        }
        while let Some(job) = self.waiting.front().copied() {
            let daemon = &mut self.daemons[which];
            if daemon.calls.len() >= self.scene.concurrency {
                return;
            }
            let estimate = daemon.estimates.of(job.queue, "m", job.bytes);
            match daemon.pace.admit(estimate, now) {
                Ok(ticket) => {
                    let call = self.sent as u64;
                    daemon.calls.insert(call, (ticket, job));
                    daemon.admitted += 1;
                    self.waiting.pop_front();
                    self.sent += 1;
                    self.after(HALF_TRIP, Event::Arrive(which, call));
                }
                Err(Hold::Until(until)) => {
                    let at = until.saturating_duration_since(self.start);
                    if daemon.looking.is_none_or(|known| at < known) {
                        daemon.looking = Some(at);
                        self.after(at.saturating_sub(self.now), Event::Look(which));
                    }
                    return;
                }
                Err(Hold::Window | Hold::Allowance) => return,
            }
        }
    }

    fn arrive(&mut self, which: usize, call: u64) {
        let job = self.daemons[which].calls[&call].1;
        for tank in self.tanks.as_mut() {
            tank.refill(self.now);
        }
        let need = Each { requests: 1.0, input: job.input, output: 1.0 };
        let wait = self.tanks.zip(need).map(|(tank, need)| tank.wait(need)).into_iter().fold(0.0, f64::max);
        if wait > 0.0 {
            let hint = self.scene.headers.then(|| Duration::from_secs_f64(wait.ceil()));
            let limits = self.headers();
            self.after(HALF_TRIP * 2, Event::Refused(which, call, limits, hint));
            return;
        }
        self.tanks.requests.level -= 1.0;
        self.tanks.input.level -= job.input;
        let limits = self.headers();
        self.after(job.first, Event::First(which, call, limits));
        for part in 1..=PARTS {
            let at =
                job.first + job.whole.saturating_sub(job.first).mul_f64(f64::from(part) / f64::from(PARTS));
            self.after(at, Event::Produced(job.output / f64::from(PARTS)));
        }
        self.after(job.whole, Event::End(which, call));
    }

    fn headers(&self) -> Option<RateLimits> {
        let say = |tank: Tank, round_to: f64| Limit {
            limit: Some(tank.limit as u64),
            remaining: Some(((tank.level.max(0.0) / round_to).round() * round_to) as u64),
            reset: None,
        };
        let Each { requests, input, output } = self.tanks;
        let each =
            Each { requests: say(requests, 1.0), input: say(input, 1000.0), output: say(output, 1000.0) };
        self.scene.headers.then(|| RateLimits { at: self.instant(), each })
    }
}

fn play(scene: Scene) -> Outcome {
    let jobs = jobs(&mut fastrand::Rng::with_seed(scene.seed));
    let mut world = World::new(scene, &jobs);
    world.run();
    let outcome = Outcome {
        makespan: world.now,
        ideal: ideal(&jobs, scene.limits),
        refused: world.refused,
        sent: world.sent,
    };
    let admitted: Vec<usize> = world.daemons.iter().map(|daemon| daemon.admitted).collect();
    eprintln!(
        "{} daemons, headers {:5}, depth {:2} s, concurrency {:5}, seed {}: makespan {:6.1} s / ideal {:6.1} s = {:.3}, refused {:4} = {:.2} %, by daemon {admitted:?}",
        scene.daemons,
        scene.headers,
        scene.depth.as_secs(),
        scene.concurrency,
        scene.seed,
        outcome.makespan.as_secs_f64(),
        outcome.ideal.as_secs_f64(),
        outcome.ratio(),
        outcome.refused,
        100.0 * outcome.refused_share(),
    );
    outcome
}

/// Limits under which requests, input or output is the scarce one: 50 requests a second, and tokens
/// for so many of the mean job.
fn limits(seed: u64, input: f64, output: f64) -> Each<f64> {
    let jobs = jobs(&mut fastrand::Rng::with_seed(seed));
    let mean = totals(&jobs).map(|total| total / JOBS as f64);
    Each { requests: 3000.0, input: mean.input * input * 60.0, output: mean.output * output * 60.0 }
}

const SCARCE: [(f64, f64); 3] = [(55.0, 55.0), (40.0, 60.0), (60.0, 40.0)];

fn scene() -> Scene {
    Scene {
        daemons: 1,
        concurrency: 2000,
        limits: Each::default(),
        depth: Duration::from_mins(1),
        headers: true,
        configured: None,
        seed: 1,
    }
}

/// What the goals are held for: the seeds, and one scarce limit each.
fn scenes(of: Scene) -> impl Iterator<Item = Scene> {
    let scarce = SCARCE.into_iter().zip(1..);
    scarce.flat_map(move |((input, output), seed)| {
        [1, 4].map(|daemons| Scene { daemons, limits: limits(seed, input, output), seed, ..of })
    })
}

#[test]
fn limits_that_the_api_tells_are_used_whole_and_hardly_a_call_is_refused() {
    for scene in scenes(scene()) {
        let outcome = play(scene);
        assert!(outcome.ratio() <= 1.03, "{outcome:?}");
        assert!(outcome.refused_share() <= 0.005, "{outcome:?}");
    }
}

#[test]
fn limits_that_are_enforced_by_the_second_are_used_as_well() {
    for scene in scenes(Scene { depth: 2 * SECOND, ..scene() }) {
        let outcome = play(scene);
        assert!(outcome.ratio() <= 1.20, "{outcome:?}");
        assert!(outcome.refused_share() <= 0.03, "{outcome:?}");
    }
}

#[test]
fn limits_that_nobody_tells_are_found_by_loss() {
    for scene in scenes(Scene { headers: false, ..scene() }) {
        let outcome = play(scene);
        assert!(outcome.ratio() <= 1.20, "{outcome:?}");
        assert!(outcome.refused_share() <= 0.05, "{outcome:?}");
    }
}

#[test]
fn limits_that_nobody_tells_and_that_are_enforced_by_the_second_are_found_by_loss() {
    for scene in scenes(Scene { headers: false, depth: 2 * SECOND, ..scene() }) {
        let outcome = play(scene);
        assert!(outcome.ratio() <= 1.20, "{outcome:?}");
        assert!(outcome.refused_share() <= 0.06, "{outcome:?}");
    }
}

#[test]
fn limits_that_are_configured_too_high_are_found_by_loss_all_the_same() {
    for (depth, parts) in [(Duration::from_mins(1), 10.0), (2 * SECOND, 10.0), (2 * SECOND, 2.0)] {
        for scene in scenes(Scene { headers: false, configured: Some(parts), depth, ..scene() }) {
            let outcome = play(scene);
            assert!(outcome.ratio() <= 1.25, "{outcome:?}");
            assert!(outcome.refused_share() <= 0.08, "{outcome:?}");
        }
    }
}
