//! `promptmill gates`: what is stopped, why, until when, and what one may do about it.
//!
//! All of it stands in the table `gates`, which daemons read once a second: no daemon is needed here.

pub(crate) mod scope;
pub(crate) mod view;

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{Out, duration, say};
use crate::store::{AccountRow, Desk, Freed, GateLine, Listed};
use scope::{Scope, quoted};
use view::{Shown, behind};

/// Longest block with an end; without one it stays until a person opens it.
const BLOCK_MAX: Duration = Duration::from_hours(366 * 24);

/// Shows what is stopped, why and until when, and how many jobs wait behind it.
///
/// A gate stands before a key, a model or a batch, for all daemons. The API's answers close and open
/// most of them; `free` and `block` are a person's word, which daemons obey within two seconds.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that flow
    #[arg(long)]
    all: bool,
    /// What to change.
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, clap::Subcommand)]
enum Change {
    /// Let gates flow again: a key or a model by one call that asks, a batch at once
    Free {
        /// Gates: the scope, or a part of it that only one of them has
        #[arg(required = true, value_name = "SCOPE")]
        scopes: Vec<String>,
        /// Batches only: let the jobs fail that the API refuses, and do not stop for it again
        #[arg(long)]
        let_fail: bool,
    },
    /// Stop what goes through a gate; calls under way run to their end
    Block {
        /// The gate: its scope, or a part of it that only one has. One that is not there is made:
        /// key:FINGERPRINT, model:PROFILE/NAME, batch:QUEUE/BATCH
        #[arg(value_name = "SCOPE")]
        scope: String,
        /// Why, for those who wonder
        #[arg(long, value_name = "TEXT", default_value = "blocked by a person")]
        reason: String,
        /// Only for so long (30s, 10m, 2h, 1d); then one call asks whether it flows again
        #[arg(long = "for", value_name = "DURATION", value_parser = pause)]
        pause: Option<Duration>,
    },
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let default_model = context.load()?.defaults.model;
    let desk = context.desk(Absent::Refuse).await?;
    let accounts = desk.account_rows().await.context("failed to look at the accounts")?;
    let house = House { desk: &*desk, accounts, default_model };
    match &args.change {
        None => {
            let which = if args.all { Listed::All } else { Listed::Stopped };
            let gates = house.look(house.lines(which).await?).await?;
            if gates.is_empty() && !context.json {
                say("all gates flow: nothing is stopped");
                return Ok(Exit::Good);
            }
            print(&gates, context)?;
        }
        Some(Change::Free { scopes, let_fail }) => {
            let how = if *let_fail { Freed::LetFail } else { Freed::Watched };
            let scopes = house.free(scopes, how).await?;
            print_changed(&house, &scopes, context).await?;
        }
        Some(Change::Block { scope, reason, pause }) => {
            let scope = house.block(scope, reason, *pause).await?;
            print_changed(&house, &[scope], context).await?;
        }
    }
    Ok(Exit::Good)
}

fn print(gates: &[Shown], context: &Context) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    if context.json {
        let gates: Vec<_> = gates.iter().map(Shown::json).collect();
        out.line(&json!({"gates": gates}).to_string())?;
    } else {
        let width = out.is_terminal().then(view::width);
        let gates: Vec<_> = gates.iter().map(|gate| gate.text(width)).collect();
        out.text(&gates.join("\n"))?;
    }
    out.flush()?;
    Ok(())
}

async fn print_changed(house: &House<'_>, scopes: &[String], context: &Context) -> anyhow::Result<()> {
    if context.json {
        let mut lines = house.lines(Listed::All).await?;
        lines.retain(|line| scopes.contains(&line.scope));
        print(&house.look(lines).await?, context)?;
    }
    Ok(())
}

/// The database, and what is needed to understand its scopes.
pub(crate) struct House<'a> {
    /// The database.
    pub(crate) desk: &'a dyn Desk,
    /// Which account each queue has.
    pub(crate) accounts: Vec<AccountRow>,
    /// The model of who names none.
    pub(crate) default_model: String,
}

