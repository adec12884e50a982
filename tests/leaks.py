"""What a test may not leave behind on the host: looked for everywhere where a guest leaves traces."""

import os
import subprocess
from pathlib import Path

STATE = Path("/var/lib/vmcraft")


def found() -> list[str]:
    """Everything of ours that is still there."""
    left = []
    for directory in (STATE / "guests", STATE / "commits"):
        if directory.is_dir():
            left += [
                str(path) for path in directory.iterdir() if path.name.startswith("vmcraft-") or path.suffix == ".json"
            ]
    for name in ("propagate", "unix-export"):
        parent = Path("/run/systemd/nspawn") / name
        if parent.is_dir():
            left += [str(path) for path in parent.iterdir() if path.name.startswith("vmcraft-")]
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        left += [line.strip() for line in table if f" {STATE}/guests/" in line]
    left += _lines(["systemctl", "list-units", "--all", "--plain", "--no-legend", "vmcraft-guest-*", "vmcraft-lease-*"])
    left += [line for line in _lines(["machinectl", "list", "--no-legend"]) if line.startswith("vmcraft-")]
    left += [path for path in _cgroups() if "vmcraft-" in path.rpartition("/")[2]]
    others = _in_use_by_others()
    return [line for line in left if not any(machine in line for machine in others)]


def _in_use_by_others() -> set[str]:
    """Machines whose directory another living process holds: somebody else uses VMCraft on this host, too."""
    holders = {}
    with open("/proc/locks", encoding="ascii") as table:
        for line in table:
            words = line.split()
            if words[1] == "FLOCK":
                holders[int(words[5].rpartition(":")[2])] = int(words[4])
    guests = STATE / "guests"
    machines = list(guests.iterdir()) if guests.is_dir() else []
    return {path.name for path in machines if holders.get(path.stat().st_ino, os.getpid()) != os.getpid()}


def _lines(argv: list[str]) -> list[str]:
    ran = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [line for line in ran.stdout.splitlines() if line.strip()]


def _cgroups() -> list[str]:
    return [path for path, _, _ in os.walk("/sys/fs/cgroup/machine.slice")]
