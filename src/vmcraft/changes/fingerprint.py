"""What is compared to know that an entry is still the same, or already the new one."""

import hashlib

import msgspec

from vmcraft.host.pinned import Pinned
from vmcraft.model.entry import EntryKind

HASHED_LIMIT = 32 << 20
"""Bytes up to which content is hashed; a larger file (a journal) is known by its size and time."""

_CARRIED = ("user.", "security.", "system.posix_acl_")
SELINUX = "security.selinux"


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry's kind, owner, mode, content and attributes; times do not count.

    Attributes:
        content: A symlink's target; a file's hash, or its size and time; empty for all other kinds.
        xattrs: Hash of the carried attributes without the SELinux label, which a guest in a container cannot set.
    """

    kind: EntryKind
    mode: int
    uid: int
    gid: int
    content: str
    xattrs: str


def carried(xattrs: dict[str, bytes]) -> dict[str, bytes]:
    """The extended attributes that go from one root to another: never those of the overlay."""
    return {name: value for name, value in sorted(xattrs.items()) if name.startswith(_CARRIED)}


def fingerprint(pinned: Pinned) -> Fingerprint:
    """The fingerprint of a pinned entry.

    Raises:
        OSError: Its content or its attributes cannot be read.
    """
    entry = pinned.entry
    return Fingerprint(
        kind=entry.kind,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        content=_content(pinned),
        xattrs=_digest(carried(pinned.xattrs())),
    )


def _content(pinned: Pinned) -> str:
    entry = pinned.entry
    if entry.target is not None:
        return entry.target
    if entry.kind is not EntryKind.FILE:
        return ""
    if entry.size > HASHED_LIMIT:
        # Whole seconds: all that an ext4 with small inodes keeps.
        return f"{entry.size} bytes of {entry.mtime_ns // 1_000_000_000}"
    digest = hashlib.sha256()
    left = HASHED_LIMIT
    for chunk in pinned.chunks():
        digest.update(chunk)
        left -= len(chunk)
        if left < 0:  # it grows while it is read
            break
    return f"sha256:{digest.hexdigest()}"


def _digest(xattrs: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, value in xattrs.items():
        if name != SELINUX:
            digest.update(b"%d %d " % (len(name), len(value)) + name.encode("utf-8", "surrogateescape") + value)
    return digest.hexdigest()[:32]
