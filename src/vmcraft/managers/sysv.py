"""Units that systemd generates from SysV scripts: enabled and disabled by the guest's own systemd-sysv-install.

EnableUnitFiles knows nothing of them. The helper of the distribution (update-rc.d, chkconfig) makes rc symlinks, which
are the change, and the read-back: the unit-file state stays `generated`.
"""

import re
from collections.abc import Iterator

import anyio

from vmcraft.changes.pending import PendingChanges
from vmcraft.changes.upper import Layers
from vmcraft.errors import JobFailed, NotEnableable, ReadBackDiffers
from vmcraft.guest.guest import Guest
from vmcraft.guest.programs import run_in_guest
from vmcraft.guest.root import find_program
from vmcraft.host.root_dir import RootDir
from vmcraft.model.printable import quoted
from vmcraft.model.services import UnitFileChange

SCRIPT_DIRS = ("/etc/init.d/", "/etc/rc.d/init.d/")
_RC_PARENTS = ("/etc", "/etc/rc.d")
_RUN_LEVELS = tuple("0123456S")
_BOOTING = ("rc2.d", "rc3.d", "rc4.d", "rc5.d", "rcS.d")
_LINK = re.compile(r"[SK]\d\d(.+)")
_LIMIT_S = 60.0


def script_of(source_path: str) -> str | None:
    """The script's name, when a unit was generated from one; else None."""
    for directory in SCRIPT_DIRS:
        name = source_path.removeprefix(directory)
        if name != source_path and name and "/" not in name:
            return name
    return None


async def install(guest: Guest, layers: Layers, unit: str, script: str, verb: str) -> tuple[UnitFileChange, ...]:
    """Let the guest enable or disable a script; answers the rc symlinks that differ from the source.

    Args:
        guest: A booted guest.
        layers: Its root, as it was and as it is.
        unit: The generated unit.
        script: Name of the script.
        verb: `enable` or `disable`.

    Raises:
        NotEnableable: The guest has no helper for SysV scripts.
        JobFailed: The helper failed; the text says what it printed.
        ReadBackDiffers: It succeeded, but the rc symlinks say otherwise.
    """
    with RootDir.open(guest.source) as root:
        helper = find_program(root, "systemd-sysv-install")
    if helper is None:
        raise NotEnableable(
            f"{unit} is generated from the script {script}, and the guest has no systemd-sysv-install",
            remedy=f"write a unit file {unit} that runs the script, and enable that",
        )
    ended = await run_in_guest(guest, [helper, verb, script], limit=_LIMIT_S)
    if not ended.ok:
        said = quoted((ended.stderr or ended.stdout).decode(errors="replace"))
        raise JobFailed(f"{helper} {verb} {script} failed in the guest (status {ended.status}): {said}")
    started = await anyio.to_thread.run_sync(_starts, layers, script)
    if started != (verb == "enable"):
        raise ReadBackDiffers(unit, wanted=f"{verb}d", found="started at boot" if started else "not started at boot")
    return await anyio.to_thread.run_sync(_changes, layers, script)


def changed_links(pending: PendingChanges, script: str) -> list[str]:
    """The script's rc symlinks that differ from the source, or were declared by an earlier call."""
    paths = {change.path for change in _changes(pending.layers, script)}
    return sorted(paths | {path for path in pending.paths() if is_link_of(path, script)})


def _rc_directories(layers: Layers) -> Iterator[str]:
    """The directories of rc symlinks; RHEL has them in /etc/rc.d, with symlinks to them in /etc."""
    for parent in _RC_PARENTS:
        for level in _RUN_LEVELS:
            directory = f"{parent}/rc{level}.d"
            if layers.resolve(directory, last=True) == directory:
                yield directory


def is_link_of(path: str, script: str) -> bool:
    """Whether a path's name is that of an rc symlink to the script."""
    match = _LINK.fullmatch(path.rpartition("/")[2])
    return match is not None and match[1] == script


def _starts(layers: Layers, script: str) -> bool:
    """Whether a run level that boots a system starts the script."""
    return any(
        name.startswith("S") and is_link_of(name, script)
        for directory in _rc_directories(layers)
        if directory.endswith(_BOOTING)
        for name in layers.names(directory)
    )


def _changes(layers: Layers, script: str) -> tuple[UnitFileChange, ...]:
    changes = []
    for directory in _rc_directories(layers):
        for path in layers.differences(directory):
            if is_link_of(path, script):
                entry = layers.entry(path)
                target = entry.target if entry is not None and entry.target is not None else ""
                changes.append(UnitFileChange(type="symlink" if target else "unlink", path=path, source=target))
    return tuple(changes)
