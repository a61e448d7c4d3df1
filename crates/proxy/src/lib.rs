//! Accepted connection to sniff, judge, relay.
