//! From a request to a running sandbox.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    panic::AssertUnwindSafe,
    path::{Component, Path},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use init_protocol::{Configure, READY};
use jiff::Timestamp;
use policy::Policy;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;
use store::{SandboxRecord, StoreError};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::timeout};

use super::{
    Create, Manager, OnTimeout, blocking,
    clock::{Deadline, Uptime},
    joined,
    living::{HostState, Living, Parts, State},
    prepare::{self, Directory},
    shells::{ReadyShell, Slot},
    stats::Counters,
};
use crate::{
    cgroup::Limits,
    client::InitClient,
    error::SandboxError,
    fault::{Context as _, Fault},
    ids::SandboxId,
    network::NetworkRequest,
    rootfs::RootPlan,
    spawner::{BindMount, Plan, PlanFds},
    template::Template,
};

/// How long a new process may take until it is a serving init.
const START: Duration = Duration::from_secs(30);

/// An upper bound of open files inside; the machine's own limit is usually lower.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// The longest message about a failed start.
const MAX_FAULT: usize = 64 << 10;

impl Manager {
    /// Makes a sandbox. When this returns, its policy is in force, its init serves, and the store knows it.
    ///
    /// The work goes on to its end even if the caller does not wait for it.
    ///
    /// # Errors
    /// Nothing is left of a sandbox that could not be made. [`SandboxError::Killed`] when it was killed meanwhile.
    pub async fn create(&self, request: Create) -> Result<SandboxRecord, SandboxError> {
        let manager = self.clone();
        joined(tokio::spawn(async move { manager.make(request).await })).await?
    }

    async fn make(&self, request: Create) -> Result<SandboxRecord, SandboxError> {
        if self.inner.stop.is_cancelled() {
            return Err(SandboxError::ShuttingDown);
        }
        check_mounts(&request.mounts)?;
        if request.on_timeout == OnTimeout::Pause && !self.inner.hierarchies.can_freeze() {
            return Err(SandboxError::CannotPause);
        }
        let config = &self.inner.config;
        let policy = Arc::new(Policy::compile(&request.policy, config.network.floor())?);
        let template = self.inner.templates.get(&request.template)?;
        let admission = self.admit(&request.account)?;
        let shell = self.take_ready();
        let slot = match &shell {
            Some(shell) => shell.slot.clone(),
            None => self.reserve()?,
        };

        let record = self.new_record(&slot, &request, &template);
        let socket = self.directory(&slot.id).socket();
        let living = Arc::new(Living::new(slot.id.clone(), InitClient::new(socket), record));
        let mut parts = living.parts.lock().await;
        self.inner.living.lock().insert(slot.id.clone(), Arc::clone(&living));
        drop(admission);
        self.inner.shells.unreserve(&slot.id);
        parts.first_id = Some(slot.first_id);

        let building = self.build(&living, &mut parts, &request, policy, template, shell);
        // Of a panic, too, nothing is to be left.
        let built = AssertUnwindSafe(building).catch_unwind().await.unwrap_or_else(|_panic| {
            Err(Fault::new("make", "the sandbox, for a fault of the daemon which its log tells").into())
        });
        let result = match built {
            Ok(()) if living.advance(&[State::Creating], State::Running) => {
                living.set_running_since(Some(Uptime::now()));
                living.store(&config.store).await.map_err(SandboxError::from)
            }
            Ok(()) => Err(SandboxError::Killed),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            Counters::add(&self.inner.counters.not_created);
            self.give_up(&living, &mut parts).await;
            return Err(error);
        }
        Counters::add(&self.inner.counters.created);
        drop(parts);
        let record = living.record();
        let detail = json!({ "template": record.template_id, "timeout": record.timeout_s });
        self.recorder(&record).lifecycle("sandbox_created", detail);
        self.watch_over(&living);
        Ok(record)
    }

