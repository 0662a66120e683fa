//! The whole behaviour: the real binary against the stand-in, on both databases.

mod continuing;
mod ending;
mod failing;
pub mod harness;
mod living;
mod speaking;
