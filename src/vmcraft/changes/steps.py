"""The steps of a commit: planned from the change set, staged in the root, applied one rename or unlink at a time.

Knows how a new entry gets everything that belongs to it before it takes its name, and how to tell for each path
whether its step is done already. Leaves the order of all this, and the journal, to `commit` and `recover`.
"""

import os
from collections.abc import Iterable, Sequence

from vmcraft.changes.fingerprint import SELINUX, Fingerprint, carried
from vmcraft.changes.journal import STAGING_PREFIX, Step
from vmcraft.changes.pending import PendingChanges
from vmcraft.changes.upper import Layers, fingerprint_of
from vmcraft.errors import CommitInterrupted, Conflict, NoSpace, NotOurs
from vmcraft.host import guest_path
from vmcraft.host.pinned import Pinned
from vmcraft.host.root_dir import Follow, RootDir
from vmcraft.model.entry import Attributes, Entry, EntryKind
from vmcraft.model.printable import quoted

BYTES_FOR_EACH = 8192
"""A file's last block, and its share of a directory."""
BYTES_SPARE = 1 << 20

_COMMITTED = (EntryKind.FILE, EntryKind.SYMLINK)
_OURS = Attributes(mode=0o700, uid=0, gid=0, xattrs={})


class NeitherStateError(Exception):
    """A path is neither as it was before the commit nor as it shall be after it; `args` holds the path."""


def plan(root: RootDir, pending: PendingChanges) -> tuple[Step, ...]:
    """The steps that bring the declared changes to the root, parents first; nothing is written.

    Raises:
        Conflict: The root is not what it was when a change was declared.
        NotOurs: A path that cannot be written in one step, or is protected against it.
        CommitInterrupted: An earlier commit to this root has not been ended.
    """
    _refuse_unfinished(root)
    declarations = pending.declarations()
    foreign = [one.path for one in declarations if fingerprint_of(root.find(one.path)) != one.source]
    if foreign:
        raise Conflict(
            f"changed in the root since the guest was opened: {', '.join(quoted(path) for path in foreign[:20])}",
            remedy="open the root again and repeat the calls",
        )
    ends: dict[str, tuple[Fingerprint | None, Fingerprint | None]] = {}
    for one in declarations:
        after = one.after  # as the call saw it: what the guest makes of it from now on is found when it is staged
        if after is not None and after.kind not in _COMMITTED:
            raise NotOurs(f"{quoted(one.path)} is a {after.kind} now; only regular files and symlinks are committed")
        ends |= {
            path: (None, made) for path, made in _parents(root, pending.layers, one.path, needed=after is not None)
        }
        ends[one.path] = (one.source, after)
    return tuple(
        Step(path=path, before=before, after=after, staged=None if after is None else str(number))
        for number, (path, (before, after)) in enumerate(sorted(ends.items(), key=lambda item: item[0].split("/")))
    )


def check_space(root: RootDir, steps: Sequence[Step], layers: Layers) -> None:
    """Refuse before anything is written what the root's file system cannot hold.

    Raises:
        NoSpace: Too few bytes or inodes.
    """
    sizes = [entry.size for step in steps if step.staged and (entry := layers.entry(step.path)) is not None]
    needed = sum(sizes) + BYTES_FOR_EACH * (len(steps) + 1) + BYTES_SPARE
    room = os.fstatvfs(root.fd)
    free = room.f_bavail * room.f_frsize
    if free < needed:
        raise NoSpace(f"the commit needs {needed >> 10} KiB in the root, {free >> 10} KiB are free", remedy="make room")
    if room.f_files and room.f_favail < len(steps) + 1:
        raise NoSpace(f"the commit needs {len(steps) + 1} inodes in the root, {room.f_favail} are free")


def stage(root: RootDir, steps: Iterable[Step], layers: Layers, *, staging: str) -> None:
    """Make all new entries, complete and synced, in the staging directory.

    Raises:
        Conflict: The guest changed one of them meanwhile.
        OSError: The file system refuses.
    """
    root.make_directory(staging, _OURS)
    for step in steps:
        if step.staged is None:
            continue
        new = f"{staging}/{step.staged}"
        pinned = layers.pin(step.path)
        if pinned is not None:
            with pinned:
                _copy(root, new, pinned, label=_label(root, step.path))
        if fingerprint_of(root.find(new)) != step.after:
            raise Conflict(f"the guest changes {quoted(step.path)} while it is committed", remedy="end the guest first")
    root.sync_directory(staging)
    root.sync_directory("/")


def outstanding(root: RootDir, steps: Iterable[Step], *, staging: str) -> list[Step]:
    """The steps that are not done yet; all others are.

    Raises:
        NeitherStateError: A path is in neither state, or its staged entry is not what was staged.
    """
    todo = []
    for step in steps:
        now = fingerprint_of(root.find(step.path))
        if now == step.after:
            continue
        if now != step.before:
            raise NeitherStateError(step.path)
        if step.staged is not None and fingerprint_of(root.find(f"{staging}/{step.staged}")) != step.after:
            raise NeitherStateError(f"{staging}/{step.staged}")
        todo.append(step)
    return todo