    /// Takes down what was built, in the order that is safe, and says in the store that there is nothing.
    async fn give_up(&self, living: &Arc<Living>, parts: &mut Parts) {
        living.update(|record| record.state = State::Killed.as_str().to_owned());
        if let Err(error) = self.take_down(living, parts).await {
            tracing::warn!(sandbox = %living.id, error = %chain(&error), "remains of a failed sandbox");
        }
        if let Err(error) = living.store(&self.inner.config.store).await {
            tracing::warn!(sandbox = %living.id, error = %chain(&error), "cannot record a failed sandbox");
            self.inner.unrecorded.notify_one();
        }
    }

    async fn build(
        &self,
        living: &Arc<Living>,
        parts: &mut Parts,
        request: &Create,
        policy: Arc<Policy>,
        template: Template,
        shell: Option<ReadyShell>,
    ) -> Result<(), SandboxError> {
        let config = &self.inner.config;
        let limits = request.limits.unwrap_or(config.limits);
        let network = NetworkRequest {
            sandbox: living.id.to_string(),
            policy,
            generation: 1,
            recorder: self.recorder(&living.record()),
            namespace: None,
        };
        // What does not depend on each other; a daemon that dies meanwhile leaves things that gc finds.
        let slot = Slot { id: living.id.clone(), first_id: parts.first_id.unwrap_or_default() };
        let (attached, socket, shell, stored) = tokio::join!(
            config.network.attach(network),
            self.prepare(living.id.clone()),
            self.shell_with(shell, slot, limits),
            self.store_new(living, request.idempotency_key.as_deref()),
        );
        // First what is to be taken down again, then what failed.
        let failed = |source| SandboxError::Network { action: "set up", source };
        let namespace = attached.and_then(|attachment| {
            let namespace = attachment.namespace();
            parts.attachment = Some(attachment);
            namespace
        });
        let shell = shell.inspect(|shell| {
            parts.cgroups = shell.cgroups.clone();
            parts.process = Some(Arc::clone(&shell.process));
        });
        let (netns, socket, shell) = (namespace.map_err(failed)?, socket?, shell?);
        stored?;
        stop_if_ending(living)?;

        living.update_host(|host| host.process = Some(shell.process.identity().clone()));
        let plan = self.plan(&living.id, &template, request, &limits);
        parts.template = Some(template);
        let configure = Configure { sandbox_id: living.id.to_string(), envs: request.envs.clone() };
        let boot = prepare::boot_frame(configure, &self.inner.seccomp)?;
        self.start_init(living, shell, &plan, [netns, socket, boot]).await?;

        let started_at = Timestamp::now();
        living.update(|record| record.started_at = Some(started_at));
        living.set_end(Deadline::after(request.timeout));
        Ok(())
    }

    /// The claim first: a sandbox that the store knows is known to belong to its request.
    async fn store_new(&self, living: &Living, idempotency_key: Option<&str>) -> Result<(), StoreError> {
        let store = &self.inner.config.store;
        if let Some(key) = idempotency_key {
            store.idempotency().assign(&living.account(), key, living.id.as_str()).await?;
        }
        living.store(store).await
    }

    /// The directory with init's socket.
    async fn prepare(&self, id: SandboxId) -> Result<OwnedFd, SandboxError> {
        let manager = self.clone();
        blocking(move || manager.directory(&id).make(&id, &manager.inner.config.nameserver)).await?
    }

    /// The shell that is ready, with these limits, or a new one.
    async fn shell_with(
        &self,
        shell: Option<ReadyShell>,
        slot: Slot,
        limits: Limits,
    ) -> Result<ReadyShell, SandboxError> {
        let Some(shell) = shell else { return self.start_shell(slot, limits).await };
        if shell.limits != limits {
            let manager = self.clone();
            blocking(move || manager.inner.hierarchies.create(slot.id.as_str(), &limits)).await??;
        }
        Ok(shell)
    }

    fn plan(&self, id: &SandboxId, template: &Template, request: &Create, limits: &Limits) -> Plan {
        let directory = self.directory(id);
        let root = RootPlan {
            layers: template.layers(),
            usr: template.usr(),
            writable: directory.writable(),
            stage: directory.stage(),
            binds: request.mounts.clone(),
            shm_bytes: limits.memory_bytes / 2,
        };
        Plan { hostname: id.to_string(), root, max_open_files: MAX_OPEN_FILES }
    }

