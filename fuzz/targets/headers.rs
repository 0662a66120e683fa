//! Headers and error bodies: see `promptmill_fuzz::headers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promptmill_fuzz::headers(data));
