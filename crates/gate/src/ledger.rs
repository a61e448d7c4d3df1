//! Whether every refused packet that the kernel counted is accounted for.

/// The refused packets of one sandbox: how many the kernel counted, and how many are accounted for.
///
/// Packets are counted before they are logged, and what is logged comes a little later. So what is looked for each time
/// is what had been counted the time before. Newer packets may hide that some older ones are missing, until there are
/// fewer of them, or until the end, when nothing is under way any more.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    counted: u64,
    /// How many had been counted when [`Self::find_missing`] was last called.
    due: u64,
    /// Recorded, expected, told to be lost, or missing.
    accounted: u64,
    /// Recorded as missing for no other reason than the count. The log may still tell that they are lost.
    missing: u64,
}

impl Ledger {
    /// The kernel has counted so many more.
    pub(crate) fn counted(&mut self, packets: u64) {
        self.counted = self.counted.saturating_add(packets);
    }

    /// So many more are accounted for.
    pub(crate) fn accounted(&mut self, packets: u64) {
        self.accounted = self.accounted.saturating_add(packets);
    }

    /// The log tells that so many were lost. Returns how many of them were not found to be missing before.
    pub(crate) fn lost(&mut self, packets: u64) -> u64 {
        let known = self.missing.min(packets);
        self.missing -= known;
        self.accounted(packets - known);
        packets - known
    }

    /// How many more turn out to be missing of those that had been counted the last time.
    pub(crate) fn find_missing(&mut self) -> u64 {
        let missing = self.due.saturating_sub(self.accounted);
        self.due = self.counted;
        self.write_off(missing)
    }

    /// How many more are missing when nothing is under way any more.
    pub(crate) fn close(&mut self) -> u64 {
        self.write_off(self.counted.saturating_sub(self.accounted))
    }

    fn write_off(&mut self, packets: u64) -> u64 {
        self.missing = self.missing.saturating_add(packets);
        self.accounted(packets);
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::Ledger;

    #[test]
    fn what_is_recorded_is_not_missing_even_if_it_comes_late() {
        let mut ledger = Ledger::default();
        ledger.counted(10);
        assert_eq!(ledger.find_missing(), 0, "it may be under way");
        ledger.accounted(10);
        assert_eq!((ledger.find_missing(), ledger.close()), (0, 0));
        // More is recorded than was counted until the counter is read again.
        ledger.accounted(3);
        assert_eq!(ledger.find_missing(), 0);
        ledger.counted(3);
        assert_eq!((ledger.find_missing(), ledger.close()), (0, 0));
        // A stream that always has something under way.
        for _ in 0..10 {
            ledger.counted(5);
            assert_eq!(ledger.find_missing(), 0);
            ledger.accounted(5);
        }
        assert_eq!(ledger.close(), 0);
    }

    #[test]
    fn what_never_comes_is_missing_and_told_once() {
        let mut ledger = Ledger::default();
        ledger.counted(10);
        ledger.accounted(7);
        assert_eq!([ledger.find_missing(), ledger.find_missing(), ledger.find_missing()], [0, 3, 0]);
        ledger.counted(5);
        ledger.accounted(4);
        assert_eq!((ledger.close(), ledger.close()), (1, 0));
    }

    #[test]
    fn what_is_missing_is_told_at_the_end_if_newer_packets_hid_it_until_then() {
        let mut ledger = Ledger::default();
        ledger.counted(10);
        assert_eq!(ledger.find_missing(), 0);
        ledger.accounted(8 + 5);
        assert_eq!(ledger.find_missing(), 0);
        ledger.counted(5);
        assert_eq!(ledger.close(), 2);
    }

    #[test]
    fn what_the_log_tells_of_late_is_not_counted_twice() {
        let mut ledger = Ledger::default();
        ledger.counted(10);
        assert_eq!(ledger.close(), 10);
        assert_eq!(ledger.lost(4), 0);
        assert_eq!(ledger.lost(8), 2, "two more than were missing");
        assert_eq!(ledger.close(), 0);
    }
}
