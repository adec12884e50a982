"""Paths of a guest: text with surrogate escapes, checked before any of it reaches the kernel.

Knows the rules for a path and how its symlinks are followed inside the root; opens nothing itself.
"""

import errno
import os
from collections.abc import Callable

from vmcraft.errors import InvalidName
from vmcraft.model.entry import Entry, EntryKind
from vmcraft.model.printable import quoted

PATH_LIMIT = 4095
"""Bytes of a path: PATH_MAX without its NUL."""
NAME_LIMIT = 255
"""Bytes of one component: NAME_MAX."""
SYMLINK_LIMIT = 40
"""Symlinks followed on one path: what the kernel allows."""


def encoded(path: str) -> bytes:
    """The path's bytes, relative to the root; the root itself is `.`.

    Args:
        path: Path in the guest, with or without the leading slash.

    Raises:
        InvalidName: Empty, too long, with NUL, or with a component that is empty, `.` or `..`.
    """
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidName(f"{quoted(path)} is not a path: it holds half a character") from None
    if raw == b"/":
        return b"."
    relative = raw.removeprefix(b"/")
    if len(relative) >= PATH_LIMIT or b"\0" in relative:
        raise InvalidName(f"{quoted(path)} is not a path: too long, or with a NUL byte")
    if any(part in (b"", b".", b"..") or len(part) > NAME_LIMIT for part in relative.split(b"/")):
        raise InvalidName(f"{quoted(path)} is not a path inside a guest: an empty, dotted or overlong component")
    return relative


def decoded(raw: bytes) -> str:
    """Bytes of a name or a symlink's target as text that `encoded` takes back."""
    return raw.decode("utf-8", "surrogateescape")


def absolute(path: str) -> str:
    """The same path with its leading slash, checked as `encoded` does."""
    encoded(path)
    return path if path.startswith("/") else f"/{path}"


def split(path: str) -> tuple[str, str]:
    """Parent directory and last component of a checked path.

    Raises:
        InvalidName: The root itself has neither.
    """
    parent, _, name = absolute(path).rpartition("/")
    if not name:
        raise InvalidName("the root directory itself cannot be created, replaced or removed")
    return parent or "/", name


def parents(path: str) -> tuple[str, ...]:
    """All directories above a path, outermost first, without the root itself."""
    parts = absolute(path).split("/")[1:-1]
    return tuple("/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1))


def _steps(target: str) -> list[str]:
    return [part for part in reversed(target.split("/")) if part not in ("", ".")]


def resolved(path: str, look: Callable[[str], Entry | None], *, last: bool) -> str:
    """The canonical path behind a path, its symlinks followed as a process inside the guest would.

    Args:
        path: Path in the guest; what does not exist of it is kept as it is.
        look: Answers what is at a path whose parents hold no symlinks.
        last: Whether a symlink at the very end is followed too.

    Raises:
        OSError: ELOOP after 40 symlinks; ENOTDIR, ENOENT where a symlink leads through what is no directory.
        InvalidName: The path, or one that a symlink leads to, is none.
    """
    todo = _steps(absolute(path))
    done: list[str] = []
    links = 0
    missing = False
    while todo:
        name = todo.pop()
        if name == "..":
            if missing:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            del done[-1:]  # above the root is the root
            continue
        here = "/" + "/".join([*done, name])
        entry = None if missing else look(here)
        if entry is not None and entry.target is not None and (todo or last):
            links += 1
            if links > SYMLINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if entry.target.startswith("/"):
                done = []
            todo += _steps(entry.target)
            continue
        if todo and entry is not None and entry.kind is not EntryKind.DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        missing = missing or entry is None
        done.append(name)
    return absolute("/" + "/".join(done))
