//! Looks for inputs on which `fuzz::netlink` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::netlink::check(input));
