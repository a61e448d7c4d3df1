//! What each running sandbox used during the last hour.
//!
//! Every ten seconds a measurement goes into a file in the sandbox's directory, in the place that belongs to those ten
//! seconds; the place is used again after an hour. So the file has a fixed length, no daemon has to remember anything, and
//! the file goes with the sandbox.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::{Manager, blocking, clock::Uptime, living::State};
use crate::{cgroup::Cgroups, error::SandboxError, ids::SandboxId};

/// How often a running sandbox is measured.
pub const MEASURED_EVERY: Duration = Duration::from_secs(10);
/// How many measurements of a sandbox are kept: those of an hour.
pub const MEASUREMENTS: u64 = 360;

/// How many sandboxes are measured one after the other, and for how long nothing is done then: many sandboxes take a
/// little of the machine all the time, instead of much of it at once.
const AT_ONCE: usize = 16;
const BETWEEN: Duration = Duration::from_millis(5);

/// The length of one measurement in the file.
const SLOT: u64 = 32;
/// The length of the file, in bytes.
const LENGTH: u64 = MEASUREMENTS * SLOT;

/// What a sandbox used over some seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// When they were over.
    pub time: Timestamp,
    /// How many processors were busy with it, on average.
    pub processors: f64,
    /// Memory at the end, in bytes.
    pub memory_bytes: u64,
}

/// One look at a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    uptime: Uptime,
    time: Timestamp,
    /// So far.
    cpu_micros: u64,
    memory_bytes: u64,
}

impl Look {
    fn at(cgroups: &Cgroups) -> Self {
        let usage = cgroups.usage();
        Self {
            uptime: Uptime::now(),
            time: Timestamp::now(),
            cpu_micros: usage.cpu_micros,
            memory_bytes: usage.memory_bytes,
        }
    }

    /// Where it belongs in the file.
    fn offset(&self) -> u64 {
        let every = u64::try_from(MEASURED_EVERY.as_millis()).unwrap_or(u64::MAX);
        self.uptime.as_millis() / every % MEASUREMENTS * SLOT
    }

    fn to_bytes(self) -> Vec<u8> {
        let time = self.time.as_microsecond().to_le_bytes();
        let others = [self.uptime.as_millis(), self.cpu_micros, self.memory_bytes];
        let others = others.into_iter().flat_map(u64::to_le_bytes);
        others.chain(time).collect()
    }

    /// What is in a place of the file; `None` in one that was not written yet.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let [uptime, cpu_micros, memory_bytes, time] = numbers else { return None };
        let uptime = u64::from_le_bytes(*uptime);
        (uptime > 0 && rest.is_empty()).then_some(())?;
        Some(Self {
            uptime: Uptime::from_millis(uptime),
            time: Timestamp::from_microsecond(i64::from_le_bytes(*time)).ok()?,
            cpu_micros: u64::from_le_bytes(*cpu_micros),
            memory_bytes: u64::from_le_bytes(*memory_bytes),
        })
    }

    fn write(self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.write_all_at(&self.to_bytes(), self.offset())
    }
}

/// Those in a file that are of the last hour, oldest first.
fn read(path: &Path, now: Uptime) -> io::Result<Vec<Look>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(LENGTH).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let hour = MEASURED_EVERY.saturating_mul(u32::try_from(MEASUREMENTS).unwrap_or(u32::MAX));
    let (slots, _) = bytes.as_chunks::<32>();
    let looks = slots.iter().filter_map(|slot| Look::from_bytes(slot));
    let mut looks: Vec<_> =
        looks.filter(|look| look.uptime <= now && look.uptime.until(now) < hour).collect();
    looks.sort_by_key(|look| look.uptime);
    Ok(looks)
}

/// What was used between two looks that follow each other. What lies between two that are further apart is not known: the
/// sandbox was paused, or no daemon was running.
fn measurements(looks: &[Look]) -> Vec<Measurement> {
    let pairs = looks.windows(2).filter_map(|pair| {
        let [before, after] = pair else { return None };
        let elapsed = before.uptime.until(after.uptime);
        let busy = Duration::from_micros(after.cpu_micros.saturating_sub(before.cpu_micros));
        (!elapsed.is_zero() && elapsed < 2 * MEASURED_EVERY).then(|| Measurement {
            time: after.time,
            processors: busy.div_duration_f64(elapsed),
            memory_bytes: after.memory_bytes,
        })
    });
    pairs.collect()
}

