//! A manager that keeps everything in memory. Commands are words with a meaning, see [`Fake::exec`].

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    num::NonZeroU16,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use policy::{Floor, Policy, PolicySpec};
use sandbox::{
    Change, ChangeKind, ChangedBy, CommandEvent, CommandInfo, Create, Cut, Entry, EntryKind, Exec,
    ExitStatus, Filter, FollowFrom, Measurement, Output, OutputStream, PolicyChange, PortConnection,
    SandboxError, SandboxId, SessionEvent, Stats, TerminalSize, WriteInfo,
    cgroup::{Limits, Usage},
};
use server::{Changes, CommandEvents, Content, Doing, Files, Sandboxes, SessionEvents, Source};
use store::{SandboxCursor, SandboxPage, SandboxRecord, Store};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Notify, Semaphore},
};

/// See the module.
#[derive(Default)]
pub(crate) struct Fake {
    /// Where sandboxes are stored when they are created, and not later.
    pub(crate) store: OnceLock<Store>,
    records: Mutex<BTreeMap<String, SandboxRecord>>,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    pub(crate) created: Mutex<Vec<Create>>,
    pub(crate) ran: Mutex<Vec<Exec>>,
    pub(crate) policies: Mutex<Vec<PolicySpec>>,
    pub(crate) changed_by: Mutex<Vec<ChangedBy>>,
    pub(crate) stdin: Mutex<Vec<(u32, Option<Vec<u8>>)>>,
    /// Sizes of terminals, as they were set.
    pub(crate) sizes: Mutex<Vec<Option<TerminalSize>>>,
    next: AtomicU32,
    /// How often usage was settled.
    pub(crate) settled: AtomicU32,
    /// What is given as the history of every sandbox.
    pub(crate) measured: Mutex<Vec<Measurement>>,
    /// Creates wait for this while it is set.
    pub(crate) hold: Mutex<Option<Arc<Notify>>>,
    /// Commands that began and did not end.
    pub(crate) running: Arc<AtomicUsize>,
    /// What ends connections to ports.
    pub(crate) port_cut: Cut,
    /// Places for connections to ports.
    pub(crate) ports_open: Places,
    /// Told when one begins or is dropped.
    pub(crate) changed: Arc<Notify>,
}

/// How many connections to ports there may be.
pub(crate) struct Places(pub(crate) Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(4)))
    }
}

/// Counts a command while it exists.
struct Running(Arc<AtomicUsize>, Arc<Notify>);

impl Running {
    fn new(fake: &Fake) -> Self {
        fake.running.fetch_add(1, Ordering::SeqCst);
        fake.changed.notify_one();
        Self(Arc::clone(&fake.running), Arc::clone(&fake.changed))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.notify_one();
    }
}

impl Fake {
    pub(crate) fn set_state(&self, id: &str, state: &str) {
        self.records.lock().unwrap().get_mut(id).unwrap().state = state.to_owned();
    }

    pub(crate) fn record(&self, id: &str) -> SandboxRecord {
        self.records.lock().unwrap()[id].clone()
    }

    pub(crate) fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(path).cloned()
    }

    fn find(&self, account: &str, id: &SandboxId) -> Result<SandboxRecord, SandboxError> {
        let records = self.records.lock().unwrap();
        records
            .get(&id.to_string())
            .filter(|record| record.account == account)
            .cloned()
            .ok_or(SandboxError::NotFound)
    }

    fn usable(&self, account: &str, id: &SandboxId) -> Result<(), SandboxError> {
        match self.find(account, id)?.state.as_str() {
            "paused" => Err(SandboxError::Paused),
            "killed" => Err(SandboxError::Killed),
            _ => Ok(()),
        }
    }
}

fn output(stdout: &str, exit_code: i32) -> Output {
    Output { stdout: stdout.into(), exit_code, ..Output::default() }
}

impl Sandboxes for Fake {
    fn stats(&self) -> Stats {
        Stats { created: self.next.load(Ordering::SeqCst).into(), ..Stats::default() }
    }

