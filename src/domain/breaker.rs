//! The circuit breaker of one (base URL, model): stops calls while the provider is unwell, and
//! lets one probe find out whether it is well again.
//!
//! What is counted is this process's own; the [`Gate`] that it moves is shared by all daemons. Pure:
//! instants and dice are passed in.

use std::time::{Duration, Instant};

use super::gate::{Admission, Gate, State};

/// When to block, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSettings {
    /// So many failures in a row block.
    pub failures_in_a_row: u32,
    /// The window over which a share of failures is taken.
    pub window: Duration,
    /// Fewer calls than this in the window say nothing.
    pub calls_min: u32,
    /// This share of failures in the window blocks.
    pub share: f64,
    /// The first block lasts so long, the next twice as long.
    pub open: Duration,
    /// No block lasts longer.
    pub open_max: Duration,
    /// A probe that has not reported for so long has failed.
    pub probe_lease: Duration,
}

/// How a call looked to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The provider answered, whatever it said.
    Well,
    /// It did not.
    Sick,
}

/// Number of slices the window is counted in.
const SLICES: usize = 12;

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    age: u64,
    well: u32,
    sick: u32,
}

/// A circuit breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    settings: BreakerSettings,
    gate: Gate,
    born: Instant,
    in_a_row: u32,
    slices: [Slice; SLICES],
    /// The last probe that was not waited for any longer, and the block that this brought.
    given_up: Option<(u64, State)>,
}

/// Why it blocks after a probe that did not report.
const UNANSWERED: &str = "the probe was not answered within its time";

impl Breaker {
    /// Returns a breaker that flows.
    pub fn new(settings: BreakerSettings, now: Instant) -> Self {
        let (gate, slices) = (Gate::default(), [Slice::default(); SLICES]);
        Self { settings, gate, born: now, in_a_row: 0, slices, given_up: None }
    }

    /// Its gate.
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Its gate, for what is not the breaker's to decide: probes taken, a person's word.
    pub const fn gate_mut(&mut self) -> &mut Gate {
        &mut self.gate
    }

    /// Whether a call may be made. After a probe that did not report none may: it is
    /// [given up](Self::give_up), and blocks anew, before the next.
    pub fn peek(&self, now: Instant) -> Admission {
        match self.gate.state() {
            State::Probing { .. } => Admission::Blocked,
            State::Flowing | State::Blocked { .. } => self.gate.peek(now),
        }
    }

    /// Counts a probe as failed that has not reported within its lease, whoever made it: a provider that
    /// says nothing at all is as unwell as one that says so. Returns whether there was one.
    pub fn give_up(&mut self, now: Instant, dice: f64) -> bool {
        let State::Probing { number, until } = self.gate.state() else { return false };
        if now < until {
            return false;
        }
        self.block(UNANSWERED, now, dice);
        self.given_up = Some((number, self.gate.state()));
        true
    }

    /// Takes the report of a call that was admitted. `probe` is its number, if it was one; `dice` in
    /// [0, 1) spreads the end of a block by ± 20 %.
    ///
    /// While it is blocked or probing only the probe's report counts: the others set out before. One that
    /// was given up may still say that all is well, as long as nothing else happened: an answer that is
    /// slower than the lease is one.
    pub fn report(&mut self, health: Health, reason: &str, probe: Option<u64>, now: Instant, dice: f64) {
        match self.gate.state() {
            State::Probing { .. } if self.gate.awaits(probe) => match health {
                Health::Well => {
                    self.gate.flow();
                    self.count_anew();
                }
                Health::Sick => self.block(reason, now, dice),
            },
            State::Flowing => {
                self.count(health, now);
                if self.must_block(now) {
                    self.block(reason, now, dice);
                }
            }
            now_blocked @ State::Blocked { .. } => {
                let is_late = probe.is_some_and(|number| self.given_up == Some((number, now_blocked)));
                if is_late && health == Health::Well {
                    self.gate.flow();
                    self.count_anew();
                }
            }
            State::Probing { .. } => {}
        }
    }

    /// Whether it flows and has counted nothing within its window: a new one would be the same.
    pub fn is_idle(&self, now: Instant) -> bool {
        let oldest = self.age(now).saturating_sub(SLICES as u64 - 1);
        let counted = self.slices.iter().any(|slice| slice.age >= oldest && slice.well + slice.sick > 0);
        self.gate.state() == State::Flowing && self.in_a_row == 0 && !counted
    }

    fn block(&mut self, reason: &str, now: Instant, dice: f64) {
        let doublings = self.gate.blocks().min(16);
        let open = self.settings.open.saturating_mul(1 << doublings).min(self.settings.open_max);
        let spread = 0.8 + 0.4 * dice.clamp(0.0, 1.0);
        self.gate.block(reason, Some(open.mul_f64(spread)), now);
        self.count_anew();
    }

    /// Takes over that another daemon's probe was answered: what was counted here before says nothing any more.
    pub fn flows_elsewhere(&mut self) {
        self.gate.flow();
        self.count_anew();
    }

