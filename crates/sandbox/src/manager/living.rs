//! A sandbox that has not ended, as the manager knows it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use policy::PolicySpec;
use serde::{Deserialize, Serialize};
use store::{MoreUsage, SandboxRecord, Store, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    clock::{Deadline, Uptime, of_calendar},
    ports::Ports,
};
use crate::{
    cgroup::Cgroups,
    client::InitClient,
    ids::SandboxId,
    network::Attachment,
    process::{Process, ProcessIdentity},
    template::Template,
};

/// The states of a sandbox, by their words in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being made.
    Creating,
    /// Commands can run.
    Running,
    /// Its processes stand still.
    Paused,
    /// It has ended, or is about to.
    Killed,
}

impl State {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Killed => "killed",
        }
    }

    pub(super) fn named(word: &str) -> Option<Self> {
        [Self::Creating, Self::Running, Self::Paused, Self::Killed]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// Where and how a sandbox runs, as stored: what a later daemon needs to find it again or to clean up after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostState {
    /// What id 0 inside is on the machine.
    pub first_id: u32,
    /// The policy in force.
    pub policy: PolicySpec,
    /// Its control groups.
    #[serde(default)]
    pub cgroups: Cgroups,
    /// Its init, once there is one.
    #[serde(default)]
    pub process: Option<ProcessIdentity>,
    /// When its time is up, by the clock of the machine's start that its init belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Uptime>,
    /// Since when it runs, by the same clock; nothing while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_since: Option<Uptime>,
}

/// The policy in force of a stored sandbox; `None` when its record says nothing that this version understands.
pub fn stored_policy(record: &SandboxRecord) -> Option<PolicySpec> {
    HostState::of(record).map(|host| host.policy)
}

impl HostState {
    /// What a record says; `None` when it says nothing that this version understands.
    pub(super) fn of(record: &SandboxRecord) -> Option<Self> {
        Self::deserialize(&record.host).ok()
    }