impl House<'_> {
    pub(crate) async fn lines(&self, which: Listed) -> anyhow::Result<Vec<GateLine>> {
        self.desk.gate_lines(which).await.context("failed to look at the gates")
    }

    pub(crate) async fn look(&self, lines: Vec<GateLine>) -> anyhow::Result<Vec<Shown>> {
        let mut gates = Vec::with_capacity(lines.len());
        for line in lines {
            let scope = Scope::parse(&line.scope);
            let jobs = behind(self.desk, &scope, &self.default_model).await?;
            gates.push(Shown { profiles: self.profiles(&scope), line, scope, jobs });
        }
        Ok(gates)
    }

    /// The profiles that have a scope's key.
    fn profiles(&self, scope: &Scope) -> Option<Vec<String>> {
        let (Scope::Key(key) | Scope::Rate { key, .. }) = scope else { return None };
        let those = self.accounts.iter().filter(|account| account.key == *key);
        let mut profiles: Vec<String> = those.map(|account| account.profile.clone()).collect();
        profiles.sort();
        profiles.dedup();
        (!self.accounts.is_empty()).then_some(profiles)
    }

    /// Frees gates, all or none of those that cannot be found; returns their scopes.
    async fn free(&self, names: &[String], how: Freed) -> anyhow::Result<Vec<String>> {
        let lines = self.lines(Listed::All).await?;
        let mut found =
            names.iter().map(|name| find_to_free(name, how, &lines)).collect::<Result<Vec<_>, _>>()?;
        found.sort();
        found.dedup();
        if let Some(scope) = found
            .iter()
            .find(|scope| how == Freed::LetFail && !matches!(Scope::parse(scope), Scope::Batch { .. }))
        {
            return Err(Stop::failure(format!("{scope} is no batch: only a batch can be let fail")));
        }
        for scope in &found {
            let line = lines.iter().find(|line| line.scope == *scope);
            let flows = line.is_some_and(|line| line.state == "flowing" && !line.ignored);
            if flows && how == Freed::Watched {
                say(&format!("{scope} flows already"));
                continue;
            }
            let freed =
                self.desk.free_gate(scope, how).await.with_context(|| format!("failed to free {scope}"))?;
            say(&if freed { what_next(scope, how) } else { format!("{scope} is gone: nothing stops it") });
        }
        Ok(found)
    }

    /// Blocks a gate; returns its scope.
    async fn block(&self, name: &str, reason: &str, pause: Option<Duration>) -> anyhow::Result<String> {
        let lines = self.lines(Listed::All).await?;
        let scope = find_to_block(name, &lines)?;
        self.desk
            .block_gate(&scope, reason, pause)
            .await
            .with_context(|| format!("failed to block {scope}"))?;
        let end = match pause {
            None => format!("until a person opens it: promptmill gates free {}", quoted(&scope)),
            Some(pause) => format!(
                "for {}, then one call asks whether it flows again",
                duration(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX))
            ),
        };
        let jobs = behind(self.desk, &Scope::parse(&scope), &self.default_model).await?;
        let jobs = jobs.map_or_else(String::new, |jobs| format!("; {}", jobs.sentence()));
        say(&format!("{scope} is blocked {end}{jobs}"));
        Ok(scope)
    }
}

/// What happens next.
fn what_next(scope: &str, how: Freed) -> String {
    match (Scope::parse(scope), how) {
        (Scope::Batch { .. }, Freed::LetFail) => format!(
            "{scope} is free: its jobs run on, and those that the API refuses fail; refusals do not stop it any more"
        ),
        (Scope::Batch { .. }, Freed::Watched) => format!(
            "{scope} is free: its jobs run on, few at a time at first; the same refusal 20 times in a row stops it again"
        ),
        (Scope::Key(_) | Scope::Model { .. }, _) => {
            format!("{scope} is free: the next call is a probe, and once it is answered everything flows")
        }
        (Scope::Rate { .. } | Scope::Other, _) => format!("{scope} is free"),
    }
}

fn find_to_free(name: &str, how: Freed, lines: &[GateLine]) -> anyhow::Result<String> {
    if lines.iter().any(|line| line.scope == name) {
        return Ok(name.to_owned());
    }
    match Scope::parse(name) {
        Scope::Other => {}
        Scope::Batch { .. } if how == Freed::LetFail => return Ok(name.to_owned()),
        // A whole name is no part of another: "model:p/claude" does not mean "model:p/claude-2".
        _ => return Err(Stop::failure(format!("no gate is named {name}: nothing stops it"))),
    }
    let stopped = |line: &&GateLine| line.state != "flowing" || line.ignored;
    part(name, lines.iter().filter(stopped)).or_else(|| part(name, lines.iter())).unwrap_or_else(|| {
        Err(Stop::failure(format!("no gate has \"{name}\" in its scope; promptmill gates --all lists them")))
    })
}

fn find_to_block(name: &str, lines: &[GateLine]) -> anyhow::Result<String> {
    if lines.iter().any(|line| line.scope == name) || Scope::parse(name) != Scope::Other {
        return Ok(name.to_owned());
    }
    part(name, lines.iter()).unwrap_or_else(|| {
        let forms = Scope::FORMS;
        Err(Stop::failure(format!("no gate has \"{name}\" in its scope; a new one is written as {forms}")))
    })
}

/// Finds the one scope that has this in it; none: `None`; several: says which.
fn part<'a>(name: &str, lines: impl Iterator<Item = &'a GateLine>) -> Option<anyhow::Result<String>> {
    let found: Vec<&str> =
        lines.map(|line| line.scope.as_str()).filter(|scope| scope.contains(name)).collect();
    match found.as_slice() {
        [] => None,
        [one] => Some(Ok((*one).to_owned())),
        [_, _, _, _, _, _, ..] => {
            Some(Err(Stop::failure(format!("\"{name}\" stands in the scope of {} gates", found.len()))))
        }
        several => {
            let several = several.join(", ");
            Some(Err(Stop::failure(format!("\"{name}\" stands in the scope of several gates: {several}"))))
        }
    }
}

/// Reads a length of time: a number with its unit, or several of them.
fn pause(text: &str) -> Result<Duration, String> {
    let odd = || "a length of time is a number and its unit: 30s, 10m, 2h, 1d, 1h30m".to_owned();
    let mut rest = text;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(odd)?;
        let number: u64 = rest[..at].parse().map_err(|_| odd())?;
        let unit = match rest[at..].chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            _ => return Err(odd()),
        };
        seconds = seconds.saturating_add(number.saturating_mul(unit));
        rest = &rest[at + 1..];
    }
    match Duration::from_secs(seconds) {
        Duration::ZERO => Err(odd()),
        pause if pause > BLOCK_MAX => {
            Err("at most 366 days; without --for it stays until a person opens it".to_owned())
        }
        pause => Ok(pause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_a_number_and_its_unit() {
        assert_eq!(pause("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(pause("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(pause("2d"), Ok(Duration::from_hours(48)));
        for odd in ["", "10", "m", "0s", "5 m", "-5m", "1w", "1é", "367d", "99999999999999999999s"] {
            assert!(pause(odd).is_err(), "{odd}");
        }
    }
}
