//! Looks for inputs on which `fuzz::client_hello` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::client_hello::check(input));
