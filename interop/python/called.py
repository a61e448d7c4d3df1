"""Which methods of the published client were called, for the test that wants all of them."""

from __future__ import annotations

import functools

import declaw
from declaw.sandbox.main import SandboxBase
from declaw.sandbox_async.pty import AsyncPty, AsyncPtyHandle
from declaw.sandbox_async.stdio import AsyncStdio, AsyncStdioProcess
from declaw.sandbox_sync.commands.commands import Commands
from declaw.sandbox_sync.filesystem.filesystem import Filesystem

#: Everything of the client that talks to the server, in both its halves.
CLASSES = [
    SandboxBase,
    declaw.Sandbox,
    Commands,
    declaw.CommandHandle,
    Filesystem,
    declaw.WatchHandle,
    declaw.Pty,
    declaw.PtyHandle,
    declaw.Stdio,
    declaw.StdioProcess,
    declaw.SandboxPaginator,
    declaw.SnapshotPaginator,
    declaw.Template,
    declaw.Volumes,
    declaw.VolumeFiles,
    declaw.VolumeLocks,
    declaw.VaultClient,
    declaw.GovernancePacks,
    declaw.AccountClient,
    declaw.AsyncSandbox,
    declaw.AsyncCommandHandle,
    AsyncPty,
    AsyncPtyHandle,
    AsyncStdio,
    AsyncStdioProcess,
    declaw.AsyncSandboxPaginator,
    declaw.AsyncSnapshotPaginator,
    declaw.AsyncTemplate,
    declaw.AsyncVolumes,
    declaw.AsyncVolumeFiles,
    declaw.AsyncVolumeLocks,
    declaw.AsyncVaultClient,
    declaw.AsyncGovernancePacks,
    declaw.AsyncAccountClient,
]

#: The methods there are, and those that were called, as `Class.method`.
THERE: set[str] = set()
CALLED: set[str] = set()


def _counted(name: str, function):
    @functools.wraps(function)
    def count(*arguments, **options):
        CALLED.add(name)
        return function(*arguments, **options)

    return count


def watch() -> None:
    """From now on calls are noted."""
    for kind in CLASSES:
        for attribute, value in list(vars(kind).items()):
            name = f"{kind.__name__}.{attribute}"
            if attribute.startswith("_"):
                continue
            if isinstance(value, property):
                replaced = property(_counted(name, value.fget))
            elif isinstance(value, (classmethod, staticmethod)):
                replaced = type(value)(_counted(name, value.__func__))
            elif callable(value):
                replaced = _counted(name, value)
            else:
                continue
            THERE.add(name)
            setattr(kind, attribute, replaced)