    fn count_anew(&mut self) {
        self.in_a_row = 0;
        self.slices = [Slice::default(); SLICES];
    }

    fn age(&self, now: Instant) -> u64 {
        let slice = (self.settings.window / SLICES as u32).max(Duration::from_millis(1));
        (now.saturating_duration_since(self.born).as_nanos() / slice.as_nanos()) as u64
    }

    fn count(&mut self, health: Health, now: Instant) {
        let age = self.age(now);
        let slice = &mut self.slices[age as usize % SLICES];
        if slice.age != age {
            *slice = Slice { age, ..Slice::default() };
        }
        match health {
            Health::Well => {
                slice.well += 1;
                self.in_a_row = 0;
            }
            Health::Sick => {
                slice.sick += 1;
                self.in_a_row += 1;
            }
        }
    }

    fn must_block(&self, now: Instant) -> bool {
        if self.in_a_row >= self.settings.failures_in_a_row {
            return true;
        }
        let oldest = self.age(now).saturating_sub(SLICES as u64 - 1);
        let (well, sick) = self
            .slices
            .iter()
            .filter(|slice| slice.age >= oldest)
            .fold((0_u32, 0_u32), |(well, sick), slice| (well + slice.well, sick + slice.sick));
        let calls = well + sick;
        self.in_a_row > 0
            && calls >= self.settings.calls_min
            && f64::from(sick) >= f64::from(calls) * self.settings.share
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> BreakerSettings {
        BreakerSettings {
            failures_in_a_row: 10,
            window: Duration::from_mins(1),
            calls_min: 10,
            share: 0.5,
            open: Duration::from_secs(15),
            open_max: Duration::from_mins(1),
            probe_lease: Duration::from_mins(1),
        }
    }

    fn blocked(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(settings(), now);
        for _ in 0..10 {
            breaker.report(Health::Sick, "sick", None, now, 0.5);
        }
        breaker
    }

    fn probe(breaker: &mut Breaker, now: Instant) -> Option<u64> {
        (breaker.peek(now) == Admission::Probe).then(|| breaker.gate_mut().probe(settings().probe_lease, now))
    }

    #[test]
    fn ten_failures_in_a_row_block_and_nine_do_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerSettings { calls_min: 1000, ..settings() }, now);
        for _ in 0..9 {
            breaker.report(Health::Sick, "sick", None, now, 0.5);
        }
        assert_eq!(breaker.peek(now), Admission::Flow);
        breaker.report(Health::Sick, "sick", None, now, 0.5);
        assert_eq!(breaker.peek(now), Admission::Blocked);
        assert_eq!(breaker.gate().state(), State::Blocked { until: Some(now + Duration::from_secs(15)) });
    }

    #[test]
    fn half_of_ten_calls_in_the_window_block_and_old_ones_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::new(settings(), now);
        for _ in 0..5 {
            breaker.report(Health::Well, "", None, now, 0.5);
            breaker.report(Health::Sick, "sick", None, now, 0.5);
        }
        assert_eq!(breaker.peek(now), Admission::Blocked);

        let mut breaker = Breaker::new(settings(), now);
        for _ in 0..5 {
            breaker.report(Health::Sick, "sick", None, now, 0.5);
        }
        let later = now + Duration::from_secs(70);
        for _ in 0..8 {
            breaker.report(Health::Well, "", None, later, 0.5);
        }
        breaker.report(Health::Sick, "sick", None, later, 0.5);
        breaker.report(Health::Sick, "sick", None, later, 0.5);
        assert_eq!(breaker.peek(later), Admission::Flow);
    }

    #[test]
    fn a_good_probe_opens_and_a_bad_one_doubles_the_wait_up_to_the_maximum() {
        let mut now = Instant::now();
        let mut breaker = blocked(now);
        for wait in [15, 30, 60, 60] {
            assert_eq!(
                breaker.gate().state(),
                State::Blocked { until: Some(now + Duration::from_secs(wait)) }
            );
            now += Duration::from_secs(wait);
            let number = probe(&mut breaker, now).expect("a probe is due");
            assert_eq!(breaker.peek(now), Admission::Blocked, "one probe at a time");
            breaker.report(Health::Sick, "sick", Some(number), now, 0.5);
        }
        now += Duration::from_mins(1);
        let number = probe(&mut breaker, now).expect("a probe is due");
        breaker.report(Health::Well, "", Some(number), now, 0.5);
        assert_eq!(breaker.peek(now), Admission::Flow);
    }

    #[test]
    fn a_probe_that_hangs_has_failed_at_the_end_of_its_lease_and_doubles_the_wait() {
        let mut now = Instant::now();
        let mut breaker = blocked(now);
        for wait in [15, 30, 60, 60] {
            assert_eq!(
                breaker.gate().state(),
                State::Blocked { until: Some(now + Duration::from_secs(wait)) }
            );
            now += Duration::from_secs(wait);
            probe(&mut breaker, now).expect("a probe is due");
            now += Duration::from_secs(59);
            assert!(!breaker.give_up(now, 0.5), "it has its lease");
            now += Duration::from_secs(1);
            assert_eq!(breaker.peek(now), Admission::Blocked, "not before it is counted");
            assert!(breaker.give_up(now, 0.5));
            assert!(!breaker.give_up(now, 0.5), "once");
        }
        now += Duration::from_mins(1);
        let number = probe(&mut breaker, now).expect("it is never wedged");
        breaker.report(Health::Well, "", Some(number), now, 0.5);
        assert_eq!(breaker.peek(now), Admission::Flow);
    }

    #[test]
    fn a_probe_that_was_given_up_may_say_that_all_is_well_until_something_else_happens() {
        let given_up = || {
            let now = Instant::now();
            let mut breaker = blocked(now);
            let hung = probe(&mut breaker, now + Duration::from_secs(15)).expect("a probe is due");
            let late = now + Duration::from_secs(75);
            assert!(breaker.give_up(late, 0.5));
            (breaker, hung, late)
        };
        let (mut breaker, hung, late) = given_up();
        breaker.report(Health::Sick, "timeout", Some(hung), late, 0.5);
        assert_eq!(
            (breaker.peek(late), breaker.gate().blocks()),
            (Admission::Blocked, 2),
            "it counted already"
        );
        breaker.report(Health::Well, "", None, late, 0.5);
        assert_eq!(breaker.peek(late), Admission::Blocked, "who set out before is not asked");
        breaker.report(Health::Well, "", Some(hung), late, 0.5);
        assert_eq!(breaker.peek(late), Admission::Flow, "slow is not unwell");

        let (mut breaker, hung, late) = given_up();
        breaker.gate_mut().blocked_elsewhere("by hand".to_owned(), None, 0);
        breaker.report(Health::Well, "", Some(hung), late, 0.5);
        assert_eq!(breaker.peek(late), Admission::Blocked, "a person's word stands");

        let (mut breaker, hung, late) = given_up();
        let next = late + Duration::from_secs(30);
        probe(&mut breaker, next).expect("a probe is due");
        breaker.report(Health::Well, "", Some(hung), next, 0.5);
        assert_eq!(breaker.peek(next), Admission::Blocked, "only the newest probe decides");
    }

    #[test]
    fn stragglers_do_not_move_a_blocked_breaker() {
        let now = Instant::now();
        let mut breaker = blocked(now);
        let state = breaker.gate().state();
        breaker.report(Health::Well, "", None, now, 0.5);
        breaker.report(Health::Sick, "sick", None, now, 0.5);
        assert_eq!(breaker.gate().state(), state);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Admit,
        Report { sick: bool, which: usize },
        GiveBack { which: usize },
        GiveUp,
        Pass(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            Just(Event::Admit),
            (any::<bool>(), 0_usize..8).prop_map(|(sick, which)| Event::Report { sick, which }),
            (0_usize..8).prop_map(|which| Event::GiveBack { which }),
            Just(Event::GiveUp),
            (0_u64..40).prop_map(Event::Pass),
        ];
        proptest::collection::vec(event, 0..200)
    }

    proptest! {
        #[test]
        fn the_breaker_never_admits_two_probes_within_a_lease(events in events()) {
            let mut now = Instant::now();
            let mut breaker = blocked(now);
            let mut out: Vec<Option<u64>> = vec![None; 8];
            let mut probe: Option<(u64, Instant)> = None;
            for event in events {
                match event {
                    Event::Pass(seconds) => now += Duration::from_secs(seconds),
                    Event::GiveUp => {
                        let before = breaker.gate().blocks();
                        if breaker.give_up(now, 0.5) {
                            let (_, since) = probe.take().expect("there was one");
                            prop_assert!(now >= since + settings().probe_lease);
                            prop_assert_eq!(breaker.gate().blocks(), before + 1);
                            prop_assert_eq!(breaker.peek(now), Admission::Blocked);
                        }
                    }
                    Event::Admit => if let Some(number) = self::probe(&mut breaker, now) {
                        if let Some((other, since)) = probe {
                            prop_assert!(now >= since + settings().probe_lease, "{other} and {number} are out");
                        }
                        probe = Some((number, now));
                        out.rotate_right(1);
                        out[0] = Some(number);
                    },
                    Event::Report { sick, which } => {
                        let number = out[which].take();
                        if number.is_some() && number == probe.map(|(number, _)| number) {
                            probe = None;
                        }
                        breaker.report(if sick { Health::Sick } else { Health::Well }, "", number, now, 0.5);
                    }
                    Event::GiveBack { which } => if let Some(number) = out[which].take() {
                        if Some(number) == probe.map(|(number, _)| number) {
                            probe = None;
                        }
                        breaker.gate_mut().give_back(number, now);
                    },
                }
            }
        }
    }
}
