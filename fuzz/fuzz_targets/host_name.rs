//! Looks for inputs on which `fuzz::host_name` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::host_name::check(input));
