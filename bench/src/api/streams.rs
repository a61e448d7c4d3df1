//! What goes through the API for longer than an answer: terminals, output, files.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};
use testkit::{Client, Method};

use super::{Session, milliseconds};
use crate::{
    child::Command,
    figure::{Figure, Peer, Target, Unit},
    memory::Usage,
    statistics::percentile,
};

/// How often the memory of the daemon is looked at while output streams.
const LOOK: Duration = Duration::from_millis(100);

impl Session<'_> {
    /// From a key pressed in a terminal until the terminal shows it.
    pub(super) async fn echo(&mut self) -> Result<Figure> {
        let id = self.create().await?;
        let (terminal, mut shown) = self.terminal(&id).await?;
        let keys = format!("{terminal}/stdin");
        // The kernel's echo, without an editor in between.
        let begin = json!({ "data": "stty raw echo; printf 'rea''dy'; exec cat > /dev/null\n" });
        self.client.expect(Method::POST, &keys, Some(&begin)).await?;
        shown.until("ready").await?;
        let key = json!({ "data": "x" });
        let mut times = Vec::new();
        for _ in 0..self.settings.times(500) {
            let begun = Instant::now();
            let pressed = self.client.expect(Method::POST, &keys, Some(&key));
            let echoed = async {
                shown.until("x").await?;
                anyhow::Ok(milliseconds(begun))
            };
            let (pressed, echoed) = tokio::join!(pressed, echoed);
            pressed?;
            times.push(echoed?);
        }
        self.kill(&id).await?;
        Ok(Figure {
            name: "terminal.echo".to_owned(),
            what: "a key in a terminal until it is shown, p50".to_owned(),
            unit: Unit::Milliseconds,
            ours: times,
            peer: None,
            target: Target::AtMost(2.0),
        })
    }

    /// The output of a command, as lines of 1 KiB, and what the daemon takes in memory meanwhile.
    pub(super) async fn output(&mut self) -> Result<Vec<Figure>> {
        const FILE: usize = 64 << 20;
        let files = if self.settings.quick { 2 } else { 16 };
        let id = self.create().await?;
        let make = format!("yes \"$(printf '%01023d' 7)\" | head -c {FILE} > /tmp/output");
        self.exec(&id, &make).await?;
        let command = format!("cat{}", " /tmp/output".repeat(files));
        let (mut rates, mut growths) = (Vec::new(), Vec::new());
        for _ in 0..self.settings.rounds().min(3) {
            let request = json!({ "cmd": command, "stream": true, "timeout": 600 });
            let path = format!("/sandboxes/{id}/commands/stream");
            let before = Usage::read(self.daemon)?.processes;
            let most = Watching::start(self.daemon);
            let begun = Instant::now();
            let body = self.another().await?.open(Method::POST, &path, Some(&request)).await?;
            let (read, last) = drain(body).await?;
            let seconds = begun.elapsed().as_secs_f64();
            ensure!(read > FILE * files, "only {read} bytes of output came");
            ensure!(last.contains("\"exit_code\":0"), "the output ended with {last:?}");
            growths.push(number(most.end().saturating_sub(before)) / 1024.0);
            rates.push(megabytes(FILE * files) / seconds);
        }
        self.kill(&id).await?;
        let figure = |name: &str, what: &str, unit, ours, target| Figure {
            name: format!("output.{name}"),
            what: what.to_owned(),
            unit,
            ours,
            peer: None,
            target,
        };
        Ok(vec![
            figure(
                "rate",
                "streamed output of a command, 1 GiB",
                Unit::MegabytesPerSecond,
                rates,
                Target::AtLeast(300.0),
            ),
            figure(
                "memory",
                "the most that the daemon grows meanwhile",
                Unit::Mebibytes,
                growths,
                Target::AtMost(16.0),
            ),
        ])
    }

    /// A large file into a sandbox and out again, against copying one through a pipe.
    pub(super) async fn files(&mut self) -> Result<Vec<Figure>> {
        let size = if self.settings.quick { 50 << 20 } else { 500 << 20 };
        let content = Bytes::from(vec![b'f'; size]);
        let (from, to) = (self.place.join("from"), self.place.join("to"));
        fs::write(&from, &content)?;
        let id = self.create().await?;
        let (mut uploads, mut downloads, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.settings.rounds() {
            let rate = |begun: Instant| megabytes(size) / begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            copy(&from, &to)?;
            copies.push(rate(begun));
            fs::remove_file(&to)?;

            let begun = Instant::now();
            self.client.write(&id, "/home/user/file", content.clone()).await?;
            uploads.push(rate(begun));

            let begun = Instant::now();
            let path = format!("/sandboxes/{id}/files/raw?path=/home/user/file");
            let body = self.another().await?.open(Method::GET, &path, None).await?;
            ensure!(save(body, &to).await? == size, "the file came back in another size");
            downloads.push(rate(begun));
            fs::remove_file(&to)?;
            self.exec(&id, "rm /home/user/file").await?;
        }
        fs::remove_file(&from)?;
        self.kill(&id).await?;
        let figure = |name: &str, what: &str, ours| Figure {
            name: format!("files.{name}"),
            what: format!("{what} of {} MiB", size >> 20),
            unit: Unit::MegabytesPerSecond,
            ours,
            peer: Some(Peer { name: "cat | cat", values: copies.clone() }),
            target: Target::AtLeastTimesPeer(0.5),
        };
        Ok(vec![figure("upload", "upload", uploads), figure("download", "download", downloads)])
    }

    /// Creating beside many sandboxes with an open terminal each, in terms of creating alone.
    pub(super) async fn crowd(&mut self) -> Result<Figure> {
        let alone = self.slowest_creation().await?;
        let mut crowd = Vec::new();
        for _ in 0..self.settings.times(200) {
            let id = self.create().await?;
            let terminal = self.terminal(&id).await?;
            crowd.push((id, terminal));
        }
        let beside = self.slowest_creation().await?;
        for (id, _) in &crowd {
            self.kill(id).await?;
        }
        Ok(Figure {
            name: "crowd".to_owned(),
            what: format!("creating beside {} open terminals, p99, in terms of alone", crowd.len()),
            unit: Unit::Times,
            ours: vec![beside / alone],
            peer: None,
            target: Target::AtMost(1.5),
        })
    }

    async fn slowest_creation(&mut self) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..self.settings.times(300) {
            let begun = Instant::now();
            let id = self.create().await?;
            times.push(milliseconds(begun));
            self.kill(&id).await?;
        }
        Ok(percentile(&times, 0.99))
    }

    /// Opens a terminal: its path, and what it shows.
    async fn terminal(&mut self, id: &str) -> Result<(String, Shown)> {
        let path = format!("/sandboxes/{id}/pty");
        let size = json!({ "size": { "cols": 80, "rows": 24 } });
        let made = self.client.expect(Method::POST, &path, Some(&size)).await?;
        let terminal = format!("{path}/{}", made["pid"].as_u64().context("the API gave no pid")?);
        let body = self.another().await?.open(Method::GET, &format!("{terminal}/stream"), None).await?;
        Ok((terminal, Shown { body, lines: String::new(), text: String::new() }))
    }

    async fn another(&self) -> Result<Client> {
        Client::connect(self.api, &self.key).await
    }
}

