"""The guests that the documents speak of: /srv/guests/web1 and its neighbours, as real roots.

web1 and web2 come from VMware: the distribution's open-vm-tools, the vendor's own tools as a SysV script, a job for a
card that is gone, a service of theirs that still wants a VMware unit. db1 is a newer release with open-vm-tools alone.
hung1 never ends its boot. empty holds no system.
"""

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import guest_roots

PLACE = "/srv/guests"
"""Where the documents say that the guests are."""

_WANTED = guest_roots.WANTED
_UNIT_DIR = "etc/systemd/system"
_VENDOR_DIR = "usr/lib/systemd/system"
_RC_DIRS = {
    **dict.fromkeys(("rc0.d", "rc1.d", "rc6.d"), "K01"),
    **dict.fromkeys(("rc2.d", "rc3.d", "rc4.d", "rc5.d"), "S01"),
}

_OPEN_VM_TOOLS = {
    "open-vm-tools.service": "[Unit]\nDescription=Service for virtual machines hosted on VMware\n"
    "ConditionVirtualization=vmware\nAfter=vgauth.service\n"
    "[Service]\nExecStart=/usr/bin/vmtoolsd\n" + _WANTED + "Alias=vmtoolsd.service\n",
    "vgauth.service": "[Unit]\nDescription=Authentication service for virtual machines hosted on VMware\n"
    "PartOf=open-vm-tools.service\nConditionVirtualization=vmware\n"
    "[Service]\nExecStart=/usr/bin/VGAuthService\n[Install]\nRequiredBy=open-vm-tools.service\n",
}
_VENDOR = {
    **_OPEN_VM_TOOLS,
    "qemu-guest-agent.service": "[Unit]\nDescription=QEMU Guest Agent\n"
    "BindsTo=dev-virtio\\x2dports-org.qemu.guest_agent.0.device\n"
    "After=dev-virtio\\x2dports-org.qemu.guest_agent.0.device\n"
    "[Service]\nExecStart=/usr/sbin/qemu-ga\n",
    "node-exporter.service": "[Unit]\nDescription=Metrics of this machine\n"
    "[Service]\nExecStart=/bin/sleep infinity\n" + _WANTED,
    "avahi-daemon.service": "[Unit]\nDescription=Names of the local network\n"
    "[Service]\nExecStart=/bin/sleep infinity\n" + _WANTED,
}
_OWN = {
    "ens192-offload.service": "[Unit]\nDescription=Switch the offloading of ens192 off\n"
    "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo ens192: no such card; exit 75'\n" + _WANTED,
    "report.service": "[Unit]\nDescription=Report to the inventory\n"
    "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo inventory.example.org: network is unreachable; exit 7'\n"
    + _WANTED,
    "shop.service": "[Unit]\nDescription=The shop\nWants=vmware-hgfs.service\nAfter=vmware-hgfs.service\n"
    "[Service]\nExecStart=/bin/sleep infinity\n" + _WANTED,
    "shop-db.service": "[Unit]\nDescription=The shop's database\n"
    "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo no space in /var/lib/shop; exit 4'\n",
    "shop-worker.service": "[Unit]\nDescription=The shop's worker\nRequires=shop-db.service\nAfter=shop-db.service\n"
    "[Service]\nExecStart=/bin/sleep infinity\n" + _WANTED,
    "vmware-stats.service": "[Unit]\nDescription=Statistics for vCenter\n"
    "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "vmware-stats.timer": "[Unit]\nDescription=Statistics for vCenter, hourly\n"
    "[Timer]\nOnUnitInactiveSec=1h\nOnBootSec=1h\n[Install]\nWantedBy=timers.target\n",
}
_LINKS = {
    f"{_UNIT_DIR}/vmtoolsd.service": "/lib/systemd/system/open-vm-tools.service",
    f"{_UNIT_DIR}/multi-user.target.wants/open-vm-tools.service": "/lib/systemd/system/open-vm-tools.service",
    f"{_UNIT_DIR}/open-vm-tools.service.requires/vgauth.service": "/lib/systemd/system/vgauth.service",
}
_MORE_LINKS = {
    f"{_UNIT_DIR}/multi-user.target.wants/avahi-daemon.service": "/lib/systemd/system/avahi-daemon.service",
    f"{_UNIT_DIR}/multi-user.target.wants/vmware-vmblock.service": "/lib/systemd/system/vmware-vmblock.service",
    f"{_UNIT_DIR}/multi-user.target.wants/ens192-offload.service": f"/{_UNIT_DIR}/ens192-offload.service",
    f"{_UNIT_DIR}/multi-user.target.wants/report.service": f"/{_UNIT_DIR}/report.service",
    f"{_UNIT_DIR}/multi-user.target.wants/shop.service": f"/{_UNIT_DIR}/shop.service",
    f"{_UNIT_DIR}/timers.target.wants/vmware-stats.timer": f"/{_UNIT_DIR}/vmware-stats.timer",
}
_SCRIPT = """#!/bin/sh
### BEGIN INIT INFO
# Provides:          vmware-tools
# Required-Start:    $remote_fs
# Required-Stop:     $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: VMware Tools
### END INIT INFO
[ "$1" = start ] || exit 0
echo "this is not a VMware virtual machine"
exit 1
"""
_PRESET = "enable node-exporter.service\ndisable avahi-daemon.service\n"
_HANGS = {
    "nas.service": "[Unit]\nDescription=Wait for the file server\n"
    "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sleep infinity\n" + _WANTED,
}

