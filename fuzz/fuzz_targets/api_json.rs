//! Looks for inputs on which `fuzz::api_json` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::api_json::check(input));
