"""RootDir: a descriptor below which every open stays; the one safe reader and writer of a guest's files.

Knows how a path of a hostile guest is opened (openat2(2)) so that no symlink, no `..`, no magic link and no race leads
out of the root. Leaves to others what the bytes mean and which of them are written.

Every method raises OSError as the system call does, and besides: EINVAL for what is not a regular file where one is
read, EFBIG and E2BIG above a limit, ELOOP where a symlink may not be followed; InvalidName for what is not a path.
"""

import contextlib
import enum
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from vmcraft.host import guest_path, syscalls
from vmcraft.host.guest_path import encoded
from vmcraft.host.pinned import Pinned, set_attributes, set_xattrs
from vmcraft.model.entry import Attributes, Entry, EntryKind

READ_LIMIT = 16 << 20
"""Bytes that one read takes unless its caller knows better."""
NAMES_LIMIT = 100_000
"""Names that one listing takes unless its caller knows better."""

_FS_IOC_GETFLAGS = 0x80086601
_IMMUTABLE_OR_APPEND_ONLY = 0x10 | 0x20


class Follow(enum.Enum):
    """Which of the guest's own symlinks are followed; always inside the root."""

    NONE = enum.auto()
    """None: a symlink among the parents is ELOOP, one at the end is itself the entry."""
    PARENTS = enum.auto()
    """Those among the parents; one at the end is itself the entry."""
    ALL = enum.auto()
    """All, as a process inside the guest would."""


_RESOLVE = {
    Follow.NONE: syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS,
    Follow.PARENTS: syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS,
    Follow.ALL: syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS,
}


