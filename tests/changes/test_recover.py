"""What a recovery does when things are not as the killed commit left them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from changes import faults
from changes.faults import Point
from changes.overlay_lab import working_directory
from vmcraft.changes.journal import abandoned
from vmcraft.changes.recover import recover
from vmcraft.errors import CommitInterrupted
from vmcraft.model.changes import Recovery

pytestmark = pytest.mark.changes

BUILD = """
mkdir -p source/etc upper/etc; echo old > source/etc/a; echo old > source/etc/b
echo new > upper/etc/a; echo new > upper/etc/b
"""


@pytest.fixture
def path() -> Iterator[str]:
    with working_directory() as path:
        subprocess.run(["sh", "-euc", BUILD], cwd=path, check=True)
        yield path


def killed(path: str, point: Point, *output: str) -> None:
    with faults.killing() as runner:
        words = ["commit", f"{path}/source", f"{path}/upper", f"{path}/state", *output]
        assert runner.run(words, point) == faults.KILLED


def contents(path: str) -> list[str]:
    found = []
    for name in ("a", "b"):
        with open(f"{path}/source/etc/{name}", encoding="ascii") as file:
            found.append(file.read().strip())
    return found


HALF_WAY = Point(call="renameat", number=2)
STAGING = Point(call="fchown", number=2)


def test_it_says_what_it_finished_and_what_it_undid(path: str) -> None:
    assert recover(f"{path}/state") == ()
    killed(path, STAGING)
    (undone,) = recover(f"{path}/state")
    assert (undone.root, undone.recovery, undone.paths) == (f"{path}/source", Recovery.UNDONE, ())
    assert contents(path) == ["old", "old"]
    killed(path, HALF_WAY)
    assert contents(path) == ["new", "old"]
    (finished,) = recover(f"{path}/state")
    assert (finished.recovery, finished.paths) == (Recovery.FINISHED, ("/etc/a", "/etc/b"))
    assert contents(path) == ["new", "new"]


def test_a_path_that_somebody_changed_meanwhile_is_named_and_nothing_is_touched(path: str) -> None:
    killed(path, HALF_WAY)
    with open(f"{path}/source/etc/b", "w", encoding="ascii") as file:
        file.write("theirs")
    for _ in range(2):
        with pytest.raises(CommitInterrupted, match=r"“/etc/b” in .*neither .*commits/\w+\.json"):
            recover(f"{path}/state")
    assert contents(path) == ["new", "theirs"]
    with open(f"{path}/source/etc/b", "w", encoding="ascii") as file:
        file.write("old\n")
    assert [one.recovery for one in recover(f"{path}/state")] == [Recovery.FINISHED]


def test_one_root_that_cannot_be_ended_does_not_keep_the_others(path: str) -> None:
    shutil.copytree(f"{path}/source", f"{path}/second")
    killed(path, HALF_WAY)
    with faults.killing() as runner:
        runner.run(["commit", f"{path}/second", f"{path}/upper", f"{path}/state"], HALF_WAY)
    with open(f"{path}/source/etc/b", "w", encoding="ascii") as file:
        file.write("theirs")
    with pytest.raises(CommitInterrupted) as raised:
        recover(f"{path}/state")
    assert [one.root for one in raised.value.result] == [f"{path}/second"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("point", [HALF_WAY, STAGING])
def test_another_directory_at_the_path_is_not_touched(path: str, point: Point) -> None:
    killed(path, point)
    os.rename(f"{path}/source", f"{path}/away")
    shutil.copytree(f"{path}/upper", f"{path}/source")
    with pytest.raises(CommitInterrupted, match="another directory"):
        recover(f"{path}/state")
    assert sorted(os.listdir(f"{path}/source")) == ["etc"]


def test_a_root_that_is_gone_is_an_error_only_where_the_commit_has_to_be_finished(path: str) -> None:
    killed(path, HALF_WAY)
    os.rename(f"{path}/source", f"{path}/away")
    with pytest.raises(CommitInterrupted):
        recover(f"{path}/state")
    os.rename(f"{path}/away", f"{path}/source")
    recover(f"{path}/state")
    subprocess.run(["sh", "-euc", BUILD], cwd=path, check=True)
    killed(path, STAGING)
    shutil.rmtree(f"{path}/source")
    assert [one.recovery for one in recover(f"{path}/state")] == [Recovery.UNDONE]


def test_the_journal_of_a_living_process_is_left_alone(path: str) -> None:
    killed(path, HALF_WAY)
    (held,), broken = abandoned(f"{path}/state")
    assert broken == []
    assert recover(f"{path}/state") == ()
    assert contents(path) == ["new", "old"]
    held.close()
    assert len(recover(f"{path}/state")) == 1


@pytest.mark.parametrize("damage", ["{", '{"version": 2}', "[]", ""])
def test_a_journal_that_cannot_be_read_is_told_and_stays(path: str, damage: str) -> None:
    killed(path, HALF_WAY)
    (name,) = os.listdir(f"{path}/state/commits")
    with open(f"{path}/state/commits/{name}", "w", encoding="ascii") as file:
        file.write(damage)
    with pytest.raises(CommitInterrupted, match="cannot be read"):
        recover(f"{path}/state")
    assert os.listdir(f"{path}/state/commits") == [name]


def test_an_unknown_key_in_a_journal_is_refused(path: str) -> None:
    killed(path, HALF_WAY)
    (name,) = os.listdir(f"{path}/state/commits")
    with open(f"{path}/state/commits/{name}", "r+", encoding="ascii") as file:
        record = json.load(file) | {"more": 1}
        file.seek(0)
        json.dump(record, file)
        file.truncate()
    with pytest.raises(CommitInterrupted, match="more"):
        recover(f"{path}/state")


def test_the_journals_are_roots_alone(path: str) -> None:
    killed(path, HALF_WAY)
    modes = {oct(os.stat(name).st_mode & 0o777) for name in (f"{path}/state", f"{path}/state/commits")}
    assert modes == {"0o700"}
