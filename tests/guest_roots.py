"""Real guest roots for the tests: cached ones with planted units, and a quick copy of one for each commit."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("VMCRAFT_CACHE", "/var/cache/vmcraft"))
SUITES = ("bullseye", "bookworm", "trixie")
WANTED = "[Install]\nWantedBy=multi-user.target\n"
SLEEP = "[Service]\nExecStart=/bin/sleep infinity\n"

UNITS = {
    "st-static.service": SLEEP,
    "st-disabled.service": SLEEP + WANTED,
    "st-enabled.service": SLEEP + WANTED,
    "st-indirect.service": SLEEP + "[Install]\nAlso=st-disabled.service\n",
    "st-real.service": SLEEP + "[Install]\nAlias=st-alias.service\nWantedBy=multi-user.target\n",
    "st-tmpl@.service": SLEEP + WANTED,
    "st-tmpldef@.service": SLEEP + WANTED + "DefaultInstance=one\n",
    "st-bad.service": "[Service]\nType=bogus\nRestart=maybe\n" + WANTED,
    "st-relative.service": "[Service]\nExecStart=relative/path\n",
    "st-garbage.service": "not a unit file\n\x01\x02\n",
    "st-fail.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo its last words; exit 1'\n",
    "st-exit3.service": "[Service]\nType=simple\nExecStart=/bin/sh -c 'echo I cannot go on; exit 3'\n",
    "st-exit0.service": "[Service]\nType=simple\nExecStart=/bin/true\n",
    "st-noexec.service": "[Service]\nType=simple\nExecStart=/nope/binary\n",
    "st-nouser.service": "[Service]\nType=exec\nUser=nosuchuser\nExecStart=/bin/true\n",
    "st-segv.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'kill -SEGV $$$$'\n",
    "st-timeout.service": "[Service]\nType=notify\nTimeoutStartSec=1\nExecStart=/bin/sleep infinity\n",
    "st-loop.service": "[Unit]\nStartLimitIntervalSec=20\nStartLimitBurst=3\n[Service]\nRestart=always\n"
    "RestartSec=100ms\nExecStart=/bin/sh -c 'exit 7'\n",
    "st-loop-forever.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=300ms\n"
    "ExecStart=/bin/sh -c 'exit 7'\n",
    "st-cond.service": "[Unit]\nConditionPathExists=/nonexistent\n" + SLEEP,
    "st-assert.service": "[Unit]\nAssertPathExists=/nonexistent\n" + SLEEP,
    "st-execcond.service": "[Service]\nType=oneshot\nExecCondition=/bin/false\nExecStart=/bin/true\n",
    "st-mount-root.service": "[Service]\nType=oneshot\nExecStart=/bin/false\n",
    "st-db.service": "[Unit]\nRequires=st-mount-root.service\nAfter=st-mount-root.service\n" + SLEEP,
    "st-app.service": "[Unit]\nRequires=st-db.service\nAfter=st-db.service\n" + SLEEP,
    "st-depmissing.service": "[Unit]\nRequires=st-nothere.service\nWants=st-nowhere.service\n" + SLEEP,
    "st-refuse.service": "[Unit]\nRefuseManualStart=yes\n[Service]\nExecStart=/bin/true\n",
    "st-oneshot.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "st-remain.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
    "st-slowstop.service": "[Service]\nTimeoutStopSec=1\n"
    "ExecStart=/bin/sh -c 'trap : TERM; while :; do sleep 1; done'\n",
    "st-cycle-a.service": "[Unit]\nAfter=st-cycle-b.service\nRequires=st-cycle-b.service\n" + SLEEP,
    "st-cycle-b.service": "[Unit]\nAfter=st-cycle-a.service\nRequires=st-cycle-a.service\n" + SLEEP,
    "st-boot-fails.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo no such disk; exit 4'\n" + WANTED,
    "st-target.target": "[Unit]\nDescription=A target\n",
    "st-timer.timer": "[Timer]\nOnBootSec=1h\nUnit=st-oneshot.service\n" + WANTED,
}
SYMLINKS = {
    "etc/systemd/system/st-masked.service": "/dev/null",
    "etc/systemd/system/multi-user.target.wants/st-enabled.service": "/etc/systemd/system/st-enabled.service",
    "etc/systemd/system/multi-user.target.wants/st-boot-fails.service": "/etc/systemd/system/st-boot-fails.service",
    "etc/systemd/system/multi-user.target.wants/st-dangling.service": "/usr/lib/systemd/system/st-dangling.service",
    "etc/systemd/system/st-linked.service": "/opt/st-linked.service",
}
VENDOR = {
    "st-vendor.service": SLEEP + WANTED,
    "st-vendor-on.service": SLEEP + WANTED,
    "st-vendor-off.service": SLEEP + WANTED,
    "st-vendor-alias.service": SLEEP + "[Install]\nWantedBy=multi-user.target\nAlias=st-other-name.service\n",
}
SYSV = """#!/bin/sh
### BEGIN INIT INFO
# Provides:          legacyd
# Required-Start:    $remote_fs
# Required-Stop:     $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: A service of the old kind
### END INIT INFO
exit 0
"""
GENERATOR = "#!/bin/sh\nprintf '[Service]\\nExecStart=/bin/sleep infinity\\n' > \"$1/st-gen.service\"\n"


def base(suite: str) -> Path:
    """The cached root of a Debian release, as mmdebstrap made it."""
    run = [sys.executable, str(CHECKOUT / "scripts/roots"), suite]
    return Path(subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip())


def planted(suite: str) -> Path:
    """The same with the units above; made once and cached, never to be changed by a test."""
    source = base(suite)
    recipe = repr((source.name, UNITS, SYMLINKS, VENDOR, SYSV, GENERATOR)).encode()
    target = CACHE / "planted" / f"{suite}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(partial)], check=True)
        _plant(partial)
        partial.rename(target)
    return target


def _plant(root: Path) -> None:
    etc = root / "etc/systemd/system"
    (etc / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
    for name, text in UNITS.items():
        (etc / name).write_text(text)
    vendor = root / "lib/systemd/system"
    for name, text in VENDOR.items():
        (vendor / name).write_text(text)
    (root / "opt/st-linked.service").write_text(SLEEP + WANTED)
    for name, target in SYMLINKS.items():
        (root / name).symlink_to(target)
    presets = root / "etc/systemd/system-preset"
    presets.mkdir(exist_ok=True)
    (presets / "10-test.preset").write_text("enable st-vendor-on.service\ndisable st-vendor-off.service\n")
    (vendor / "st-vendor-off.service").exists()
    (etc / "multi-user.target.wants/st-vendor-off.service").symlink_to("/lib/systemd/system/st-vendor-off.service")
    script = root / "etc/init.d/legacyd"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SYSV)
    script.chmod(0o755)
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    (generators / "st-gen").write_text(GENERATOR)
    (generators / "st-gen").chmod(0o755)


@dataclass(frozen=True)
class GuestRoot:
    """A root of its own for one test."""

    path: str
    before: dict[str, tuple[object, ...]]

    def changed_paths(self) -> set[str]:
        """The paths, relative to the root, that are not as they were."""
        after = manifest(self.path)
        return {path for path in self.before.keys() | after.keys() if self.before.get(path) != after.get(path)}

    @contextlib.contextmanager
    def renamed(self, name: str) -> Iterator["GuestRoot"]:
        """The same root under another name, for as long as the block lasts."""
        there = Path(self.path).with_name(name)
        Path(self.path).rename(there)
        try:
            yield GuestRoot(path=str(there), before=self.before)
        finally:
            there.rename(self.path)

    def __truediv__(self, path: str) -> Path:
        """A path in the root; for tests that know that no symlink leads out."""
        return Path(self.path) / path


def copy(source: Path) -> GuestRoot:
    """A copy in which every file is a hard link: quick, and safe since a commit never writes into a file."""
    parent = CACHE / "test-roots"
    parent.mkdir(parents=True, exist_ok=True)
    target = parent / f"{source.name}-{os.urandom(4).hex()}"
    subprocess.run(["cp", "-al", str(source), str(target)], check=True)
    return GuestRoot(path=str(target), before=manifest(str(target)))


def remove(root: GuestRoot) -> None:
    """Remove a copy."""
    shutil.rmtree(root.path)


def manifest(root: str) -> dict[str, tuple[object, ...]]:
    """Path to everything that a commit could change of it, for the whole root."""
    found: dict[str, tuple[object, ...]] = {}
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                    found[entry.path[len(root) + 1 :]] = (stat.st_mode, stat.st_uid, stat.st_gid)
                else:
                    target = os.readlink(entry.path) if entry.is_symlink() else None
                    facts = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_mtime_ns, target)
                    found[entry.path[len(root) + 1 :]] = facts
    return found
