//! Output of a session: both streams in order, in pieces with numbers, for any number that follow it.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use init_protocol::{MAX_CHUNK, PIECE_COST, Stream};
use rustix::event::{EventfdFlags, eventfd};

use crate::kept::Budget;

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u64,
    pub(crate) stream: Stream,
    pub(crate) data: Arc<[u8]>,
}

impl Piece {
    fn cost(&self) -> usize {
        self.data.len() + PIECE_COST
    }
}

/// The pieces that are kept, and who follows.
#[derive(Debug)]
pub(crate) struct Log {
    pieces: VecDeque<Piece>,
    cost: usize,
    most: usize,
    /// Number of the last piece.
    last: u64,
    /// Whether pieces of stdout, and of stderr, are gone.
    truncated: [bool; 2],
    /// The furthest piece that somebody who has left had taken.
    left: u64,
    followers: BTreeMap<u64, Follower>,
    next_follower: u64,
    budget: Budget,
    /// Tells the session's command that there may be room again.
    room: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Follower {
    /// The last piece taken.
    taken: u64,
    bell: Arc<OwnedFd>,
}

fn ring(bell: &OwnedFd) {
    // Fails only when it has been rung 2^64 times and not heard.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// Makes a bell be silent until it is rung again.
pub(crate) fn hear(bell: &OwnedFd) {
    let _ = rustix::io::read(bell, &mut [0; 8]);
}

fn bell() -> rustix::io::Result<Arc<OwnedFd>> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new)
}

/// Where somebody begins to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// After the piece with this number.
    After(u64),
    /// After the last one; where nobody follows, after the last one that somebody took.
    Now,
}

