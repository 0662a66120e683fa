//! The whole behaviour: the real binary against the stand-in, on both databases.

mod caching;
mod continuing;
mod conversation;
mod ending;
mod failing;
mod gates;
pub mod harness;
mod living;
mod models;
mod profiles;
mod retention;
mod secrets;
mod speaking;
mod spool;
