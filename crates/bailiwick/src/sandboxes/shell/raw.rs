//! A terminal that passes every key on as it is.

use std::os::fd::AsFd;

use rustix::{
    io::Result,
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};

/// A terminal in raw mode. It is as it was before once this is dropped, also by a panic.
pub(super) struct RawMode<T: AsFd> {
    terminal: T,
    before: Termios,
    raw: Termios,
}

impl<T: AsFd> RawMode<T> {
    /// # Errors
    /// If it is no terminal, or gone.
    pub(super) fn enter(terminal: T) -> Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        let mode = Self { terminal, before, raw };
        mode.again()?;
        Ok(mode)
    }

    /// After this program was stopped: a shell has taken the terminal meanwhile.
    pub(super) fn again(&self) -> Result<()> {
        tcsetattr(&self.terminal, OptionalActions::Now, &self.raw)
    }
}

impl<T: AsFd> Drop for RawMode<T> {
    fn drop(&mut self) {
        // One that is gone needs nothing.
        let _gone = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd, panic::catch_unwind};

    use rustix::{
        pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
        termios::LocalModes,
    };

    use super::*;

    fn is_raw(terminal: &OwnedFd) -> bool {
        !tcgetattr(terminal)
            .unwrap()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    #[test]
    fn a_terminal_is_as_before_afterwards_also_after_a_panic() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let text = |terminal: &OwnedFd| format!("{:?}", tcgetattr(terminal).unwrap());
        let before = text(&terminal);
        let raw = RawMode::enter(&terminal).unwrap();
        assert!(is_raw(&terminal));
        tcsetattr(&terminal, OptionalActions::Now, &raw.before).unwrap();
        assert!(!is_raw(&terminal));
        raw.again().unwrap();
        assert!(is_raw(&terminal));
        drop(raw);
        assert_eq!(text(&terminal), before);
        let panicked = catch_unwind(|| {
            let _raw = RawMode::enter(&terminal).unwrap();
            assert!(!is_raw(&terminal), "this panics");
        });
        assert!(panicked.is_err());
        assert_eq!(text(&terminal), before);
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        assert!(RawMode::enter(File::open("/dev/null").unwrap()).is_err());
    }
}
