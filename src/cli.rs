//! The commands.

pub mod config;
pub mod demo;
pub mod doctor;
pub mod stand_in;
