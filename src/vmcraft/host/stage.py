"""The program that a guest's unit starts: it mounts the guest's root, then becomes systemd-nspawn.

Runs alone (`python -I -S stage.py`), as root, inside the private mount namespace of the unit: what it mounts is
invisible to the host and goes away with the unit. Each Exec line of a unit has a mount namespace of its own, so
mounting and starting nspawn must be one process. Uses the standard library and syscalls.py alone.

Arguments: directory, source root, base id or "-", then nspawn's argument vector.
Exit status: STAGE_FAILED, CANNOT_MAP_IDS with a sentence on standard error, or nspawn's own.
"""

import importlib.util
import os
import sys

STAGE_FAILED = 76
CANNOT_MAP_IDS = 77
CANNOT_MAP_TEXT = "cannot map ids: "
OVERLAY = b"lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=off,metacopy=off,index=off"


def main(directory: str, source: str, base: str, nspawn: list[str]) -> int:
    """Mount `source` below the overlay in `directory`, and exec nspawn."""
    spec = importlib.util.spec_from_file_location("syscalls", os.path.join(os.path.dirname(__file__), "syscalls.py"))
    if spec is None or spec.loader is None:
        return STAGE_FAILED
    syscalls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(syscalls)
    # Relative names: the guest can read the options of its own root mount, and needs no path of the host.
    os.chdir(directory)
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    try:
        if base == "-":
            tree = syscalls.open_tree(os.fsencode(source))
            syscalls.mount_setattr(tree, attributes=attributes)
        else:
            namespace = syscalls.mapped_user_namespace(0, int(base))
            tree = syscalls.mapped_tree(os.fsencode(source), namespace, attributes=attributes)
    except OSError as error:
        sys.stderr.write(f"{CANNOT_MAP_TEXT}{source}: {error.strerror}\n")
        return CANNOT_MAP_IDS
    try:
        syscalls.move_mount(tree, b"lower")
        syscalls.mount(b"vmcraft", b"root", b"overlay", 0, OVERLAY)
        os.execv(nspawn[0], nspawn)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        sys.stderr.write(f"{error.filename!r}: {error.strerror}\n")
        return STAGE_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
