//! What a rule says about tracked connections.

use std::ops::BitOr;

use super::Match;
use crate::expression::{Comparison, Register};

/// States of a tracked connection; combine them with `|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtState(u32);

impl CtState {
    /// Not a packet the tracker can make sense of.
    pub const INVALID: Self = Self(1);
    /// Packets were seen both ways.
    pub const ESTABLISHED: Self = Self(1 << 1);
    /// Belongs to another connection, e.g. an ICMP error.
    pub const RELATED: Self = Self(1 << 2);
    /// The first packets of a connection.
    pub const NEW: Self = Self(1 << 3);
    /// Exempt from tracking.
    pub const UNTRACKED: Self = Self(1 << 6);
}

impl BitOr for CtState {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// All of these make the namespace track connections, but for [`notrack`](Match::notrack).
impl<F, P> Match<F, P> {
    /// Belongs to a connection in one of these states.
    pub fn ct_state(mut self, states: CtState) -> Self {
        self.expressions.load_ct_state(Register::FIRST);
        self.expressions.mask(Register::FIRST, &states.0.to_ne_bytes());
        self.compare(Comparison::NotEqual, &[0; 4])
    }

    /// Belongs to a connection with this mark. One that nobody marked has 0; what belongs to no connection does not
    /// match.
    pub fn ct_mark(mut self, mark: u32) -> Self {
        self.expressions.load_ct_mark(Register::FIRST);
        self.compare(Comparison::Equal, &mark.to_ne_bytes())
    }

    /// Belongs to a connection whose mark has in `mask` the bits of `mark`.
    pub fn ct_mark_masked(mut self, mark: u32, mask: u32) -> Self {
        self.expressions.load_ct_mark(Register::FIRST);
        self.expressions.mask(Register::FIRST, &mask.to_ne_bytes());
        self.compare(Comparison::Equal, &mark.to_ne_bytes())
    }

    /// Marks the connection the packet belongs to, and all of its packets with it.
    pub fn set_ct_mark(mut self, mark: u32) -> Self {
        self.expressions.load_value(&mark.to_ne_bytes(), Register::FIRST);
        self.expressions.store_ct_mark(Register::FIRST);
        self
    }

    /// Exempts the packet from connection tracking. Before [`CONNTRACK`](crate::priority::CONNTRACK) only.
    pub fn notrack(mut self) -> Self {
        self.expressions.notrack();
        self
    }
}
