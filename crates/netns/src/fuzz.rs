//! The readers of what the kernel sends, without the socket: for the fuzz targets, no part of the interface.

use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use crate::{
    Error, InterfaceAddress, SocketEntry, Transport,
    address::interface_address,
    netlink,
    socket_table::{Diagnosis, socket_entry},
};

/// The messages of a datagram as (type, sequence number).
///
/// # Errors
/// When one is malformed.
pub fn messages(datagram: &[u8]) -> Result<Vec<(u16, u32)>, Error> {
    let messages = netlink::parse::<Diagnosis>(datagram)?;
    Ok(messages.iter().map(|message| (message.header.message_type, message.header.sequence_number)).collect())
}

/// The addresses of a listing.
///
/// # Errors
/// When a message is malformed.
pub fn addresses(datagram: &[u8]) -> Result<Vec<InterfaceAddress>, Error> {
    let messages = netlink::parse::<RouteNetlinkMessage>(datagram)?;
    let addresses = bodies(messages).filter_map(|body| match body {
        RouteNetlinkMessage::NewAddress(message) => interface_address(&message),
        _ => None,
    });
    Ok(addresses.collect())
}

/// The sockets of a listing.
///
/// # Errors
/// When a message is malformed.
pub fn sockets(datagram: &[u8], transport: Transport) -> Result<Vec<SocketEntry>, Error> {
    let messages = netlink::parse::<Diagnosis>(datagram)?;
    let sockets = bodies(messages).filter_map(|body| match body {
        Diagnosis::Answer(body) => socket_entry(transport, &body),
        Diagnosis::Request { .. } => None,
    });
    Ok(sockets.collect())
}

fn bodies<T: NetlinkDeserializable>(messages: Vec<NetlinkMessage<T>>) -> impl Iterator<Item = T> {
    messages.into_iter().filter_map(|message| match message.payload {
        NetlinkPayload::InnerMessage(body) => Some(body),
        _ => None,
    })
}
