//! Looks for inputs on which `fuzz::init_frame` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::init_frame::check(input));
