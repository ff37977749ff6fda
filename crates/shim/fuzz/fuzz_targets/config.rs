#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pintle_shim::door::fuzz::config(data));