    fn create(&self, create: Create) -> Doing<'_, SandboxRecord> {
        Box::pin(async move {
            let hold = self.hold.lock().unwrap().clone();
            if let Some(hold) = hold {
                hold.notified().await;
            }
            match create.template.as_str() {
                "panic" => panic!("as the test asked"),
                "disk" => {
                    return Err(SandboxError::Io {
                        action: "write",
                        path: "/var/lib/secret/path".into(),
                        source: std::io::Error::other("no"),
                    });
                }
                "full" => return Err(SandboxError::Limit("sandboxes".to_owned())),
                "building" => return Err(SandboxError::TemplateNotReady("building".to_owned())),
                "base" | "python" => {}
                other => return Err(SandboxError::UnknownTemplate(other.to_owned())),
            }
            let id = format!("sbx-{:08}", self.next.fetch_add(1, Ordering::SeqCst));
            let now = Timestamp::now();
            let record = SandboxRecord {
                id: id.clone(),
                account: create.account.clone(),
                template_id: create.template.clone(),
                name: String::new(),
                state: "running".to_owned(),
                metadata: create.metadata.clone(),
                envs: create.envs.clone(),
                spec: create.stored.clone(),
                audit_enabled: create.audit,
                created_at: now,
                started_at: Some(now),
                end_at: (!create.timeout.is_zero()).then(|| now + create.timeout),
                timeout_s: create.timeout.as_secs(),
                on_timeout: create.on_timeout.as_str().to_owned(),
                auto_resume: create.auto_resume,
                host: serde_json::to_value(&create.policy).unwrap(),
                generation: 1,
            };
            if let Some(store) = self.store.get() {
                if let Some(key) = &create.idempotency_key {
                    store.idempotency().assign(&create.account, key, &id).await?;
                }
                store.sandboxes().put(&record).await?;
            }
            self.created.lock().unwrap().push(create);
            self.records.lock().unwrap().insert(id, record.clone());
            Ok(record)
        })
    }

    fn get<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, SandboxRecord> {
        Box::pin(async move { self.find(account, id) })
    }

    fn list<'a>(&'a self, account: &'a str, filter: Filter) -> Doing<'a, SandboxPage> {
        Box::pin(async move {
            let records = self.records.lock().unwrap();
            let all: Vec<_> = records
                .values()
                .rev()
                .filter(|record| record.account == account)
                .filter(|record| match filter.states.as_slice() {
                    [] => record.state != "killed",
                    states => states.iter().any(|state| state.as_str() == record.state),
                })
                .filter(|record| {
                    filter.metadata.iter().all(|(key, value)| record.metadata.get(key) == Some(value))
                })
                .cloned()
                .collect();
            let total = all.len() as u64;
            let from = filter.after.as_ref().map_or(0, |after| {
                1 + all.iter().position(|record| SandboxCursor::at(record) == *after).expect("a place")
            });
            let mut sandboxes: Vec<_> = all.into_iter().skip(from + filter.offset as usize).collect();
            let limit = filter.limit.unwrap() as usize;
            let more = sandboxes.len() > limit;
            sandboxes.truncate(limit);
            let next = sandboxes.last().filter(|_| more).map(SandboxCursor::at);
            Ok(SandboxPage { sandboxes, total, next })
        })
    }

    fn kill<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, bool> {
        Box::pin(async move {
            let was = self.find(account, id)?.state;
            self.set_state(&id.to_string(), "killed");
            Ok(was != "killed")
        })
    }

    fn kill_queued<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()> {
        Box::pin(async move { self.kill(account, id).await.map(drop) })
    }

    fn set_timeout<'a>(&'a self, account: &'a str, id: &'a SandboxId, timeout: Duration) -> Doing<'a, ()> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.records.lock().unwrap().get_mut(&id.to_string()).unwrap().timeout_s = timeout.as_secs();
            Ok(())
        })
    }

    fn set_policy<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        change: PolicyChange,
    ) -> Doing<'a, SandboxRecord> {
        Box::pin(async move {
            if self.find(account, id)?.state == "killed" {
                return Err(SandboxError::Killed);
            }
            let mut records = self.records.lock().unwrap();
            let record = records.get_mut(id.as_str()).unwrap();
            if change.policy.allow_out.iter().any(|entry| entry == "kernel.refuses.test") {
                return Err(SandboxError::PolicyKept("the kernel said no to /var/lib/secret".into()));
            }
            let mut policies = self.policies.lock().unwrap();
            if change.only_narrower {
                let compiled = |spec: &PolicySpec| Policy::compile(spec, Arc::new(Floor::new([])));
                let in_force = serde_json::from_value(record.host.clone()).unwrap();
                compiled(&change.policy)?.check_within(&compiled(&in_force)?)?;
            }
            record.host = serde_json::to_value(&change.policy).unwrap();
            policies.push(change.policy);
            self.changed_by.lock().unwrap().push(change.by);
            (record.spec, record.generation) = (change.stored, record.generation + 1);
            Ok(record.clone())
        })
    }

    fn pause<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.set_state(id.as_str(), "paused");
            Ok(())
        })
    }

    fn resume<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()> {
        Box::pin(async move {
            if self.find(account, id)?.state == "killed" {
                return Err(SandboxError::Killed);
            }
            self.set_state(id.as_str(), "running");
            Ok(())
        })
    }

    fn settle_usage(&self) -> Doing<'_, ()> {
        self.settled.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn capacity(&self) -> (u32, Limits) {
        (7, Limits { memory_bytes: 512 << 20, cpu_millis: 1500, processes: 10 })
    }

    fn history<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Vec<Measurement>> {
        Box::pin(async move {
            self.find(account, id)?;
            Ok(self.measured.lock().unwrap().clone())
        })
    }

    fn usage<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Usage> {
        Box::pin(async move {
            self.usable(account, id)?;
            let cpu_micros = u64::from(self.next.fetch_add(10_000, Ordering::SeqCst));
            Ok(Usage { cpu_micros, memory_bytes: 3 << 20, processes: 2, out_of_memory_kills: 0 })
        })
    }

    /// `echo WORDS`, `exit CODE`, `sleep SECONDS`, `hang`, `timeout`, `lost`, `bytes`.
    fn exec<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, Output> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.ran.lock().unwrap().push(exec.clone());
            let (word, rest) = exec.command.split_once(' ').unwrap_or((&exec.command, ""));
            let _running = Running::new(self);
            match word {
                "echo" => Ok(output(&format!("{rest}\n"), 0)),
                "exit" => Ok(output("", rest.parse().unwrap())),
                "sleep" => {
                    tokio::time::sleep(Duration::from_secs(rest.parse().unwrap())).await;
                    Ok(output("", 0))
                }
                "hang" => std::future::pending().await,
                "timeout" => {
                    Ok(Output { stderr: b"partial".to_vec(), timed_out: true, ..output("some", -1) })
                }
                "bytes" => Ok(Output { stdout: vec![b'a', 0xff, b'b'], ..output("", 0) }),
                "lost" => Err(SandboxError::InitUnreachable("gone".to_owned())),
                other => panic!("no such command: {other}"),
            }
        })
    }

    fn exec_streaming<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        exec: Exec,
    ) -> Doing<'a, CommandEvents> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.ran.lock().unwrap().push(exec.clone());
            let exit = |exit_code, timed_out| Ok(CommandEvent::Exit(ExitStatus { exit_code, timed_out }));
            let stdout = |text: &'static [u8]| Ok(CommandEvent::Stdout(Bytes::from_static(text)));
            let events = match exec.command.as_str() {
                "both" => vec![
                    stdout(b"one\ntw"),
                    Ok(CommandEvent::Stderr(Bytes::from_static(b"oh\n"))),
                    stdout(b"o\n\xff\xc3"),
                    exit(3, false),
                ],
                "timeout" => vec![stdout(b"some"), exit(137, true)],
                "lost" => vec![stdout(b"some"), Err(SandboxError::InitUnreachable("gone".to_owned()))],
                "hang" => {
                    let running = Running::new(self);
                    let hang = stream::once(async move {
                        let _running = running;
                        std::future::pending().await
                    });
                    return Ok(Box::pin(hang) as CommandEvents);
                }
                _ => return Err(SandboxError::InitUnreachable("no such word".to_owned())),
            };
            Ok(Box::pin(stream::iter(events)) as CommandEvents)
        })
    }

    fn spawn<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, u32> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.ran.lock().unwrap().push(exec);
            Ok(100)
        })
    }

    fn start_session<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        exec: Exec,
        terminal: Option<TerminalSize>,
    ) -> Doing<'a, u32> {
        Box::pin(async move {
            self.usable(account, id)?;
            if exec.command == "old" {
                return Err(SandboxError::InitTooOld);
            }
            self.ran.lock().unwrap().push(exec);
            self.sizes.lock().unwrap().push(terminal);
            Ok(100)
        })
    }

    fn follow<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        from: FollowFrom,
    ) -> Doing<'a, SessionEvents> {
        Box::pin(async move {
            self.usable(account, id)?;
            known(pid)?;
            let after = match from {
                FollowFrom::Piece(piece) => piece,
                FollowFrom::Now => 0,
            };
            let piece = |id, stream, data: &'static [u8]| {
                Ok(SessionEvent::Output { id, stream, data: Bytes::from_static(data) })
            };
            // The third is lost.
            let pieces = [
                piece(1, OutputStream::Stdout, b"a\xff"),
                piece(2, OutputStream::Stderr, b"b"),
                piece(4, OutputStream::Stdout, b"d"),
            ];
            let wanted = pieces
                .into_iter()
                .filter(move |piece| matches!(piece, Ok(SessionEvent::Output { id, .. }) if *id > after));
            let exit = ExitStatus { exit_code: 7, timed_out: false };
            if pid == ENDLESS {
                return Ok(Box::pin(stream::iter(wanted).chain(stream::pending())) as SessionEvents);
            }
            let events = wanted.chain([Ok(SessionEvent::Exit(exit))]);
            Ok(Box::pin(stream::iter(events)) as SessionEvents)
        })
    }

    fn resize<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        size: TerminalSize,
    ) -> Doing<'a, ()> {
        Box::pin(async move {
            self.usable(account, id)?;
            known(pid)?;
            self.sizes.lock().unwrap().push(Some(size));
            Ok(())
        })
    }

    fn wait<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, Output> {
        Box::pin(async move {
            self.usable(account, id)?;
            known(pid)?;
            Ok(output("done\n", 3))
        })
    }

    fn commands<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Vec<CommandInfo>> {
        Box::pin(async move {
            self.usable(account, id)?;
            let ran = self.ran.lock().unwrap();
            Ok(ran
                .iter()
                .map(|exec| CommandInfo {
                    pid: 100,
                    command: exec.command.clone(),
                    envs: exec.envs.clone(),
                    background: true,
                    terminal: false,
                })
                .collect())
        })
    }

    fn kill_command<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, bool> {
        Box::pin(async move {
            self.usable(account, id)?;
            Ok(pid == 100)
        })
    }

    fn send_stdin<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        data: Vec<u8>,
    ) -> Doing<'a, ()> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.stdin.lock().unwrap().push((pid, Some(data)));
            known(pid)
        })
    }

    fn close_stdin<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, ()> {
        Box::pin(async move {
            self.usable(account, id)?;
            self.stdin.lock().unwrap().push((pid, None));
            known(pid)
        })
    }

    /// A port of the sandbox is that port of this machine.
    fn connect_port<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        port: NonZeroU16,
    ) -> Doing<'a, PortConnection> {
        Box::pin(async move {
            self.usable(account, id)?;
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).await;
            let stream = stream.map_err(|_| SandboxError::NothingListens(port.get()))?;
            let place = Arc::clone(&self.ports_open.0).try_acquire_owned();
            let place = place.map_err(|_| SandboxError::Limit("places".to_owned()))?;
            Ok(PortConnection::new(stream, self.port_cut.clone(), [place]))
        })
    }

    fn files<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Box<dyn Files>> {
        Box::pin(async move {
            self.usable(account, id)?;
            Ok(Box::new(FakeFiles(Arc::clone(&self.files))) as Box<dyn Files>)
        })
    }
}

