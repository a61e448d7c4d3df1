//! Reading what rules report to a log group (NFLOG).
//!
//! The kernel gathers records and hands over several in one datagram. It numbers the records of a group, so that
//! what was lost because the reader was slow is known exactly as soon as the next record arrives.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use crate::error::Error;
use crate::message::{Head, Messages, Writer, acknowledgement};
use crate::packet::Packet;
use crate::socket::{Incoming, Socket};
use crate::uapi::{nfproto, subsystem, ulog};

/// How a group is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The group; one socket of a namespace can have it.
    pub group: u16,
    /// Bytes of each packet that are copied, from the IP header on.
    pub snaplen: u32,
    /// Records that are gathered before the reader is woken.
    pub qthreshold: u32,
    /// After this time the reader is woken even for fewer (steps of 10 ms).
    pub timeout: Duration,
    /// Bytes the kernel may hold for this socket before it begins to lose records.
    pub buffer: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { group: 0, snaplen: 128, qthreshold: 64, timeout: Duration::from_millis(100), buffer: 1 << 20 }
    }
}

/// A socket that receives the records of one group. It is non-blocking: wait for it to become readable, then call
/// [`recv`](Self::recv) until it returns `None`.
pub struct LogSocket {
    socket: Socket,
    group: u16,
    buffer: Vec<u8>,
    /// Number the next record must have if none was lost.
    expected: u32,
}

/// What one reading brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The records, in order.
    pub packets: Vec<Packet>,
    /// Records lost before these, by their numbers.
    pub lost: u64,
    /// The kernel says that it has just lost records; how many will be in `lost` of the next reading that has any.
    pub overrun: bool,
    /// Records that could not be read. They are counted in the `lost` of the next reading too.
    pub malformed: u64,
}

impl LogSocket {
    /// Takes a group in the calling thread's network namespace. `EPERM` when another socket there has it;
    /// one that was dropped may have it until forked children, which hold copies, have executed their programs.
    pub fn open(config: &LogConfig) -> Result<Self, Error> {
        let mut socket = Socket::open(config.buffer).map_err(Error::Open)?;
        let datagram = datagram_size(config);
        bind(&mut socket, config, datagram)
            .map_err(|source| Error::BindGroup { group: config.group, source })?;
        // Twice the size the kernel aims at: the record that fills a datagram may reach beyond it.
        let room = usize::try_from(datagram).unwrap_or_default() * 2 + (1 << 16);
        Ok(Self { socket, group: config.group, buffer: vec![0; room], expected: 0 })
    }

    /// Gives the group up: nothing is logged from now on, and what the kernel has gathered for the next datagram can be
    /// read when this returns.
    pub fn leave_group(&mut self) -> Result<(), Error> {
        let mut request = Writer::with_capacity(64);
        let head = Head {
            kind: subsystem::ULOG << 8 | ulog::MSG_CONFIG,
            flags: NLM_F_REQUEST,
            sequence: 2,
            family: nfproto::UNSPEC,
            resource: self.group,
        };
        request.message(head, |writer| {
            writer.u8(ulog::CFG_CMD, ulog::CMD_UNBIND);
        });
        let bytes = request.bytes();
        self.socket.send(bytes).map_err(|source| Error::Send { bytes: bytes.len(), source })
    }

    /// Reads one datagram of records, or returns `None` when there is none.
    pub fn recv(&mut self) -> Result<Option<Received>, Error> {
        match self.socket.receive(&mut self.buffer).map_err(Error::Receive)? {
            Incoming::Datagram(datagram) => Ok(Some(read_records(datagram, &mut self.expected))),
            Incoming::Overrun => Ok(Some(Received { overrun: true, ..Received::default() })),
            Incoming::Empty => Ok(None),
        }
    }
}

