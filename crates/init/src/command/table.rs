//! The commands that run, and those that have ended and are remembered.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use init_protocol::{CommandInfo, Exec, Exit, KEPT_COMMANDS, MAX_CHUNK, PIECE_COST};
use rustix::event::{EventfdFlags, eventfd};

use super::with_truncation;
use crate::children::lock;
use crate::failure::{Result, failure};
use crate::kept::{Budget, Kept};
use crate::log::Log;

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) pid: u32,
    exec: Exec,
    /// Write end of its standard input, non-blocking.
    stdin: Mutex<Option<Arc<OwnedFd>>>,
    /// Held by whoever writes to its standard input.
    pub(crate) writing: Mutex<()>,
    /// Output of a background command.
    pub(crate) kept: Mutex<Kept>,
    /// Output of a session.
    pub(crate) log: Option<Mutex<Log>>,
    /// Whether its input and output are a terminal.
    pub(crate) terminal: bool,
    /// Whether somebody has killed it: that it is not reaped yet does not mean that it is still to be killed.
    killed: AtomicBool,
    exit: Mutex<Exit>,
    /// An eventfd, readable as soon as `exit` and `kept` are final.
    done: OwnedFd,
}

impl Command {
    /// What is known of a command before it has a pid.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(crate) fn new(exec: Exec, stdin: Option<OwnedFd>, budget: &Budget) -> Result<Self> {
        let done = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            pid: 0,
            exec,
            stdin: Mutex::new(stdin.map(Arc::new)),
            writing: Mutex::default(),
            kept: Mutex::new(Kept::new(budget)),
            log: None,
            terminal: false,
            killed: AtomicBool::new(false),
            exit: Mutex::default(),
            done: done.map_err(|error| failure("make an eventfd", error))?,
        })
    }

    /// The write end of its standard input, unless closed.
    pub(crate) fn stdin(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.stdin).clone()
    }

    /// Closes its standard input, as soon as nobody is writing to it any more.
    pub(crate) fn close_stdin(&self) {
        *lock(&self.stdin) = None;
    }

    /// Notes that it is killed. Gives whether this is the first time.
    pub(crate) fn first_killed(&self) -> bool {
        !self.killed.swap(true, Ordering::Relaxed)
    }

    /// How it ended; to be asked when [`Self::done`] is readable.
    pub(crate) fn exit(&self) -> Exit {
        with_truncation(*lock(&self.exit), &lock(&self.kept))
    }

    /// How much output is kept that can be given up.
    fn spare_output(&self) -> usize {
        lock(&self.kept).cost() + self.log.as_ref().map_or(0, |log| lock(log).spare())
    }

    /// Gives up the older part of the output that is kept, for others: one of so many.
    fn give_up_output(&self, parts: usize) {
        lock(&self.kept).give_up(parts);
        if let Some(log) = &self.log {
            lock(log).give_up(parts);
        }
    }

    /// Readable when it has ended.
    pub(crate) fn done(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    pub(crate) fn info(&self) -> CommandInfo {
        CommandInfo {
            pid: self.pid,
            command: self.exec.command.clone(),
            envs: self.exec.envs.clone(),
            background: self.exec.background,
            terminal: self.terminal,
        }
    }
}

/// All commands.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    running: BTreeMap<u32, Arc<Command>>,
    /// Background commands, the first to end first.
    ended: VecDeque<Arc<Command>>,
}

impl Commands {
    /// How many are running.
    pub(crate) fn count(&self) -> usize {
        lock(&self.table).running.len()
    }

    /// Adds a command that has just been started.
    pub(crate) fn add(&self, command: Arc<Command>) {
        let mut table = lock(&self.table);
        // The pid means the new one from now on.
        table.ended.retain(|ended| ended.pid != command.pid);
        table.running.insert(command.pid, command);
    }

    /// Drops a command that nobody may wait for.
    pub(crate) fn forget(&self, pid: u32) {
        lock(&self.table).running.remove(&pid);
    }

    /// A background command has ended: from now on `wait` gives its exit.
    pub(crate) fn end(&self, command: &Arc<Command>, exit: Exit, budget: &Budget) {
        *lock(&command.exit) = exit;
        command.close_stdin();
        let mut table = lock(&self.table);
        table.running.remove(&command.pid);
        while table.ended.len() >= KEPT_COMMANDS {
            table.ended.pop_front();
        }
        // Their exits are still to be told.
        table.ended.iter().take_while(|_| budget.is_short()).for_each(|oldest| oldest.give_up_output(1));
        table.ended.push_back(Arc::clone(command));
        drop(table);
        // A new eventfd always takes it.
        let _ = rustix::io::write(&command.done, &1u64.to_ne_bytes());
    }

