"""Whether a root directory can be booted here: its init, its processor, its systemd's age. Runs nothing of it."""

import os
import re

from vmcraft.codec import elf, os_release
from vmcraft.errors import NoInit, TooOldForHost, WrongArchitecture
from vmcraft.host.root_dir import Follow, RootDir
from vmcraft.model.entry import EntryKind
from vmcraft.model.guest import RootFacts
from vmcraft.model.printable import quoted

INITS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
"""Where systemd-nspawn looks for an init, too; /sbin/init counts when it leads to one of these."""
_LIBRARY_DIRS = (
    "/usr/lib/systemd",
    "/lib/systemd",
    "/usr/lib64/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/usr/lib/aarch64-linux-gnu/systemd",
)
_LIBRARY = re.compile(r"libsystemd-shared-(\d{3})(?![0-9])")
_BUS_UNITS = (
    "/usr/lib/systemd/system/dbus.socket",
    "/lib/systemd/system/dbus.socket",
    "/etc/systemd/system/dbus.socket",
)
FIRST_ON_UNIFIED = 230
"""The first systemd that can run below a unified cgroup hierarchy."""
_BINARY_LIMIT = 8 << 20
_OS_RELEASE_LIMIT = 64 << 10


def examine(root: RootDir, path: str) -> RootFacts:
    """What the root says of itself.

    Args:
        root: The root, opened.
        path: Its path on the host, for messages.

    Raises:
        NoInit: There is no systemd in it.
        WrongArchitecture: Its programs do not run on this host's processor.
        TooOldForHost: Its systemd is older than this host's cgroup hierarchy allows.
    """
    init = next((path for path in INITS if _is_program(root, path)), None)
    if init is None:
        raise NoInit(
            f"{quoted(path)} holds no systemd ({' or '.join(INITS)})",
            remedy="is this the root of a Linux system, with /usr in place? Guests without systemd cannot be driven",
        )
    with root.pin(init, follow=Follow.ALL) as pinned:
        binary = pinned.head(_BINARY_LIMIT)
    machine = elf.machine(binary)
    host = os.uname().machine
    if machine is None or not elf.runs_on(machine, host):
        raise WrongArchitecture(
            f"{init} in {quoted(path)} is {f'for {machine}' if machine else 'no program'}, this host is {host}",
            remedy=f"use a host of that kind ({machine})" if machine else "is the root damaged?",
        )
    version = _library_version(root) or elf.systemd_version(binary)
    if version is not None and version < FIRST_ON_UNIFIED and _host_is_unified():
        raise TooOldForHost(
            f"the guest's systemd {version} needs cgroup v1, and this host has the unified hierarchy",
            remedy="boot this host with systemd.unified_cgroup_hierarchy=0, or use one that is older",
        )
    return RootFacts(
        init=init,
        machine=machine,
        systemd_version=version,
        pretty_name=_pretty_name(root),
        first_boot=_is_first_boot(root),
        has_bus=any(root.exists(unit) for unit in _BUS_UNITS),
    )


def find_program(root: RootDir, name: str) -> str | None:
    """The guest path of a program by its bare name; None when it is in none of the usual directories."""
    for directory in ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/lib/systemd", "/lib/systemd"):
        path = f"{directory}/{name}"
        if _is_program(root, path):
            return path
    return None


def _is_program(root: RootDir, path: str) -> bool:
    """Whether an executable file is behind the path; a loop of symlinks leads to none."""
    try:
        found = root.lstat(path, follow=Follow.ALL)
    except OSError:
        return False
    return found is not None and found.kind is EntryKind.FILE and bool(found.mode & 0o111)


def _library_version(root: RootDir) -> int | None:
    for directory in _LIBRARY_DIRS:
        try:
            names = root.listdir(directory)
        except OSError:
            continue
        versions = [int(match[1]) for name in names if (match := _LIBRARY.match(name))]
        if versions:
            return max(versions)
    return None


def _pretty_name(root: RootDir) -> str | None:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = root.read_bytes(path, limit=_OS_RELEASE_LIMIT).decode(errors="replace")
        except OSError:
            continue
        return os_release.parse(text).get("PRETTY_NAME")
    return None


def _is_first_boot(root: RootDir) -> bool:
    try:
        text = root.read_bytes("/etc/machine-id", limit=4096)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return text.strip() == b"uninitialized"


def _host_is_unified() -> bool:
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")
