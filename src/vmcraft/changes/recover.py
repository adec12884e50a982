"""recover: end what a killed commit has left, so that each root is exactly as before it or as after it.

A commit whose journal says "staging" is undone, one that says "ready" is finished. What a living process writes is
left alone; a root that somebody else changed meanwhile is not touched, but named.
"""

import os

from vmcraft.changes import steps
from vmcraft.changes.commit import reason, remove_partial
from vmcraft.changes.journal import Journal, Record, State, abandoned, locked, sync_host_directory
from vmcraft.errors import CommitInterrupted, Conflict, HostError
from vmcraft.host.root_dir import Follow, RootDir
from vmcraft.model.changes import Recovered, Recovery
from vmcraft.model.printable import quoted


def recover(state_dir: str, *, root: str | None = None) -> tuple[Recovered, ...]:
    """End all commits of dead processes that kept their journal in this directory.

    Args:
        state_dir: As given to `commit`; one without journals is fine.
        root: Only commits to this root, by its real path; None for all.

    Returns:
        What was undone or finished.

    Raises:
        CommitInterrupted: A root that is in neither state, or another directory at its path; all others were ended
            (they are the error's `result`), and the journal stays until somebody has looked.
    """
    journals, broken = abandoned(state_dir)
    if root is not None:
        # What another root's commit has left is not this one's concern.
        broken = []
    ended: list[Recovered] = []
    for journal in journals:
        try:
            if root is None or journal.record.root == root:
                ended.append(_end(journal))
        except CommitInterrupted as error:
            broken.append(error)
        except (HostError, Conflict) as error:
            broken.append(CommitInterrupted(f"{error.text}; see {journal.path}", remedy=error.remedy))
        except OSError as error:
            broken.append(CommitInterrupted(f"{reason(error)}; see {journal.path}", remedy="mend the cause"))
        finally:
            journal.close()
    if broken:
        remedy = next((error.remedy for error in broken if error.remedy), "")
        raise CommitInterrupted("\n".join(error.text for error in broken), remedy=remedy, result=tuple(ended))
    return tuple(ended)


def _end(journal: Journal) -> Recovered:
    record = journal.record
    if record.output is not None:
        return _end_output(journal, record.output)
    try:
        root = RootDir.open(record.root)
    except (FileNotFoundError, NotADirectoryError):
        if record.state is State.STAGING:  # the root went, and what was staged in it too
            journal.delete()
            return _recovered(record, Recovery.UNDONE)
        raise
    with root, locked(root.fd, exclusive=True, what=record.root):
        _refuse_another(root, journal)
        if record.state is State.READY:
            _finish(root, journal)
        else:
            steps.remove_staging(root, staging=record.staging)
        journal.delete()
    return _recovered(record, Recovery.FINISHED if record.state is State.READY else Recovery.UNDONE)


def _finish(root: RootDir, journal: Journal) -> None:
    record = journal.record
    try:
        steps.apply(root, record.steps, staging=record.staging)
    except steps.NeitherStateError as error:
        raise CommitInterrupted(
            f"{quoted(str(error))} in {quoted(record.root)} is neither as before the commit nor as after it; nothing"
            f" was touched; see {journal.path}",
            remedy=f"give it either state, or remove the journal and {quoted(record.staging)}",
        ) from None


def _refuse_another(root: RootDir, journal: Journal) -> None:
    """The root must be the directory that the commit began on."""
    record = journal.record
    if root.identity == (record.device, record.inode):
        return
    # A device number may change with a reboot; only that commit knows the staging directory's name.
    if root.identity[1] == record.inode and root.lstat(record.staging, follow=Follow.NONE) is not None:
        return
    raise CommitInterrupted(
        f"{quoted(record.root)} is another directory than the one that a commit began on; see {journal.path}",
        remedy="mount that root there again, or remove the journal",
    )


def _end_output(journal: Journal, output: str) -> Recovered:
    record = journal.record
    partial = record.partial
    assert partial is not None
    if os.path.lexists(partial):
        remove_partial(partial)
        recovery = Recovery.UNDONE
    elif os.path.lexists(output):
        sync_host_directory(os.path.dirname(output))
        recovery = Recovery.FINISHED
    else:
        recovery = Recovery.UNDONE
    journal.delete()
    return Recovered(root=output, recovery=recovery, paths=())


def _recovered(record: Record, recovery: Recovery) -> Recovered:
    return Recovered(root=record.root, recovery=recovery, paths=tuple(step.path for step in record.steps))
