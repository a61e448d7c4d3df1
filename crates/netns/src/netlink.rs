//! Requests and answers over one netlink socket.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

use crate::Error;

/// A netlink socket of some protocol, used for one request at a time.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request with `flags` and waits for its acknowledgement. The inner error is the kernel's refusal.
    pub(crate) fn request<T>(&mut self, body: T, flags: u16) -> Result<io::Result<()>, Error>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(body, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for message in self.receive::<T>()? {
                if let NetlinkPayload::Error(answer) = message.payload {
                    return Ok(if answer.code.is_none() { Ok(()) } else { Err(answer.to_io()) });
                }
            }
        }
    }

    /// As [`Self::request`], for one that asks for something: gives what `select` picks from the answer.
    pub(crate) fn query<T, U>(
        &mut self,
        body: T,
        mut select: impl FnMut(T) -> Option<U>,
    ) -> Result<io::Result<Option<U>>, Error>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(body, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = None;
        loop {
            for message in self.receive::<T>()? {
                match message.payload {
                    NetlinkPayload::Error(answer) if answer.code.is_none() => return Ok(Ok(found)),
                    NetlinkPayload::Error(answer) => return Ok(Err(answer.to_io())),
                    NetlinkPayload::InnerMessage(body) => found = select(body).or(found),
                    _ => {}
                }
            }
        }
    }

    /// Sends a dump request and collects what `select` picks from the answers.
    pub(crate) fn dump<T, U>(
        &mut self,
        body: T,
        mut select: impl FnMut(T) -> Option<U>,
    ) -> Result<io::Result<Vec<U>>, Error>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(body, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            for message in self.receive::<T>()? {
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(Ok(found)),
                    NetlinkPayload::Error(answer) => return Ok(Err(answer.to_io())),
                    NetlinkPayload::InnerMessage(body) => found.extend(select(body)),
                    _ => {}
                }
            }
        }
    }

    fn send<T: NetlinkSerializable>(&mut self, body: T, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(body));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(Error::Exchange)?;
        Ok(())
    }

    /// The messages of one datagram that answer the last request; late answers to earlier ones are left out.
    fn receive<T: NetlinkDeserializable>(&mut self) -> Result<Vec<NetlinkMessage<T>>, Error> {
        let (datagram, _) = self.socket.recv_from_full().map_err(Error::Exchange)?;
        let mut messages = parse(&datagram)?;
        messages.retain(|message| message.header.sequence_number == self.sequence);
        Ok(messages)
    }
}

/// All messages of a datagram.
pub(crate) fn parse<T: NetlinkDeserializable>(datagram: &[u8]) -> Result<Vec<NetlinkMessage<T>>, Error> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message =
            NetlinkMessage::<T>::deserialize(rest).map_err(|error| Error::Answer(error.to_string()))?;
        let length = usize::try_from(message.header.length).map_err(|_| too_long())?;
        messages.push(message);
        // Messages start at multiples of four bytes; the last one may lack its padding.
        let next = length.checked_next_multiple_of(4).ok_or_else(too_long)?;
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(messages)
}

fn too_long() -> Error {
    Error::Answer("a message longer than memory".to_owned())
}
