//! The commands.

pub mod stand_in;
