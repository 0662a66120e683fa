//! The rules, without the world: no async, no database, no HTTP, no clock, no environment.
//!
//! A job is read ([`job`]), sent ([`body`]), talked about ([`talk`], with [`reply`], [`stop`], [`seam`],
//! [`schema`] and [`tool`]), and
//! ends ([`outcome`]); what a failed call means stands in [`retry`], and whether a model may be
//! asked at all in [`breaker`] and [`gate`], how fast in [`pace`]; what is known of models in [`model`], and
//! whether an input fits into one in [`context`]; how long a done job keeps what in [`retention`]. Everything here is a function of its arguments.

pub mod body;
pub mod breaker;
pub mod context;
pub mod gate;
pub mod job;
pub mod ledger;
pub mod model;
pub mod outcome;
pub mod pace;
pub mod reply;
pub mod retention;
pub mod retry;
pub mod schema;
pub mod seam;
pub mod stop;
pub mod talk;
pub mod tool;
