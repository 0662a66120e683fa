//! A row, understood and sent: see `promptmill_fuzz::params`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promptmill_fuzz::params(data));