impl Log {
    /// A log of at most `most` bytes, as [`PIECE_COST`] counts them.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(crate) fn new(most: usize, budget: &Budget) -> rustix::io::Result<Self> {
        Ok(Self {
            pieces: VecDeque::new(),
            cost: 0,
            most,
            last: 0,
            truncated: [false; 2],
            left: 0,
            followers: BTreeMap::new(),
            next_follower: 0,
            budget: budget.clone(),
            room: bell()?,
        })
    }

    /// Whether a piece can be added without anything being lost that one who follows has yet to take.
    ///
    /// For one who has taken everything there is always room: what other sessions keep holds up nobody for good.
    pub(crate) fn has_room(&self) -> bool {
        const PIECE: usize = MAX_CHUNK + PIECE_COST;
        let Some(furthest) = self.furthest() else { return true };
        let waiting = self.pieces.iter().rev().take_while(|piece| piece.id > furthest);
        let untaken = waiting.map(Piece::cost).sum::<usize>();
        let can_go = self.cost.saturating_sub(untaken);
        untaken == 0 || untaken + PIECE <= self.most && self.budget.has(PIECE.saturating_sub(can_go))
    }

    /// The last piece that any of those who follow has taken.
    fn furthest(&self) -> Option<u64> {
        self.followers.values().map(|follower| follower.taken).max()
    }

    /// Readable when there may be room again.
    pub(crate) fn room(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.room)
    }

    /// Adds output; the oldest goes when there is too much. To be called when there [is room](Self::has_room).
    pub(crate) fn push(&mut self, stream: Stream, data: &[u8]) {
        self.last += 1;
        let piece = Piece { id: self.last, stream, data: data.into() };
        let cost = piece.cost();
        while self.cost + cost > self.most && self.drop_oldest() {}
        while !self.budget.take(cost) {
            let oldest = self.pieces.front().map(|oldest| oldest.id);
            match self.furthest() {
                // The budget was there a moment ago, or nothing else waits: this is one piece, and then there is no room.
                Some(furthest) if oldest.is_none_or(|oldest| oldest > furthest) => {
                    self.budget.take_anyway(cost);
                    break;
                }
                _ if self.drop_oldest() => {}
                // Nothing is left to give up for it: this piece is lost, as its missing number tells.
                _ => {
                    self.truncate(stream);
                    return;
                }
            }
        }
        self.cost += cost;
        self.pieces.push_back(piece);
        self.ring_all();
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(piece) = self.pieces.pop_front() else { return false };
        self.truncate(piece.stream);
        self.cost -= piece.cost();
        self.budget.give_back(piece.cost());
        true
    }

    fn truncate(&mut self, stream: Stream) {
        let [stdout, stderr] = &mut self.truncated;
        *(if stream == Stream::Stdout { stdout } else { stderr }) = true;
    }

    /// How much can be given up: what nobody who follows has yet to take.
    pub(crate) fn spare(&self) -> usize {
        let furthest = self.furthest().unwrap_or(u64::MAX);
        self.pieces.iter().take_while(|piece| piece.id <= furthest).map(Piece::cost).sum()
    }

    /// Gives up the older part of what can be, for others: one of so many.
    pub(crate) fn give_up(&mut self, parts: usize) {
        let mut left = self.spare().div_ceil(parts.max(1));
        while left > 0
            && let Some(oldest) = self.pieces.front().map(Piece::cost)
            && self.drop_oldest()
        {
            left = left.saturating_sub(oldest);
        }
    }

    /// The last bytes of both streams that are kept, at most so many of each, and whether more of them is gone.
    pub(crate) fn ends(&self, most: usize) -> [(Vec<u8>, bool); 2] {
        let [stdout, stderr] = self.truncated;
        [(Stream::Stdout, stdout), (Stream::Stderr, stderr)].map(|(stream, truncated)| {
            let pieces = self.pieces.iter().filter(|piece| piece.stream == stream);
            let length = pieces.clone().map(|piece| piece.data.len()).sum::<usize>();
            let over = length.saturating_sub(most);
            let end = pieces.flat_map(|piece| piece.data.iter().copied()).skip(over).collect();
            (end, truncated || over > 0)
        })
    }

    /// Tells all that follow that there is something to look at.
    pub(crate) fn ring_all(&self) {
        self.followers.values().for_each(|follower| ring(&follower.bell));
    }

    /// One more follows: its name, and what is readable when there is something for it.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(crate) fn join(&mut self, begin: Begin) -> rustix::io::Result<(u64, Arc<OwnedFd>)> {
        let taken = match begin {
            Begin::After(piece) => piece.min(self.last),
            Begin::Now if self.followers.is_empty() => self.left,
            Begin::Now => self.last,
        };
        let bell = bell()?;
        let name = self.next_follower;
        self.next_follower += 1;
        self.followers.insert(name, Follower { taken, bell: Arc::clone(&bell) });
        Ok((name, bell))
    }

    /// One has left.
    pub(crate) fn leave(&mut self, name: u64) {
        if let Some(follower) = self.followers.remove(&name) {
            self.left = self.left.max(follower.taken);
        }
        ring(&self.room);
    }

    /// Whether there is a piece for one that follows.
    pub(crate) fn has_more(&self, name: u64) -> bool {
        let taken = self.followers.get(&name).map(|follower| follower.taken);
        taken.zip(self.pieces.back()).is_some_and(|(taken, newest)| newest.id > taken)
    }

    /// The next piece for one that follows.
    pub(crate) fn take(&mut self, name: u64) -> Option<Piece> {
        let follower = self.followers.get_mut(&name)?;
        let at = self.pieces.partition_point(|piece| piece.id <= follower.taken);
        let piece = self.pieces.get(at)?.clone();
        follower.taken = piece.id;
        ring(&self.room);
        Some(piece)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.budget.give_back(self.cost);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 4 * (MAX_CHUNK + PIECE_COST);

    fn log() -> Log {
        Log::new(MOST, &Budget::default()).unwrap()
    }

    fn rest(log: &mut Log, name: u64) -> Vec<u64> {
        std::iter::from_fn(|| log.take(name)).map(|piece| piece.id).collect()
    }

    #[test]
    fn pieces_of_both_streams_keep_their_order_and_begin_where_it_was_asked() {
        let mut log = log();
        log.push(Stream::Stdout, b"a");
        log.push(Stream::Stderr, b"b");
        log.push(Stream::Stdout, b"c");
        let (all, _bell) = log.join(Begin::After(0)).unwrap();
        let piece = |id, stream, data: &[u8]| Piece { id, stream, data: data.into() };
        assert_eq!(log.take(all), Some(piece(1, Stream::Stdout, b"a")));
        assert_eq!(log.take(all), Some(piece(2, Stream::Stderr, b"b")));
        let (late, _bell) = log.join(Begin::After(2)).unwrap();
        assert_eq!((rest(&mut log, late), rest(&mut log, all)), (vec![3], vec![3]));
        let (beyond, _bell) = log.join(Begin::After(u64::MAX)).unwrap();
        log.push(Stream::Stdout, b"d");
        assert_eq!(rest(&mut log, beyond), [4]);
    }

    #[test]
    fn the_first_now_gets_what_nobody_took_and_a_second_only_what_comes() {
        let mut log = log();
        log.push(Stream::Stdout, b"prompt");
        let (first, _bell) = log.join(Begin::Now).unwrap();
        let (second, _bell) = log.join(Begin::Now).unwrap();
        assert_eq!((rest(&mut log, first), rest(&mut log, second)), (vec![1], vec![]));
        log.push(Stream::Stdout, b"more");
        assert_eq!((rest(&mut log, first), rest(&mut log, second)), (vec![2], vec![2]));
        log.leave(first);
        log.leave(second);
        log.push(Stream::Stdout, b"unseen");
        let (again, _bell) = log.join(Begin::Now).unwrap();
        assert_eq!(rest(&mut log, again), [3]);
    }

    #[test]
    fn there_is_room_while_nobody_follows_or_one_of_those_that_do_keeps_up() {
        let mut log = log();
        let chunk = vec![0; MAX_CHUNK];
        for _ in 0..10 {
            assert!(log.has_room());
            log.push(Stream::Stdout, &chunk);
        }
        let (reader, _bell) = log.join(Begin::After(0)).unwrap();
        assert!(!log.has_room(), "what it has yet to take must stay");
        assert_eq!(log.take(reader).map(|piece| piece.id), Some(7), "the first six are gone");
        assert!(log.has_room());
        log.push(Stream::Stdout, &chunk);
        let (_idle, _bell) = log.join(Begin::After(0)).unwrap();
        assert!(!log.has_room());
        rest(&mut log, reader);
        assert!(log.has_room(), "one that keeps up is enough");
        log.leave(reader);
        assert!(!log.has_room());
    }

    #[test]
    fn all_together_stay_within_the_budget_and_give_it_back() {
        let budget = Budget::default();
        let mut many: Vec<Log> = (0..300).map(|_| Log::new(MOST, &budget).unwrap()).collect();
        for log in &mut many {
            (0..10).for_each(|_| log.push(Stream::Stdout, &vec![0; MAX_CHUNK]));
            assert!(log.cost <= MOST);
        }
        assert!(budget.is_short());
        drop(many);
        assert!(!budget.is_short());
        assert!(budget.take(64 << 20), "all of it is there again");
    }

    /// All of the budget but so many bytes.
    fn others(budget: &Budget, left: usize) {
        assert!(budget.take((64 << 20) - left));
    }

    #[test]
    fn what_a_follower_has_yet_to_take_is_not_lost_when_all_sessions_keep_too_much_and_it_goes_on() {
        let budget = Budget::default();
        let mut log = Log::new(MOST, &budget).unwrap();
        let (reader, _bell) = log.join(Begin::After(0)).unwrap();
        let chunk = vec![0; MAX_CHUNK];
        log.push(Stream::Stdout, &chunk);
        others(&budget, MAX_CHUNK + PIECE_COST);
        assert!(!log.has_room(), "the others have what another piece would need");
        // The others were a moment faster.
        log.push(Stream::Stdout, &chunk);
        assert!(!log.has_room());
        for round in 3..10 {
            assert_eq!(rest(&mut log, reader).last(), Some(&(round - 1)));
            assert!(log.has_room(), "one piece at a time");
            log.push(Stream::Stdout, &chunk);
            assert!(!log.has_room());
        }
        assert_eq!(rest(&mut log, reader), [9]);
        log.leave(reader);
        assert!(log.has_room(), "where nobody follows the oldest goes");
        log.push(Stream::Stdout, &chunk);
        let (late, _bell) = log.join(Begin::After(0)).unwrap();
        assert_eq!(rest(&mut log, late).last(), Some(&10));
    }

    #[test]
    fn what_is_given_up_is_not_what_a_follower_waits_for_and_both_ends_tell_what_is_gone() {
        let mut log = log();
        log.push(Stream::Stdout, b"taken");
        let (reader, _bell) = log.join(Begin::After(0)).unwrap();
        assert!(log.take(reader).is_some());
        log.push(Stream::Stderr, b"waiting");
        assert_eq!(log.ends(100), [(b"taken".to_vec(), false), (b"waiting".to_vec(), false)]);
        log.give_up(1);
        assert_eq!((log.spare(), log.ends(100)), (0, [(vec![], true), (b"waiting".to_vec(), false)]));
        assert_eq!(log.ends(3), [(vec![], true), (b"ing".to_vec(), true)]);
        assert_eq!(rest(&mut log, reader), [2]);
        log.leave(reader);
        log.push(Stream::Stderr, b"newer");
        log.give_up(2);
        assert_eq!(log.ends(100), [(vec![], true), (b"newer".to_vec(), true)]);
        log.give_up(1);
        assert_eq!((log.cost, log.ends(100)), (0, [(vec![], true), (vec![], true)]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_follower_loses_nothing_while_room_is_respected(
            pushes in prop::collection::vec((1usize..=MAX_CHUNK, 0usize..4), 1..60),
            left in 0usize..MOST,
        ) {
            let budget = Budget::default();
            others(&budget, left);
            let mut log = Log::new(MOST, &budget).unwrap();
            let (name, _bell) = log.join(Begin::After(0)).unwrap();
            let mut seen = Vec::new();
            for (length, takes) in pushes {
                if log.has_room() {
                    log.push(Stream::Stdout, &vec![1; length]);
                }
                prop_assert!(log.cost <= MOST);
                seen.extend((0..takes).filter_map(|_| log.take(name)).map(|piece| piece.id));
            }
            seen.extend(rest(&mut log, name));
            prop_assert_eq!(seen, (1..=log.last).collect::<Vec<_>>());
        }
    }
}
