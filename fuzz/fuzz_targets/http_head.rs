//! Looks for inputs on which `fuzz::http_head` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::http_head::check(input));
