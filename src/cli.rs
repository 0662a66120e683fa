//! The commands.

pub mod demo;
pub mod stand_in;