Files = Mapping[str, str]
_PLANTING = threading.Lock()


def _from_vmware() -> tuple[Files, Files]:
    files = {
        **{f"{_VENDOR_DIR}/{name}": text for name, text in _VENDOR.items()},
        **{f"{_UNIT_DIR}/{name}": text for name, text in _OWN.items()},
        "etc/init.d/vmware-tools": _SCRIPT,
        "etc/systemd/system-preset/50-site.preset": _PRESET,
    }
    scripts = {f"etc/{level}/{prefix}vmware-tools": "../init.d/vmware-tools" for level, prefix in _RC_DIRS.items()}
    return files, {**_LINKS, **_MORE_LINKS, **scripts}


def _newer() -> tuple[Files, Files]:
    return {f"{_VENDOR_DIR}/{name}": text for name, text in _OPEN_VM_TOOLS.items()}, _LINKS


def _hung() -> tuple[Files, Files]:
    files = {f"{_UNIT_DIR}/{name}": text for name, text in _HANGS.items()}
    return files, {f"{_UNIT_DIR}/multi-user.target.wants/nas.service": f"/{_UNIT_DIR}/nas.service"}


RECIPES = {
    "web1": ("bookworm", _from_vmware),
    "web2": ("bookworm", _from_vmware),
    "db1": ("trixie", _newer),
    "hung1": ("bookworm", _hung),
}
"""Guest to its release and to what is planted in it."""
GUESTS = (*RECIPES, "empty")


def place(names: Iterable[str]) -> Path:
    """A new directory that holds these guests under their names; for `remove` at the end."""
    directory = guest_roots.CACHE / "test-roots" / f"docs-{os.urandom(4).hex()}"
    directory.mkdir(parents=True)
    for name in names:
        if name == "empty":
            (directory / name).mkdir()
        else:
            # Hard links: quick, and safe since a commit never writes into a file.
            subprocess.run(["cp", "-al", str(_planted(name)), str(directory / name)], check=True)
    return directory


def remove(directory: Path) -> None:
    """Remove it with all that the examples made beside the guests."""
    shutil.rmtree(directory)


def _planted(name: str) -> Path:
    suite, recipe = RECIPES[name]
    files, links = recipe()
    source = guest_roots.base(suite)
    digest = hashlib.sha256(repr((source.name, sorted(files.items()), sorted(links.items()))).encode()).hexdigest()
    target = guest_roots.CACHE / "planted" / f"docs-{suite}-{digest[:12]}"
    with _PLANTING:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}")
            subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(partial)], check=True)
            _plant(partial, files, links)
            partial.rename(target)
    return target


def _plant(root: Path, files: Files, links: Files) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        if text.startswith("#!"):
            (root / path).chmod(0o755)
    for path, target in links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    (root / "etc/hostname").write_text("guest\n")
