"""A commit that is killed, or lied to, at every single system call: the root is as before it or as after it."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from changes import faults
from changes.faults import Point
from changes.overlay_lab import Manifest, manifest, memory_directory

pytestmark = pytest.mark.changes

SOURCE = """
mkdir -p etc/d/wants usr; chmod 2755 etc/d; setfacl -m u:5:rx etc/d
echo one > etc/a; chown 3:4 etc/a; chmod 640 etc/a; echo gone > etc/b; ln etc/b usr/b
ln -s x etc/d/wants/old; ln -s target etc/swapped; echo kept > etc/kept
"""
UPPER = """
mkdir -p etc/d/wants etc/new/deep
echo two > etc/a; chown 5:6 etc/a; setfacl -m u:7:rw etc/a; setcap cap_net_raw+ep etc/a; setfattr -n user.x -v 1 etc/a
mknod etc/b c 0 0; ln etc/b etc/d/wants/old; ln -s y etc/d/wants/new; echo file > etc/swapped
chown 8:9 etc/new/deep; echo f > etc/new/deep/f; chmod 4755 etc/new/deep/f; ln -s f etc/new/deep/l
"""


@dataclass(kw_only=True)
class Lab:
    """A pristine source and upper, and how the source looks before and after the commit of all that differs."""

    path: str
    before: Manifest
    after: Manifest

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    @property
    def upper(self) -> str:
        return f"{self.path}/upper"

    def copy(self) -> str:
        """A fresh directory with a copy of the source in it."""
        path = f"{self.path}/{next(self._numbers)}"
        os.mkdir(path)
        subprocess.run(["cp", "-a", f"{self.path}/source", f"{path}/source"], check=True)
        return path

    def words(self, copy: str, *, output: bool = False) -> list[str]:
        words = ["commit", f"{copy}/source", self.upper, f"{copy}/state"]
        return [*words, f"{copy}/output"] if output else words


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with memory_directory() as path:
        for name, script in (("source", SOURCE), ("upper", UPPER)):
            os.mkdir(f"{path}/{name}")
            subprocess.run(["sh", "-euc", script], cwd=f"{path}/{name}", check=True)
        before = manifest(f"{path}/source")
        made = Lab(path=path, before=before, after={})
        copy = made.copy()
        with faults.runner() as unharmed:
            assert unharmed.run(made.words(copy)) == 0
        made.after = manifest(f"{copy}/source")
        yield made


def recover(copies: list[str]) -> None:
    with faults.runner() as fresh:
        assert fresh.run(["recover", *(f"{copy}/state" for copy in copies)]) == 0


def left(copy: str) -> list[str]:
    """Records that are still there."""
    path = f"{copy}/state/commits"
    return os.listdir(path) if os.path.isdir(path) else []


def test_the_reference_holds_exactly_what_differs(lab: Lab) -> None:
    differing = {path for path in lab.before.keys() | lab.after.keys() if lab.before.get(path) != lab.after.get(path)}
    assert differing == {
        "/etc/a", "/etc/b", "/etc/d/wants/old", "/etc/d/wants/new", "/etc/swapped", "/etc/new", "/etc/new/deep",
        "/etc/new/deep/f", "/etc/new/deep/l",
    }  # fmt: skip


def test_killed_at_any_system_call_the_root_is_as_before_or_as_after(lab: Lab) -> None:
    points = faults.points(lab.words(lab.copy()), log=f"{lab.path}/log")
    assert len(points) > 60
    copies = [lab.copy() for _ in points]
    with faults.killing() as runner:
        assert {runner.run(lab.words(copy), point) for point, copy in zip(points, copies, strict=True)} == {
            faults.KILLED
        }
    recover(copies)
    outcomes = [manifest(f"{copy}/source") for copy in copies]
    assert [point for point, found in zip(points, outcomes, strict=True) if found not in (lab.before, lab.after)] == []
    assert [copy for copy in copies if left(copy)] == []
    # Both ends were really seen.
    assert lab.before in outcomes
    assert lab.after in outcomes


ERRORS = {
    "ENOSPC": (faults.GROWING, faults.NO_SPACE),
    "EIO": ([call for call in faults.CHANGING if call != "flock"], faults.HOST_ERROR),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_at_any_system_call_is_raised_and_the_root_is_as_before_or_as_after(lab: Lab, error: str) -> None:
    calls, expected = ERRORS[error]
    points = faults.points(lab.words(lab.copy()), log=f"{lab.path}/log", calls=calls)
    assert len(points) > 25
    copies = [lab.copy() for _ in points]
    with faults.failing(error, calls) as runner:
        for point, copy in zip(points, copies, strict=True):
            status = runner.run(lab.words(copy), point)
            assert status in (expected, faults.INTERRUPTED), point
            if status == expected:  # nothing was written, and nothing is left to recover
                assert manifest(f"{copy}/source") == lab.before, point
                assert left(copy) == [], point
    recover(copies)
    for point, copy in zip(points, copies, strict=True):
        assert manifest(f"{copy}/source") in (lab.before, lab.after), point
        assert left(copy) == [], point


def test_a_recovery_that_is_killed_is_finished_by_the_next_one(lab: Lab) -> None:
    ready = lab.copy()
    with faults.killing() as runner:
        assert runner.run(lab.words(ready), Point(call="renameat", number=2)) == faults.KILLED
        saved = f"{lab.path}/saved"
        subprocess.run(["cp", "-a", ready, saved], check=True)
        words = ["recover", f"{ready}/state"]
        points = faults.points(words, log=f"{lab.path}/log")
        assert manifest(f"{ready}/source") == lab.after
        for point in points:
            _put_back(saved, ready)
            assert runner.run(words, point) == faults.KILLED, point
            assert runner.run(words) == 0, point
            assert manifest(f"{ready}/source") == lab.after, point
            assert left(ready) == [], point


def _put_back(saved: str, path: str) -> None:
    """Give a directory its saved content again; the root keeps its inode, by which the journal knows it."""
    for name in ("source", "state"):
        for inner in os.listdir(f"{path}/{name}"):
            shutil.rmtree(f"{path}/{name}/{inner}")
        subprocess.run(["cp", "-aT", f"{saved}/{name}", f"{path}/{name}"], check=True)


def test_a_killed_copy_leaves_no_output_or_a_complete_one_and_never_touches_the_source(lab: Lab) -> None:
    words = lab.words(lab.copy(), output=True)
    # What is staged in the copy is the same as in a commit, and no state of it is ever seen from outside.
    calls = ["mkdir", "rename", "renameat", "fsync", "unlink", "flock"]
    points = faults.points(words, log=f"{lab.path}/log", calls=calls)
    copies = [lab.copy() for _ in points]
    with faults.killing(calls) as runner:
        for point, copy in zip(points, copies, strict=True):
            assert runner.run(lab.words(copy, output=True), point) == faults.KILLED, point
    recover(copies)
    complete = 0
    for point, copy in zip(points, copies, strict=True):
        assert manifest(f"{copy}/source") == lab.before, point
        assert not os.path.lexists(f"{copy}/output.vmcraft-partial"), point
        assert left(copy) == [], point
        if os.path.lexists(f"{copy}/output"):
            assert manifest(f"{copy}/output") == lab.after, point
            complete += 1
    assert 0 < complete < len(points)
