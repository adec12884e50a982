"""A guest as a transient unit of the host's manager: nspawn's argument vector and the unit's settings.

Everything that belongs to a guest belongs to this one unit: its processes are in its cgroup, its mounts in its mount
namespace. A second unit, the lease, ends when the agent does (its `cat` reads a pipe of which the agent holds the
other end), and the guest's unit is bound to it: so systemd itself ends the guests of an agent that was killed.
"""

import os
import sys
from dataclasses import dataclass

from vmcraft.bus.systemd1 import Setting, exec_start

NSPAWN = "/usr/bin/systemd-nspawn"
STAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stage.py")
UNIT_PREFIX = "vmcraft-guest-"
LEASE_PREFIX = "vmcraft-lease-"
HOLD_TARGET = "/run/host/vmcraft"
"""Where our drop-ins for held-back units lie in the guest, read-only.

The directories that a manager searches anyway lie below /run/systemd, which nspawn would create with an owner that the
guest's root is not; so the manager is told of this one by the variable that systemd.unit(5) has for it.
"""

STOP_LIMIT_S = 10.0
"""A clean power-off may take this long, then the guest is killed."""
LIFE_LIMIT_S = 24 * 3600.0
MEMORY_LIMIT_BYTES = 4 << 30
TASKS_LIMIT = 8192
FILE_LIMIT_BYTES = 16 << 30
_USEC = 1_000_000
_INFINITY = 2**64 - 1

# AF_VSOCK is not namespaced: without this filter a guest could reach the hypervisor.
_FAMILIES = ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestUnit:
    """What is decided about a guest before it starts.

    Attributes:
        machine: Name of the machine; the units' names follow from it.
        directory: Where the overlay's parts lie.
        source: The root that is booted, an absolute path of the host.
        base: First id of the guest's private user namespace; None when it has none.
    """

    machine: str
    directory: str
    source: str
    base: int | None

    @property
    def unit(self) -> str:
        """The guest's own unit."""
        return f"{UNIT_PREFIX}{self.machine}.service"

    @property
    def lease(self) -> str:
        """The unit that ends with the agent."""
        return f"{LEASE_PREFIX}{self.machine}.service"

    def command(self) -> list[str]:
        """The program that stages the root, with nspawn's arguments behind its own."""
        base = "-" if self.base is None else str(self.base)
        return [sys.executable, "-I", "-S", STAGE, self.directory, self.source, base, *self._nspawn()]

    def _nspawn(self) -> list[str]:
        users = [] if self.base is None else [f"--private-users={self.base}:65536", "--private-users-ownership=off"]
        return [
            NSPAWN,
            "--quiet",
            "--keep-unit",
            "--boot",
            f"--machine={self.machine}",
            "--settings=no",
            "--link-journal=no",
            "--notify-ready=yes",
            "--private-network",
            "--console=read-only",
            "--resolv-conf=off",
            "--timezone=off",
            *users,
            f"--bind-ro={self.directory}/hold:{HOLD_TARGET}",
            # The empty last part stands for the usual directories.
            f"--setenv=SYSTEMD_UNIT_PATH={HOLD_TARGET}:",
            f"--directory={self.directory}/root",
            # Words for the guest's manager: no mount of a disk that is not here, no question on the console.
            "fstab=no",
            "systemd.firstboot=no",
        ]

    def settings(self, console: int) -> list[Setting]:
        """The unit's settings; `console` is the index of the descriptor that takes what the guest prints."""
        return [
            ("Description", "s", f"VMCraft guest {self.machine}"),
            ("Type", "s", "notify"),
            ("NotifyAccess", "s", "all"),
            exec_start(self.command()),
            ("StandardOutputFileDescriptor", "h", console),
            ("StandardErrorFileDescriptor", "h", console),
            ("BindsTo", "as", [self.lease]),
            ("After", "as", [self.lease]),
            ("KillMode", "s", "mixed"),
            ("Delegate", "b", True),
            ("PrivateMounts", "b", True),
            ("Slice", "s", "machine.slice"),
            ("CollectMode", "s", "inactive-or-failed"),
            ("RestrictAddressFamilies", "(bas)", [True, _FAMILIES]),
            # The caller's own limit decides: a guest whose boot hangs stays usable, so systemd must not end it.
            ("TimeoutStartUSec", "t", _INFINITY),
            ("TimeoutStopUSec", "t", int(STOP_LIMIT_S * _USEC)),
            ("RuntimeMaxUSec", "t", int(LIFE_LIMIT_S * _USEC)),
            ("MemoryMax", "t", MEMORY_LIMIT_BYTES),
            ("TasksMax", "t", TASKS_LIMIT),
            # These two hold also where the host's cgroups have no controllers (LimitNPROC in a user namespace only).
            ("LimitNPROC", "t", TASKS_LIMIT),
            ("LimitFSIZE", "t", FILE_LIMIT_BYTES),
            ("LimitCORE", "t", 0),
            ("OOMPolicy", "s", "continue"),
            # nspawn ends with 133 when the guest asks for a reboot: over, but not a failure.
            ("SuccessExitStatus", "(aiai)", [[133], []]),
        ]

    def lease_settings(self, held_open: int) -> list[Setting]:
        """The lease's settings; `held_open` is the index of the read end of the agent's pipe."""
        return [
            ("Description", "s", f"VMCraft agent of guest {self.machine}"),
            exec_start(["/bin/cat"]),
            ("StandardInputFileDescriptor", "h", held_open),
            ("StandardOutput", "s", "null"),
            ("CollectMode", "s", "inactive-or-failed"),
            ("Slice", "s", "machine.slice"),
        ]
