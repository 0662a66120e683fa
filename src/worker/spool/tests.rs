//! Files, locks and whose lines they are.

use super::*;
use crate::domain::job::{JobId, Lease, WorkerId};
use crate::domain::ledger::{Back, Release};
use crate::worker::spool::line::Write;

fn line(database: &str, job: i64) -> Line {
    let lease = Lease { job: JobId(job), claim: 1, run: 1 };
    let release = Release { lease, back: Back::Now, failures: 0, deferrals: 0, reason: None, call: None };
    Line::new(database, WorkerId(1), Write::Release(release))
}

fn spool(dir: &Path, database: &str) -> Spool {
    Spool::new(Some(dir.join("state")), database)
}

/// A spool as a process leaves it that ends in the middle.
fn leave(dir: &Path, database: &str, jobs: &[i64]) -> PathBuf {
    let lines: Vec<Line> = jobs.iter().map(|job| line(database, *job)).collect();
    spool(dir, database).keep(&lines).unwrap()
}

fn jobs(left: &[Left]) -> Vec<i64> {
    let leases = left.iter().flat_map(|left| &left.lines).map(|line| match &line.write {
        Write::Release(release) => release.lease.job.0,
        _ => 0,
    });
    leases.collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn nothing_is_made_before_it_is_needed_and_then_for_the_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = spool(dir.path(), "d");
    assert!(spool.left().is_empty());
    assert!(!dir.path().join("state").exists());
    let path = spool.keep(&[line("d", 1)]).unwrap();
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let aside = spool.set_aside(&line("d", 2)).unwrap();
    assert_eq!(mode(&aside), 0o600);
}

#[test]
fn what_a_process_left_is_found_by_the_next_and_gone_when_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    leave(dir.path(), "d", &[1, 2]);
    let mut next = spool(dir.path(), "d");
    let mut left = next.left();
    assert_eq!(jobs(&left), [1, 2]);
    // Its own lines go elsewhere meanwhile, and are nobody else's while it lives.
    let own = next.keep(&[line("d", 3)]).unwrap();
    assert_ne!(own, left[0].path);
    assert!(spool(dir.path(), "d").left().is_empty(), "both files are locked");
    left.remove(0).clear().unwrap();
    drop(next);
    assert_eq!(jobs(&spool(dir.path(), "d").left()), [3]);
}

#[test]
fn a_cleared_file_is_empty_and_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = spool(dir.path(), "d");
    let path = spool.keep(&[line("d", 1)]).unwrap();
    spool.clear().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(spool.keep(&[line("d", 2)]).unwrap(), path);
    drop(spool);
    assert_eq!(jobs(&self::spool(dir.path(), "d").left()), [2]);
}

#[test]
fn two_processes_have_a_file_each() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut two) = (spool(dir.path(), "d"), spool(dir.path(), "d"));
    let names = [one.keep(&[line("d", 1)]).unwrap(), two.keep(&[line("d", 2)]).unwrap()];
    let names = names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    assert_eq!(names, ["spool.jsonl", "spool-2.jsonl"]);
}

#[test]
fn lines_of_another_database_are_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = leave(dir.path(), "other", &[1]);
    let before = fs::read(&path).unwrap();
    let mut spool = spool(dir.path(), "d");
    assert!(spool.left().is_empty());
    assert_ne!(spool.keep(&[line("d", 2)]).unwrap(), path);
    // Where somebody put files together, ours are taken up and the others stay.
    fs::write(&path, [before.clone(), line("d", 3).to_bytes()].concat()).unwrap();
    let mut left = self::spool(dir.path(), "d").left();
    assert_eq!(jobs(&left), [3]);
    left.remove(0).clear().unwrap();
    assert!(fs::read(&path).unwrap().starts_with(&before));
}

#[test]
fn what_cannot_be_read_is_set_aside_and_the_rest_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = leave(dir.path(), "d", &[1, 2, 3]);
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len() / 3;
    bytes[length + 40] ^= 1;
    bytes.truncate(bytes.len() - 10);
    fs::write(&path, &bytes).unwrap();
    let mut left = spool(dir.path(), "d").left();
    assert_eq!(jobs(&left), [1]);
    left.remove(0).clear().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let aside = path.with_file_name("spool.jsonl.broken");
    let kept = fs::read(&aside).unwrap();
    assert_eq!(kept, [&bytes[length..], b"\n"].concat());
    assert_eq!(mode(&aside), 0o600);
}

