//! The configuration file and the environment: see `promptmill_fuzz::config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promptmill_fuzz::config(data));
