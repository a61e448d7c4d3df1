//! The sandbox manager, as the routes use it.

use std::{num::NonZeroU16, time::Duration};

use futures_util::stream;
use sandbox::{
    CommandInfo, Create, Entry, Exec, Filter, FollowFrom, Manager, Measurement, Output, PolicyChange,
    PortConnection, SandboxError, SandboxId, Stats, TerminalSize, WriteInfo,
    cgroup::{Limits, Usage},
};
use store::{SandboxPage, SandboxRecord};

use crate::sandboxes::{Changes, CommandEvents, Content, Doing, Files, Sandboxes, SessionEvents, Source};

impl Sandboxes for Manager {
    fn stats(&self) -> Stats {
        self.stats()
    }

    fn create(&self, create: Create) -> Doing<'_, SandboxRecord> {
        Box::pin(self.create(create))
    }

    fn get<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, SandboxRecord> {
        Box::pin(self.get(account, id))
    }

    fn list<'a>(&'a self, account: &'a str, filter: Filter) -> Doing<'a, SandboxPage> {
        Box::pin(self.list(account, filter))
    }

    fn kill<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, bool> {
        Box::pin(self.kill(account, id))
    }

    fn kill_queued<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()> {
        Box::pin(self.kill_queued(account, id))
    }

    fn set_timeout<'a>(&'a self, account: &'a str, id: &'a SandboxId, timeout: Duration) -> Doing<'a, ()> {
        Box::pin(self.set_timeout(account, id, timeout))
    }

    fn pause<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()> {
        Box::pin(self.pause(account, id))
    }

    fn resume<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()> {
        Box::pin(self.resume(account, id))
    }

    fn set_policy<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        change: PolicyChange,
    ) -> Doing<'a, SandboxRecord> {
        Box::pin(self.set_policy(account, id, change))
    }

    fn settle_usage(&self) -> Doing<'_, ()> {
        Box::pin(self.settle_usage())
    }

    fn capacity(&self) -> (u32, Limits) {
        self.capacity()
    }

    fn history<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Vec<Measurement>> {
        Box::pin(self.history(account, id))
    }

    fn usage<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Usage> {
        Box::pin(self.usage(account, id))
    }

    fn exec<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, Output> {
        Box::pin(self.exec(account, id, exec))
    }

    fn exec_streaming<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        exec: Exec,
    ) -> Doing<'a, CommandEvents> {
        Box::pin(async move {
            let command = self.exec_streaming(account, id, exec).await?;
            let events = stream::try_unfold(command, async |mut command| {
                Ok::<_, SandboxError>(command.next().await?.map(|event| (event, command)))
            });
            Ok(Box::pin(events) as CommandEvents)
        })
    }

    fn spawn<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, u32> {
        Box::pin(self.spawn_background(account, id, exec))
    }

    fn start_session<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        exec: Exec,
        terminal: Option<TerminalSize>,
    ) -> Doing<'a, u32> {
        Box::pin(self.start_session(account, id, exec, terminal))
    }

    fn follow<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        from: FollowFrom,
    ) -> Doing<'a, SessionEvents> {
        Box::pin(async move {
            let follower = self.follow(account, id, pid, from).await?;
            let events = stream::try_unfold(follower, async |mut follower| {
                Ok::<_, SandboxError>(follower.next().await?.map(|event| (event, follower)))
            });
            Ok(Box::pin(events) as SessionEvents)
        })
    }

    fn resize<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        size: TerminalSize,
    ) -> Doing<'a, ()> {
        Box::pin(self.resize(account, id, pid, size))
    }

    fn wait<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, Output> {
        Box::pin(self.wait(account, id, pid))
    }

    fn commands<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Vec<CommandInfo>> {
        Box::pin(self.commands(account, id))
    }

    fn kill_command<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, bool> {
        Box::pin(self.kill_command(account, id, pid))
    }

    fn send_stdin<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        data: Vec<u8>,
    ) -> Doing<'a, ()> {
        Box::pin(async move { self.send_stdin(account, id, pid, &data).await })
    }

    fn close_stdin<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, ()> {
        Box::pin(self.close_stdin(account, id, pid))
    }

    fn connect_port<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        port: NonZeroU16,
    ) -> Doing<'a, PortConnection> {
        Box::pin(self.connect_port(account, id, port))
    }

    fn files<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Box<dyn Files>> {
        Box::pin(async move { Ok(Box::new(self.files(account, id).await?) as Box<dyn Files>) })
    }
}

impl Files for sandbox::Files {
    fn read<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, (u64, Content)> {
        Box::pin(async move {
            let reader = self.read(path, user).await?;
            let size = reader.size();
            let content = stream::try_unfold(reader, async |mut reader| {
                Ok::<_, SandboxError>(reader.next().await?.map(|part| (part, reader)))
            });
            Ok((size, Box::pin(content) as Content))
        })
    }

    fn write<'a>(
        &'a self,
        path: &'a str,
        user: Option<&'a str>,
        limit: u64,
        source: Source,
    ) -> Doing<'a, WriteInfo> {
        Box::pin(self.write(path, user, limit, source))
    }

    fn list<'a>(&'a self, path: &'a str, user: Option<&'a str>, depth: u32) -> Doing<'a, Vec<Entry>> {
        Box::pin(self.list(path, user, depth))
    }

    fn info<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, Entry> {
        Box::pin(self.info(path, user))
    }

    fn exists<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool> {
        Box::pin(self.exists(path, user))
    }

    fn remove<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool> {
        Box::pin(self.remove(path, user))
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str, user: Option<&'a str>) -> Doing<'a, Entry> {
        Box::pin(self.rename(from, to, user))
    }

    fn watch<'a>(&'a self, path: &'a str, user: Option<&'a str>, recursive: bool) -> Doing<'a, Changes> {
        Box::pin(async move {
            let watcher = self.watch(path, user, recursive).await?;
            let changes = stream::try_unfold(watcher, async |mut watcher| {
                Ok::<_, SandboxError>(watcher.next().await?.map(|change| (change, watcher)))
            });
            Ok(Box::pin(changes) as Changes)
        })
    }

    fn mkdir<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool> {
        Box::pin(self.mkdir(path, user))
    }
}
