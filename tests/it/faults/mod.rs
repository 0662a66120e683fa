//! What a machine does to a daemon, and what the daemon makes of it.

mod clock;
mod process;
mod schema;
mod sqlite;
