//! The parser of server-sent events: see `promptmill_fuzz::sse`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promptmill_fuzz::sse(data));
