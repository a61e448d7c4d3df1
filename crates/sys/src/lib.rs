//! System calls that the standard library and `rustix` do not offer safely: the only crate with `unsafe` code.

pub mod forbidden;
pub mod mount;
pub mod net;
pub mod netns;
pub mod process;
pub mod raw_udp;
pub mod seccomp;
pub mod spare;
pub mod spawn;
pub mod splice;
pub mod udp;
pub mod userns;
