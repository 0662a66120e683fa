//! Processes that end in the middle: nothing is lost, nothing is paid twice without being told.

mod bite;
mod interval;
mod invariants;
mod kill;
mod points;
mod soak;
mod storm;
mod taken;
mod work;
