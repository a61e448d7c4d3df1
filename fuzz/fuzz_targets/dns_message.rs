//! Looks for inputs on which `fuzz::dns_message` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::dns_message::check(input));
