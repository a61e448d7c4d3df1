//! Sockets with options the standard library cannot set.