impl AsFd for LogSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for LogSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Asks for the group with everything the configuration says, and waits for the kernel's word.
fn bind(socket: &mut Socket, config: &LogConfig, datagram: u32) -> io::Result<()> {
    let mut request = Writer::with_capacity(128);
    let head = Head {
        kind: subsystem::ULOG << 8 | ulog::MSG_CONFIG,
        flags: NLM_F_REQUEST | NLM_F_ACK,
        sequence: 1,
        family: nfproto::UNSPEC,
        resource: config.group,
    };
    request.message(head, |writer| {
        writer.u8(ulog::CFG_CMD, ulog::CMD_BIND);
        let [a, b, c, d] = config.snaplen.to_be_bytes();
        writer.attribute(ulog::CFG_MODE, &[a, b, c, d, ulog::COPY_PACKET, 0]);
        writer.u32(ulog::CFG_NLBUFSIZ, datagram);
        writer.u32(
            ulog::CFG_TIMEOUT,
            u32::try_from(config.timeout.as_millis() / 10).unwrap_or(u32::MAX).max(1),
        );
        writer.u32(ulog::CFG_QTHRESH, config.qthreshold.max(1));
        writer.u16(ulog::CFG_FLAGS, ulog::FLAG_SEQ);
    });
    socket.send(request.bytes())?;
    let limit = Instant::now() + Duration::from_secs(5);
    let mut buffer = [0; 8192];
    while socket.wait(limit)? {
        // Records may arrive before the answer when the group is busy: they are not numbered yet, so none is lost.
        let Incoming::Datagram(datagram) = socket.receive(&mut buffer)? else { continue };
        for message in Messages::new(datagram).flatten() {
            if let (NLMSG_ERROR, Some((code, _))) = (message.kind, acknowledgement(&message)) {
                return if code == 0 {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(code.saturating_neg()))
                };
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

const NLMSG_ERROR: u16 = 2;

/// The size of a datagram that holds as many records as are to be gathered.
fn datagram_size(config: &LogConfig) -> u32 {
    const AROUND_A_PACKET: u32 = 256; // headers, attributes and the longest prefix
    config
        .snaplen
        .saturating_add(AROUND_A_PACKET)
        .saturating_mul(config.qthreshold)
        .clamp(ulog::NLBUFSIZ_MIN, ulog::NLBUFSIZ_MAX / 2)
}

/// Reads the records of a datagram; `expected` is the number of the first if none was lost, and becomes the next's.
pub(crate) fn read_records(datagram: &[u8], expected: &mut u32) -> Received {
    let mut received = Received::default();
    for message in Messages::new(datagram) {
        match message {
            Ok(message) if message.kind == (subsystem::ULOG << 8 | ulog::MSG_PACKET) => {
                let Some(packet) = Packet::read(message.attributes()) else {
                    received.malformed += 1;
                    continue;
                };
                received.lost += u64::from(packet.sequence.wrapping_sub(*expected));
                *expected = packet.sequence.wrapping_add(1);
                received.packets.push(packet);
            }
            Ok(_) => {} // the end of several records, or an answer
            Err(_) => received.malformed += 1,
        }
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::packet;
    use proptest::prelude::*;

    fn records(sequences: &[u32]) -> Vec<u8> {
        let mut writer = Writer::default();
        let kind = subsystem::ULOG << 8 | ulog::MSG_PACKET;
        for sequence in sequences {
            writer.message(Head { kind, flags: 0, sequence: 0, family: 2, resource: 0 }, |writer| {
                writer.text(packet::PREFIX, "refused");
                writer.u32(packet::SEQ, *sequence);
            });
        }
        writer.into_bytes()
    }

    #[test]
    fn gaps_in_the_numbers_are_counted() {
        let mut expected = 0;
        let received = read_records(&records(&[0, 1, 2]), &mut expected);
        assert_eq!((received.packets.len(), received.lost, expected), (3, 0, 3));
        let received = read_records(&records(&[5, 9]), &mut expected);
        assert_eq!((received.packets.len(), received.lost, expected), (2, 5, 10));
    }

    #[test]
    fn numbers_wrap_around() {
        let mut expected = u32::MAX;
        let received = read_records(&records(&[u32::MAX, 0, 2]), &mut expected);
        assert_eq!((received.packets.len(), received.lost, expected), (3, 1, 3));
    }

    #[test]
    fn a_datagram_holds_what_is_gathered_within_the_kernels_bounds() {
        let size =
            |snaplen, qthreshold| datagram_size(&LogConfig { snaplen, qthreshold, ..LogConfig::default() });
        assert_eq!(size(128, 64), 24_576);
        assert_eq!(size(0, 1), ulog::NLBUFSIZ_MIN);
        assert_eq!(size(u32::MAX, u32::MAX), ulog::NLBUFSIZ_MAX / 2);
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            place in any::<prop::sample::Index>(),
            genuine in any::<bool>(),
        ) {
            if genuine {
                let noise = std::mem::replace(&mut bytes, records(&[3, 4, 5]));
                let start = place.index(bytes.len());
                for (to, from) in bytes[start..].iter_mut().zip(noise) {
                    *to ^= from;
                }
            }
            let mut expected = 0;
            let received = read_records(&bytes, &mut expected);
            prop_assert!(received.packets.len() <= bytes.len() / 16 + 1);
        }
    }
}
