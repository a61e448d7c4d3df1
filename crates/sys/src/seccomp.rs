//! Installing system call filters.

use std::io;

/// Bytes of one BPF instruction: `u16` code, `u8` jump if true, `u8` jump if false, `u32` operand.
const INSTRUCTION: usize = 8;

/// Installs a filter (classic BPF in the kernel's encoding, native byte order) for every thread of this
/// process and all its descendants, for good. Filters add up: what one of them refuses stays refused.
///
/// The caller must have set `no_new_privs` or hold `CAP_SYS_ADMIN`.
///
/// # Errors
/// `InvalidInput` when the bytes are no whole instructions or too many for the kernel to take; otherwise what
/// seccomp(2) says, for instance that the program is not valid.
pub fn install(program: &[u8]) -> io::Result<()> {
    let instructions = instructions(program)?;
    let length = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `program` and the instructions it points to live until the call returns; the kernel copies and
    // checks them and writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            std::ptr::from_ref(&program),
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has filters of its own"))),
    }
}

fn instructions(program: &[u8]) -> io::Result<Vec<libc::sock_filter>> {
    let (whole, rest) = program.as_chunks::<INSTRUCTION>();
    if !rest.is_empty() || whole.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a filter is one or more 8-byte instructions",
        ));
    }
    let instruction = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; INSTRUCTION]| libc::sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    Ok(whole.iter().map(instruction).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a forked child and gives its exit status: a filter cannot be taken back.
    fn in_child(body: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls `body`, which makes system calls and small allocations, and leaves through
        // _exit; no other thread of the test holds the allocator's lock for good (glibc resets it at fork).
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let passed = body();
            // SAFETY: ends the child without running the test harness's exit handlers.
            unsafe { libc::_exit(i32::from(!passed)) }
        }
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }

    /// A filter that gives `action` to system call `number` and allows the rest.
    fn filter(number: i64, action: u32) -> Vec<u8> {
        let load_number = [0x20u8, 0, 0, 0, 0, 0, 0, 0];
        let mut program = Vec::from(load_number);
        for (code, jt, jf, k) in
            [(0x15u16, 0u8, 1u8, number as u32), (0x06, 0, 0, action), (0x06, 0, 0, libc::SECCOMP_RET_ALLOW)]
        {
            program.extend(code.to_ne_bytes());
            program.extend([jt, jf]);
            program.extend(k.to_ne_bytes());
        }
        program
    }

    #[test]
    fn a_filtered_call_fails_with_the_filters_error_and_others_pass() {
        assert!(in_child(|| {
            let filter = filter(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO | libc::EDOM as u32);
            rustix::thread::set_no_new_privs(true).is_ok()
                && install(&filter).is_ok()
                // SAFETY: getppid has no arguments.
                && unsafe { libc::syscall(libc::SYS_getppid) } == -1
                && io::Error::last_os_error().raw_os_error() == Some(libc::EDOM)
                // SAFETY: getpid has no arguments.
                && unsafe { libc::syscall(libc::SYS_getpid) } > 0
        }));
    }

    #[test]
    fn a_filter_that_is_not_whole_or_not_valid_is_refused() {
        assert!(install(&[]).is_err());
        assert!(install(&[0; 7]).is_err());
        assert!(install(&[0; 8 * 70_000]).is_err());
        assert!(in_child(|| rustix::thread::set_no_new_privs(true).is_ok() && install(&[0xff; 8]).is_err()));
    }
}