#[test]
fn what_is_no_file_is_passed_by() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir_all(state.join("spool.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/null", state.join("spool-2.jsonl")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("no/where"), state.join("spool-3.jsonl")).unwrap();
    let mut spool = spool(dir.path(), "d");
    assert!(spool.left().is_empty());
    assert_eq!(spool.keep(&[line("d", 1)]).unwrap(), state.join("spool-4.jsonl"));
    drop(spool);
    assert_eq!(jobs(&self::spool(dir.path(), "d").left()), [1]);
}

#[test]
fn a_file_that_somebody_deletes_is_made_anew_with_all_that_was_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = spool(dir.path(), "d");
    let path = spool.keep(&[line("d", 1)]).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(spool.keep(&[line("d", 2)]).unwrap(), path);
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    spool.keep(&[line("d", 3)]).unwrap();
    drop(spool);
    assert_eq!(jobs(&self::spool(dir.path(), "d").left()), [1, 2, 3]);
}

#[test]
fn where_no_folder_can_be_made_nothing_is_kept_and_the_reason_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state"), "a file, not a folder").unwrap();
    assert!(spool(dir.path(), "d").keep(&[line("d", 1)]).is_err());
    let err = Spool::new(None, "d").keep(&[line("d", 1)]).unwrap_err();
    assert!(err.to_string().contains("worker.state_dir"), "{err}");
}

#[test]
fn lines_of_erased_jobs_are_blanked_and_the_others_are_found_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let file = leave(dir.path(), "d", &[1, 2, 3]);
    let state = dir.path().join("state");
    let gone = [JobId(1), JobId(3)].into();
    assert_eq!(erase::jobs(&state, "d").unwrap(), [JobId(1), JobId(2), JobId(3)].into());
    let length = fs::metadata(&file).unwrap().len();
    let blanked = erase::erase(&state, "d", &gone).unwrap();
    assert_eq!(blanked, erase::Blanked { lines: 2, ..Default::default() });
    assert_eq!(fs::metadata(&file).unwrap().len(), length, "it keeps its length");
    assert_eq!(erase::jobs(&state, "d").unwrap(), [JobId(2)].into());
    let mut left = spool(dir.path(), "d").left();
    assert_eq!(jobs(&left), [2]);
    left.remove(0).clear().unwrap();
    assert!(!state.join("spool.jsonl.broken").exists(), "a blank line is no broken one");
}

#[test]
fn a_file_of_erased_jobs_alone_is_empty_then_and_may_be_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = leave(dir.path(), "d", &[1, 2]);
    let state = dir.path().join("state");
    assert_eq!(erase::erase(&state, "d", &[JobId(1), JobId(2)].into()).unwrap().lines, 2);
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    assert_eq!(spool(dir.path(), "d").keep(&[line("d", 3)]).unwrap(), file);
}

#[test]
fn what_is_not_ours_to_blank_is_left_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut living = spool(dir.path(), "d");
    let own = living.keep(&[line("d", 1), line("d", 2)]).unwrap();
    let other = leave(dir.path(), "elsewhere", &[1]);
    fs::write(state.join("spool-9.jsonl"), "nonsense\n").unwrap();
    fs::write(state.join("spool.jsonl.broken"), "half a li").unwrap();
    let before = (fs::read(&own).unwrap(), fs::read(&other).unwrap());
    let blanked = erase::erase(&state, "d", &[JobId(1)].into()).unwrap();
    assert_eq!((blanked.lines, blanked.held), (0, vec![(own.clone(), 1)]));
    assert_eq!(blanked.unreadable, [state.join("spool-9.jsonl"), state.join("spool.jsonl.broken")]);
    assert_eq!((fs::read(&own).unwrap(), fs::read(&other).unwrap()), before);
    assert!(erase::jobs(&dir.path().join("absent"), "d").unwrap().is_empty());
}
