//! Looks for inputs on which `fuzz::packet` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::packet::check(input));
