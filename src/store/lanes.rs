//! Who may be served next: the lanes that a scan found, and how a claim's slots are dealt to them.
//!
//! A lane is a (queue, model, batch) at one priority. Within a queue a higher priority goes first;
//! lanes of equal rank take turns. Pure: the stores scan and take, this decides how many from where.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Blocked, LaneAsked, Rooms, Wanted};

/// Streams, and lanes in a stream, that one scan looks at. What lies beyond comes with the next scan.
pub(crate) const LANES_MAX: usize = 64;
/// Scans that one claim may need where lanes are many and short.
pub(crate) const SCANS_MAX: usize = 8;
/// How long a scan is believed: a pause or a more urgent job is seen within this time.
const FRESH: Duration = Duration::from_millis(250);
/// A scan that takes longer is costly: what died at the head of a lane stays in a Postgres index while anybody
/// holds an older snapshot (a dump, a long report), and a scan passes all of it.
const COSTLY: Duration = Duration::from_millis(200);
/// It is not made again before so many times as long have passed, while the lanes that it found have enough.
const WORTH: u32 = 10;
/// But after so long it is made in any case: only a scan sees new lanes, and jobs that came back to old ones.
const SCAN_EVERY_MAX: Duration = Duration::from_secs(30);

/// A lane as a scan found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lane {
    /// `job_state.queue`.
    pub(crate) queue: String,
    /// `job_state.model`: '' is the queue's or the default.
    pub(crate) model: String,
    /// `job_state.priority`.
    pub(crate) priority: i32,
    /// `job_state.batch`: '' is none.
    pub(crate) batch: String,
    /// `queues.model`.
    pub(crate) queue_model: Option<String>,
    /// `queues.max_running`.
    pub(crate) limit: Option<i32>,
    /// Pending jobs, counted up to the scan's cap.
    pub(crate) count: usize,
    /// Jobs up to this id were taken already since the scan.
    pub(crate) after: i64,
}

/// A lane's share of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Take {
    /// Index into [`Lanes::all`].
    pub(crate) lane: usize,
    /// How many jobs.
    pub(crate) jobs: usize,
    /// Among how many of the oldest they are chosen: a probe is made with a small one.
    pub(crate) among: usize,
}

/// A probe is the first job of no more than so many bytes among so many, else the first.
pub(crate) const PROBE_BYTES: i64 = 32 * 1024;
const PROBE_AMONG: usize = 100;

/// Where the next scan goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The first (queue, model) to look at.
    pub(crate) stream: (String, String),
    /// In a stream with more lanes than a scan reads, at this priority: the first batch to look at.
    pub(crate) batches: HashMap<(String, String), (i32, String)>,
}

/// The lanes as last seen.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    all: Vec<Lane>,
    cap: usize,
    whole: bool,
    seen: Option<Instant>,
    scanned: Option<Instant>,
    took: Duration,
    filter: Option<Filter>,
    turn: usize,
    /// Where the next scan goes on.
    pub(crate) cursor: Cursor,
}

/// What a scan leaves out; a scan made with another filter is not used again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    queues: Vec<String>,
    default_model: String,
    blocked: Blocked,
}

impl Filter {
    fn of(wanted: &Wanted) -> Self {
        Self {
            queues: wanted.queues.clone(),
            default_model: wanted.default_model.clone(),
            blocked: wanted.blocked.clone(),
        }
    }
}

/// What a scan brought: the streams it looked at, and their lanes, in the index's order.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// How many (queue, model) were looked at, also those passed by.
    pub(crate) streams: usize,
    /// The last of them.
    pub(crate) last: (String, String),
    /// The lanes of those that are not passed by, stopped batches among them.
    pub(crate) lanes: Vec<Lane>,
    /// Lanes read of one stream at most.
    pub(crate) lanes_max: usize,
    /// Pending jobs counted at most.
    pub(crate) cap: usize,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Scan {
    /// Notes a stream, once.
    pub(crate) fn add(&mut self, queue: String, model: String) {
        if self.streams == 0 || self.last != (queue.clone(), model.clone()) {
            self.streams += 1;
            self.last = (queue, model);
        }
    }
}

impl Lanes {
    /// Whether what was last seen may be used for this claim.
    pub(crate) fn usable(&self, wanted: &Wanted) -> bool {
        self.seen.is_some_and(|seen| seen.elapsed() < FRESH) && self.filter == Some(Filter::of(wanted))
    }

    /// Returns the lanes where they are to be counted before another scan is made, which would cost much.
    pub(crate) fn known(&self, wanted: &Wanted) -> Option<&[Lane]> {
        let again = (self.took * WORTH).min(SCAN_EVERY_MAX);
        let early = self.scanned.is_some_and(|scanned| scanned.elapsed() < again);
        (self.took > COSTLY && early && self.filter == Some(Filter::of(wanted))).then_some(&self.all)
    }

