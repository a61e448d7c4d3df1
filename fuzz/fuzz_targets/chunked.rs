//! Looks for inputs on which `fuzz::chunked` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::chunked::check(input));
