"""What a lab leaves behind on the machine, above all one that was killed: removed by its names, nothing else."""

import contextlib
import os
import shutil

from scripts.labhost import cgroups, loops
from scripts.labhost.layout import Layout
from scripts.labhost.record import Record
from scripts.labhost.system import remove_directories, unlink


def remove(layout: Layout, record: Record | None) -> None:
    """Remove everything of a lab but its state directory with the console's text.

    Args:
        layout: Whose leftovers.
        record: What its start wrote down; None if it did not come up.
    """
    cgroups.remove(layout.cgroups[0])
    for cgroup in layout.cgroups[1:]:  # v1: everything in it was in the first, too
        remove_directories(cgroup)
    for kind in ("propagate", "unix-export"):
        with contextlib.suppress(OSError):
            os.rmdir(f"/run/systemd/nspawn/{kind}/{layout.name}")
    if record:
        _remove_private_tmp(record.boot_id)
        unlink(f"/run/systemd/nspawn/locks/inode-{record.root}")
        cgroups.take_back_controllers(layout.hierarchies[0], record.controllers)
        loops.detach_left(layout.state, record.loops)
    for name in ("lab.json", "lab.json.new"):
        unlink(f"{layout.state}/{name}")
    for name in ("ovl", "lib"):
        with contextlib.suppress(OSError):
            os.rmdir(f"{layout.state}/{name}")


def _remove_private_tmp(boot_id: str) -> None:
    """The /tmp of services with PrivateTmp; without this lab's boot id in its name it is somebody else's."""
    for directory in ("/tmp", "/var/tmp"):
        for name in os.listdir(directory):
            if boot_id and name.startswith(f"systemd-private-{boot_id}-"):
                shutil.rmtree(f"{directory}/{name}", ignore_errors=True)
