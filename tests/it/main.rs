//! All integration tests, in one binary.

mod stand_in;
