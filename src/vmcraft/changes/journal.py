"""The record of a commit on disk: written before anything is touched, so that the next start can end what was cut off.

Knows the record's form, how it is replaced in one step, and how it is told whether its writer still lives (it holds a
flock on the record). Leaves what to do with a record to `commit` and `recover`.
"""

import contextlib
import fcntl
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from enum import StrEnum
from typing import Literal

import msgspec

from vmcraft.changes.fingerprint import Fingerprint
from vmcraft.errors import CommitInterrupted, Conflict
from vmcraft.model.printable import quoted

NEW = ".new"
LOCK_LIMIT_S = 10
RECORD_LIMIT = 64 << 20
"""Bytes of a record: some hundred thousand paths."""


class State(StrEnum):
    """How far a commit has come; the change from one to the other is the point of no return."""

    STAGING = "staging"
    READY = "ready"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One path of a commit.

    Attributes:
        path: Canonical path in the root.
        before: What it was; None for nothing.
        after: What it shall be; None for nothing.
        staged: Name of the new entry in the staging directory; None where the path is removed.
    """

    path: str
    before: Fingerprint | None
    after: Fingerprint | None
    staged: str | None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A commit, as it is on disk.

    Attributes:
        version: Form of the record.
        id: Random name.
        state: How far it has come.
        root: Path of the source on the host.
        device: st_dev of the source.
        inode: st_ino of the source.
        output: The new root that is made; None where the source itself is written.
        steps: What is done when it is ready; empty while it is staged.
    """

    version: Literal[1]
    id: str
    state: State
    root: str
    device: int
    inode: int
    output: str | None = None
    steps: tuple[Step, ...] = ()

    @property
    def staging(self) -> str:
        """Where in the root the new entries wait."""
        return staging_directory(self.id)

    @property
    def partial(self) -> str | None:
        """The unfinished copy, on the host."""
        return None if self.output is None else partial_of(self.output)


def staging_directory(name: str) -> str:
    """Path in the root of the staging directory of the commit with this id."""
    return f"/{STAGING_PREFIX}{name}"


def partial_of(output: str) -> str:
    """Where an output grows until it is complete."""
    return f"{output}.vmcraft-partial"


STAGING_PREFIX = ".vmcraft-commit-"


class Journal:
    """One record that we hold: its file is locked until `close` or the end of the process.

    Attributes:
        path: The record's file.
        record: What it says.
    """

    def __init__(self, directory: str, record: Record, fd: int | None) -> None:
        """Made by `begin` and `abandoned`."""
        self.path = os.path.join(directory, f"{record.id}.json")
        self.record = record
        self._directory = directory
        self._fd = fd

    @classmethod
    @contextlib.contextmanager
    def begin(cls, state_dir: str, record: Record) -> Iterator["Journal"]:
        """Write a new record; its lock is held inside the block."""
        directory = _commits(state_dir)
        for made in (state_dir, directory):
            _make(made)
        journal = cls(directory, record, None)
        try:
            journal._start()
            yield journal
        finally:
            journal.close()

    @property
    def lock_fd(self) -> int:
        """The locked descriptor; a child that inherits it keeps the record alive after our end."""
        assert self._fd is not None
        return self._fd

    def write(self, record: Record) -> None:
        """Replace the record in one step; on disk when this returns."""
        text = json.dumps(msgspec.to_builtins(record), indent=1).encode()
        new = f"{self.path}{NEW}"
        with _locked_directory(self._directory) as directory:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with os.fdopen(fd, "wb", closefd=False) as file:
                    file.write(text)
                os.fsync(fd)
                os.rename(new, self.path)
            except OSError:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(new)
                raise
            self.close()
            self._fd = fd
            self.record = record
            os.fsync(directory)

    def _start(self) -> None:
        try:
            self.write(self.record)
        except OSError:
            # Nothing was touched yet; a record that cannot be made safe must not stay either.
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            raise

    def delete(self) -> None:
        """Take the record away; the commit is over."""
        with _locked_directory(self._directory) as directory:
            os.unlink(self.path)
            os.fsync(directory)

    def close(self) -> None:
        """Let the lock go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def abandoned(state_dir: str) -> tuple[list[Journal], list[CommitInterrupted]]:
    """The records whose writers are dead, now locked by us; what a dead writer had not yet renamed is removed.

    Returns:
        The records, oldest name first, and an error for each that no version of ours wrote.
    """
    directory = _commits(state_dir)
    found: list[Journal] = []
    broken: list[CommitInterrupted] = []
    if not os.path.isdir(directory):
        return found, broken
    with _locked_directory(directory):
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if not name.endswith((".json", NEW)):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not _try_lock(fd):
                    continue
                if name.endswith(NEW):
                    os.unlink(path)
                    continue
                found.append(Journal(directory, _read(path, fd), os.dup(fd)))
            except CommitInterrupted as error:
                broken.append(error)
            finally:
                os.close(fd)
    return found, broken


def new_id() -> str:
    """A name for a commit that no guest can guess."""
    return secrets.token_hex(8)


@contextlib.contextmanager
def locked(fd: int, *, exclusive: bool, what: str, after: int = fcntl.LOCK_UN) -> Iterator[None]:
    """Hold a flock on a descriptor; waits at most 10 s.

    Args:
        fd: The descriptor.
        exclusive: Against all others, or shared with other readers.
        what: What is locked, for the error.
        after: What the lock becomes at the end.

    Raises:
        Conflict: Others hold it all that time.
    """
    word, number = ("--exclusive", fcntl.LOCK_EX) if exclusive else ("--shared", fcntl.LOCK_SH)
    try:
        fcntl.flock(fd, number | fcntl.LOCK_NB)
    except BlockingIOError:
        # flock(2) has no limit; the program waits on the same open file, so that the lock is ours when it ends.
        words = ["flock", word, "--timeout", str(LOCK_LIMIT_S), str(fd)]
        waited = subprocess.run(words, pass_fds=[fd], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if waited.returncode:
            if after != fcntl.LOCK_UN:
                _try_lock(fd, after)  # an upgrade that fails may have lost what was held
            raise Conflict(
                f"{quoted(what)} is in use: another guest of it is running, or another commit",
                remedy="end the other guests of this root, then commit again",
            ) from None
    try:
        yield
    finally:
        fcntl.flock(fd, after)


def _try_lock(fd: int, number: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, number | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _commits(state_dir: str) -> str:
    return os.path.join(state_dir, "commits")


def _make(directory: str) -> None:
    """A directory of ours; its own name is on disk when this returns."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
        sync_host_directory(os.path.dirname(os.path.abspath(directory)))


def sync_host_directory(path: str) -> None:
    """Bring the names in a directory of the host to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked_directory(path: str) -> Iterator[int]:
    """A moment in which no record appears, is replaced or goes."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with locked(fd, exclusive=True, what=path):
            yield fd
    finally:
        os.close(fd)


def _read(path: str, fd: int) -> Record:
    try:
        with os.fdopen(fd, "rb", closefd=False) as file:
            # Through json, since msgspec's own reader refuses the surrogate escapes of odd names.
            record = msgspec.convert(json.loads(file.read(RECORD_LIMIT)), Record)
        if os.path.basename(path) != f"{record.id}.json":
            raise ValueError("it has the name of another commit")
        return record
    except (ValueError, msgspec.ValidationError) as error:
        raise CommitInterrupted(
            f"the commit's journal {path} cannot be read: {error}", remedy="compare the root with its backup by hand"
        ) from None