def apply(root: RootDir, steps: Sequence[Step], *, staging: str) -> None:
    """Do what is outstanding, sync it, and remove the staging directory; can be repeated after any interruption.

    Raises:
        NeitherStateError: A path is in neither state; then nothing at all is touched.
        OSError: The file system refuses.
    """
    for step in outstanding(root, steps, staging=staging):
        if step.staged is None:
            root.unlink(step.path)
        else:
            root.rename(f"{staging}/{step.staged}", step.path)
    # Those of the steps done before an interruption too: they may not have been synced.
    for directory in sorted({guest_path.split(step.path)[0] for step in steps}):
        root.sync_directory(directory)
    remove_staging(root, staging=staging)


def remove_staging(root: RootDir, *, staging: str) -> None:
    """Remove the staging directory and what is left in it: files, symlinks, empty directories."""
    found = root.lstat(staging, follow=Follow.NONE)
    if found is None or found.kind is not EntryKind.DIRECTORY:
        return
    for name in root.listdir(staging, follow=Follow.NONE):
        entry = root.lstat(f"{staging}/{name}", follow=Follow.NONE)
        if entry is not None and entry.kind is EntryKind.DIRECTORY:
            root.remove_directory(f"{staging}/{name}")
        else:
            root.unlink(f"{staging}/{name}")
    root.remove_directory(staging)
    root.sync_directory("/")


def _refuse_unfinished(root: RootDir) -> None:
    left = [name for name in root.listdir("/", follow=Follow.NONE) if name.startswith(STAGING_PREFIX)]
    if left:
        raise CommitInterrupted(
            f"an earlier commit to this root was cut off: {quoted('/' + left[0])} is still there",
            remedy="run vmcraft recover with the state directory of that commit",
        )


def _parents(root: RootDir, layers: Layers, path: str, *, needed: bool) -> list[tuple[str, Fingerprint | None]]:
    """The directories above a path that the root lacks, as the guest has them.

    Raises:
        NotOurs: The path cannot be reached by a rename, or is protected.
    """
    nearest = "/"
    missing: list[tuple[str, Fingerprint | None]] = []
    for parent in guest_path.parents(path):
        entry = root.lstat(parent, follow=Follow.NONE) if not missing else None
        if entry is None:
            made = fingerprint_of(layers.pin(parent)) if needed else None
            if needed and (made is None or made.kind is not EntryKind.DIRECTORY):
                raise Conflict(
                    f"the guest changes {quoted(parent)} while it is committed", remedy="end the guest first"
                )
            missing.append((parent, made))
        elif entry.kind is EntryKind.DIRECTORY:
            nearest = parent
        else:
            raise NotOurs(f"{quoted(parent)} is a {entry.kind} in the root and a directory in the guest")
    _refuse_unwritable(root, nearest, path, needed=needed)
    return missing if needed else []


def _refuse_unwritable(root: RootDir, directory: str, path: str, *, needed: bool) -> None:
    entry = root.lstat(path, follow=Follow.NONE)
    if entry is not None and entry.kind not in _COMMITTED:
        raise NotOurs(f"{quoted(path)} is a {entry.kind} in the root; only regular files and symlinks are replaced")
    if needed and not root.is_one_mount(directory):
        raise NotOurs(f"{quoted(path)} is on another file system than the root, so it cannot be replaced in one step")
    # A file that is mounted over itself is busy; to remove one from another file system is fine.
    if entry is not None and root.is_one_mount(directory) and not root.is_one_mount(path):
        raise NotOurs(f"{quoted(path)} is a mount point", remedy="unmount it, then commit again")
    for subject in (directory, path):
        if (subject is directory or entry is not None) and root.is_protected(subject):
            raise NotOurs(
                f"{quoted(subject)} is immutable or append-only in the root", remedy="chattr -i -a, then again"
            )


def _copy(root: RootDir, new: str, pinned: Pinned, *, label: bytes | None) -> None:
    entry = pinned.entry
    attributes = _attributes(entry, carried(pinned.xattrs()), label)
    if entry.kind is EntryKind.DIRECTORY:
        root.make_directory(new, attributes)
    elif entry.target is not None:
        root.make_symlink(new, entry.target, attributes)
    else:
        root.create_file(new, pinned.chunks(), attributes)


def _attributes(entry: Entry, xattrs: dict[str, bytes], label: bytes | None) -> Attributes:
    if label is not None:
        xattrs = {SELINUX: label} | xattrs
    mtime_ns = None if entry.kind is EntryKind.DIRECTORY else entry.mtime_ns
    return Attributes(mode=entry.mode, uid=entry.uid, gid=entry.gid, xattrs=xattrs, mtime_ns=mtime_ns)


def _label(root: RootDir, path: str) -> bytes | None:
    """The SELinux label that a new entry takes: its predecessor's, else that of the nearest directory above it."""
    for subject in (path, *reversed(guest_path.parents(path)), "/"):
        pinned = root.find(subject)
        if pinned is not None:
            with pinned:
                return pinned.xattrs().get(SELINUX)
    return None
