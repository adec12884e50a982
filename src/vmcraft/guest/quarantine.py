"""Units that are kept from running while the guest is booted, since they hang or fail only because of the container.

Held back by a drop-in with a condition that is false, in a directory of ours that the guest sees read-only below /run.
Not by a mask: a masked unit answers `masked-runtime`, and enabling it, or a unit that names it in Also=, silently loses
symlinks. With a drop-in the unit-file state, enabling and disabling are as on the source.
"""

import os

from vmcraft.host.nspawn import HOLD_TARGET

HELD_BACK = frozenset(
    {
        # Wait for a network that the guest does not have.
        "systemd-networkd-wait-online.service",
        "NetworkManager-wait-online.service",
        # Need a kernel interface that a container is refused.
        "iscsid.service",
        "open-iscsi.service",
        "multipathd.service",
        "multipathd.socket",
        "auditd.service",
        "audit-rules.service",
        "run-rpc_pipefs.mount",
        "rngd.service",
    }
)
_DROP_IN = "zzz-vmcraft-held-back.conf"
_TEXT = "[Unit]\nConditionPathExists=!/\n"


def write_hold(directory: str) -> None:
    """Write the drop-ins of all held-back units into our own directory on the host."""
    for unit in sorted(HELD_BACK):
        os.mkdir(os.path.join(directory, f"{unit}.d"), 0o755)
        with open(os.path.join(directory, f"{unit}.d", _DROP_IN), "x", encoding="ascii") as file:
            file.write(_TEXT)


def is_held_back(unit: str) -> bool:
    """Whether VMCraft keeps this unit from running."""
    return unit in HELD_BACK


def is_ours(drop_in: str) -> bool:
    """Whether a drop-in's path is one that we put there, to be left out of every answer."""
    return drop_in.startswith(HOLD_TARGET + "/") and drop_in.endswith("/" + _DROP_IN)
