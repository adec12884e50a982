"""System calls that Python 3.11 does not offer: openat2, the mount API, setns.

Uses the standard library alone and imports nothing of ours, since `stage.py` loads this file without the package.
Every function raises OSError with the path or the call in its text.
"""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# The same numbers on every architecture that has them (asm-generic/unistd.h; x86-64 follows it from 424 on).
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x4

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, subject: str | bytes) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result


def openat2(dir_fd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int) -> int:
    """Open `path` below `dir_fd`; openat2(2). The descriptor is close-on-exec.

    A race with a rename makes the kernel answer EAGAIN; it is asked again a bounded number of times.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(128):
        result = _libc.syscall(_NR_OPENAT2, dir_fd, path, ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0 or ctypes.get_errno() != 11:  # EAGAIN
            break
    return _checked(result, path)


def open_tree(path: bytes) -> int:
    """A detached copy of the mount at `path`, without the mounts below it; open_tree(2)."""
    return _checked(_libc.syscall(_NR_OPEN_TREE, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), path)


def mount_setattr(tree_fd: int, *, attributes: int, userns_fd: int = 0) -> None:
    """Set attributes (and with MOUNT_ATTR_IDMAP the id mapping) of a detached mount; mount_setattr(2)."""
    attr = _MountAttr(attributes, 0, 0, userns_fd)
    _checked(
        _libc.syscall(_NR_MOUNT_SETATTR, tree_fd, b"", AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr)),
        "mount_setattr",
    )


def move_mount(tree_fd: int, target: bytes) -> None:
    """Attach a detached mount at `target`; move_mount(2)."""
    _checked(_libc.syscall(_NR_MOVE_MOUNT, tree_fd, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH), target)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, options: bytes) -> None:
    """mount(2)."""
    _checked(_libc.mount(source, target, kind, flags, options), target)


def unmount(target: bytes, *, lazy: bool = False) -> None:
    """umount2(2); never follows a symlink."""
    _checked(_libc.umount2(target, 8 | (2 if lazy else 0)), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def mapped_user_namespace(inside: int, outside: int, count: int = 65536) -> int:
    """A descriptor of a user namespace whose ids `inside`.. are `outside`.. of ours.

    A child makes the namespace and waits while its maps are written; the descriptor keeps the namespace when the
    child has gone. Forks, so it must not run in a process with threads: callers are small programs of their own.
    """
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go_write)
            unshare(CLONE_NEWUSER)
            os.write(ready_write, b"x")
            os.read(go_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(go_read)
    try:
        if os.read(ready_read, 1) != b"x":
            raise OSError(1, "the kernel makes no user namespace", "unshare")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "wb", buffering=0) as file:
                file.write(b"%d %d %d\n" % (inside, outside, count))
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(go_write)
        os.waitpid(child, 0)


def mapped_tree(path: bytes, userns_fd: int, *, attributes: int) -> int:
    """A detached, id-mapped copy of the mount at `path`; EINVAL where the file system cannot be mapped."""
    tree = open_tree(path)
    try:
        mount_setattr(tree, attributes=attributes | MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
    except OSError:
        os.close(tree)
        raise
    return tree