impl Manager {
    /// What a sandbox used during the last hour, as far as it ran, oldest first; at most [`MEASUREMENTS`].
    pub async fn history(&self, account: &str, id: &SandboxId) -> Result<Vec<Measurement>, SandboxError> {
        let living = self.present(account, id).await?;
        let path = self.history_of(&living.id);
        blocking(move || {
            let looks = read(&path, Uptime::now());
            looks.map_err(|source| super::prepare::failed("read", &path, source))
        })
        .await?
        .map(|looks| measurements(&looks))
    }

    fn history_of(&self, id: &SandboxId) -> PathBuf {
        self.directory(id).path().join("measurements")
    }

    /// Measures what runs, from time to time.
    pub(super) fn keep_measuring(&self) {
        let manager = self.clone();
        tokio::spawn(async move {
            // Not at once: the last measurement of an earlier daemon may be of the same ten seconds.
            let mut next = Instant::now() + MEASURED_EVERY;
            loop {
                tokio::select! {
                    () = manager.inner.stop.cancelled() => return,
                    () = sleep_until(next) => {}
                }
                next = Instant::now() + MEASURED_EVERY;
                for some in manager.running().chunks(AT_ONCE) {
                    let some = some.to_vec();
                    if blocking(move || measure(&some)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(BETWEEN).await;
                }
            }
        });
    }

    /// The groups of what runs, each with its file. What is being made, paused or ended in this moment is left out.
    fn running(&self) -> Vec<(Cgroups, PathBuf)> {
        let living: Vec<_> = self.inner.living.lock().values().cloned().collect();
        let running = living.iter().filter(|living| living.state() == State::Running);
        running
            .filter_map(|living| {
                Some((living.parts.try_lock().ok()?.cgroups.clone(), self.history_of(&living.id)))
            })
            .collect()
    }
}

fn measure(running: &[(Cgroups, PathBuf)]) {
    for (cgroups, path) in running {
        match Look::at(cgroups).write(path) {
            // It has ended since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a measurement is not kept");
            }
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seconds: u64, cpu_millis: u64) -> Look {
        Look {
            uptime: Uptime::from_millis(seconds * 1000),
            time: Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap(),
            cpu_micros: cpu_millis * 1000,
            memory_bytes: seconds,
        }
    }

    #[test]
    fn an_hour_is_kept_in_a_file_of_fixed_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("measurements");
        assert_eq!(read(&path, Uptime::from_millis(1)).unwrap(), []);
        for n in 1..1000 {
            look(n * 10, n).write(&path).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LENGTH);
        let looks = read(&path, Uptime::from_millis(9_995_000)).unwrap();
        assert_eq!(looks.len(), 360);
        assert_eq!((looks[0], looks[359]), (look(6400, 640), look(9990, 999)));
        // Half an hour later, half of them are too old, and nothing later than now is believed.
        assert_eq!(read(&path, Uptime::from_millis(11_795_000)).unwrap().len(), 180);
        assert_eq!(read(&path, Uptime::from_millis(6_405_000)).unwrap(), [look(6400, 640)]);
    }

    #[test]
    fn a_file_that_is_damaged_is_no_more_than_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("measurements");
        look(10, 1).write(&path).unwrap();
        look(20, 2).write(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 32], look(20, 2).offset()).unwrap();
        file.write_all_at(&[7; 40], LENGTH - 8).unwrap();
        assert_eq!(read(&path, Uptime::from_millis(30_000)).unwrap(), [look(10, 1)]);
    }

    #[test]
    fn what_was_used_is_the_difference_of_neighbours_and_nothing_is_made_up_for_a_gap() {
        let found = measurements(&[
            look(10, 0),
            look(20, 5000),
            look(30, 25_000),
            look(1000, 26_000),
            look(1010, 26_000),
        ]);
        let found: Vec<_> = found.iter().map(|one| (one.memory_bytes, one.processors)).collect();
        assert_eq!(found, [(20, 0.5), (30, 2.0), (1010, 0.0)]);
        assert_eq!(measurements(&[look(10, 5)]), []);
    }
}