/// What a terminal shows.
struct Shown {
    body: Incoming,
    /// Lines of events, the last of them perhaps not complete.
    lines: String,
    text: String,
}

impl Shown {
    /// Reads on until something is shown.
    async fn until(&mut self, expected: &str) -> Result<()> {
        loop {
            if let Some(at) = self.text.find(expected) {
                self.text.drain(..at + expected.len());
                return Ok(());
            }
            let frame = self.body.frame().await.context("the stream has ended")??;
            let Some(data) = frame.data_ref() else { continue };
            self.lines.push_str(std::str::from_utf8(data)?);
            while let Some((line, rest)) = self.lines.split_once('\n') {
                if let Some(event) = line.strip_prefix("data: ") {
                    let event: Value = serde_json::from_str(event)?;
                    let bytes = STANDARD.decode(event["data"].as_str().unwrap_or_default())?;
                    self.text.push_str(&String::from_utf8_lossy(&bytes));
                }
                self.lines = rest.to_owned();
            }
        }
    }
}

/// Reads a stream to its end: how many bytes it had, and its last event.
async fn drain(mut body: Incoming) -> Result<(usize, String)> {
    const LAST: usize = 256;
    let (mut read, mut last) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        read += data.len();
        last.extend_from_slice(data.get(data.len().saturating_sub(LAST)..).unwrap_or_default());
        last.drain(..last.len().saturating_sub(LAST));
    }
    Ok((read, String::from_utf8_lossy(&last).into_owned()))
}

async fn save(mut body: Incoming, to: &Path) -> Result<usize> {
    use std::io::Write;

    let (mut file, mut written) = (fs::File::create(to)?, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        file.write_all(&data)?;
        written += data.len();
    }
    Ok(written)
}

/// As `cp`, but through a pipe.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let script = "cat \"$0\" | cat > \"$1\"";
    let status = Command::new("sh").args(["-c", script]).args([from, to]).status()?;
    ensure!(status.success(), "copying a file: {status}");
    Ok(())
}

/// Looks at the memory of the daemon now and then, on a thread of its own.
struct Watching {
    most: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Watching {
    fn start(daemon: u32) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let seen = Arc::downgrade(&most);
        let thread = std::thread::spawn(move || {
            while let Some(most) = seen.upgrade() {
                let now = Usage::read(daemon).map_or(0, |usage| usage.processes);
                most.fetch_max(now, Ordering::Relaxed);
                drop(most);
                std::thread::sleep(LOOK);
            }
        });
        Self { most, thread }
    }

    /// The most that was seen (KiB).
    fn end(self) -> u64 {
        let most = self.most.load(Ordering::Relaxed);
        drop(self.most);
        // It only reads, and what it saw is known.
        let _ended = self.thread.join();
        most
    }
}

fn megabytes(bytes: usize) -> f64 {
    number(u64::try_from(bytes).unwrap_or(u64::MAX)) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a figure, not a count")]
fn number(count: u64) -> f64 {
    count as f64
}
