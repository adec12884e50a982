"""One inode held by an O_PATH descriptor: all that is read of it is of that inode, whatever its name becomes."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from vmcraft.host.guest_path import decoded
from vmcraft.model.entry import Attributes, Entry, EntryKind

CHUNK = 1 << 20
XATTRS_LIMIT = 1 << 20
"""Bytes of all extended attributes of one entry; a hostile file system may hold far more."""

_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
    stat.S_IFCHR: EntryKind.CHARACTER_DEVICE,
    stat.S_IFBLK: EntryKind.BLOCK_DEVICE,
}
_DEVICES = (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)


def entry_of(fd: int) -> Entry:
    """What the descriptor (O_PATH is enough) is open on."""
    found = os.fstat(fd)
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        links=found.st_nlink,
        device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in _DEVICES else None,
        target=decoded(os.readlink(b"", dir_fd=fd)) if kind is EntryKind.SYMLINK else None,
    )


class Pinned:
    """One inode below a root; a context manager that closes its descriptor.

    Attributes:
        fd: The O_PATH descriptor.
        entry: What it is, at the moment it was pinned.
    """

    def __init__(self, fd: int) -> None:
        """Take over the descriptor."""
        self.fd = fd
        try:
            self.entry = entry_of(fd)
        except OSError:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode number."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def opened(self, flags: int) -> Iterator[int]:
        """A descriptor that can be read: of a regular file or directory alone, since to open a device may act on it.

        Raises:
            OSError: EINVAL where it is another kind.
        """
        if self.entry.kind not in (EntryKind.FILE, EntryKind.DIRECTORY):
            raise OSError(errno.EINVAL, f"neither a regular file nor a directory, but a {self.entry.kind}")
        fd = os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            yield fd
        finally:
            os.close(fd)

    def chunks(self) -> Iterator[bytes]:
        """The content of a regular file, a mebibyte at a time.

        Raises:
            OSError: EISDIR, EINVAL where it is not a regular file.
        """
        with self.opened(os.O_RDONLY) as fd:
            while chunk := os.read(fd, CHUNK):
                yield chunk

    def head(self, limit: int) -> bytes:
        """At most the first `limit` bytes of a regular file."""
        kept = bytearray()
        for chunk in self.chunks():
            kept += chunk
            if len(kept) >= limit:
                break
        return bytes(kept[:limit])

    def names(self, *, limit: int) -> tuple[str, ...]:
        """The names in a directory, sorted.

        Raises:
            OSError: E2BIG where there are more than `limit`; ENOTDIR, EINVAL where it is not a directory.
        """
        found: list[str] = []
        with self.opened(os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
            for entry in entries:
                if len(found) == limit:
                    raise OSError(errno.E2BIG, f"more than {limit} names in one directory")
                found.append(decoded(os.fsencode(entry.name)))
        return tuple(sorted(found))

    def xattrs(self) -> dict[str, bytes]:
        """All extended attributes that the kernel shows to us.

        Raises:
            OSError: E2BIG over 1 MiB; EOVERFLOW where a capability belongs to an owner outside the id mapping.
        """
        # fgetxattr refuses O_PATH; the magic link leads to the inode itself, a symlink's too.
        path = f"/proc/self/fd/{self.fd}"
        found: dict[str, bytes] = {}
        total = 0
        try:
            names = os.listxattr(path)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return {}
            raise
        for name in names:
            found[name] = os.getxattr(path, name)
            total += len(name) + len(found[name])
            if total > XATTRS_LIMIT:
                raise OSError(errno.E2BIG, "more than 1 MiB of extended attributes")
        return found


def set_xattrs(subject: int | str, wanted: Mapping[str, bytes]) -> None:
    """Give an entry the wanted extended attributes, and take away the ACL that its directory made it inherit."""
    for name in os.listxattr(subject):
        if name.startswith("system.posix_acl_") and name not in wanted:
            os.removexattr(subject, name)
    for name, value in wanted.items():
        os.setxattr(subject, name, value)


def set_attributes(fd: int, attributes: Attributes) -> None:
    """Give an open file or directory its owner, mode, extended attributes and time.

    In this order: chown clears the set-user-id bits and the capability, an ACL rewrites the group's bits.
    """
    os.fchown(fd, attributes.uid, attributes.gid)
    os.fchmod(fd, attributes.mode)
    set_xattrs(fd, attributes.xattrs)
    if attributes.mtime_ns is not None:
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
