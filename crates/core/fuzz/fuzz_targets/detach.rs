#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pintle_core_fuzz::detach(data));
