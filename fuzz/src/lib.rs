//! What the fuzz targets hold: for any bytes at all, nothing panics, and the laws written here are kept.
//!
//! Each target is a function of bytes. Inputs of several parts are cut at lines that hold `---` alone,
//! so that the files of `fuzz/corpus` can be read and written by hand.

mod config;
mod headers;
mod row;
mod stream;
mod talk;

pub use config::config;
pub use headers::headers;
pub use row::params;
pub use stream::{fold, sse};
pub use talk::talk;

/// Returns the parts of an input, `None` where it is not UTF-8.
fn parts(data: &[u8]) -> Option<impl Iterator<Item = &str>> {
    Some(std::str::from_utf8(data).ok()?.split("\n---\n"))
}
