//! Looks for inputs on which `fuzz::policy_entry` does not hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::policy_entry::check(input));
