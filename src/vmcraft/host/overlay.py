"""The directory of one guest on the host: upper, work, mount points; made, leased, removed.

A directory belongs to the process that holds a lock on it. The lock goes with the process, so whoever can take it
(the sweep) knows that the owner is dead.
"""

import contextlib
import fcntl
import grp
import os
import pwd
import secrets
import shutil
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio

from vmcraft.errors import HostError, NoSpace
from vmcraft.host.privileges import require_root

STATE_DIR = "/var/lib/vmcraft"
GUESTS = "guests"
MACHINE_PREFIX = "vmcraft-"
BASE_FIRST = 0x80000
"""First id that systemd, too, gives to containers (systemd-nspawn(1), --private-users=pick)."""
BASE_SLOTS = 20_000
IDS = 65_536
FREE_BYTES_NEEDED = 64 << 20
_ATTEMPTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDirectory:
    """Where one guest's overlay lies.

    Attributes:
        machine: The guest's random name.
        path: The directory.
        base: First id of the guest's user namespace; None when it has none. Follows from the name.
    """

    machine: str
    path: str
    base: int | None

    @property
    def upper(self) -> str:
        """What the guest wrote."""
        return f"{self.path}/upper"

    @property
    def hold(self) -> str:
        """Our drop-ins, which the guest sees below /run and cannot write."""
        return f"{self.path}/hold"


def base_of(machine: str) -> int:
    """The first id of the user namespace of the machine of that name."""
    return BASE_FIRST + int(machine.removeprefix(MACHINE_PREFIX), 16) % BASE_SLOTS * IDS


def is_machine(name: str) -> bool:
    """Whether a name is one that we gave to a machine."""
    digits = name.removeprefix(MACHINE_PREFIX)
    return name.startswith(MACHINE_PREFIX) and len(digits) == 12 and all(c in "0123456789abcdef" for c in digits)


def lock(path: str) -> int | None:
    """Take the lock of a guest's directory; None when its owner lives, or the directory is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        os.close(fd)
        return None
    if not os.path.samestat(os.fstat(fd), there):
        os.close(fd)
        return None
    return fd


@contextlib.asynccontextmanager
async def guest_directory(
    source: str, *, private_users: bool, state_dir: str = STATE_DIR
) -> AsyncIterator[GuestDirectory]:
    """A new guest's directory, locked; removed at the end, when the guest must be gone.

    Raises:
        NotPrivileged: We are not root.
        NoSpace: The state directory's file system is nearly full.
    """
    require_root()
    guests = os.path.join(state_dir, GUESTS)
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    os.makedirs(guests, mode=0o700, exist_ok=True)
    room = os.statvfs(guests)
    if room.f_bavail * room.f_frsize < FREE_BYTES_NEEDED:
        raise NoSpace(
            f"{guests} has less than {FREE_BYTES_NEEDED >> 20} MiB free", remedy="make room, or vmcraft sweep"
        )
    machine, fd = _claim(guests, private_users=private_users)
    path = os.path.join(guests, machine)
    try:
        base = base_of(machine) if private_users else None
        _lay_out(path, source, base)
        yield GuestDirectory(machine=machine, path=path, base=base)
    finally:
        # What a guest wrote can be large: the loop goes on meanwhile, and a cancelled block still cleans up.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(remove, path)
        os.close(fd)


def _claim(guests: str, *, private_users: bool) -> tuple[str, int]:
    for _ in range(_ATTEMPTS):
        machine = MACHINE_PREFIX + secrets.token_hex(6)
        path = os.path.join(guests, machine)
        os.mkdir(path, 0o700)
        fd = lock(path)
        if fd is None:  # A sweep took it in between.
            continue
        if not private_users or _ids_are_free(guests, machine):
            return machine, fd
        os.rmdir(path)
        os.close(fd)
    raise HostError(f"no free range of user ids for another guest in {guests}", remedy="end guests, or vmcraft sweep")


def _ids_are_free(guests: str, machine: str) -> bool:
    """Whether no other guest, user or group has the ids. Two that claim at once both see it and both try again."""
    base = base_of(machine)
    if any(base_of(other) == base for other in os.listdir(guests) if is_machine(other) and other != machine):
        return False
    with contextlib.suppress(KeyError):
        pwd.getpwuid(base)
        return False
    with contextlib.suppress(KeyError):
        grp.getgrgid(base)
        return False
    return True


def _lay_out(path: str, source: str, base: int | None) -> None:
    for name in ("upper", "work", "lower", "root", "hold"):
        os.mkdir(os.path.join(path, name), 0o755)
    # The upper directory is the guest's own "/": same mode and owner as the source's.
    root = os.stat(source)
    upper = os.path.join(path, "upper")
    shift = base or 0
    os.chown(upper, shift + root.st_uid, shift + root.st_gid)
    os.chmod(upper, stat.S_IMODE(root.st_mode))


def remove(path: str) -> None:
    """Remove a guest's directory; symlinks that the guest made in it are removed, never followed."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
