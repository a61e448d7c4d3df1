"""Watching a directory: real changes, as events, and what the published client asks."""

from __future__ import annotations

from streams import events, opened


def watching(lab, box, path: str, recursive: bool = False):
    body = {"path": path, "username": "user", "recursive": recursive}
    where = f"/sandboxes/{box.sandbox_id}/files/watch"
    _, response = opened(lab, "POST", where, body, accept="text/event-stream")
    assert response.headers["content-type"] == "text/event-stream"
    return ((data["type"], data["path"]) for _, data in events(response))


def until(found, wanted) -> list:
    """The changes up to the wanted one."""
    seen = []
    for change in found:
        seen.append(change)
        if change == wanted:
            return seen
    raise AssertionError(f"{wanted} is not among {seen}")


def test_what_happens_to_files_is_told(lab, sandbox):
    box = sandbox()
    box.commands.run("mkdir /tmp/w /tmp/w/below")
    found = watching(lab, box, "/tmp/w")
    box.commands.run("cd /tmp/w; touch a; echo x >> a; chmod 600 a; mv a b; echo x > below/hidden; rm b; touch end")
    seen = until(found, ("create", "/tmp/w/end"))
    assert [each for each in seen if each[1] in ("/tmp/w/a", "/tmp/w/b") and each[0] != "chmod"] == [
        ("create", "/tmp/w/a"),
        ("write", "/tmp/w/a"),
        ("rename", "/tmp/w/a"),
        ("create", "/tmp/w/b"),
        ("remove", "/tmp/w/b"),
    ]
    assert ("chmod", "/tmp/w/a") in seen
    assert not [each for each in seen if "hidden" in each[1]], "it was not asked for what is below"


def test_directories_below_are_watched_when_asked_for_new_and_moved_ones_too(lab, sandbox):
    box = sandbox()
    box.commands.run("mkdir -p /tmp/w/old")
    found = watching(lab, box, "/tmp/w", recursive=True)
    box.commands.run("touch /tmp/w/old/one; mkdir -p /tmp/w/new/deep")
    until(found, ("create", "/tmp/w/new/deep"))
    box.commands.run("touch /tmp/w/new/deep/two; mv /tmp/w/new /tmp/w/moved")
    until(found, ("create", "/tmp/w/moved"))
    box.commands.run("touch /tmp/w/moved/deep/three")
    until(found, ("create", "/tmp/w/moved/deep/three"))


def test_a_watch_ends_with_its_directory(lab, sandbox):
    box = sandbox()
    box.commands.run("mkdir /tmp/w")
    found = watching(lab, box, "/tmp/w")
    box.commands.run("rmdir /tmp/w")
    assert list(found) == []


def test_the_client_learns_at_once_whether_a_directory_can_be_watched(lab, sandbox):
    box = sandbox()
    assert box.files.watch_dir("/tmp").get_new_events() == []
    path = f"/sandboxes/{box.sandbox_id}/files/watch"
    assert lab.request("POST", path, {"path": "/no/such/directory"})[0] == 404
    assert lab.request("POST", path, {"path": "/etc/hostname"})[0] == 400
    assert lab.request("POST", path, {"path": "/proc/1/fd"})[0] == 400
    assert lab.request("POST", path, {})[0] == 400
    box.commands.run("mkdir -m 700 /tmp/secret", user="root")
    assert lab.request("POST", path, {"path": "/tmp/secret"})[0] == 400
    assert lab.request("POST", path, {"path": "/tmp/secret", "username": "root"})[0] == 200
