"""PendingChanges: which paths the calls declared, and how these differ from the source now.

Knows what may be declared and what a change looks like to a reader; leaves the writing to `commit`. Nothing of a
change's content is kept here: it is read from the overlay when it is asked for.
"""

import codecs
import dataclasses
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmcraft.changes.fingerprint import Fingerprint, fingerprint
from vmcraft.changes.upper import Layers, fingerprint_of
from vmcraft.errors import Conflict, NotOurs
from vmcraft.host import guest_path
from vmcraft.host.pinned import Pinned
from vmcraft.model.changes import Change, ChangeKind
from vmcraft.model.entry import Entry, EntryKind
from vmcraft.model.printable import quoted

TEXT_LIMIT = 64 << 10
"""Bytes of a file that a change shows."""
DEFAULT_PREFIXES = ("/etc/",)
"""Where a guest's configuration is; a caller that writes elsewhere says so."""

_COMMITTED = (EntryKind.FILE, EntryKind.SYMLINK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A path that a call declared, and the source as it was then.

    Attributes:
        path: Canonical path in the guest.
        call: The last call that declared it.
        args: That call's arguments.
        source: Fingerprint of the source's entry at the first declaration; None where there was none.
        after: Fingerprint of the guest's entry at the last declaration; None where the call removed it.
    """

    path: str
    call: str
    args: tuple[str, ...]
    source: Fingerprint | None
    after: Fingerprint | None


class PendingChanges:
    """The change set of one opened guest. Synchronous: it reads files and hashes them.

    Attributes:
        layers: The source and the overlay's upper.
    """

    def __init__(self, layers: Layers, *, prefixes: Iterable[str] = DEFAULT_PREFIXES) -> None:
        """Begin with no change.

        Args:
            layers: The source and the overlay's upper.
            prefixes: Directories below which may be written, each with its closing slash.
        """
        self.layers = layers
        self._prefixes = tuple(prefixes)
        # Replaced, never altered: calls run in several threads, and a list may be read while another declares.
        self._declared: dict[str, Declaration] = {}
        self._declaring = threading.Lock()

    def __bool__(self) -> bool:
        """Whether a declared path differs from the source, or from what was declared: then a commit refuses it."""
        return any(
            one.source != one.after or self._tampered(one) or self._moved(one.path) for one in self._declared.values()
        )

    def declare(self, paths: Iterable[str], *, call: str, args: Sequence[str]) -> None:
        """Take these paths into the change set: all of them, or none where one is refused.

        Args:
            paths: Paths in the guest; symlinks among their parents are followed as the guest follows them.
            call: Name of the call that changed them.
            args: Its arguments, as text.

        Raises:
            NotOurs: A path outside the allowed directories, or what is no regular file and no symlink.
            InvalidName: Not a path.
            OSError: A layer cannot be read.
        """
        declared: dict[str, Declaration] = {}
        for path in paths:
            canonical = self.layers.resolve(path)
            if not canonical.startswith(self._prefixes):
                raise NotOurs(f"{quoted(path)} is {quoted(canonical)} in the guest, where no change may be written")
            for entry in (self.layers.source_entry(canonical), self.layers.entry(canonical)):
                _refuse_others(canonical, entry)
            source = fingerprint_of(self.layers.pin_source(canonical))
            after = fingerprint_of(self.layers.pin(canonical))
            declared[canonical] = Declaration(path=canonical, call=call, args=tuple(args), source=source, after=after)
        with self._declaring:
            kept = self._declared
            for path, one in declared.items():
                earlier = kept.get(path)
                if earlier is not None and earlier.after == one.after:
                    declared[path] = earlier  # the call that changed it keeps it
                elif earlier is not None:
                    declared[path] = dataclasses.replace(one, source=earlier.source)
            self._declared = kept | declared

    def paths(self) -> tuple[str, ...]:
        """All paths that were declared, also those that are as in the source again."""
        return tuple(self._declared)

    def is_news(self, path: str) -> bool:
        """Whether the guest has another entry there than was declared, or than the source has if nothing was."""
        declared = self._declared.get(path)
        known = declared.after if declared is not None else fingerprint_of(self.layers.pin_source(path))
        return fingerprint_of(self.layers.pin(path)) != known

    def declarations(self) -> tuple[Declaration, ...]:
        """The declared paths that differ from the source now, sorted; what `commit` writes.

        Raises:
            Conflict: A directory above a declared path has become a symlink since, so that it is another path; or the
                guest has changed a declared path by itself, which no call declared.
            OSError: A layer cannot be read.
        """
        declared = [declaration for _, declaration in sorted(self._declared.items())]
        # Many changes lie in few directories; each is resolved once.
        parents = {_parent(declaration) for declaration in declared}
        reached = {directory: self.layers.resolve(directory, last=True) for directory in parents}
        for declaration in declared:
            directory = _parent(declaration)
            if reached[directory] != directory:
                path = quoted(declaration.path)
                raise Conflict(f"a directory above {path} is another one in the guest since the change was made")
            if self._tampered(declaration):
                raise Conflict(
                    f"the guest changed {quoted(declaration.path)} by itself after {declaration.call} had",
                    remedy="discard, and call again; a guest that does this by itself is not to be trusted",
                )
        return tuple(declaration for declaration in declared if declaration.source != declaration.after)

    def list(self) -> tuple[Change, ...]:
        """The changes as they are now, sorted by path.

        Raises:
            Conflict, OSError: As `declarations`.
        """
        return tuple(self._change(declaration) for declaration in self.declarations())

    def clear(self) -> None:
        """Forget all declarations."""
        with self._declaring:
            self._declared = {}

    def _moved(self, path: str) -> bool:
        return self.layers.resolve(path) != path

    def _tampered(self, declaration: Declaration) -> bool:
        """Whether the guest has changed the path by itself since the call that declared it."""
        return declaration.after != fingerprint_of(self.layers.pin(declaration.path))

    def _change(self, declaration: Declaration) -> Change:
        path = declaration.path
        before = _Shown.of(self.layers.pin_source(path))
        after = _Shown.of(self.layers.pin(path))
        kind = ChangeKind.CREATED if before is None else ChangeKind.REMOVED if after is None else ChangeKind.MODIFIED
        return Change(
            path=path,
            change=kind,
            call=declaration.call,
            args=declaration.args,
            before=before.text if before else None,
            after=after.text if after else None,
            note=_note(before, after),
        )


def _parent(declaration: Declaration) -> str:
    return guest_path.split(declaration.path)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    entry: Entry
    state: Fingerprint
    text: str | None
    remark: str | None

    @classmethod
    def of(cls, pinned: Pinned | None) -> "_Shown | None":
        if pinned is None:
            return None
        with pinned:
            text, remark = _text(pinned)
            return cls(entry=pinned.entry, state=fingerprint(pinned), text=text, remark=remark)


def _refuse_others(path: str, entry: Entry | None) -> None:
    if entry is not None and entry.kind not in _COMMITTED:
        raise NotOurs(f"{quoted(path)} is a {entry.kind}; only regular files and symlinks are committed")


def _text(pinned: Pinned) -> tuple[str | None, str | None]:
    """Text and remark of an entry."""
    if pinned.entry.kind is not EntryKind.FILE:
        return pinned.entry.target, None
    head = pinned.head(TEXT_LIMIT)
    whole = pinned.entry.size <= TEXT_LIMIT
    try:
        # Not final: the cut may go through a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return None, f"binary, {pinned.entry.size} bytes"
    return text, None if whole else f"cut, {pinned.entry.size} bytes"


def _note(before: _Shown | None, after: _Shown | None) -> str | None:
    notes = [f"{when}: {side.remark}" for when, side in (("before", before), ("after", after)) if side and side.remark]
    if before and after:
        old, new = before.entry, after.entry
        if old.kind is not new.kind:
            notes.append(f"{old.kind} becomes {new.kind}")
        elif old.mode != new.mode:
            notes.append(f"mode {old.mode:04o} becomes {new.mode:04o}")
        if (old.uid, old.gid) != (new.uid, new.gid):
            notes.append(f"owner {old.uid}:{old.gid} becomes {new.uid}:{new.gid}")
        if before.state.xattrs != after.state.xattrs:
            notes.append("extended attributes change")
    if before and before.entry.links > 1 and before.entry.kind is EntryKind.FILE:
        notes.append(f"its {before.entry.links - 1} other names keep the old content")
    return "; ".join(notes) or None
