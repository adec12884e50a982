"""What this host lacks for booting guests, each with the command that mends it."""

import enum
import os
import shutil
import sys
from dataclasses import dataclass

import anyio

from vmcraft.errors import HostError, VMCraftError
from vmcraft.host import idmap, overlay
from vmcraft.host.host_bus import host_bus
from vmcraft.host.nspawn import NSPAWN

INOTIFY_FOR_EACH_GUEST = 7
GUESTS_WANTED = 8


class Health(enum.StrEnum):
    """How one check ended."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        found: What was seen.
        remedy: The command that mends it; None when nothing is to mend.
    """

    name: str
    health: Health
    found: str
    remedy: str | None = None


async def examine(*, state_dir: str = overlay.STATE_DIR) -> tuple[Check, ...]:
    """Look at everything that a guest needs of its host; changes nothing but the state directory, which is made."""
    checks = [_root(), _python(), _nspawn(), _cgroups(), _inotify(), _overlay()]
    if os.geteuid() == 0:
        checks += [await _bus(), await anyio.to_thread.run_sync(_id_maps, state_dir), _room(state_dir)]
    return tuple(checks)


def _check(name: str, good: bool, found: str, remedy: str, *, otherwise: Health = Health.MISSING) -> Check:
    return Check(name=name, health=Health.OK if good else otherwise, found=found, remedy=None if good else remedy)


def _root() -> Check:
    uid = os.geteuid()
    return _check("root", uid == 0, f"running as uid {uid}", "sudo vmcraft doctor")


def _python() -> Check:
    return _check("python", sys.version_info >= (3, 11), sys.version.split()[0], "apt-get install python3")


def _nspawn() -> Check:
    there = shutil.which(NSPAWN) is not None
    return _check("systemd-nspawn", there, NSPAWN if there else "not installed", "apt-get install systemd-container")


def _cgroups() -> Check:
    name = "cgroup limits"
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
            controllers = set(file.read().split())
    except FileNotFoundError:
        remedy = "boot with systemd.unified_cgroup_hierarchy=1"
        return Check(name=name, health=Health.WARNING, found="no unified hierarchy at /sys/fs/cgroup", remedy=remedy)
    missing = sorted({"memory", "pids"} - controllers)
    found = "memory and pids" if not missing else f"no controller for {' and '.join(missing)}: those limits do not hold"
    return _check(name, not missing, found, "give the host these controllers", otherwise=Health.WARNING)


def _inotify() -> Check:
    with open("/proc/sys/fs/inotify/max_user_instances", encoding="ascii") as file:
        limit = int(file.read())
    used = _inotify_used()
    room = (limit - used) // INOTIFY_FOR_EACH_GUEST
    found = f"{used} of {limit} instances used: room for {max(room, 0)} guests"
    health = Health.MISSING if room < 1 else Health.WARNING
    return _check(
        "inotify", room >= GUESTS_WANTED, found, "sysctl fs.inotify.max_user_instances=1024", otherwise=health
    )


def _inotify_used() -> int:
    """Instances in use by everybody whom we may look at; the limit counts those of all of root's namespaces."""
    used = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            fds = os.listdir(f"/proc/{process}/fd")
        except OSError:
            continue
        for fd in fds:
            try:
                used += os.readlink(f"/proc/{process}/fd/{fd}") == "anon_inode:inotify"
            except OSError:
                continue
    return used


def _overlay() -> Check:
    with open("/proc/filesystems", encoding="ascii") as file:
        there = any(line.split()[-1] == "overlay" for line in file)
    return _check("overlayfs", there, "in the kernel" if there else "not in the kernel", "modprobe overlay")


async def _bus() -> Check:
    name = "systemd and machined"
    try:
        async with host_bus() as host:
            return Check(name=name, health=Health.OK, found=f"systemd {await host.systemd.version()}")
    except VMCraftError as error:
        return Check(name=name, health=Health.MISSING, found=error.text, remedy=error.remedy or None)


def _id_maps(state_dir: str) -> Check:
    name = "id-mapped mounts"
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        os.close(idmap.reverse_mapped(state_dir, overlay.BASE_FIRST))
    except (HostError, OSError) as error:
        remedy = f"put {state_dir} on ext4, xfs, btrfs or tmpfs"
        return Check(name=name, health=Health.MISSING, found=f"not on {state_dir}: {error}", remedy=remedy)
    return Check(name=name, health=Health.OK, found=f"on {state_dir}")


def _room(state_dir: str) -> Check:
    room = os.statvfs(state_dir)
    free = room.f_bavail * room.f_frsize
    enough = free >= 4 * overlay.FREE_BYTES_NEEDED
    return _check("space", enough, f"{free >> 20} MiB free in {state_dir}", "make room, or vmcraft sweep")
