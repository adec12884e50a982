"""commit: bring the declared changes to the source, or to a new root, all of them or none.

The story: lock the root, compare it with what it was, refuse what cannot work, write the journal, stage everything
beside its target, flip the journal (the point of no return), rename one after the other, forget the journal. What a
kill leaves, `recover` ends. Synchronous: callers with a loop use a thread.
"""

import contextlib
import errno
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

import msgspec

from vmcraft.changes import steps
from vmcraft.changes.journal import Journal, Record, State, Step, locked, new_id, partial_of, sync_host_directory
from vmcraft.changes.pending import PendingChanges
from vmcraft.errors import (
    CommitInterrupted,
    Conflict,
    Exists,
    HostError,
    InvalidValue,
    MissingProgram,
    NoSpace,
    ProgramFailed,
)
from vmcraft.host.guest_path import decoded
from vmcraft.host.root_dir import RootDir
from vmcraft.model.changes import Committed
from vmcraft.model.printable import quoted

PROGRAM_LIMIT_S = 4 * 3600
"""For the copy of a root: some terabytes over a slow disk."""
RECOVER = "mend the cause, then run vmcraft recover (the next start does it too)"


def commit(root: str, pending: PendingChanges, *, state_dir: str, lock_fd: int | None = None) -> Committed:
    """Write the pending changes to the source.

    Args:
        root: The source's path on the host.
        pending: The change set; it stays as it is, its owner clears it.
        state_dir: Where the journal of the commit is kept (0700, root's); `recover` needs the same.
        lock_fd: The caller's own open descriptor of the root, on which it holds a shared flock; it becomes exclusive
            for the commit, and shared again.

    Returns:
        The changes as they were written.

    Raises:
        Conflict: The root is in use, or not what it was when the changes were declared; nothing was written.
        NotOurs: A path that may not or cannot be replaced; nothing was written.
        NoSpace: The file system is full; nothing was written.
        HostError: The file system refused; nothing was written.
        CommitInterrupted: It failed half-way; `recover` ends it.
    """
    with _told(root), RootDir.open(root) as source, _locked_root(root, source, lock_fd, exclusive=True):
        changes = pending.list()
        if not changes:
            return Committed(changes=(), output=None)
        planned = _planned(root, source, pending)
        with Journal.begin(state_dir, _record(root, source)) as journal, contextlib.ExitStack() as undo:
            undo.callback(_undo, source, journal)
            steps.stage(source, planned, pending.layers, staging=journal.record.staging)
            _refuse_changed(source, planned, journal.record.staging)
            journal.write(msgspec.structs.replace(journal.record, state=State.READY, steps=planned))
            undo.pop_all()
            _finish(source, journal)
    return Committed(changes=changes, output=None)


def commit_to_output(
    root: str, pending: PendingChanges, output: str, *, state_dir: str, lock_fd: int | None = None
) -> Committed:
    """Make a new root: a copy of the source with the pending changes; the source is only read.

    Args:
        root: The source's path on the host.
        pending: The change set.
        output: Path of the new root; it appears complete, or not at all.
        state_dir: As in `commit`.
        lock_fd: As in `commit`; it stays shared.

    Returns:
        The changes as they were written, and the output's path.

    Raises:
        Exists: Something is at the output's path.
        Conflict, NotOurs, NoSpace, HostError, CommitInterrupted: As in `commit`.
    """
    output = os.path.abspath(output)
    partial = partial_of(output)
    for path in (output, partial):
        if os.path.lexists(path):
            raise Exists(f"{quoted(path)} is there already", remedy="name another output, or run vmcraft recover")
    with _told(output), RootDir.open(root) as source, _locked_root(root, source, lock_fd, exclusive=False):
        changes = pending.list()
        planned = _planned(root, source, pending)
        record = _record(root, source, output=output)
        with Journal.begin(state_dir, record) as journal, contextlib.ExitStack() as undo:
            undo.callback(_undo_output, partial, journal)
            _copy_root(source, partial, journal)
            with RootDir.open(partial) as copy:
                steps.stage(copy, planned, pending.layers, staging=record.staging)
                _refuse_changed(copy, planned, record.staging)
                steps.apply(copy, planned, staging=record.staging)
            run(["sync", "--file-system", partial])
            os.rename(partial, output)
            undo.pop_all()
            sync_host_directory(os.path.dirname(output))
            journal.delete()
    return Committed(changes=changes, output=output)


def remove_partial(partial: str) -> None:
    """Remove an unfinished copy; by rm(1), since a guest can nest directories deeper than Python recurses."""
    run(["rm", "-rf", "--one-file-system", "--", partial])
    sync_host_directory(os.path.dirname(partial))