    /// How many jobs are counted at most in each lane.
    pub(crate) fn cap(&self) -> usize {
        self.cap
    }

    /// Takes over what a count of the known lanes brought, in their order, where it is enough for this claim;
    /// returns whether it is. What else there may be comes with the next scan.
    pub(crate) fn recount(&mut self, lanes: Vec<Lane>, wanted: &Wanted) -> bool {
        // What a limit or a room holds back may not be claimable at all.
        let rooms = &wanted.rooms;
        let free = |lane: &Lane| match (lane.limit, lane.batch.as_str()) {
            (Some(_), _) => 0,
            (None, "") => lane.count,
            (None, _) => {
                let room = rooms.batches.get(&(lane.queue.clone(), lane.batch.clone())).copied();
                lane.count.min(room.or(rooms.batch).unwrap_or(usize::MAX))
            }
        };
        let enough = rooms.models.is_empty()
            && rooms.keys.is_empty()
            && lanes.iter().map(free).sum::<usize>() >= wanted.slots;
        if enough {
            self.all = lanes;
            self.whole = true;
            self.seen = Some(Instant::now());
        }
        enough
    }

    /// Whether the last scan saw everything that there is.
    pub(crate) fn whole(&self) -> bool {
        self.whole
    }

    /// Whether what was last seen has jobs left.
    pub(crate) fn has_jobs(&self) -> bool {
        self.all.iter().any(|lane| lane.count > 0)
    }

    /// Makes the next claim look again.
    pub(crate) fn forget(&mut self) {
        self.seen = None;
    }

    /// Returns a lane.
    pub(crate) fn lane(&self, take: Take) -> &Lane {
        &self.all[take.lane]
    }

    /// Takes over what a scan found, and moves the cursor.
    pub(crate) fn learn(&mut self, scan: Scan, wanted: &Wanted) {
        let at_start = self.cursor.stream == (String::new(), String::new());
        let more_streams = scan.streams >= LANES_MAX;
        self.cursor.stream = if more_streams { scan.last.clone() } else { (String::new(), String::new()) };
        let cut = self.move_batches(&scan);
        self.whole = at_start && !more_streams && !cut;
        self.cap = scan.cap;
        self.seen = Some(Instant::now());
        self.scanned = self.seen;
        self.took = scan.took;
        self.filter = Some(Filter::of(wanted));
        let stopped = &wanted.blocked.batches;
        self.all = scan.lanes;
        self.all.retain(|lane| {
            !stopped.iter().any(|(queue, batch)| *queue == lane.queue && *batch == lane.batch)
        });
    }

    /// A stream whose highest priority has more lanes than a scan reads goes on where it was cut;
    /// returns whether there is one that was not seen in full.
    fn move_batches(&mut self, scan: &Scan) -> bool {
        let mut cut = false;
        let mut batches = HashMap::new();
        for stream in scan.lanes.chunk_by(|a, b| a.queue == b.queue && a.model == b.model) {
            let (first, last) = (&stream[0], &stream[stream.len() - 1]);
            let key = (first.queue.clone(), first.model.clone());
            cut |= self.cursor.batches.contains_key(&key);
            if stream.len() >= scan.lanes_max {
                cut = true;
                if last.priority == first.priority {
                    batches.insert(key, (last.priority, last.batch.clone()));
                }
            }
        }
        self.cursor.batches = batches;
        cut
    }

    /// Deals slots: in each queue the highest priority first, equal ranks in turns, and nowhere more
    /// than the `rooms` that are left of this claim.
    pub(crate) fn deal(&mut self, slots: usize, wanted: &Wanted, rooms: &mut Rooms) -> Vec<Take> {
        let mut left: Vec<usize> = self.all.iter().map(|lane| self.depth(lane)).collect();
        let mut given = vec![0_usize; self.all.len()];
        let mut order: Vec<usize> = Vec::new();
        let mut slots = slots;
        while slots > 0 {
            let tier = self.tier(&left);
            if tier.is_empty() {
                break;
            }
            // Lanes may share a room: the first must not take all of it.
            let shares: Vec<usize> = tier
                .iter()
                .map(|&at| {
                    let room = rooms.left(&asked(&self.all[at], wanted));
                    (room.min(slots) / tier.len()).max(1)
                })
                .collect();
            let start = self.turn % tier.len();
            for place in (start..tier.len()).chain(0..start) {
                let at = tier[place];
                let lane = asked(&self.all[at], wanted);
                let room = rooms.left(&lane);
                let jobs = shares[place].min(room).min(left[at]).min(slots);
                rooms.take(&lane, jobs);
                left[at] = if jobs == room { 0 } else { left[at] - jobs };
                if jobs == 0 {
                    continue;
                }
                if given[at] == 0 {
                    order.push(at);
                }
                given[at] += jobs;
                slots -= jobs;
                // Whoever comes behind the last that got something is next.
                self.turn = place + 1;
            }
        }
        let probed = |lane: usize| rooms.is_probed(&asked(&self.all[lane], wanted));
        let take = |lane| {
            let jobs = given[lane];
            Take { lane, jobs, among: if probed(lane) { jobs.max(PROBE_AMONG) } else { jobs } }
        };
        order.into_iter().map(take).collect()
    }

