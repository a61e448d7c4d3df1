//! What a sandbox sees of the machine, and what root inside can do to it.

mod support;

use std::{fs, os::unix::fs::MetadataExt as _};

use sandbox::{Create, SandboxId, spawner::BindMount};
use support::{ACCOUNT, Lab, possible, request};

/// A lab with one sandbox.
async fn sandbox() -> Option<(Lab, SandboxId)> {
    if !possible() {
        return None;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    Some((lab, id))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_template_and_usr_are_visible() {
    let Some((lab, id)) = sandbox().await else { return };
    let root = lab.run(&id, "ls /").await;
    let allowed = [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
        "workspace",
    ];
    let unexpected: Vec<_> = root.lines().filter(|name| !allowed.contains(name)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    assert_eq!(lab.run(&id, "ls -A /home /tmp /opt /mnt /srv /run/lock").await.matches("user").count(), 1);
    // Twin: the machine's programs are there.
    assert_eq!(lab.run(&id, "test -x /usr/bin/env && echo yes").await, "yes");
    let dir = lab.dir.path().display().to_string();
    let mounts = lab.run_as_root(&id, "cat /proc/self/mountinfo /proc/self/mounts").await;
    assert!(!mounts.contains(&dir) && !mounts.contains("/data/"), "{mounts}");
    assert!(lab.run_as_root(&id, "cat /proc/self/cgroup").await.lines().all(|line| line.ends_with(":/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_cannot_change_the_machine() {
    let Some((lab, id)) = sandbox().await else { return };
    for command in [
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /sys",
        "mount -o remount,rw,dev /",
        "umount /proc/kallsyms",
        "umount -l /proc",
        "hostname other",
        "unshare -m true",
        "unshare -U true",
        "unshare -n true",
        "chroot / sh -c 'mount -t proc proc /mnt'",
        "mknod /tmp/disk b 8 0",
        "mknod /tmp/mem c 1 1",
        "echo 1 > /proc/sys/kernel/printk",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/mm/transparent_hugepage/enabled",
        "date -s 2000-01-01",
        "dmesg",
        "chown 65536 /tmp",
        "nsenter -t 1 -m true",
        "kill -9 1 && sleep 0.1 && ! kill -0 1",
        "ulimit -c unlimited",
        "reboot -f",
    ] {
        let output = lab.run_as(&id, "root", command).await;
        assert_ne!(output.exit_code, 0, "{command}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // Twin: what root inside is for works.
    for command in [
        "touch /etc/file /usr/local/bin/file && chown 65534:1000 /etc/file && chmod 4755 /etc/file",
        "mkfifo /tmp/fifo",
        "su user -s /bin/sh -c true || true; chroot / true",
        "test \"$(ulimit -c)\" = 0",
    ] {
        lab.run_as_root(&id, command).await;
    }
    assert!(!std::path::Path::new("/usr/local/bin/file").exists(), "the machine's /usr is only read");
}

#[tokio::test(flavor = "multi_thread")]
async fn proc_and_sys_show_nothing_of_the_machine() {
    let Some((lab, id)) = sandbox().await else { return };
    for path in ["kcore", "kallsyms", "keys", "timer_list", "sched_debug", "interrupts", "kmsg", "slabinfo"] {
        let output = lab.run_as(&id, "root", &format!("head -c 100 /proc/{path}")).await;
        assert!(output.stdout.is_empty(), "/proc/{path}");
    }
    for path in ["/proc/acpi", "/proc/scsi", "/sys/fs/cgroup", "/sys/bus", "/sys/block"] {
        assert_eq!(lab.run_as_root(&id, &format!("ls -A {path} 2>/dev/null || true")).await, "", "{path}");
    }
    for path in
        ["/sys/firmware", "/sys/kernel/debug", "/sys/module", "/sys/power", "/sys/devices/virtual/dmi"]
    {
        assert_eq!(
            lab.run_as_root(&id, &format!("test -e {path} && echo there || true")).await,
            "",
            "{path}"
        );
    }
    // Processes are those of the sandbox, interfaces those of its network namespace.
    let processes = lab.run_as_root(&id, "ls /proc | grep -c '^[0-9]'").await;
    assert!(processes.parse::<u32>().expect("a number") < 10);
    assert_eq!(lab.run(&id, "ls /sys/class/net").await, "lo");
    // Twin: what programs ask for is there.
    assert!(!lab.run(&id, "cat /sys/devices/system/cpu/online /proc/meminfo /proc/cpuinfo").await.is_empty());
    assert_eq!(lab.run(&id, "cat /sys/class/net/lo/type").await, "772");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_has_the_harmless_devices_and_own_terminals() {
    let Some((lab, id)) = sandbox().await else { return };
    let names = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(lab.run(&id, "echo $(ls /dev)").await, names);
    assert_eq!(
        lab.run(&id, "head -c 3 /dev/zero | od -An -tx1; echo x > /dev/null; cat /dev/null").await,
        " 00 00 00"
    );
    assert_eq!(lab.run(&id, "echo x > /dev/full || echo full").await, "full");
    assert_eq!(lab.run(&id, "echo x > /dev/shm/x && cat /dev/shm/x").await, "x");
    assert_eq!(lab.run(&id, "ls /dev/pts").await, "ptmx");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_outside() {
    let Some((lab, id)) = sandbox().await else { return };
    lab.run_as_root(&id, "touch /root/file; chmod 4755 /root/file").await;
    lab.run(&id, "touch ~/file").await;
    let record = lab.manager.get(ACCOUNT, &id).await.expect("record");
    let pid = record.host["process"]["pid"].as_u64().expect("pid");
    let first_id = u32::try_from(record.host["first_id"].as_u64().expect("first id")).expect("an id");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let uids = status.lines().find(|line| line.starts_with("Uid:")).expect("uids");
    assert_eq!(uids.split_whitespace().nth(1), Some(first_id.to_string().as_str()));
    // On disk ids are those inside, which is why nobody but root may come near.
    let upper = lab.sandbox_dir(&id).join("fs/upper");
    assert_eq!(fs::metadata(upper.join("root/file")).expect("file").uid(), 0);
    assert_eq!(fs::metadata(upper.join("home/user/file")).expect("file").uid(), 1000);
    let sandboxes = fs::metadata(lab.dir.path().join("data/sandboxes")).expect("directory");
    assert_eq!(sandboxes.mode() & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_sandbox_writes_no_other_sees() {
    let Some((lab, one)) = sandbox().await else { return };
    lab.run_as_root(&one, "echo changed > /etc/services; rm /etc/passwd; touch /usr/bin/new /tmp/new").await;
    let other = lab.create().await;
    let seen = lab
        .run(
            &other,
            "grep -c changed /etc/services || true; id -un; ls /usr/bin/new /tmp/new 2>/dev/null | wc -l",
        )
        .await;
    assert_eq!(seen, "0\nuser\n0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_directory_shows_its_owners_and_a_read_only_one_stays_as_it_is() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let shared = tempfile::tempdir().expect("temporary directory");
    fs::write(shared.path().join("from-outside"), "outside\n").expect("file");
    let mount = |target: &str, read_only| BindMount {
        source: shared.path().to_owned(),
        target: target.into(),
        read_only,
    };
    let mounts = vec![mount("/work/rw", false), mount("/usr/share/ro", true)];
    let record = lab.create_with(Create { mounts, ..request() }).await.expect("sandbox");
    let id = record.id.parse().expect("id");
    assert_eq!(
        lab.run_as_root(&id, "cat /work/rw/from-outside; stat -c %U /work/rw/from-outside").await,
        "outside\nroot"
    );
    lab.run_as_root(&id, "echo inside > /work/rw/from-inside").await;
    assert_eq!(fs::read_to_string(shared.path().join("from-inside")).expect("file"), "inside\n");
    assert_eq!(fs::metadata(shared.path().join("from-inside")).expect("file").uid(), 0);
    assert_ne!(lab.run_as(&id, "root", "touch /usr/share/ro/file").await.exit_code, 0);
    assert_eq!(lab.run(&id, "cat /usr/share/ro/from-inside").await, "inside");
    // Killing the sandbox does not reach through the mount.
    lab.manager.kill(ACCOUNT, &id).await.expect("kill");
    assert_eq!(fs::read_dir(shared.path()).expect("directory").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn name_resolution_is_set_up_for_the_gate() {
    let Some((lab, id)) = sandbox().await else { return };
    assert!(lab.run(&id, "cat /etc/resolv.conf").await.starts_with("nameserver 100.64.0.1\n"));
    assert_eq!(lab.run(&id, "cat /etc/hostname").await, id.as_str());
    assert_eq!(lab.run(&id, "getent hosts $(hostname) | cut -d ' ' -f 1").await, "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_sandbox_watches_takes_no_instances_of_inotify_from_another() {
    let Some((lab, one)) = sandbox().await else { return };
    let two = lab.create().await;
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")
        .expect("a sysctl")
        .trim()
        .parse()
        .expect("a number");
    // Each takes more than half of what one user may have; every watched directory is an instance.
    let share = most.min(240) * 3 / 4;
    let mut watches = Vec::new();
    for id in [&one, &two] {
        let files = lab.manager.files(ACCOUNT, id).await.expect("files");
        for number in 0..share {
            let watch = files.watch("/tmp", None, false).await;
            watches.push(watch.unwrap_or_else(|error| panic!("{id}, {number}: {error}")));
        }
    }
    assert_eq!(watches.len(), 2 * share);
}