class RootDir:
    """A root directory; a context manager that closes its descriptor.

    Attributes:
        fd: The directory's descriptor.
    """

    def __init__(self, fd: int) -> None:
        """Take over a directory's descriptor; `open` and `from_fd` say it better."""
        self.fd = fd

    @classmethod
    def open(cls, path: str) -> Self:
        """Open the directory at a path of the host, which is trusted."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over a directory's descriptor, as `idmap.reverse_mapped` makes it."""
        return cls(fd)

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
        """Device and inode number of the directory, the same through every mount of it."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    # --- reading

    def pin(self, path: str, *, follow: Follow = Follow.PARENTS) -> Pinned:
        """Hold on to what is at the path now, without opening it."""
        nofollow = 0 if follow is Follow.ALL else os.O_NOFOLLOW
        return Pinned(syscalls.openat2(self.fd, encoded(path), os.O_PATH | nofollow, resolve=_RESOLVE[follow]))

    def find(self, path: str) -> Pinned | None:
        """Hold on to what is at the path, no symlink followed; the caller closes it.

        Returns:
            None where nothing is there, or where one of its parents is not a directory but a symlink or a file.
        """
        try:
            return self.pin(path, follow=Follow.NONE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise

    def lstat(self, path: str, *, follow: Follow = Follow.PARENTS) -> Entry | None:
        """What is at the path, a symlink at its end not followed; None where nothing is."""
        try:
            with self.pin(path, follow=follow) as pinned:
                return pinned.entry
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str) -> bool:
        """Whether something is behind the path, all its symlinks followed; a loop leads to nothing."""
        try:
            return self.lstat(path, follow=Follow.ALL) is not None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise

    def read_bytes(self, path: str, *, limit: int = READ_LIMIT, follow: Follow = Follow.ALL) -> bytes:
        """The whole content of a regular file; a fifo or a device is refused without being opened.

        Args:
            path: Path in the guest.
            limit: Most bytes to take; a larger file is refused with EFBIG.
            follow: Which symlinks are followed.
        """
        with self.pin(path, follow=follow) as pinned:
            if pinned.entry.kind is EntryKind.SYMLINK:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if pinned.entry.kind is not EntryKind.FILE:
                raise OSError(errno.EINVAL, f"not a regular file but a {pinned.entry.kind}", path)
            content = pinned.head(limit + 1)
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
        return content

    def read_link(self, path: str, *, follow: Follow = Follow.PARENTS) -> str:
        """Where a symlink points, as it is stored."""
        with self.pin(path, follow=follow) as pinned:
            if pinned.entry.target is None:
                raise OSError(errno.EINVAL, f"not a symlink but a {pinned.entry.kind}", path)
            return pinned.entry.target

    def listdir(self, path: str, *, limit: int = NAMES_LIMIT, follow: Follow = Follow.ALL) -> tuple[str, ...]:
        """The names in a directory, sorted; E2BIG where there are more than `limit`."""
        with self.pin(path, follow=follow) as pinned:
            if pinned.entry.kind is not EntryKind.DIRECTORY:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            return pinned.names(limit=limit)

    def xattrs(self, path: str, *, follow: Follow = Follow.PARENTS) -> dict[str, bytes]:
        """All extended attributes of what is at the path."""
        with self.pin(path, follow=follow) as pinned:
            return pinned.xattrs()

    def resolve(self, path: str) -> str:
        """The canonical path behind a path; what does not exist of it is kept as it is.

        The answer is a name, not a promise: whoever opens it says again what is followed.
        """
        return guest_path.resolved(path, lambda here: self.lstat(here, follow=Follow.NONE), last=True)

    def is_protected(self, path: str) -> bool:
        """Whether a file or directory is immutable or append-only; chattr(1)."""
        with self.pin(path, follow=Follow.NONE) as pinned:
            if pinned.entry.kind not in (EntryKind.FILE, EntryKind.DIRECTORY):
                return False
            with pinned.opened(os.O_RDONLY) as fd:
                try:
                    flags = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
                except OSError as error:
                    if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS):
                        return False
                    raise
        return bool(struct.unpack("=L", flags[:4])[0] & _IMMUTABLE_OR_APPEND_ONLY)

    def is_one_mount(self, path: str) -> bool:
        """Whether no mount point lies between the root and the path, or at it, so that a rename can reach it."""
        resolve = _RESOLVE[Follow.NONE] | syscalls.RESOLVE_NO_XDEV
        try:
            os.close(syscalls.openat2(self.fd, encoded(path), os.O_PATH | os.O_NOFOLLOW, resolve=resolve))
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        return True

    # --- writing: no symlink is ever followed, and what exists is never opened for writing

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parent, name = guest_path.split(path)
        flags = os.O_PATH | os.O_DIRECTORY
        fd = syscalls.openat2(self.fd, encoded(parent), flags, resolve=_RESOLVE[Follow.NONE])
        try:
            yield fd, os.fsdecode(encoded(name))
        finally:
            os.close(fd)

    def create_file(self, path: str, chunks: Iterable[bytes], attributes: Attributes) -> None:
        """Make a new regular file, complete and synced; EEXIST where something is there."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with self._parent(path) as (parent, name):
            fd = syscalls.openat2(parent, os.fsencode(name), flags, mode=0o600, resolve=_RESOLVE[Follow.NONE])
            with os.fdopen(fd, "wb", buffering=0) as file:
                for chunk in chunks:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                set_attributes(fd, attributes)
                os.fsync(file)

    def make_directory(self, path: str, attributes: Attributes) -> None:
        """Make a new directory, synced; EEXIST where something is there."""
        with self._parent(path) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            fd = syscalls.openat2(parent, os.fsencode(name), flags, resolve=_RESOLVE[Follow.NONE])
            try:
                set_attributes(fd, attributes)
                os.fsync(fd)
            finally:
                os.close(fd)

    def make_symlink(self, path: str, target: str, attributes: Attributes) -> None:
        """Make a new symlink; EEXIST where something is there. It is on disk when its directory is synced."""
        raw = target.encode("utf-8", "surrogateescape")
        with self._parent(path) as (parent, name):
            os.symlink(raw, os.fsencode(name), dir_fd=parent)
            os.chown(name, attributes.uid, attributes.gid, dir_fd=parent, follow_symlinks=False)
            if attributes.mtime_ns is not None:
                times = (attributes.mtime_ns, attributes.mtime_ns)
                os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
            if attributes.xattrs:
                with self.pin(path, follow=Follow.NONE) as pinned:
                    set_xattrs(f"/proc/self/fd/{pinned.fd}", attributes.xattrs)

    def rename(self, old: str, new: str) -> None:
        """Move an entry, in one step over what is there; rename(2)."""
        with self._parent(old) as (old_parent, old_name), self._parent(new) as (new_parent, new_name):
            os.rename(old_name, new_name, src_dir_fd=old_parent, dst_dir_fd=new_parent)

    def unlink(self, path: str) -> None:
        """Remove one name that is not a directory."""
        with self._parent(path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        with self._parent(path) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def sync_directory(self, path: str) -> None:
        """Bring the names in a directory to disk; fsync(2)."""
        with self.pin(path, follow=Follow.NONE) as pinned, pinned.opened(os.O_RDONLY | os.O_DIRECTORY) as fd:
            os.fsync(fd)