    /// Makes sure that there is room for a piece of output of whoever has little, as long as others have much: whoever
    /// has the most gives up half of it. Nobody may hold the output of a command meanwhile.
    pub(crate) fn make_room(&self, budget: &Budget) {
        if budget.has(MAX_CHUNK + PIECE_COST) {
            return;
        }
        let table = lock(&self.table);
        let all: Vec<_> = table.ended.iter().chain(table.running.values()).cloned().collect();
        drop(table);
        while !budget.has(MAX_CHUNK + PIECE_COST) {
            let costs = all.iter().map(|command| (command.spare_output(), command));
            match costs.max_by_key(|(cost, _)| *cost) {
                None | Some((0, _)) => return,
                Some((_, command)) => command.give_up_output(2),
            }
        }
    }

    /// A running command.
    pub(crate) fn find(&self, pid: u32) -> Option<Arc<Command>> {
        lock(&self.table).running.get(&pid).cloned()
    }

    /// A background command, running or remembered.
    pub(crate) fn background(&self, pid: u32) -> Option<Arc<Command>> {
        let table = lock(&self.table);
        let running = table.running.get(&pid).filter(|command| command.exec.background);
        running.or_else(|| table.ended.iter().find(|command| command.pid == pid)).cloned()
    }

    /// All running commands, by pid.
    pub(crate) fn running(&self) -> Vec<Arc<Command>> {
        lock(&self.table).running.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use init_protocol::{KEPT_SESSION, Stream};

    use super::*;

    #[test]
    fn commands_that_have_ended_are_remembered_however_much_others_keep_and_the_oldest_lose_their_output() {
        let (commands, budget) = (Commands::default(), Budget::default());
        let start = |pid, output: &[u8]| {
            let exec = Exec { background: true, ..Exec::default() };
            let command = Command { pid, ..Command::new(exec, None, &budget).unwrap() };
            lock(&command.kept).push(Stream::Stdout, output);
            let command = Arc::new(command);
            commands.add(Arc::clone(&command));
            command
        };
        let exit = |code| Exit { code, ..Exit::default() };
        let first = start(2, b"first");
        commands.end(&first, exit(7), &budget);
        let second = start(3, b"second");
        commands.end(&second, exit(8), &budget);
        assert_eq!(first.exit(), exit(7));
        // Sessions that run have most of the budget.
        assert!(budget.take(60 << 20));
        let third = start(4, b"third");
        commands.end(&third, exit(9), &budget);
        for (pid, code, output) in [(2, 7, b"".as_slice()), (3, 8, b""), (4, 9, b"third")] {
            let command = commands.background(pid).unwrap();
            let expected = Exit { stdout_truncated: output.is_empty(), ..exit(code) };
            assert_eq!(command.exit(), expected);
            assert_eq!(lock(&command.kept).bytes(Stream::Stdout), output);
        }
    }

    #[test]
    fn a_session_that_begins_when_others_have_kept_all_there_is_has_its_output_kept() {
        let (commands, budget) = (Commands::default(), Budget::default());
        let start = |pid| {
            let command = Command::new(Exec { background: true, ..Exec::default() }, None, &budget).unwrap();
            let log = Some(Mutex::new(Log::new(KEPT_SESSION, &budget).unwrap()));
            let command = Arc::new(Command { pid, log, ..command });
            commands.add(Arc::clone(&command));
            command
        };
        let push = |command: &Command, data: &[u8]| {
            commands.make_room(&budget);
            lock(command.log.as_ref().unwrap()).push(Stream::Stdout, data);
        };
        let kept = |command: &Command| {
            let [(stdout, _), _] = lock(command.log.as_ref().unwrap()).ends(KEPT_SESSION);
            stdout
        };
        let greedy: Vec<_> = (2..22).map(start).collect();
        for command in &greedy {
            (0..KEPT_SESSION / MAX_CHUNK).for_each(|_| push(command, &[b'x'; MAX_CHUNK]));
            push(command, b"last");
        }
        let late = start(100);
        push(&late, b"late");
        assert_eq!(kept(&late), b"late");
        // Whoever has much has given up its beginning, and nobody its end.
        assert!(greedy.iter().all(|command| kept(command).ends_with(b"xlast")));
    }
}