    /// Notes what a lane gave: how many, and the highest id among them.
    pub(crate) fn took(&mut self, take: Take, jobs: usize, last: i64) {
        let deep = self.all[take.lane].count >= self.cap;
        let lane = &mut self.all[take.lane];
        lane.after = lane.after.max(last);
        if jobs < take.jobs {
            lane.count = 0;
        } else if !deep {
            lane.count = lane.count.saturating_sub(jobs);
        }
    }

    fn depth(&self, lane: &Lane) -> usize {
        if lane.count >= self.cap { usize::MAX } else { lane.count }
    }

    /// The lanes that are next: of each queue those at its highest priority that has jobs left.
    fn tier(&self, left: &[usize]) -> Vec<usize> {
        let mut top: HashMap<&str, i32> = HashMap::new();
        for (lane, _) in self.all.iter().zip(left).filter(|(_, left)| **left > 0) {
            let best = top.entry(&lane.queue).or_insert(lane.priority);
            *best = (*best).max(lane.priority);
        }
        (0..self.all.len())
            .filter(|&at| {
                left[at] > 0 && top.get(self.all[at].queue.as_str()) == Some(&self.all[at].priority)
            })
            .collect()
    }
}

/// Returns what a lane's jobs ask for. Their model is their own, else the queue's, else the default.
fn asked(lane: &Lane, wanted: &Wanted) -> LaneAsked {
    let model = if lane.model.is_empty() {
        lane.queue_model.as_ref().unwrap_or(&wanted.default_model)
    } else {
        &lane.model
    };
    LaneAsked {
        model: (wanted.profile(&lane.queue).to_owned(), model.clone()),
        batch: (lane.queue.clone(), lane.batch.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::job::WorkerId;

    fn wanted() -> Wanted {
        Wanted {
            worker: WorkerId(1),
            slots: 8,
            bytes_max: 1 << 20,
            suspect: true,
            queues: Vec::new(),
            default_model: "m".to_owned(),
            profiles: BTreeMap::new(),
            blocked: Blocked::default(),
            rooms: Rooms::default(),
        }
    }

    fn lane(queue: &str, model: &str, priority: i32, batch: &str, count: usize) -> Lane {
        Lane {
            queue: queue.to_owned(),
            model: model.to_owned(),
            priority,
            batch: batch.to_owned(),
            queue_model: None,
            limit: None,
            count,
            after: 0,
        }
    }

    fn scan(lanes: Vec<Lane>) -> Scan {
        let last = lanes.last().map(|lane| (lane.queue.clone(), lane.model.clone())).unwrap_or_default();
        Scan { streams: 1, last, lanes, lanes_max: 4, cap: 100, took: Duration::ZERO }
    }

    fn dealt(lanes: &mut Lanes, slots: usize, wanted: &Wanted) -> Vec<(String, i32, usize)> {
        let takes = lanes.deal(slots, wanted, &mut wanted.rooms.clone());
        takes
            .iter()
            .map(|&take| (lanes.lane(take).batch.clone(), lanes.lane(take).priority, take.jobs))
            .collect()
    }

    #[test]
    fn a_higher_priority_is_emptied_before_a_lower_one_gets_a_slot() {
        let mut lanes = Lanes::default();
        lanes.learn(scan(vec![lane("q", "", 5, "a", 3), lane("q", "", 0, "b", 100)]), &wanted());
        assert_eq!(dealt(&mut lanes, 8, &wanted()), [("a".to_owned(), 5, 3), ("b".to_owned(), 0, 5)]);
    }

    #[test]
    fn equal_lanes_share_and_what_a_short_one_leaves_goes_to_the_others() {
        let mut lanes = Lanes::default();
        lanes.learn(scan(vec![lane("q", "", 0, "big", 100), lane("q", "", 0, "small", 2)]), &wanted());
        let mut shares = dealt(&mut lanes, 8, &wanted());
        shares.sort();
        assert_eq!(shares, [("big".to_owned(), 0, 6), ("small".to_owned(), 0, 2)]);
    }

    #[test]
    fn single_slots_go_round() {
        let mut lanes = Lanes::default();
        let three = vec![lane("q", "", 0, "a", 9), lane("q", "", 0, "b", 9), lane("r", "", 0, "c", 9)];
        lanes.learn(scan(three), &wanted());
        let turns: Vec<String> = (0..6).map(|_| dealt(&mut lanes, 1, &wanted()).remove(0).0).collect();
        assert_eq!(turns, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn a_probed_model_gives_one_job_over_all_its_lanes() {
        let mut wanted = wanted();
        wanted.rooms.models.insert((String::new(), "m".to_owned()), 1);
        let mut lanes = Lanes::default();
        lanes.learn(scan(vec![lane("q", "", 0, "a", 9), lane("r", "m", 0, "b", 9)]), &wanted);
        let jobs: usize = dealt(&mut lanes, 8, &wanted).iter().map(|(.., jobs)| jobs).sum();
        assert_eq!(jobs, 1);
    }

    #[test]
    fn a_batch_gives_no_more_than_its_room_and_the_others_get_what_it_leaves() {
        let mut wanted = wanted();
        wanted.rooms.batches.insert(("q".to_owned(), "big".to_owned()), 2);
        let mut lanes = Lanes::default();
        lanes.learn(scan(vec![lane("q", "", 0, "big", 100), lane("q", "", 0, "other", 100)]), &wanted);
        let mut shares = dealt(&mut lanes, 8, &wanted);
        shares.sort();
        assert_eq!(shares, [("big".to_owned(), 0, 2), ("other".to_owned(), 0, 6)]);
    }

    #[test]
    fn lanes_that_share_a_room_share_it_evenly_and_a_single_place_goes_round() {
        let mut wanted = wanted();
        wanted.rooms.models.insert((String::new(), "m".to_owned()), 4);
        let mut lanes = Lanes::default();
        lanes.learn(scan(vec![lane("q", "", 0, "a", 9), lane("r", "", 0, "b", 9)]), &wanted);
        let mut shares = dealt(&mut lanes, 8, &wanted);
        shares.sort();
        assert_eq!(shares, [("a".to_owned(), 0, 2), ("b".to_owned(), 0, 2)]);
        wanted.rooms.models.insert((String::new(), "m".to_owned()), 1);
        let turns: Vec<String> = (0..4).map(|_| dealt(&mut lanes, 8, &wanted).remove(0).0).collect();
        assert_eq!(turns, ["a", "b", "a", "b"]);
    }

    #[test]
    fn a_scan_that_took_long_is_followed_by_counts_of_what_it_found_while_that_is_enough() {
        let mut lanes = Lanes::default();
        let learnt = |lanes: &mut Lanes, took| {
            lanes.learn(Scan { took, ..scan(vec![lane("q", "", 0, "a", 30)]) }, &wanted());
        };
        learnt(&mut lanes, COSTLY);
        assert_eq!(lanes.known(&wanted()), None, "another one costs little");
        learnt(&mut lanes, Duration::from_mins(1));
        assert_eq!(dealt(&mut lanes, 8, &wanted()), [("a".to_owned(), 0, 8)]);
        lanes.forget();
        let known = lanes.known(&wanted()).expect("another one would cost too much").to_vec();
        let counted = |count| vec![Lane { count, ..known[0].clone() }];
        assert!(!lanes.recount(counted(7), &wanted()) && !lanes.usable(&wanted()), "eight are wanted");
        assert!(lanes.recount(counted(8), &wanted()) && lanes.usable(&wanted()));
        let other = Wanted { queues: vec!["r".to_owned()], ..wanted() };
        assert_eq!(lanes.known(&other), None, "it may be about other lanes");
    }

    #[test]
    fn a_stream_with_too_many_lanes_goes_on_where_it_was_cut_and_then_from_the_start() {
        let mut lanes = Lanes::default();
        let many = |from: usize| (from..from + 4).map(|n| lane("q", "", 0, &format!("b{n}"), 1)).collect();
        lanes.learn(scan(many(0)), &wanted());
        let key = ("q".to_owned(), String::new());
        assert_eq!(lanes.cursor.batches.get(&key), Some(&(0, "b3".to_owned())));
        assert!(!lanes.whole());
        lanes.learn(scan(vec![lane("q", "", 0, "b3", 1)]), &wanted());
        assert!(lanes.cursor.batches.is_empty() && !lanes.whole());
        lanes.learn(scan(vec![lane("q", "", 0, "b0", 1)]), &wanted());
        assert!(lanes.whole());
    }
}
