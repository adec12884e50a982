"""What one name in a directory is: its kind, owner, mode and times, and what a copy of it must carry."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class EntryKind(enum.StrEnum):
    """The file types of Linux; the set is closed."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character-device"
    BLOCK_DEVICE = "block-device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name, as lstat(2) and readlink(2) tell it.

    Attributes:
        kind: File type.
        mode: Permission bits with set-user-id, set-group-id and sticky; without the file type.
        uid: Owner.
        gid: Group.
        size: Bytes.
        mtime_ns: Time of the last change of the content, nanoseconds since 1970.
        links: Count of hard links.
        device: Major and minor number of a device node; None for all other kinds.
        target: Where a symlink points, as it is stored; None for all other kinds.
    """

    kind: EntryKind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    device: tuple[int, int] | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What a new entry gets beside its content.

    Attributes:
        mode: Permission bits with set-user-id and the like; has no meaning for a symlink.
        uid: Owner.
        gid: Group.
        xattrs: Exactly the extended attributes that it shall have; an inherited ACL that is not here is taken away.
        mtime_ns: Time of the content, or None for now.
    """

    mode: int
    uid: int
    gid: int
    xattrs: Mapping[str, bytes]
    mtime_ns: int | None = None
