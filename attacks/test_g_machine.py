"""Corpus section G: metadata services, the machine, its control plane, the neighbours."""

from __future__ import annotations

import pytest

import probes
import world
from world import ALLOWED, EVIL, block, nothing_reaches, request, speak

METADATA = ["169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.42.42", "169.254.0.23", "168.63.129.16", "100.100.100.200",
            "192.0.0.192", "169.254.169.253", "169.254.169.123", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42",
            "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254"]
ODD_NOTATIONS = ["169.254.43518", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"]


@pytest.mark.parametrize("policy", ["P0", "P3", "NAMED", "P1"])
def test_g138_to_g142_no_metadata_service_is_reached_under_any_policy(lab, shared, policy):
    box = shared(policy)
    with nothing_reaches(lab, box):
        attempts = [(address, 80, request("169.254.169.254", "/latest/api/token", "PUT")) for address in METADATA + ODD_NOTATIONS]
        attempts += [(address, 443, world.hello(b"allowed.test")) for address in METADATA]
        assert set(speak(box, attempts)) == {"refused"}
    event = block(lab, box, address="169.254.169.254", port=443, count=2)  # the mapped notation is the same address
    assert event["reason"] == "floor" and event["rule"]["floor"] == "metadata"


@pytest.mark.parametrize("entry", ["169.254.169.254", "169.254.0.0/16", "100.100.100.200/32", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
                                   "metadata", "metadata.google.internal", "127.0.0.1", "100.64.0.1", "198.51.100.2", "224.0.0.0/4"])
def test_g139_an_entry_on_the_floor_is_refused_by_the_api(lab, entry):
    status, body = lab.request("POST", "/sandboxes", {"template": "python", "network": {"allow_out": [entry]}})
    assert status == 400 and "allow_out[0]" in body["message"], body


@pytest.mark.parametrize("allow", [["0.0.0.0/0"], ["*"], ["0.0.0.0/1", "128.0.0.0/1"], ["169.0.0.0/8", "100.0.0.0/8", "198.0.0.0/8"]])
def test_g139_an_entry_that_takes_in_the_floor_does_not_open_it(lab, sandbox, allow):
    box = sandbox(network={"allow_out": allow})
    node = lab.variables["BAILIWICK_LAB_NODE"]
    before = len(lab.sink_lines())
    targets = ["169.254.169.254", "100.100.100.200", node, "100.64.0.1", "100.80.0.1", "127.0.0.5", "0.0.0.0"]
    assert set(speak(box, [(target, 9100, b"x") for target in targets])) == {"refused"}
    assert lab.sink_lines()[before:] == []


@pytest.mark.parametrize("policy", ["P0", "P1", "NAMED"])
def test_g143_names_of_metadata_services_do_not_resolve(lab, shared, policy):
    box = shared(policy)
    names = ["metadata.google.internal", "METADATA.google.internal", "metadata", "instance-data", "metadata.tencentyun.com", "metadata.goog"]
    for name, reply in zip(names, world.lookups(box, [(name, 1) for name in names]), strict=True):
        assert reply["addresses"] == [] and reply["rcode"] == 5, (name, reply)
    assert not [line for line in lab.asked("") if "metadata" in line["name"].lower() and line["name"].lower() in names]


@pytest.mark.parametrize("policy", ["P0", "P1", "P3", "NAMED"])
def test_g146_g147_g149_g152_no_service_of_the_machine_is_reached(lab, shared, policy):
    box = shared(policy)
    node = lab.variables["BAILIWICK_LAB_NODE"]
    api = int(lab.variables["BAILIWICK_LAB_NODE_API"].rsplit(":", 1)[1])
    ports = [api, 9100, 2375, 2376, 22, 4, 6, 8, 15001]
    addresses = [node, "198.51.100.1", "2001:db8:ff::2", "127.0.0.1", "0.0.0.0", "::1", "::", "100.64.0.1", "100.95.240.1",
                 "172.17.0.1", "192.168.65.7", "10.0.0.1", "fe80::1", "::ffff:127.0.0.1", "fd62:6169:6c69::1", "fd62:6169:6c69:2::1"]
    with nothing_reaches(lab, box):
        assert set(speak(box, [(address, port, request("localhost")) for address in addresses for port in ports])) == {"refused"}
    names = [(name, 1) for name in ("host.docker.internal", "gateway.docker.internal", "host.containers.internal")]
    found = [address for reply in world.lookups(box, names) for address in reply["addresses"]]
    assert all(address.startswith("198.18.") for address in found), found


def test_g150_a_neighbour_is_not_reached_by_any_of_its_addresses(lab, shared, sandbox):
    neighbour = sandbox()
    listening = neighbour.commands.run("python3 -m http.server 8000 --bind ::", background=True, timeout=0)
    assert listening.pid
    addresses = probes.run(neighbour, """
        own = set()
        for family, target in ((socket.AF_INET, "93.184.216.34"), (socket.AF_INET6, "2606:2800:21f:cb07::1")):
            client = socket.socket(family, socket.SOCK_DGRAM)
            client.connect((target, 9))
            own.add(client.getsockname()[0])
        say(sorted(own))
        """)
    assert addresses
    # Some of these are the own addresses of the one that tries: there, nobody listens.
    for policy in ("P0", "P3", "P1"):
        box = shared(policy)
        with nothing_reaches(lab, box):
            assert set(speak(box, [(address, 8000, request("x")) for address in [*addresses, "100.64.0.2", "100.80.0.1", "100.80.0.2", "100.80.0.3", "100.80.0.4", "fd62:6169:6c69:1::1", "fd62:6169:6c69:1::2"]])) == {"refused"}


def test_g151_a_sandbox_reaches_itself(lab, shared):
    for policy in ("P1", "P0", "P4"):
        box = shared(policy)
        result = probes.run(box, """
            import threading
            def echo(family, address):
                server = socket.create_server((address, 0), family=family)
                port = server.getsockname()[1]
                threading.Thread(target=lambda: server.accept()[0].sendall(b"self"), daemon=True).start()
                target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
                client = tcp(target, port, family)
                return client.recv(10).decode()
            say([outcome(lambda: echo(socket.AF_INET, "127.0.0.1")), outcome(lambda: echo(socket.AF_INET, "0.0.0.0")),
                 outcome(lambda: echo(socket.AF_INET6, "::1")), outcome(lambda: echo(socket.AF_INET, "127.7.7.7")),
                 outcome(lambda: tcp("localhost", 1))])
            """)
        assert [each.get("value") for each in result[:4]] == ["self"] * 4, (policy, result)
        assert result[4]["error"] == "ConnectionRefusedError"


def test_g154_root_cannot_change_the_network(lab, shared):
    for policy in ("P1", "P3"):
        box = shared(policy)
        with nothing_reaches(lab, box):
            result = probes.run(box, """
                import ctypes, fcntl, glob
                libc = ctypes.CDLL(None, use_errno=True)
                changed = []
                for path in glob.glob("/proc/sys/net/**", recursive=True):
                    if os.path.isfile(path):
                        try:
                            with open(path) as file:
                                value = file.read().strip()
                            with open(path, "w") as file:
                                file.write(value)
                            changed.append(path)
                        except OSError:
                            pass
                def netlink(protocol, kind, body):
                    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
                    connection.settimeout(3)
                    connection.sendto(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body, (0, 0))
                    reply = connection.recv(4096)
                    code = struct.unpack("=i", reply[16:20])[0]
                    if code == 0:
                        raise RuntimeError("done")
                    raise OSError(-code, "refused")
                index = next((i for i, n in socket.if_nameindex() if n != "lo"), 1)
                tried = {
                    "link down": lambda: netlink(0, 16, struct.pack("=BxHiII", 0, 0, index, 0, 1)),
                    "new dummy": lambda: netlink(0, 16, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HH", 16, 18) + struct.pack("=HH", 10, 1) + b"dummy\\0\\0\\0"),
                    "address": lambda: netlink(0, 20, struct.pack("=BBBBI", 2, 24, 0, 0, index) + struct.pack("=HH4s", 8, 2, bytes([10, 9, 9, 9]))),
                    "route": lambda: netlink(0, 24, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 4, 0, 1, 0) + struct.pack("=HH4s", 8, 1, bytes([9, 9, 9, 9])) + struct.pack("=HHI", 8, 4, index)),
                    "rule": lambda: netlink(0, 32, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)),
                    "nftables": lambda: netlink(12, (10 << 8) | 2, struct.pack("=BBH", 1, 0, 0)),
                    "sock destroy": lambda: netlink(4, 21, bytes(72)),
                    "ioctl": lambda: fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH", b"lo", 0)),
                }
                succeeded = [name for name, do in tried.items() if outcome(do).get("error") == "RuntimeError"]
                calls = {"unshare user+net": (272, 0x50000000), "unshare net": (272, 0x40000000), "unshare mount": (272, 0x20000), "clone3": (435, 0, 0),
                         "setns": (308, os.open("/proc/self/ns/net", os.O_RDONLY), 0), "mount": (165, b"none", b"/mnt", b"tmpfs", 0, 0),
                         "open_tree": (428, -100, b"/", 1), "fsopen": (430, b"proc", 0), "pivot_root": (155, b".", b"."),
                         "bpf": (321, 5, 0, 0), "perf": (298, 0, 0, -1, -1, 0), "io_uring": (425, 8, 0), "userfaultfd": (323, 1),
                         "keyctl": (250, 0, -3, 1), "add_key": (248, b"user", b"x", b"x", 1, -3), "init_module": (175, 0, 0, b""), "kexec": (246, 0, 0, 0, 0),
                         "ptrace init": (101, 16, 1, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "pidfd_getfd": (438, 0, 0, 0), "open_by_handle_at": (304, -100, 0, 0),
                         "name_to_handle_at": (303, -100, b"/", 0, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0), "syslog": (103, 3, 0, 0), "reboot": (169, 0xfee1dead, 672274793, 0x89abcdef, 0),
                         "swapon": (167, b"/x", 0), "acct": (163, 0), "settimeofday": (164, 0, 0), "quotactl": (179, 0, 0, 0, 0), "lookup_dcookie": (212, 0, 0, 0),
                         "mknod": (133, b"/tmp/kmem", 0o20600, 0x101), "iopl": (172, 3), "modify_ldt": (154, 17, 0, 0), "vmsplice": (278, -1, 0, 0, 0)}
                for name, (number, *arguments) in calls.items():
                    if name in ("vmsplice", "modify_ldt"):
                        continue
                    got = libc.syscall(number, *arguments)
                    if got >= 0:
                        succeeded.append(name)
                say([changed, succeeded])
                """, user="root")
            assert result == [[], []], (policy, result)


def test_g155_g158_root_and_user_see_nothing_of_the_machine(lab, p1):
    for user in ("user", "root"):
        result = probes.run(p1, """
            import glob, signal, stat
            def opens(path, mode="r"):
                try:
                    with open(path, mode) as file:
                        return file.read(10) if mode == "r" else True
                except (OSError, UnicodeDecodeError):
                    return None
            found = []
            for path in ["/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/root/etc/passwd", "/proc/1/cwd/etc", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms", "/proc/keys",
                         "/proc/sched_debug", "/proc/timer_list", "/proc/slabinfo", "/dev/kmsg", "/sys/kernel/debug/x", "/sys/kernel/notes", "/sys/firmware/dmi/tables/DMI", "/proc/1/fd/3", "/proc/1/stack",
                         "/proc/1/ns/net", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/devices/devices.allow", "/sys/fs/bpf/x"]:
                if opens(path):
                    found.append(["read", path])
            for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sys/fs/binfmt_misc/register", "/sys/kernel/uevent_helper",
                         "/proc/irq/default_smp_affinity", "/proc/sys/kernel/ns_last_pid", "/proc/mtrr", "/proc/acpi/x", "/sys/power/state", "/proc/sys/kernel/hostname"]:
                if opens(path, "w"):
                    found.append(["write", path])
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
                try:
                    os.kill(1, number)
                except OSError:
                    pass
            for namespace in os.listdir("/proc/1/ns") if os.access("/proc/1/ns", os.R_OK) else []:
                try:
                    os.readlink("/proc/1/ns/" + namespace)
                    found.append(["namespace", namespace])
                except OSError:
                    pass
            mounts = open("/proc/self/mountinfo").read()
            for word in ("bailiwick", "/tmp/", "templates", "/var/lib", "/home"):
                if word in mounts:
                    found.append(["mounts", word])
            for path in ("/dev/sda", "/dev/vda", "/dev/mapper", "/dev/disk", "/dev/loop0"):
                if os.path.exists(path):
                    found.append(["device", path])
            for line in open("/proc/net/unix"):
                if "/" in line.split()[-1] and "init" not in line:
                    found.append(["unix", line.split()[-1]])
            processes = [entry for entry in os.listdir("/proc") if entry.isdigit()]
            for process in processes:
                command = opens(f"/proc/{process}/comm") or ""
                if "xtask" in command or command.strip() == "bailiwick":
                    found.append(["process", command])
            say(found)
            """, user=user)
        assert result == [], (user, result)
    assert p1.commands.run("echo alive").stdout.strip() == "alive"


def test_g155_setuid_programs_give_nothing_and_files_leave_no_rights_outside(lab, p1):
    done = p1.commands.run("cp /bin/sh /tmp/rootsh && chown root /tmp/rootsh && chmod 4755 /tmp/rootsh", user="root")
    assert done.exit_code == 0, done.stderr
    assert p1.commands.run("/tmp/rootsh -p -c 'id -u'").stdout.strip() == "1000"


@pytest.mark.parametrize("policy", ["P0", "NAMED", "P1"])
def test_g144_no_metadata_service_by_a_permitted_proxy_or_redirection(lab, sandbox, policy):
    box = sandbox(network=world.POLICIES[policy])
    world.bind(box, "allowed.test")
    token = probes.canary()
    metadata = "http://169.254.169.254/latest/meta-data/iam/"
    asked = [
        (ALLOWED, 3128, request("169.254.169.254", metadata + token)),
        (ALLOWED, 3129, request("allowed.test", metadata + token)),
        (ALLOWED, 3130, f"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: allowed.test\r\nX: {token}\r\n\r\n".encode()),
        (ALLOWED, 3131, request("169.254.169.254", f"/{token}")),
    ]
    results = speak(box, asked)
    lines = lab.seen(token)
    if policy == "P0":
        # Forwarded without being read: what a public host does for whom is its own. It is a documented limit
        # (`address_entries`), and it is that host only that is asked.
        assert {line["destination"] for line in lines} == {ALLOWED}
    else:
        assert results == ["http 403"] * 4 and lines == []
        reasons = [block(lab, box, address=ALLOWED, port=port)["reason"] for port in (3128, 3129, 3130, 3131)]
        assert reasons == ["http_absolute_form"] * 2 + ["http_connect", "invalid_host"]

    # Sent there by a permitted host, a client that follows gets no further than by itself.
    names = [f"{metadata}{token}", "http://metadata.google.internal/computeMetadata/v1/", "http://[fd00:ec2::254]/latest/"]
    with nothing_reaches(lab, box, but=lambda line: line["destination"] == ALLOWED):
        results = probes.run(box, f"""
            import urllib.request
            say([outcome(lambda: urllib.request.urlopen("http://allowed.test:8084/?redirect=" + to, timeout=8).read().decode()) for to in {names!r}])
            """)
    assert [each["ok"] for each in results] == [False] * 3, results
    assert {line["destination"] for line in lab.seen(token)} <= {ALLOWED}
    for address in ("169.254.169.254", "fd00:ec2::254"):
        event = block(lab, box, address=address, port=80)
        assert event["reason"] == "floor" and event["rule"]["floor"] == "metadata", event
    again = probes.run(box, 'import urllib.request\nsay(outcome(lambda: urllib.request.urlopen("http://allowed.test:8084/?redirect=http://allowed.test:8084/", timeout=8).status))')
    assert again == {"ok": True, "value": 200}


def test_g156_what_a_container_inside_would_need_is_refused(lab, p0):
    for user in ("user", "root"):
        result = probes.run(p0, """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            calls = {"unshare all": (272, 0x7C020000), "unshare mount": (272, 0x20000), "unshare pid": (272, 0x20000000), "unshare net": (272, 0x40000000),
                     "clone net": (56, 0x40000011, 0, 0, 0, 0), "clone mount": (56, 0x20011, 0, 0, 0, 0), "clone user": (56, 0x10000011, 0, 0, 0, 0),
                     "clone3": (435, 0, 0), "mount": (165, b"proc", b"/mnt", b"proc", 0, 0), "pivot_root": (155, b".", b"."), "setns": (308, os.open("/proc/self/ns/net", os.O_RDONLY), 0),
                     "fsopen": (430, b"overlay", 0), "move_mount": (429, -1, b"", -1, b"", 4), "mknod tun": (133, b"/tmp/tun", 0o20600, 0x0AC8)}
            done = []
            for name, (number, *arguments) in calls.items():
                got = libc.syscall(number, *arguments)
                if got == 0 and name.startswith("clone"):
                    os._exit(0)
                if got >= 0:
                    done.append(name)
            for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock"):
                if os.path.exists(path):
                    done.append(path)
            say(done)
            """, user=user)
        assert result == [], (user, result)
    world.twin(lab, p0)


def test_g156_a_container_inside_would_be_filtered_like_everything_else(lab, sandbox):
    """One that shares the network of the sandbox, and one behind a bridge of its own: made by root on the machine, as
    nobody inside can."""
    box = sandbox()
    node = lab.variables["BAILIWICK_LAB_NODE"]
    where = world.namespace(box)
    host_network = """
        def reach(target, port):
            client = tcp(target, port, socket.AF_INET6 if ":" in target else socket.AF_INET, 3)
            client.sendall(b"GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n")
            return client.recv(12).decode()
        say([outcome(lambda: reach(*target)) for target in TARGETS])
        """
    refused = [("169.254.169.254", 4700), (node, 9100), ("100.95.200.9", 4701), ("10.1.2.3", 4702), ("fd00:ec2::254", 4703)]
    targets = [*refused, (ALLOWED, 8084)]
    program = host_network.replace("TARGETS", repr(targets))
    with nothing_reaches(lab, box, but=lambda line: (line["destination"], line.get("port")) == (ALLOWED, 8084)):
        results = world.privileged(where, program)
        assert [each["ok"] for each in results] == [False] * len(refused) + [True], results
        for address, port in refused:
            assert block(lab, box, address=address, port=port)["reason"] in ("floor", "private_range")
        with world.nested_network(where) as nested:
            results = world.privileged(nested, program)
        # The bridge of this one has no IPv6.
        assert [each["ok"] for each in results] == [False] * len(refused) + [True], results
    # Those of both are told alike: the second time by the gate outside the sandbox, which is all that such packets pass.
    for address, port in refused[:4]:
        assert block(lab, box, count=2, address=address, port=port)["reason"] in ("floor", "private_range")
