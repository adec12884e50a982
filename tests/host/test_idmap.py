"""Detached id-mapped mounts: right owners, nothing attached, errors told."""

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from vmcraft.errors import CannotMapIds, HostError
from vmcraft.host import idmap
from vmcraft.host.root_dir import RootDir

pytestmark = pytest.mark.host

BASE = 0x12340000


@pytest.fixture
def tree() -> Iterator[str]:
    path = subprocess.run(
        ["mktemp", "-d", "/var/tmp/vmcraft-test-XXXXXXXX"], capture_output=True, text=True, check=True
    ).stdout.strip()
    os.makedirs(f"{path}/d")
    for directory in (path, f"{path}/d"):
        os.chown(directory, BASE, BASE)
    for name, owner in (("root", BASE), ("user", BASE + 1000), ("last", BASE + 65535), ("host", 0)):
        with open(f"{path}/d/{name}", "w", encoding="ascii") as file:
            file.write(name)
        os.chown(f"{path}/d/{name}", owner, owner)
    try:
        yield path
    finally:
        subprocess.run(["rm", "-rf", path], check=True)


def mounts() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return file.readlines()


def test_owners_appear_from_zero_and_nothing_is_attached(tree: str) -> None:
    before = mounts()
    with RootDir.from_fd(idmap.reverse_mapped(tree, BASE)) as root:
        owners = {name: entry.uid for name in root.listdir("/d") if (entry := root.lstat(f"/d/{name}"))}
        assert mounts() == before
        assert root.read_bytes("/d/user") == b"user"
    # An owner outside the range has no name in it; the kernel shows the overflow id.
    assert owners == {"root": 0, "user": 1000, "last": 65535, "host": 65534}


def test_acls_and_capabilities_come_out_as_the_guest_sees_them(tree: str) -> None:
    path = f"{tree}/d/root"
    subprocess.run(["setfacl", "-m", f"u:{BASE + 7}:r", path], check=True)
    subprocess.run(["setcap", "-n", str(BASE), "cap_net_raw+ep", path], check=True)
    assert os.getxattr(path, "security.capability")[3] == 3
    with RootDir.from_fd(idmap.reverse_mapped(tree, BASE)) as root:
        found = root.xattrs("/d/root")
    assert found["security.capability"][3] == 2
    assert (7).to_bytes(4, "little") in found["system.posix_acl_access"]


def test_a_directory_of_a_foreign_owner_is_closed_by_its_mode_even_for_root(tree: str) -> None:
    os.chown(f"{tree}/d", 0, 0)
    os.chmod(f"{tree}/d", 0o700)
    with RootDir.from_fd(idmap.reverse_mapped(tree, BASE)) as root, pytest.raises(PermissionError):
        root.lstat("/d/root")


def test_it_cannot_be_written(tree: str) -> None:
    with RootDir.from_fd(idmap.reverse_mapped(tree, BASE)) as root, pytest.raises(OSError, match="Read-only"):
        root.unlink("/d/root")


def test_a_mapping_the_other_way_is_the_lower_of_a_guest(tree: str) -> None:
    for directory in (tree, f"{tree}/d"):
        os.chown(directory, 0, 0)
    with RootDir.from_fd(idmap.mapped(tree, inside=0, outside=BASE)) as root:
        entry = root.lstat("/d/host")
        assert entry is not None
        assert entry.uid == BASE


def test_a_file_system_without_mappings_is_told_as_such() -> None:
    with pytest.raises(CannotMapIds, match="/proc"):
        idmap.reverse_mapped("/proc", BASE)


def test_what_is_not_there_is_a_system_error() -> None:
    with pytest.raises(FileNotFoundError):
        idmap.reverse_mapped("/nowhere", BASE)


def test_a_child_that_dies_or_hangs_is_told_within_the_limit(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dying, hanging = f"{tree}/dying.py", f"{tree}/hanging.py"
    for path, text in ((dying, ""), (hanging, "import signal; signal.pause()")):
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    monkeypatch.setattr(idmap, "CHILD", dying)
    with pytest.raises(HostError, match="without an answer"):
        idmap.reverse_mapped(tree, BASE)
    monkeypatch.setattr(idmap, "CHILD", hanging)
    monkeypatch.setattr(idmap, "LIMIT_S", 0.3)
    with pytest.raises(HostError, match="within"):
        idmap.reverse_mapped(tree, BASE)


def test_many_threads_at_once_leak_neither_descriptors_nor_children(tree: str) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def work() -> None:
        for _ in range(4):
            os.close(idmap.reverse_mapped(tree, BASE))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
