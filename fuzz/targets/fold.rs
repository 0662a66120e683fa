//! A stream, folded into a reply: see `promptmill_fuzz::fold`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promptmill_fuzz::fold(data));
