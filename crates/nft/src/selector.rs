//! What a rule can look up in a set: values of the packet, alone or several behind each other.

use crate::established::{AddressFamily, Ports, daddr, saddr};
use crate::expression::{Expressions, Header, Meta, PacketField, Register};

/// What a set is asked for, in a rule that has established family `F` and protocol `P`: one of the values below,
/// or a tuple of two to four of them for a set with as many fields.
pub trait LookupKey<F, P> {
    /// Appends where the values come from, in order.
    #[doc(hidden)]
    fn append_sources(&self, sources: &mut Vec<Source>);
}

/// The source address.
#[derive(Clone, Copy, Debug)]
pub struct Saddr;

/// The destination address.
#[derive(Clone, Copy, Debug)]
pub struct Daddr;

/// The source port.
#[derive(Clone, Copy, Debug)]
pub struct Sport;

/// The destination port.
#[derive(Clone, Copy, Debug)]
pub struct Dport;

/// The transport protocol's number.
#[derive(Clone, Copy, Debug)]
pub struct Protocol;

/// The packet's mark.
#[derive(Clone, Copy, Debug)]
pub struct Mark;

/// The name of the interface the packet came by.
#[derive(Clone, Copy, Debug)]
pub struct Iifname;

/// The name of the interface the packet leaves by.
#[derive(Clone, Copy, Debug)]
pub struct Oifname;

/// The user id of the socket that sent the packet.
#[derive(Clone, Copy, Debug)]
pub struct Skuid;

/// Where a value comes from.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Source(Origin);

#[derive(Clone, Copy)]
enum Origin {
    Meta { key: Meta, length: u32 },
    Packet(PacketField),
}

/// Loads the values of a key behind each other, from the first register on, each at a multiple of four bytes.
pub(crate) fn load<F, P>(expressions: &mut Expressions, key: &impl LookupKey<F, P>) {
    let mut sources = Vec::with_capacity(4);
    key.append_sources(&mut sources);
    let mut register = Register::FIRST;
    for Source(origin) in sources {
        let length = match origin {
            Origin::Meta { key, length } => {
                expressions.load_meta(key, register);
                length
            }
            Origin::Packet(field) => {
                expressions.load_packet(field, register);
                field.length
            }
        };
        register = Register(register.0 + length.div_ceil(4));
    }
}

/// The source port of TCP and UDP.
pub(crate) const SPORT: PacketField = PacketField { header: Header::Transport, offset: 0, length: 2 };
/// The destination port of TCP and UDP.
pub(crate) const DPORT: PacketField = PacketField { header: Header::Transport, offset: 2, length: 2 };

macro_rules! selector {
    ($($selector:ty, [$($bounds:tt)*], $origin:expr;)*) => {$(
        impl<$($bounds)*> LookupKey<F, P> for $selector {
            fn append_sources(&self, sources: &mut Vec<Source>) {
                sources.push(Source($origin));
            }
        }
    )*};
}

selector! {
    Saddr, [F: AddressFamily, P], Origin::Packet(saddr::<F>());
    Daddr, [F: AddressFamily, P], Origin::Packet(daddr::<F>());
    Sport, [F, P: Ports], Origin::Packet(SPORT);
    Dport, [F, P: Ports], Origin::Packet(DPORT);
    Protocol, [F, P], Origin::Meta { key: Meta::L4proto, length: 1 };
    Mark, [F, P], Origin::Meta { key: Meta::Mark, length: 4 };
    Iifname, [F, P], Origin::Meta { key: Meta::Iifname, length: 16 };
    Oifname, [F, P], Origin::Meta { key: Meta::Oifname, length: 16 };
    Skuid, [F, P], Origin::Meta { key: Meta::Skuid, length: 4 };
}

macro_rules! key_tuple {
    ($($name:ident)*) => {
        impl<F, P, $($name: LookupKey<F, P>),*> LookupKey<F, P> for ($($name,)*) {
            #[expect(non_snake_case, reason = "each value is named like its type")]
            fn append_sources(&self, sources: &mut Vec<Source>) {
                let ($($name,)*) = self;
                $($name.append_sources(sources);)*
            }
        }
    };
}

key_tuple!(A B);
key_tuple!(A B C);
key_tuple!(A B C D);
