//! Watches over one call: its time limits and the hand that may hang up.
//!
//! One timer a call, set to the nearest limit and moved only when it fires: thousands of streams that
//! each bring many chunks cost no timer work.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFuture;

use crate::domain::outcome::{Failure, Lost};

/// Longer than any process lives: a limit so large that no [`Instant`] can hold it.
const FOREVER: Duration = Duration::from_hours(30 * 365 * 24);

/// The time limits of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From the sending to the first event.
    pub(super) first_event: Duration,
    /// Between two bytes, from the first event on.
    pub(super) idle: Duration,
    /// From the sending to the end.
    pub(super) total: Duration,
}

impl Limits {
    /// Returns a timer that fires at the first limit of a call sent at `sent`.
    pub(super) fn timer(self, sent: Instant) -> Sleep {
        tokio::time::sleep_until(later(sent, self.total.min(self.first_event)))
    }
}

/// The watch over one call.
pub(super) struct Watch<'a, 't> {
    stop: Pin<&'a mut WaitForCancellationFuture<'t>>,
    timer: Pin<&'a mut Sleep>,
    limits: Limits,
    total_at: Instant,
    /// `None` once the first event has come.
    first_event_at: Option<Instant>,
    last_byte: Instant,
}

impl<'a, 't> Watch<'a, 't> {
    /// Starts the watch over a call sent at `sent`; `timer` is a [`Limits::timer`].
    pub(super) fn new(
        limits: Limits,
        sent: Instant,
        stop: Pin<&'a mut WaitForCancellationFuture<'t>>,
        timer: Pin<&'a mut Sleep>,
    ) -> Self {
        let (total_at, first) = (later(sent, limits.total), later(sent, limits.first_event));
        Self { stop, timer, limits, total_at, first_event_at: Some(first), last_byte: sent }
    }

    /// Awaits `work` for as long as the limits and the hand allow.
    pub(super) async fn over<F: Future>(&mut self, work: F) -> Result<F::Output, Failure> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.stop.as_mut() => return Err(Failure::Stopped),
                done = &mut work => return Ok(done),
                () = self.timer.as_mut() => self.fired()?,
            }
        }
    }

    /// Notes that bytes came.
    pub(super) fn byte_came(&mut self) {
        self.last_byte = Instant::now();
    }

    /// Notes that the first event came: the idle limit holds from here.
    pub(super) fn first_event_came(&mut self) {
        if self.first_event_at.take().is_some() && self.limit() < self.timer.deadline() {
            let limit = self.limit();
            self.timer.as_mut().reset(limit);
        }
    }

    fn limit(&self) -> Instant {
        let next = self.first_event_at.unwrap_or_else(|| later(self.last_byte, self.limits.idle));
        next.min(self.total_at)
    }

    /// The timer fired: tells which limit passed, or sets it anew where bytes have come since.
    fn fired(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let limit = self.limit();
        if now < limit {
            self.timer.as_mut().reset(limit);
            return Ok(());
        }
        let (which, message) = if now >= self.total_at {
            (Lost::Total, format!("the call did not end within {:?} (timeout_seconds)", self.limits.total))
        } else if self.first_event_at.is_some() {
            let limit = self.limits.first_event;
            (Lost::FirstEvent, format!("no event came within {limit:?} (api.first_event_seconds)"))
        } else {
            (Lost::Idle, format!("no byte came for {:?} (api.idle_seconds)", self.limits.idle))
        };
        Err(Failure::Lost(which, message))
    }
}

fn later(from: Instant, by: Duration) -> Instant {
    from.checked_add(by.min(FOREVER)).unwrap_or(from)
}
