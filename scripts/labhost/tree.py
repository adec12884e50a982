"""The lab's root: an overlay over the machine's, and the changes that make a host of ours out of that copy."""

import contextlib
import hashlib
import os
import shutil
import stat

from scripts.labhost.layout import GUEST_STATE, Layout
from scripts.labhost.loops import LOOP_MAJOR
from scripts.labhost.system import mount, unlink, unshare_mounts, write

LOOP_NODES = 64
DEVICES = (("fuse", 10, 229, 0o666), ("net/tun", 10, 200, 0o666), ("loop-control", 10, 237, 0o660))

# Static wants of sysinit.target and bus-activated services that would act on the machine's kernel (the lab may write
# /proc/sys and /sys) or wait for hardware and networks that the lab does not have.
MASKED = """
    systemd-sysctl.service systemd-modules-load.service systemd-binfmt.service
    proc-sys-fs-binfmt_misc.automount modprobe@.service dev-hugepages.mount sys-kernel-config.mount
    sys-kernel-debug.mount sys-kernel-tracing.mount systemd-udevd.service systemd-udev-trigger.service
    systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-journald-audit.socket
    systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service
    systemd-resolved.service systemd-timesyncd.service systemd-firstboot.service systemd-hwdb-update.service
    systemd-journal-catalog-update.service ldconfig.service systemd-tmpfiles-clean.timer
    systemd-tmpfiles-clean.service lvm2-monitor.service lvm2-lvmpolld.socket dm-event.socket
"""

TARGET = """\
[Unit]
Description=What VMCraft needs of a host, and nothing of the machine's own services
Requires=sysinit.target dbus.socket
Wants=systemd-machined.service polkit.service systemd-logind.service
After=sysinit.target dbus.socket systemd-machined.service polkit.service systemd-logind.service
AllowIsolate=yes
"""


def mount_root(layout: Layout) -> str:
    """Mount the overlay in a mount namespace that only the lab has, so that it goes with the lab's last process.

    Returns:
        The new root.
    """
    unshare_mounts()
    overlay = layout.overlay
    mount("tmpfs", layout.name, overlay, "size=50%,mode=755")
    for name in ("upper", "work", "merged"):
        os.mkdir(f"{overlay}/{name}")
    shutil.copystat(layout.root, f"{overlay}/upper")
    directories = f"lowerdir={layout.root},upperdir={overlay}/upper,workdir={overlay}/work"
    mount("overlay", layout.name, f"{overlay}/merged", directories)
    return f"{overlay}/merged"


def furnish(root: str, name: str, places: list[str]) -> None:
    """Make a host of ours out of a copy of the machine's root: its own services must not start twice.

    Args:
        root: The copy.
        name: What its machine id is made of.
        places: The machine's real directories in it, which a boot must not clean.
    """
    units = f"{root}/etc/systemd/system"
    write(f"{units}/vmlab.target", TARGET)
    for unit in MASKED.split():
        _mask(f"{units}/{unit}")
    for wants in ("sysinit.target", "local-fs.target", "dbus.service", "dbus.socket"):
        for relation in ("wants", "requires"):
            shutil.rmtree(f"{units}/{wants}.{relation}", ignore_errors=True)
    _mask_generators(root)
    _restrict_tmpfiles(units, places)
    write(f"{root}/etc/fstab", "")
    write(f"{root}/etc/machine-id", hashlib.sha256(name.encode()).hexdigest()[:32] + "\n")


def _mask(path: str) -> None:
    """Make a unit or a generator do nothing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unlink(path)
    os.symlink(os.devnull, path)


def _mask_generators(root: str) -> None:
    """Old init scripts, crypttab, LVM and others add units by generators: we need none of them."""
    for directory in ("etc", "usr/local/lib", "usr/lib", "lib"):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{root}/{directory}/systemd/system-generators"):
                _mask(f"{root}/etc/systemd/system-generators/{name}")


def _restrict_tmpfiles(units: str, places: list[str]) -> None:
    """At boot tmpfiles empties /tmp and more. These are the machine's real directories: never there."""
    excluded = [f'"--exclude-prefix={_escape(path)}"' for path in (*places, GUEST_STATE, "/dev")]
    command = " ".join(["systemd-tmpfiles --create --boot", *excluded])
    write(f"{units}/systemd-tmpfiles-setup.service.d/zz-vmlab.conf", f"[Service]\nExecStart=\nExecStart={command}\n")


def _escape(path: str) -> str:
    """A path inside double quotes of a unit file."""
    return path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")


def make_device_nodes(dev: str) -> None:
    """Make the nodes that nspawn does not; in the lab's own /dev, so that the machine needs none of them."""
    loops = [(f"loop{number}", LOOP_MAJOR, number, 0o660) for number in range(LOOP_NODES)]
    for name, major, minor, mode in [*DEVICES, *loops]:
        os.makedirs(os.path.dirname(f"{dev}/{name}"), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            kind = stat.S_IFBLK if major == LOOP_MAJOR else stat.S_IFCHR
            os.mknod(f"{dev}/{name}", kind, os.makedev(major, minor))
            os.chmod(f"{dev}/{name}", mode)
