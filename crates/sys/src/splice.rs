//! A pipe for moving bytes from one socket to another inside the kernel.

use std::{io, os::fd::AsFd, os::fd::OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

/// Sizes that are tried in turn, in bytes: the kernel refuses the larger ones (EPERM) when the user already has
/// `fs.pipe-user-pages-soft` pages of pipes and lacks `CAP_SYS_RESOURCE`.
const SIZES: [usize; 3] = [1 << 20, 1 << 18, 1 << 16];

/// A non-blocking pipe that knows how many bytes it holds.
///
/// The count is what makes `EAGAIN` mean one thing only. `splice(2)` says it when the socket has nothing to read and
/// also when the pipe has no room; [`Self::fill`] runs only on an empty pipe and [`Self::drain`] only on one that is
/// not, so that in both `WouldBlock` is about the socket.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

impl Pipe {
    /// A new pipe of 1 MiB, or less where the kernel does not grant that much.
    ///
    /// # Errors
    /// When there are no descriptors left, or not even 64 KiB are granted (`OutOfMemory`).
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        for size in SIZES {
            if fcntl_setpipe_size(&write, size).is_ok() {
                break;
            }
        }
        let capacity = fcntl_getpipe_size(&write)?;
        if SIZES.iter().all(|size| capacity < *size) {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the kernel grants no usable pipe"));
        }
        Ok(Self { read, write, capacity, held: 0 })
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves what `socket` has to read into the pipe, at most `limit` bytes: the number of bytes, 0 at the end of the
    /// stream.
    ///
    /// # Errors
    /// `WouldBlock` when the socket has nothing to read now; `InvalidInput` when the pipe is not empty; else what the
    /// socket or `splice(2)` says.
    pub fn fill(&mut self, socket: impl AsFd, limit: usize) -> io::Result<usize> {
        if !self.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pipe is not empty"));
        }
        let moved = splice(socket, None, &self.write, None, self.capacity.min(limit), FLAGS)?;
        self.held = moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe into `socket`: how many went. Call it until [`Self::is_empty`].
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; `InvalidInput` when the pipe is empty; else what the socket or
    /// `splice(2)` says.
    pub fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        if self.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pipe is empty"));
        }
        let moved = splice(&self.read, None, socket, None, self.held, FLAGS)?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

/// `SPLICE_F_MORE` stays off: it would hold back the last bytes of a burst.
const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::Pipe;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    #[test]
    fn bytes_pass_unchanged_and_the_end_of_the_stream_is_seen_after_them() {
        let (mut client, inside) = connected();
        let (outside, mut server) = connected();
        inside.set_nonblocking(true).unwrap();
        outside.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new().unwrap();
        assert_eq!(pipe.fill(&inside, usize::MAX).unwrap_err().kind(), ErrorKind::WouldBlock);

        client.write_all(b"one piece of it").unwrap();
        drop(client);
        let mut moved = 0;
        loop {
            match pipe.fill(&inside, usize::MAX) {
                Ok(0) => break,
                Ok(n) => moved += n,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            while !pipe.is_empty() {
                pipe.drain(&outside).unwrap();
            }
        }
        drop(outside);
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"one piece of it");
        assert_eq!(moved, received.len());
    }

    #[test]
    fn a_full_receiver_says_would_block_and_loses_nothing() {
        let (mut client, inside) = connected();
        let (outside, mut server) = connected();
        inside.set_nonblocking(true).unwrap();
        outside.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new().unwrap();
        let sent: Vec<u8> = (0..16 << 20).map(|i: u32| (i % 251) as u8).collect();
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || client.write_all(&sent).unwrap()
        });
        // Nobody reads at first: sooner or later the receiver is full.
        let mut blocked = false;
        let mut received = Vec::new();
        loop {
            if pipe.is_empty() {
                match pipe.fill(&inside, usize::MAX) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            } else if let Err(error) = pipe.drain(&outside) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                blocked = true;
                let mut buffer = vec![0; 1 << 20];
                let n = server.read(&mut buffer).unwrap();
                received.extend_from_slice(&buffer[..n]);
            }
        }
        writer.join().unwrap();
        drop(outside);
        server.read_to_end(&mut received).unwrap();
        assert!(blocked);
        assert!(received == sent);
    }

    #[test]
    fn a_pipe_that_still_holds_bytes_is_not_filled() {
        let (mut client, inside) = connected();
        let mut pipe = Pipe::new().unwrap();
        client.write_all(b"abc").unwrap();
        assert_eq!(pipe.fill(&inside, usize::MAX).unwrap(), 3);
        assert_eq!(pipe.len(), 3);
        assert_eq!(pipe.fill(&inside, usize::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
