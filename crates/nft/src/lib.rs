//! Typed nftables transactions and packet logs over netlink.
