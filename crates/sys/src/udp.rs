//! Datagrams with their original destination.
