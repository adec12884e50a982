"""The names of one lab: its root, its state directory, its cgroups. Touches nothing."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

from scripts.labhost import cgroups

STATE_ROOT = "/var/tmp/vmcraft-lab"
GUEST_STATE = "/var/lib/vmcraft"


@dataclass(frozen=True)
class Layout:
    """Where one lab has what."""

    root: str  # the host root that it boots a copy of
    state: str  # our directory
    guest_state: str  # what the lab has as /var/lib/vmcraft

    @classmethod
    def of(cls, root: str, state: str | None) -> "Layout":
        """The layout for the two options of the command line."""
        root = os.path.realpath(root)
        own = os.path.realpath(state or f"{STATE_ROOT}/{'machine' if root == '/' else _digest(root)}")
        return cls(root, own, GUEST_STATE if state is None and root == "/" else f"{own}/lib")

    @cached_property
    def name(self) -> str:
        """Of the machine for nspawn, and of the cgroups."""
        return f"vmlab-{_digest(self.state)}"

    @cached_property
    def hierarchies(self) -> list[str]:
        """The mount points of the cgroup file systems, v2 first."""
        return cgroups.hierarchies()

    @property
    def cgroups(self) -> list[str]:
        """Of nspawn and all below it, v2 first."""
        return [f"{hierarchy}/{self.name}" for hierarchy in self.hierarchies]

    @property
    def payload(self) -> str:
        """The cgroup that is the lab's root cgroup."""
        return f"{self.cgroups[0]}/payload"

    @property
    def overlay(self) -> str:
        """The mount point of the tmpfs with upper, work and merged."""
        return f"{self.state}/ovl"

    @property
    def console(self) -> str:
        """What nspawn and the lab's PID 1 print."""
        return f"{self.state}/console.log"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
