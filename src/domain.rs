//! The rules, without the world: no async, no database, no HTTP, no clock, no environment.
//!
//! A job is read ([`job`]), sent ([`body`]), talked about ([`talk`], with [`reply`], [`stop`] and [`seam`]), and
//! ends ([`outcome`]); what a failed call means stands in [`retry`], and whether a model may be
//! asked at all in [`breaker`] and [`gate`], how fast in [`pace`]. Everything here is a function of its
//! arguments.

pub mod body;
pub mod breaker;
pub mod gate;
pub mod job;
pub mod ledger;
pub mod outcome;
pub mod pace;
pub mod reply;
pub mod retry;
pub mod seam;
pub mod stop;
pub mod talk;
pub mod tool;