def run(words: Sequence[str], *, pass_fds: Sequence[int] = ()) -> None:
    """Run a program of the host to its end.

    Raises:
        MissingProgram: It is not installed.
        NoSpace: It says that a file system is full.
        ProgramFailed: Its exit status is not 0, or it ran for hours.
    """
    # Its words go to a file: a hostile root can make it complain about each of a million names.
    with tempfile.TemporaryFile() as said:
        try:
            status = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=pass_fds,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                timeout=PROGRAM_LIMIT_S,
                check=False,
            ).returncode
        except FileNotFoundError:
            raise MissingProgram(f"{words[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{words[0]} was not ready within {PROGRAM_LIMIT_S} s") from None
        said.seek(0)
        text = decoded(said.read(4096))
    if status and os.strerror(errno.ENOSPC) in text:
        raise NoSpace(f"{words[0]} found no space: {quoted(text)}", remedy="make room")
    if status:
        raise ProgramFailed(f"{words[0]} ended with status {status}: {quoted(text)}")


def _planned(root: str, source: RootDir, pending: PendingChanges) -> tuple[Step, ...]:
    if source.identity != pending.layers.lower.identity:
        raise InvalidValue(f"{quoted(root)} is not the root that the changes were made on")
    planned = steps.plan(source, pending)
    steps.check_space(source, planned, pending.layers)
    return planned


def _record(root: str, source: RootDir, *, output: str | None = None) -> Record:
    device, inode = source.identity
    return Record(
        version=1,
        id=new_id(),
        state=State.STAGING,
        root=os.path.abspath(root),
        device=device,
        inode=inode,
        output=output,
    )


def _refuse_changed(source: RootDir, planned: Sequence[Step], staging: str) -> None:
    try:
        steps.outstanding(source, planned, staging=staging)
    except steps.NeitherStateError as error:
        raise Conflict(f"{quoted(str(error))} changed while the commit was prepared; nothing was written") from None


def _finish(source: RootDir, journal: Journal) -> None:
    """Behind the point of no return there is only forward; what fails here waits for `recover`."""
    try:
        steps.apply(source, journal.record.steps, staging=journal.record.staging)
        journal.delete()
    except steps.NeitherStateError as error:
        raise CommitInterrupted(
            f"{quoted(str(error))} changed during the commit; see {journal.path}", remedy=RECOVER
        ) from None
    except OSError as error:
        raise CommitInterrupted(
            f"the commit stopped half-way: {reason(error)}; its journal is {journal.path}", remedy=RECOVER
        ) from error


def _undo(source: RootDir, journal: Journal) -> None:
    """Take back what was staged; nothing of the root's own has been touched yet."""
    try:
        if journal.record.state is State.READY:  # it was renamed, but could not be synced
            journal.write(msgspec.structs.replace(journal.record, state=State.STAGING, steps=()))
        steps.remove_staging(source, staging=journal.record.staging)
        journal.delete()
    except OSError as error:
        raise CommitInterrupted(
            f"what was staged could not be removed: {reason(error)}; its journal is {journal.path}", remedy=RECOVER
        ) from error


def _undo_output(partial: str, journal: Journal) -> None:
    try:
        remove_partial(partial)
        journal.delete()
    except OSError as error:
        raise CommitInterrupted(
            f"{quoted(partial)} could not be removed: {reason(error)}; its journal is {journal.path}", remedy=RECOVER
        ) from error


def _copy_root(source: RootDir, partial: str, journal: Journal) -> None:
    os.mkdir(partial, 0o700)
    # It dies with us; until it is dead it holds the journal's lock, so that no recovery removes below its feet.
    words = ["setpriv", "--pdeathsig", "KILL", "cp", "--archive", "--reflink=auto", "--one-file-system"]
    words += ["--no-target-directory", "--", f"/proc/self/fd/{source.fd}/.", partial]
    run(words, pass_fds=[source.fd, journal.lock_fd])


@contextlib.contextmanager
def _locked_root(root: str, source: RootDir, lock_fd: int | None, *, exclusive: bool) -> Iterator[None]:
    """The root's lock: guests that live on it hold it shared."""
    fd, after = (source.fd, fcntl.LOCK_UN) if lock_fd is None else (lock_fd, fcntl.LOCK_SH)
    with locked(fd, exclusive=exclusive, what=root, after=after):
        yield


def reason(error: OSError) -> str:
    """An OSError as part of a sentence."""
    subject = error.filename
    if isinstance(subject, bytes):
        subject = decoded(subject)
    said = error.strerror or str(error)
    return f"{quoted(subject)}: {said}" if isinstance(subject, str) else said


@contextlib.contextmanager
def _told(subject: str) -> Iterator[None]:
    """System errors as our own; those behind the point of no return are told there."""
    try:
        yield
    except OSError as error:
        text = f"nothing was written to {quoted(subject)}: {reason(error)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(text, remedy="make room, then commit again") from error
        raise HostError(text) from error