    /// Tells the shell what to become and waits until it is a serving init.
    async fn start_init(
        &self,
        living: &Arc<Living>,
        shell: ReadyShell,
        plan: &Plan,
        [netns, socket, boot]: [OwnedFd; 3],
    ) -> Result<(), SandboxError> {
        let (status, theirs) = pipe_with(PipeFlags::CLOEXEC).during("make", "a pipe")?;
        let status = pipe::Receiver::from_owned_fd(status).during("watch", "the status pipe")?;
        let init = &self.inner.config.init_binary;
        let program = File::open(init).during("open", init)?.into();
        let fds = PlanFds { netns, socket, boot, status: theirs, program };
        shell.control.plan(plan, &fds).during("instruct", "the first process")?;
        // The shell has its own; the end of this pipe is to be the end of that.
        drop(fds);
        Ok(wait_for_ready(status, living).await?)
    }

    fn new_record(&self, slot: &Slot, request: &Create, template: &Template) -> SandboxRecord {
        let host = HostState {
            first_id: slot.first_id,
            policy: request.policy.clone(),
            cgroups: self.inner.hierarchies.groups_of(slot.id.as_str()),
            process: None,
            ends: None,
            running_since: None,
        };
        SandboxRecord {
            id: slot.id.to_string(),
            account: request.account.clone(),
            template_id: template.id(),
            name: template.manifest.name.clone(),
            state: State::Creating.as_str().to_owned(),
            metadata: request.metadata.clone(),
            envs: request.envs.clone(),
            spec: request.stored.clone(),
            audit_enabled: request.audit,
            created_at: Timestamp::now(),
            started_at: None,
            end_at: None,
            timeout_s: request.timeout.as_secs(),
            on_timeout: request.on_timeout.as_str().to_owned(),
            auto_resume: request.auto_resume,
            host: host.to_value(),
            generation: 1,
        }
    }

    pub(super) fn directory(&self, id: &SandboxId) -> Directory {
        Directory::of(&self.inner.sandboxes_dir, id.as_str())
    }

    pub(super) fn recorder(&self, record: &SandboxRecord) -> audit::Recorder {
        self.inner.config.audit.recorder(&record.id, record.audit_enabled)
    }
}

/// An error with everything that caused it, for the log.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

fn check_mounts(mounts: &[BindMount]) -> Result<(), SandboxError> {
    for mount in mounts {
        let plain = |path: &Path| {
            path.is_absolute() && path.components().all(|part| !matches!(part, Component::ParentDir))
        };
        if !plain(&mount.source) || !plain(&mount.target) || mount.target == Path::new("/") {
            let BindMount { source, target, .. } = mount;
            return Err(SandboxError::InvalidPath(format!("{}:{}", source.display(), target.display())));
        }
        if let Err(source) = std::fs::metadata(&mount.source) {
            return Err(prepare::failed("mount", &mount.source, source));
        }
    }
    Ok(())
}

fn stop_if_ending(living: &Living) -> Result<(), SandboxError> {
    if living.ending.is_cancelled() { Err(SandboxError::Killed) } else { Ok(()) }
}

/// Init writes one byte when it serves; a process that does not get there writes what failed.
async fn wait_for_ready(mut status: pipe::Receiver, living: &Living) -> Result<(), Fault> {
    let mut said = Vec::new();
    let read = async {
        let mut part = [0; 4096];
        loop {
            let length = status.read(&mut part).await?;
            said.extend_from_slice(part.get(..length).unwrap_or_default());
            if length == 0 || said.first() == Some(&READY) || said.len() > MAX_FAULT {
                return Ok::<(), io::Error>(());
            }
        }
    };
    tokio::select! {
        read = timeout(START, read) => read
            .map_err(|_| Fault::new("start", format!("init in {} s", START.as_secs())))?
            .during("read", "the status pipe")?,
        () = living.ending.cancelled() => return Err(Fault::new("start", "init: it was killed")),
    }
    match said.as_slice() {
        [READY, ..] => Ok(()),
        [] => Err(Fault::new("start", "init: it ended without a word")),
        said => Err(serde_json::from_slice(said).unwrap_or_else(|_| Fault::new("start", "init"))),
    }
}
