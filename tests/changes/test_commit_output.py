"""A commit to a new root: complete or not there, the source only read."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from changes.overlay_lab import Overlay, changed, manifest, overlay
from vmcraft.changes.commit import commit_to_output
from vmcraft.errors import Conflict, Exists, NoSpace
from vmcraft.host import syscalls

pytestmark = pytest.mark.changes

BUILD = """
mkdir -p etc usr/bin dev; chmod 751 .; chown 1:2 .; setfattr -n user.root -v yes .
echo old > etc/a; ln etc/a etc/hard; ln -s /etc/passwd etc/sym; mkfifo etc/fifo; mknod dev/null c 1 3
echo prog > usr/bin/ping; setcap cap_net_raw+ep usr/bin/ping; setfacl -m u:5:r usr/bin/ping
head -c 300000 /dev/urandom > usr/big; truncate -s 100M usr/sparse; chown 100:101 usr/sparse
d=usr/deep; for i in $(seq 1000); do d=$d/d; done; mkdir -p $d
"""


@pytest.fixture
def lab() -> Iterator[Overlay]:
    with overlay(BUILD) as made:
        made.guest("echo new > etc/a; echo n > etc/n; echo undeclared > usr/x")
        made.declare("/etc/a", "/etc/n")
        yield made


def test_the_output_is_the_source_with_the_declared_changes(lab: Overlay) -> None:
    source = manifest(lab.source)
    done = commit_to_output(lab.source, lab.pending, f"{lab.path}/out", state_dir=lab.state_dir)
    assert done.output == f"{lab.path}/out"
    assert [one.path for one in done.changes] == ["/etc/a", "/etc/n"]
    assert manifest(lab.source) == source
    output = manifest(f"{lab.path}/out")
    assert changed(source, output) == {"/etc/a", "/etc/n"}
    assert output["/"] == source["/"]
    assert os.stat(f"{lab.path}/out/usr/sparse").st_blocks == 0
    assert os.listdir(f"{lab.state_dir}/commits") == []


def test_without_changes_the_output_is_a_copy(lab: Overlay) -> None:
    lab.pending.clear()
    commit_to_output(lab.source, lab.pending, f"{lab.path}/out", state_dir=lab.state_dir)
    assert manifest(f"{lab.path}/out") == manifest(lab.source)


def test_a_source_that_changed_since_is_a_conflict(lab: Overlay) -> None:
    with open(f"{lab.source}/etc/a", "a", encoding="ascii") as file:
        file.write("theirs")
    with pytest.raises(Conflict, match="/etc/a"):
        commit_to_output(lab.source, lab.pending, f"{lab.path}/out", state_dir=lab.state_dir)
    assert not [name for name in os.listdir(lab.path) if name.startswith("out")]


@pytest.mark.parametrize("name", ["out", "out.vmcraft-partial"])
def test_what_is_there_already_is_refused_and_stays(lab: Overlay, name: str) -> None:
    os.symlink("nowhere", f"{lab.path}/{name}")
    with pytest.raises(Exists, match=name):
        commit_to_output(lab.source, lab.pending, f"{lab.path}/out", state_dir=lab.state_dir)
    assert os.readlink(f"{lab.path}/{name}") == "nowhere"


def test_a_full_disk_leaves_nothing(lab: Overlay) -> None:
    os.mkdir(f"{lab.path}/small")
    syscalls.mount(b"vmcraft", f"{lab.path}/small".encode(), b"tmpfs", 0, b"size=64k")
    try:
        with pytest.raises(NoSpace):
            commit_to_output(lab.source, lab.pending, f"{lab.path}/small/out", state_dir=lab.state_dir)
        assert os.listdir(f"{lab.path}/small") == []
    finally:
        syscalls.unmount(f"{lab.path}/small".encode())
    assert os.listdir(f"{lab.state_dir}/commits") == []


def test_a_source_named_by_a_symlink_is_copied_itself(lab: Overlay) -> None:
    os.symlink(lab.source, f"{lab.path}/name")
    commit_to_output(f"{lab.path}/name", lab.pending, f"{lab.path}/out", state_dir=lab.state_dir)
    assert os.path.isdir(f"{lab.path}/out/etc")
    assert not os.path.islink(f"{lab.path}/out")
    subprocess.run(["test", "-p", f"{lab.path}/out/etc/fifo"], check=True)
