//! Which of the pending writes go to the database next: batches of one kind, halves of a batch
//! that was refused, and what has to go alone.

use std::collections::VecDeque;

use super::entry::Kind;

/// Most jobs one statement finishes.
const BATCH_MAX: usize = 256;
/// So many bytes of answers make a batch full: one statement must end within the time of an operation,
/// else the same batch would go again for ever, and must not take the memory of all answers at once.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many statements of what goes alone are under way at most: they come from jobs that wait for
/// nothing else, and may not take all connections.
const ALONE_MAX: usize = 4;

/// Numbers a pending write, in the order of arrival.
pub(super) type Number = u64;

/// The writes of one kind that wait.
#[derive(Debug, Default)]
struct Lane {
    /// Groups that go as they are.
    groups: VecDeque<Vec<Number>>,
    ready: VecDeque<Number>,
    writing: usize,
    /// Whether the last that went was of `groups`: many that go alone must not hold up the batches.
    was_group: bool,
}

/// All that waits for the database.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: [Lane; Kind::ALL.len()],
    /// The lane that is looked at first: the one after the last that was served.
    turn: usize,
}

impl Lanes {
    /// Takes in a write that may go with others of its kind.
    pub(super) fn push(&mut self, kind: Kind, number: Number) {
        self.lanes[kind.index()].ready.push_back(number);
    }

    /// Takes in writes that go by themselves.
    pub(super) fn push_group(&mut self, kind: Kind, group: Vec<Number>) {
        self.lanes[kind.index()].groups.push_back(group);
    }

    /// Notes that the answer to a group is here.
    pub(super) fn written(&mut self, kind: Kind) {
        let lane = &mut self.lanes[kind.index()];
        lane.writing = lane.writing.saturating_sub(1);
    }

    /// Puts a group back that the database could not take: later it may go with others again.
    pub(super) fn back(&mut self, kind: Kind, group: Vec<Number>) {
        for number in group.into_iter().rev() {
            self.lanes[kind.index()].ready.push_front(number);
        }
    }

    /// Returns the next group. `alike`: whether two may go in one statement; `bytes`: how big one is.
    pub(super) fn next(
        &mut self,
        alike: impl Fn(Number, Number) -> bool,
        bytes: impl Fn(Number) -> usize,
    ) -> Option<(Kind, Vec<Number>)> {
        for step in 0..Kind::ALL.len() {
            let index = (self.turn + step) % Kind::ALL.len();
            let kind = Kind::ALL[index];
            if let Some(group) = self.lanes[index].next(kind, &alike, &bytes) {
                self.turn = index + 1;
                return Some((kind, group));
            }
        }
        None
    }
}

impl Lane {
    fn next(
        &mut self,
        kind: Kind,
        alike: impl Fn(Number, Number) -> bool,
        bytes: impl Fn(Number) -> usize,
    ) -> Option<Vec<Number>> {
        let (at_once, size) = match kind {
            Kind::Settle | Kind::Release => (1, BATCH_MAX),
            Kind::Alone => (ALONE_MAX, 1),
        };
        if self.writing >= at_once {
            return None;
        }
        let group = if self.groups.is_empty() || (self.was_group && !self.ready.is_empty()) {
            self.was_group = false;
            let first = *self.ready.front()?;
            let mut room = BYTES_MAX;
            let fits = |number: &&Number| {
                let left = room.checked_sub(bytes(**number));
                room = left.unwrap_or(0);
                alike(first, **number) && (left.is_some() || **number == first)
            };
            let many = self.ready.iter().take(size).take_while(fits).count();
            self.ready.drain(..many).collect()
        } else {
            self.was_group = true;
            self.groups.pop_front()?
        };
        self.writing += 1;
        Some(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_full_at_so_many_bytes_and_what_is_bigger_goes_alone() {
        let mut lanes = Lanes::default();
        (0..7).for_each(|number| lanes.push(Kind::Settle, number));
        let bytes = |number| if number == 3 { 2 * BYTES_MAX } else { BYTES_MAX / 2 };
        let mut groups = Vec::new();
        while let Some((kind, group)) = lanes.next(|_, _| true, bytes) {
            lanes.written(kind);
            groups.push(group);
        }
        assert_eq!(groups, [vec![0, 1], vec![2], vec![3], vec![4, 5], vec![6]]);
    }
}
