"""Layers: what an overlay shows, computed from its two directories without mounting anything.

Knows whiteouts, opaque directories and how the guest's symlinks are followed over both layers. Reads through RootDir
alone and never writes. An upper whose owners are shifted is read through `idmap.reverse_mapped`, so that owners, ACLs
and file capabilities come out as the guest has them.
"""

import dataclasses
import errno
from collections.abc import Callable, Iterator

from vmcraft.changes.fingerprint import Fingerprint, fingerprint
from vmcraft.errors import HostError, NotOurs
from vmcraft.host import guest_path
from vmcraft.host.pinned import Pinned
from vmcraft.host.root_dir import NAMES_LIMIT, Follow, RootDir
from vmcraft.model.entry import Entry, EntryKind
from vmcraft.model.printable import quoted

IDS = 65536
"""How many ids one guest has."""
DIFFERENCES_LIMIT = 10_000

_OPAQUE = "trusted.overlay.opaque"
_WITH_IDS = ("system.posix_acl_access", "system.posix_acl_default", "security.capability")
_DEVICES = (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)


class Layers:
    """The source and what the guest has written over it.

    Every method raises NotOurs for what no commit may take (a device node, a foreign owner), HostError for an overlay
    that was mounted with redirect_dir or metacopy, and OSError where a layer cannot be read.

    Attributes:
        lower: The source.
        upper: The overlay's upper directory, its owners as the guest sees them.
    """

    def __init__(self, lower: RootDir, upper: RootDir, *, base: int | None = None) -> None:
        """Join the two; they stay the caller's to close.

        Args:
            lower: The source, read directly.
            upper: The upper directory, read directly or through the reverse id mapping.
            base: Where the upper's owners are shifted and it is *not* read through that mapping: the first id.
        """
        self.lower = lower
        self.upper = upper
        self._base = base

    def entry(self, path: str) -> Entry | None:
        """What the guest has at a path whose parents are no symlinks (see `resolve`); None where it has nothing."""
        pinned = self.pin(path)
        if pinned is None:
            return None
        with pinned:
            return pinned.entry

    def source_entry(self, path: str) -> Entry | None:
        """What the source has there."""
        pinned = self.pin_source(path)
        if pinned is None:
            return None
        with pinned:
            return pinned.entry

    def pin(self, path: str) -> Pinned | None:
        """Hold on to what the guest has at the path, in whichever layer it is; the caller closes it."""
        lower_shows = True
        for parent in ("/", *guest_path.parents(path)):
            above = self.upper.find(parent)
            if above is None:
                # No directory of the upper: all below it is the source's alone.
                return self.lower.find(path) if lower_shows else None
            with above:
                if self._checked(above, parent).kind is not EntryKind.DIRECTORY:
                    return None  # a whiteout, or a file in its place
                lower_shows = lower_shows and not self._is_opaque(above) and _is_directory(self.lower, parent)
        found = self.upper.find(path)
        if found is None:
            return self.lower.find(path) if lower_shows else None
        return self._claimed(found, path)

    def pin_source(self, path: str) -> Pinned | None:
        """Hold on to what the source has at the path; the caller closes it."""
        return self.lower.find(path)

    def resolve(self, path: str, *, last: bool = False) -> str:
        """The canonical path that the guest reaches by this path.

        Args:
            path: Path in the guest.
            last: Whether a symlink at the very end is followed too.
        """
        return guest_path.resolved(path, self.entry, last=last)

    def differences(
        self,
        directory: str,
        *,
        recursive: bool = False,
        limit: int = DIFFERENCES_LIMIT,
        among: Callable[[str], bool] | None = None,
    ) -> tuple[str, ...]:
        """The paths below a directory that the guest has differently from the source.

        Directories themselves are not told, but what is in them: the files of a removed one are removed.

        Args:
            directory: Path of a directory in the guest, its symlinks followed; one that does not exist has none.
            recursive: Whether directories below it are searched too.
            limit: Most paths to find, and most names to look at; E2BIG above it.
            among: Only paths of which this is true are compared; it is asked before anything is hashed.

        Returns:
            Canonical paths, sorted.
        """
        top = self.resolve(directory, last=True)
        found: list[str] = []
        todo = [top]
        looked = 0
        while todo:
            here = todo.pop()
            for path in self._touched(here):
                looked += 1
                if looked > limit:
                    raise OSError(errno.E2BIG, f"more than {limit} names to compare", top)
                kinds = {entry.kind for entry in (self.source_entry(path), self.entry(path)) if entry is not None}
                if EntryKind.DIRECTORY in kinds and recursive:
                    todo.append(path)
                if not kinds - {EntryKind.DIRECTORY} or (among is not None and not among(path)):
                    continue
                if self.differs(path):
                    found.append(path)
        return tuple(sorted(found))

    def names(self, directory: str) -> tuple[str, ...]:
        """The names that the guest has in a directory, sorted; none where there is no such directory."""
        top = self.resolve(directory, last=True)
        names: set[str] = set()
        for layer in (self.lower, self.upper):
            if _is_directory(layer, top):
                names.update(layer.listdir(top, limit=NAMES_LIMIT, follow=Follow.NONE))
        return tuple(name for name in sorted(names) if self.entry(f"{top.rstrip('/')}/{name}") is not None)

    def differs(self, path: str) -> bool:
        """Whether kind, owner, mode, content or attributes of a path are another in the guest."""
        return fingerprint_of(self.pin_source(path)) != fingerprint_of(self.pin(path))

    def _touched(self, directory: str) -> Iterator[str]:
        """The names of a directory that can differ: those of the upper, and those of the source that it hides."""
        names: set[str] = set()
        if _is_directory(self.upper, directory):
            names.update(self.upper.listdir(directory, limit=NAMES_LIMIT, follow=Follow.NONE))
        if _is_directory(self.lower, directory) and self._hides(directory):
            names.update(self.lower.listdir(directory, limit=NAMES_LIMIT, follow=Follow.NONE))
        prefix = directory.rstrip("/")
        return (f"{prefix}/{name}" for name in sorted(names))

    def _hides(self, directory: str) -> bool:
        """Whether the source's directory is out of the guest's sight: whited out, replaced, or under an opaque one."""
        for path in ("/", *guest_path.parents(f"{directory.rstrip('/')}/x")):
            above = self.upper.find(path)
            if above is None:
                return False
            with above:
                if above.entry.kind is not EntryKind.DIRECTORY or self._is_opaque(above):
                    return True
        return False

    def _is_opaque(self, directory: Pinned) -> bool:
        value = directory.xattrs().get(_OPAQUE)
        if value not in (None, b"y", b"n"):
            raise HostError("the overlay's upper holds whiteouts of a kind that no mount of ours makes")
        return value == b"y"

    def _claimed(self, pinned: Pinned, path: str) -> Pinned | None:
        """An entry of the upper, checked; None for a whiteout."""
        try:
            pinned.entry = self._checked(pinned, path)
        except (OSError, NotOurs, HostError):
            pinned.close()
            raise
        if pinned.entry.kind is EntryKind.CHARACTER_DEVICE:
            pinned.close()
            return None
        return pinned

    def _checked(self, pinned: Pinned, path: str) -> Entry:
        entry = pinned.entry
        if entry.device == (0, 0) and entry.kind is EntryKind.CHARACTER_DEVICE:
            return entry  # a whiteout; the host's root owns it
        if entry.kind in _DEVICES:
            raise NotOurs(f"{quoted(path)} is a device node that the guest made; no commit writes one")
        xattrs = pinned.xattrs()
        for name in ("redirect", "metacopy"):
            if f"trusted.overlay.{name}" in xattrs:
                raise HostError(f"the overlay's upper uses {name}, which no mount of ours allows")
        if self._base is None:
            return entry
        if not all(self._base <= owner < self._base + IDS for owner in (entry.uid, entry.gid)):
            raise NotOurs(f"{quoted(path)} belongs to {entry.uid}:{entry.gid}, which is nobody of this guest")
        if any(name in xattrs for name in _WITH_IDS):
            raise NotOurs(f"the ACL or capability of {quoted(path)} can only be read through the reverse id mapping")
        return dataclasses.replace(entry, uid=entry.uid - self._base, gid=entry.gid - self._base)


def fingerprint_of(pinned: Pinned | None) -> Fingerprint | None:
    """The fingerprint of what was pinned, which is closed then; None for nothing."""
    if pinned is None:
        return None
    with pinned:
        return fingerprint(pinned)


def _is_directory(root: RootDir, path: str) -> bool:
    pinned = root.find(path)
    if pinned is None:
        return False
    with pinned:
        return pinned.entry.kind is EntryKind.DIRECTORY
