//! What nobody inside can do, and what everybody can; and a daemon that does not behave.

use std::io::Write;

use init_protocol::{
    Boot, Bulk, ByteBuf, ClientFrame, Configure, Exec, FailureKind, Hello, InitFrame, Request, Stream,
    encode, read_frame,
};

use crate::lab::{Lab, eventually};

/// Makes a system call inside with numbers as arguments, and gives the error number, or 0.
fn call(lab: &Lab, user: &str, number: i64, args: &[i64]) -> i32 {
    let args: String = args.iter().map(|arg| format!(", {arg}")).collect();
    let command = format!("perl -e 'my $r = syscall({number}{args}); print $r == -1 ? $!+0 : 0'");
    let exec = Exec { command, user: Some(user.into()), ..Exec::default() };
    lab.exec(exec).stdout.parse().unwrap()
}

fn socket(lab: &Lab, user: &str, family: i32, kind: i32, protocol: i32) -> i32 {
    call(lab, user, libc::SYS_socket, &[family.into(), kind.into(), protocol.into()])
}

#[test]
fn sockets_that_the_gate_governs_can_be_made_and_others_cannot() {
    let lab = Lab::start();
    for user in ["user", "root"] {
        for (family, kind) in [
            (libc::AF_INET, libc::SOCK_STREAM),
            (libc::AF_INET, libc::SOCK_DGRAM),
            (libc::AF_INET6, libc::SOCK_STREAM),
            (libc::AF_UNIX, libc::SOCK_STREAM),
            (libc::AF_NETLINK, libc::SOCK_RAW),
        ] {
            assert_eq!(socket(&lab, user, family, kind, 0), 0, "{user}: family {family}");
        }
        for (family, kind) in [
            (libc::AF_VSOCK, libc::SOCK_STREAM),
            (libc::AF_PACKET, libc::SOCK_RAW),
            (libc::AF_ALG, libc::SOCK_SEQPACKET),
            (libc::AF_XDP, libc::SOCK_RAW),
            (libc::AF_INET, libc::SOCK_RAW),
        ] {
            assert_eq!(socket(&lab, user, family, kind, 0), libc::EPERM, "{user}: family {family}");
        }
        assert_eq!(
            socket(&lab, user, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
            libc::EPROTONOSUPPORT
        );
        assert_eq!(socket(&lab, user, libc::AF_INET, libc::SOCK_STREAM, 132), libc::EPROTONOSUPPORT, "SCTP");
    }
}

#[test]
fn calls_around_the_fences_are_refused_to_everybody() {
    let lab = Lab::start();
    for user in ["user", "root"] {
        for (number, args, error) in [
            (libc::SYS_io_uring_setup, vec![8, 0], libc::ENOSYS),
            (libc::SYS_clone3, vec![0, 88], libc::ENOSYS),
            (libc::SYS_unshare, vec![libc::CLONE_NEWUSER.into()], libc::EPERM),
            (libc::SYS_unshare, vec![libc::CLONE_NEWNET.into()], libc::EPERM),
            (libc::SYS_setns, vec![0, 0], libc::EPERM),
            (libc::SYS_clone, vec![i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0, 0], libc::EPERM),
            (libc::SYS_mount, vec![0, 0, 0, 0, 0], libc::EPERM),
            (libc::SYS_umount2, vec![0, 0], libc::EPERM),
            (libc::SYS_fsopen, vec![0, 0], libc::EPERM),
            (libc::SYS_open_tree, vec![0, 0, 0], libc::EPERM),
            (libc::SYS_pivot_root, vec![0, 0], libc::EPERM),
            (libc::SYS_bpf, vec![0, 0, 0], libc::EPERM),
            (libc::SYS_perf_event_open, vec![0, 0, 0, 0, 0], libc::EPERM),
            (libc::SYS_userfaultfd, vec![0], libc::EPERM),
            (libc::SYS_keyctl, vec![0, 0], libc::EPERM),
            (libc::SYS_open_by_handle_at, vec![0, 0, 0], libc::EPERM),
            (libc::SYS_init_module, vec![0, 0, 0], libc::EPERM),
            (libc::SYS_kexec_load, vec![0, 0, 0, 0], libc::EPERM),
            (libc::SYS_reboot, vec![0, 0, 0, 0], libc::EPERM),
            (libc::SYS_ioctl, vec![0, libc::TIOCSTI.cast_signed(), 0], libc::EPERM),
            (libc::SYS_memfd_secret, vec![0], libc::ENOSYS),
        ] {
            assert_eq!(call(&lab, user, number, &args), error, "{user}: call {number} {args:?}");
        }
    }
}

#[test]
fn nobody_gains_rights() {
    let lab = Lab::start();
    let status = |user: &str| {
        let command = "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status".into();
        lab.exec(Exec { command, user: Some(user.into()), ..Exec::default() }).stdout
    };
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service, sys_chroot, setfcap
    let kept = "00000000800404fb";
    let none = "0000000000000000";
    let expected = |now: &str| {
        format!(
            "CapInh:\t{none}\nCapPrm:\t{now}\nCapEff:\t{now}\nCapBnd:\t{kept}\nCapAmb:\t{none}\nNoNewPrivs:\t1\nSeccomp:\t2\n"
        )
    };
    assert_eq!(status("user"), expected(none));
    assert_eq!(status("root"), expected(kept));
    assert_eq!(
        lab.root("grep -E '^(CapPrm|CapEff):' /proc/1/status"),
        format!("CapPrm:\t{kept}\nCapEff:\t{kept}\n")
    );
}

#[test]
fn root_inside_cannot_look_into_init_or_end_it() {
    let lab = Lab::start();
    for denied in
        ["cat /proc/1/environ", "cat /proc/1/maps", "cat /proc/1/fd/0", "cat /proc/1/exe", "cat /proc/1/mem"]
    {
        let exec = Exec { command: format!("{denied} 2>&1"), user: Some("root".into()), ..Exec::default() };
        let outcome = lab.exec(exec);
        assert!(
            outcome.exit.code != 0 && outcome.stdout.contains("ermission denied"),
            "{denied}: {outcome:?}"
        );
    }
    assert_eq!(call(&lab, "root", libc::SYS_ptrace, &[libc::PTRACE_ATTACH.into(), 1, 0, 0]), libc::EPERM);
    lab.root("kill -9 1; kill -TERM 1; kill -STOP 1; true");
    assert_eq!(lab.request(Request::Ping).next(), InitFrame::Done);
    // The twin: one's own processes can be looked into.
    assert_eq!(lab.sh("cat /proc/$$/environ > /dev/null && printf seen").stdout, "seen");
}

#[test]
fn root_inside_cannot_take_inits_descriptors_away_and_limits_its_own() {
    let lab = Lab::start();
    let script = "import os, resource as r\n\
        threads = [int(t) for t in os.listdir('/proc/1/task')]\n\
        for process in threads:\n \
            before = r.prlimit(process, r.RLIMIT_NOFILE)\n \
            try: r.prlimit(process, r.RLIMIT_NOFILE, (0, before[1])); print('set')\n \
            except PermissionError: print('refused') if r.prlimit(process, r.RLIMIT_NOFILE) == before else print('set')\n\
        r.setrlimit(r.RLIMIT_NOFILE, (100, 200)); print(r.getrlimit(r.RLIMIT_NOFILE))\n\
        r.prlimit(0, r.RLIMIT_NOFILE, (90, 190)); print(r.prlimit(os.getpid(), r.RLIMIT_NOFILE))\n";
    lab.write("root", "/tmp/limits.py", script.as_bytes()).unwrap();
    let told = lab.root("/usr/bin/env python3 /tmp/limits.py");
    let (own, others): (Vec<_>, Vec<_>) = told.lines().partition(|line| line.starts_with('('));
    assert!(others.len() > 1 && others.iter().all(|line| *line == "refused"), "{told}");
    assert_eq!(own, ["(100, 200)", "(90, 190)"]);
    // What shells and util-linux have for it.
    assert_eq!(lab.root("ulimit -n 64; ulimit -n; prlimit --nofile=32:64 sh -c 'ulimit -n'"), "64\n32\n");
    assert_eq!(
        lab.sh("ulimit -Sn 80; ulimit -n; prlimit --nofile --output SOFT --noheadings | tr -d ' '").stdout,
        "80\n80\n"
    );
    assert_eq!(lab.request(Request::Ping).next(), InitFrame::Done);
}

#[test]
fn without_descriptors_a_connection_is_told_so_and_the_next_is_served_when_there_are_some() {
    let lab = Lab::start();
    lab.limit_descriptors(Some(2));
    let idle: Vec<_> = (0..2).map(|_| lab.socket()).collect();
    eventually("a connection too many is told so", || match lab.request(Request::Ping).next() {
        InitFrame::Failed(failure) => failure.kind == FailureKind::Busy,
        InitFrame::Done => false,
        other => panic!("{other:?}"),
    });
    drop(idle);
    eventually("there is room again", || lab.request(Request::Ping).next() == InitFrame::Done);
    lab.limit_descriptors(None);
    assert_eq!(lab.sh("echo well").stdout, "well\n");
}

#[test]
fn commands_inherit_three_descriptors_and_the_limits_of_a_user() {
    let lab = Lab::start();
    assert_eq!(lab.root("ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(lab.sh("ulimit -Hc; ulimit -c; umask").stdout, "0\n0\n0022\n");
}

#[test]
fn what_people_run_runs() {
    let lab = Lab::start();
    let threads = "import threading, subprocess, socket, sqlite3, tempfile, multiprocessing as m\n\
        t = threading.Thread(target=lambda: print('thread')); t.start(); t.join()\n\
        print(subprocess.check_output(['echo', 'child']).decode(), end='')\n\
        s = socket.create_server(('127.0.0.1', 0)); print('listens')\n\
        sqlite3.connect('db').execute('create table t (x)'); print('sqlite')\n\
        with m.Pool(2) as p: print(sum(p.map(abs, [-1, -2])))\n";
    lab.write("user", "all.py", threads.as_bytes()).unwrap();
    let outcome = lab.sh("/usr/bin/env python3 all.py || /usr/bin/python3 all.py");
    assert_eq!(outcome.stdout, "thread\nchild\nlistens\nsqlite\n3\n", "{outcome:?}");
    assert_eq!(lab.root("runuser -u user -- id -un"), "user\n");
    lab.write("user", "c.c", b"#include <stdio.h>\nint main() { puts(\"compiled\"); }\n").unwrap();
    let outcome = lab.sh("gcc c.c && ./a.out");
    assert_eq!(outcome.stdout, "compiled\n", "{outcome:?}");
}

#[test]
fn another_version_is_told_so() {
    let lab = Lab::start();
    let mut socket = lab.socket();
    let hello = Hello { version: init_protocol::VERSION + 1, ..Hello::CURRENT };
    socket.write_all(&encode(&ClientFrame::Hello(hello)).unwrap()).unwrap();
    let greeting: InitFrame = read_frame(&mut socket).unwrap().unwrap();
    assert_eq!(greeting, InitFrame::Hello(Hello::CURRENT));
    let Some(InitFrame::Failed(failure)) = read_frame(&mut socket).unwrap() else { panic!("no failure") };
    assert_eq!(failure.kind, FailureKind::Version);
    assert_eq!(read_frame::<InitFrame>(&mut socket).unwrap(), None);
}

#[test]
fn frames_that_break_the_protocol_end_the_connection_and_nothing_else() {
    let lab = Lab::start();
    let hello = encode(&ClientFrame::Hello(Hello::CURRENT)).unwrap();
    let ping = encode(&ClientFrame::Request(Request::Ping)).unwrap();
    let endless = [hello.as_slice(), &u32::MAX.to_le_bytes()].concat();
    let garbage = [hello.as_slice(), &4u32.to_le_bytes(), &[0xff; 4]].concat();
    let twice = [hello.clone(), hello.clone()].concat();
    let bulk = Bulk::File.header(0).unwrap().to_vec();
    let bulk_endless = [hello.as_slice(), &[0xff, 0xff, 0xff, 1]].concat();
    let bulk_of_init = [hello.as_slice(), &Bulk::Output(Stream::Stdout).header(0).unwrap()].concat();
    for bytes in [endless, garbage, twice, ping, bulk, bulk_endless, bulk_of_init] {
        let mut socket = lab.socket();
        socket.write_all(&bytes).unwrap();
        let frames: Vec<InitFrame> = std::iter::from_fn(|| read_frame(&mut socket).unwrap()).collect();
        let [InitFrame::Hello(_), InitFrame::Failed(failure)] = frames.as_slice() else {
            panic!("{frames:?}")
        };
        assert_eq!(failure.kind, FailureKind::BadRequest);
    }
    assert_eq!(lab.request(Request::Ping).next(), InitFrame::Done);
}

#[test]
fn too_many_connections_are_refused_and_served_again_later() {
    let lab = Lab::start();
    let idle: Vec<_> = (0..256).map(|_| lab.socket()).collect();
    let refused = || lab.request(Request::Ping).next();
    eventually(
        "one too many",
        || matches!(refused(), InitFrame::Failed(failure) if failure.kind == FailureKind::Busy),
    );
    drop(idle);
    eventually("there is room again", || refused() == InitFrame::Done);
}

#[test]
fn without_a_valid_filter_init_does_not_start() {
    let boot = |seccomp| Boot { configure: Configure::default(), seccomp };
    for seccomp in [vec![], vec![ByteBuf::from([0xff; 8])], vec![ByteBuf::from([0; 3])]] {
        let mut log = String::new();
        assert!(Lab::try_start(&boot(seccomp), &mut log).is_none());
        assert!(log.contains("filter"), "{log}");
    }
}

#[test]
fn an_idle_init_is_small() {
    let lab = Lab::start();
    lab.sh("true");
    let resident = lab.init_memory("RssAnon");
    // Generous, for builds without optimisation: an optimised one needs about 100 KiB.
    assert!(resident < 1024, "{resident} KiB");
}
