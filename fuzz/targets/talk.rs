//! A whole conversation, undisturbed and interrupted: see `promptmill_fuzz::talk`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| promptmill_fuzz::talk(data));