    pub(super) fn to_value(&self) -> serde_json::Value {
        // Numbers, texts and lists with text keys: nothing that JSON could not hold.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// A sandbox that is being made, runs, or is being ended.
pub(super) struct Living {
    pub id: SandboxId,
    pub init: InitClient,
    /// Set when somebody wants it to end; never taken back.
    pub ending: CancellationToken,
    /// When its time is up.
    pub end_at: watch::Sender<Option<Uptime>>,
    /// Who may connect to its ports.
    pub ports: Ports,
    /// What is to be taken down when it ends. Held by whoever builds it up or takes it down.
    pub parts: tokio::sync::Mutex<Parts>,
    record: Mutex<SandboxRecord>,
    /// The same as in the record, where it is not as quick to read.
    running_since: Mutex<Option<Uptime>>,
    storing: tokio::sync::Mutex<()>,
}

/// What a sandbox is made of, as far as it has been made.
#[derive(Default)]
pub(super) struct Parts {
    /// Whether everything has been taken down again.
    pub gone: bool,
    pub first_id: Option<u32>,
    pub cgroups: Cgroups,
    pub attachment: Option<Box<dyn Attachment>>,
    pub process: Option<Arc<Process>>,
    /// Keeps the layers from being deleted.
    pub template: Option<Template>,
}

impl Living {
    pub(super) fn new(id: SandboxId, init: InitClient, record: SandboxRecord) -> Self {
        let (end_at, _) = watch::channel(end_of(&record));
        let host = HostState::of(&record);
        let running_since = host.as_ref().and_then(|host| host.running_since);
        let policy = host.map(|host| host.policy);
        Self {
            id,
            init,
            ending: CancellationToken::new(),
            end_at,
            ports: Ports::new(policy.is_some_and(|policy| policy.allow_public_traffic)),
            parts: tokio::sync::Mutex::default(),
            record: Mutex::new(record),
            running_since: Mutex::new(running_since),
            storing: tokio::sync::Mutex::default(),
        }
    }

    /// Writes the present state to the store. Of concurrent calls the last one to write has the latest state.
    pub(super) async fn store(&self, store: &Store) -> Result<(), StoreError> {
        let _order = self.storing.lock().await;
        store.sandboxes().put(&self.record()).await
    }

    /// Writes the present state to the store, and usage with it.
    pub(super) async fn store_with(&self, store: &Store, usage: &[MoreUsage]) -> Result<(), StoreError> {
        let _order = self.storing.lock().await;
        store.usage().add(usage, None, Some(&self.record())).await
    }

    /// A copy of what is stored about it.
    pub(super) fn record(&self) -> SandboxRecord {
        self.record.lock().clone()
    }

    pub(super) fn belongs_to(&self, account: &str) -> bool {
        self.record.lock().account == account
    }

    pub(super) fn account(&self) -> String {
        self.record.lock().account.clone()
    }

    /// Since when it runs; `None` while it does not.
    pub(super) fn running_since(&self) -> Option<Uptime> {
        *self.running_since.lock()
    }

    /// Sets since when it runs, but not of one that has ended; [`Self::store`] is the next step.
    pub(super) fn set_running_since(&self, since: Option<Uptime>) {
        let mut record = self.record.lock();
        if since.is_some() && record.state == State::Killed.as_str() {
            return;
        }
        *self.running_since.lock() = since;
        change_host(&mut record, |host| host.running_since = since);
    }

    pub(super) fn state(&self) -> State {
        State::named(&self.record.lock().state).unwrap_or(State::Killed)
    }

    /// Changes what is known about it; [`Self::store`] is the next step.
    pub(super) fn update(&self, change: impl FnOnce(&mut SandboxRecord)) {
        change(&mut self.record.lock());
    }

    /// Puts it in state `to` if it is in one of `from`. `false` when it is not.
    pub(super) fn advance(&self, from: &[State], to: State) -> bool {
        let mut record = self.record.lock();
        let fits = from.iter().any(|state| state.as_str() == record.state);
        if fits {
            record.state = to.as_str().to_owned();
        }
        fits
    }

    /// Sets when its time is up, for whoever waits for that and for the record. One that has ended keeps its end: whoever
    /// ends it asks nobody, and may have done so since the caller looked.
    pub(super) fn set_end(&self, end: Option<Deadline>) {
        let mut record = self.record.lock();
        if record.state == State::Killed.as_str() {
            return;
        }
        record.end_at = end.and_then(|end| end.calendar);
        change_host(&mut record, |host| host.ends = end.map(|end| end.at));
        self.end_at.send_replace(end.map(|end| end.at));
    }

    /// When its time is up, as [`Self::set_end`] was told.
    pub(super) fn end(&self) -> Option<Deadline> {
        let at = (*self.end_at.borrow())?;
        Some(Deadline { at, calendar: self.record.lock().end_at })
    }

    /// Changes what the record says about where it runs.
    pub(super) fn update_host(&self, change: impl FnOnce(&mut HostState)) {
        change_host(&mut self.record.lock(), change);
    }

    /// What the record says about where it runs.
    pub(super) fn host(&self) -> Option<HostState> {
        HostState::of(&self.record.lock())
    }
}

fn change_host(record: &mut SandboxRecord, change: impl FnOnce(&mut HostState)) {
    if let Some(mut host) = HostState::of(record) {
        change(&mut host);
        record.host = host.to_value();
    }
}

/// When the time of a recorded sandbox is up.
fn end_of(record: &SandboxRecord) -> Option<Uptime> {
    let recorded = HostState::of(record).and_then(|host| host.ends);
    recorded.or_else(|| {
        let timeout = Duration::from_secs(record.timeout_s);
        record.end_at.map(|end| of_calendar(end, timeout, Timestamp::now(), Uptime::now()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Living {
        let host = HostState {
            first_id: 1,
            policy: PolicySpec::default(),
            cgroups: Cgroups::default(),
            process: None,
            ends: None,
            running_since: None,
        };
        let record = SandboxRecord {
            id: "sbx-00000000".to_owned(),
            account: "account".to_owned(),
            template_id: String::new(),
            name: String::new(),
            state: State::Running.as_str().to_owned(),
            metadata: Default::default(),
            envs: Default::default(),
            spec: serde_json::Value::Null,
            audit_enabled: true,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            end_at: None,
            timeout_s: 0,
            on_timeout: String::new(),
            auto_resume: false,
            generation: 0,
            host: host.to_value(),
        };
        Living::new("sbx-00000000".parse().unwrap(), InitClient::new("/nowhere".into()), record)
    }

    #[test]
    fn one_that_has_ended_keeps_its_end_and_does_not_run_again_whoever_pauses_or_resumes_it_meanwhile() {
        let (living, hour) = (running(), Deadline::after(Duration::from_secs(3600)));
        let set = |end| {
            living.set_end(end);
            living.set_running_since(Some(Uptime::from_millis(5)));
            (living.record().end_at, *living.end_at.borrow(), living.running_since())
        };
        let (calendar, at) = (hour.and_then(|hour| hour.calendar), hour.map(|hour| hour.at));
        assert_eq!(set(hour), (calendar, at, Some(Uptime::from_millis(5))));
        // It is ended between the two steps of whoever pauses it.
        assert!(living.advance(&[State::Running], State::Paused));
        assert!(living.advance(&[State::Paused], State::Killed));
        living.update(|record| record.end_at = Some(Timestamp::UNIX_EPOCH));
        living.set_running_since(None);
        for end in [None, hour] {
            assert_eq!(set(end), (Some(Timestamp::UNIX_EPOCH), at, None));
            assert_eq!(living.host().unwrap().running_since, None);
        }
    }
}
