#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pintle_client::fuzz::documents(data));
