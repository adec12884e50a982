"""What a start writes down for the commands after it (STATE/lab.json), and whether a lab still fits it."""

import hashlib
import json
import os
import pathlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from scripts.labhost.layout import Layout
from scripts.labhost.loops import Loop
from scripts.labhost.places import CHECKOUT, shows_checkout
from scripts.labhost.system import Process, read, write


@dataclass(frozen=True)
class Record:
    """A lab that came up.

    The defaults are for a lab that was started by an older version of scripts/lab, so that it is ended in order.
    """

    nspawn: Process
    leader: Process  # its PID 1
    name: str = ""
    version: str = ""
    boot_id: str = ""
    root: str = ""  # device and inode of its root, as nspawn names its lock
    packages: list[int] = field(default_factory=list)
    binds: list[str] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)  # attached before
    controllers: list[str] = field(default_factory=list)  # enabled by it

    def alive(self) -> bool:
        """Whether nspawn and the lab's PID 1 both live; one without the other is a lab to clean up."""
        return self.nspawn.alive() and self.leader.alive()

    def why_stale(self, layout: Layout) -> str:
        """Why a living lab should be started anew, "" if it is good."""
        if self.version != version():
            return "it was started by another version of scripts/lab"
        if self.packages != packages(layout.root):
            return "packages of its root have changed since it started"
        if not shows_checkout(self.binds):
            return f"it does not see this checkout ({CHECKOUT})"
        return ""


def load(layout: Layout) -> Record | None:
    """What the last start wrote down, None if there was none, or it did not come to its end."""
    try:
        values: dict[str, Any] = json.loads(read(f"{layout.state}/lab.json"))
        known = {each.name: values[each.name] for each in fields(Record) if each.name in values}
        known |= {name: Process(*known[name]) for name in ("nspawn", "leader")}
        return Record(**known | {"loops": [Loop(*loop) for loop in known.get("loops", [])]})
    except (ValueError, TypeError, KeyError):
        return None


def save(layout: Layout, record: Record) -> None:
    """Write it down, wholly or not at all."""
    write(f"{layout.state}/lab.json.new", json.dumps(asdict(record)))
    os.rename(f"{layout.state}/lab.json.new", f"{layout.state}/lab.json")


def version() -> str:
    """The hash of scripts/lab and all files of this package."""
    package = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in (package.parent / "lab", *sorted(package.glob("*.py"))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def packages(root: str) -> list[int]:
    """A stamp of what is installed in the host root: a lower directory must not change below an overlay."""
    try:
        found = os.stat(f"{root}/var/lib/dpkg/status")
    except OSError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns]