/// The pid of a session that puts out something and then nothing more, for ever.
pub(crate) const ENDLESS: u32 = 101;

fn known(pid: u32) -> Result<(), SandboxError> {
    match pid {
        100 | ENDLESS => Ok(()),
        _ => Err(SandboxError::NoSuchCommand(format!("no command {pid}"))),
    }
}

/// Files by path; a path that ends in `/` is a directory.
struct FakeFiles(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl FakeFiles {
    fn entry(&self, path: &str) -> Result<Entry, SandboxError> {
        let files = self.0.lock().unwrap();
        let name = path.rsplit('/').next().unwrap().to_owned();
        let entry = |kind, size| Entry { name, path: path.to_owned(), kind, size, mode: 0o644, modified: 0 };
        if let Some(content) = files.get(path) {
            return Ok(entry(EntryKind::File, content.len() as u64));
        }
        match files.keys().any(|key| key.starts_with(&format!("{path}/"))) {
            true => Ok(entry(EntryKind::Directory, 0)),
            false => Err(SandboxError::FileNotFound(path.to_owned())),
        }
    }

    fn check(path: &str, user: Option<&str>) -> Result<(), SandboxError> {
        match (path.starts_with('/'), user) {
            (false, _) => Err(SandboxError::InvalidPath(path.to_owned())),
            (true, None | Some("user" | "root")) => Ok(()),
            (true, Some(other)) => Err(SandboxError::UnknownUser(other.to_owned())),
        }
    }
}

impl Files for FakeFiles {
    fn read<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, (u64, Content)> {
        Box::pin(async move {
            Self::check(path, user)?;
            if self.entry(path)?.kind == EntryKind::Directory {
                return Err(SandboxError::IsDirectory(path.to_owned()));
            }
            let content = self.0.lock().unwrap()[path].clone();
            let size = match path.rsplit('/').next() {
                Some("growing") => content.len() - 1,
                Some("shrinking") => content.len() + 1,
                _ => content.len(),
            };
            Ok((size as u64, Box::pin(stream::once(async { Ok(Bytes::from(content)) })) as Content))
        })
    }

    fn write<'a>(
        &'a self,
        path: &'a str,
        user: Option<&'a str>,
        _limit: u64,
        mut source: Source,
    ) -> Doing<'a, WriteInfo> {
        Box::pin(async move {
            Self::check(path, user)?;
            if path.starts_with("/full/") {
                return Err(SandboxError::NoSpace("no space left".to_owned()));
            }
            let (mut all, mut size, mut chunk) = (Vec::new(), 0, vec![0; 1 << 16]);
            while let read @ 1.. = source.read(&mut chunk).await.map_err(SandboxError::Source)? {
                size += read as u64;
                if !path.starts_with("/count/") {
                    all.extend_from_slice(&chunk[..read]);
                }
            }
            self.0.lock().unwrap().insert(path.to_owned(), all);
            Ok(WriteInfo { path: path.to_owned(), size })
        })
    }

    fn list<'a>(&'a self, path: &'a str, user: Option<&'a str>, _depth: u32) -> Doing<'a, Vec<Entry>> {
        Box::pin(async move {
            Self::check(path, user)?;
            if self.entry(path)?.kind == EntryKind::File {
                return Err(SandboxError::NotDirectory(path.to_owned()));
            }
            let paths: Vec<_> = self.0.lock().unwrap().keys().cloned().collect();
            paths
                .iter()
                .filter(|key| key.starts_with(&format!("{path}/")))
                .map(|key| self.entry(key))
                .collect()
        })
    }

    fn info<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, Entry> {
        Box::pin(async move {
            Self::check(path, user)?;
            self.entry(path)
        })
    }

    fn exists<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool> {
        Box::pin(async move {
            Self::check(path, user)?;
            Ok(self.entry(path).is_ok())
        })
    }

    fn remove<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool> {
        Box::pin(async move {
            Self::check(path, user)?;
            Ok(self.0.lock().unwrap().remove(path).is_some())
        })
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str, user: Option<&'a str>) -> Doing<'a, Entry> {
        Box::pin(async move {
            Self::check(from, user)?;
            self.entry(from)?;
            let content = self.0.lock().unwrap().remove(from).unwrap();
            self.0.lock().unwrap().insert(to.to_owned(), content);
            self.entry(to)
        })
    }

    fn watch<'a>(&'a self, path: &'a str, user: Option<&'a str>, recursive: bool) -> Doing<'a, Changes> {
        Box::pin(async move {
            Self::check(path, user)?;
            let change = |kind, path: String| Ok(Change { kind, path, directory: recursive });
            let changes =
                [change(ChangeKind::Write, format!("{path}/f")), change(ChangeKind::Lost, String::new())];
            if path == "/endless" {
                return Ok(Box::pin(stream::iter(changes).chain(stream::pending())) as Changes);
            }
            Ok(Box::pin(stream::iter(changes)) as Changes)
        })
    }

    fn mkdir<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool> {
        Box::pin(async move {
            Self::check(path, user)?;
            Ok(self.entry(path).is_err()
                && self.0.lock().unwrap().insert(format!("{path}/"), Vec::new()).is_none())
        })
    }
}
