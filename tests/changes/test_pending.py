"""What the pending changes say, and which paths they take at all."""

from collections.abc import Iterator

import pytest

from changes.overlay_lab import Overlay, overlay
from vmcraft.changes.pending import TEXT_LIMIT, PendingChanges
from vmcraft.errors import InvalidName, NotOurs
from vmcraft.model.changes import ChangeKind

pytestmark = pytest.mark.changes

BUILD = """
mkdir -p etc/d usr/lib var/log; echo old > etc/f; echo gone > etc/g; ln -s a etc/l; ln -s ../usr etc/out
printf '\\000bin' > etc/bin; echo log > var/log/x.journal
"""


@pytest.fixture
def lab() -> Iterator[Overlay]:
    with overlay(BUILD) as made:
        yield made


def test_a_change_shows_both_texts_the_call_and_its_arguments(lab: Overlay) -> None:
    lab.guest("echo new > etc/f; rm etc/g; ln -sf b etc/l; printf x > etc/d/n")
    lab.declare("/etc/f", "etc/g", "/etc/l", "/etc/d/n", call="modify", args=("f", "k"))
    assert [(one.path, one.change, one.before, one.after, one.note) for one in lab.pending.list()] == [
        ("/etc/d/n", ChangeKind.CREATED, None, "x", None),
        ("/etc/f", ChangeKind.MODIFIED, "old\n", "new\n", None),
        ("/etc/g", ChangeKind.REMOVED, "gone\n", None, None),
        ("/etc/l", ChangeKind.MODIFIED, "a", "b", None),
    ]
    assert {(one.call, one.args) for one in lab.pending.list()} == {("modify", ("f", "k"))}


def test_the_last_call_is_named_and_before_stays_the_sources(lab: Overlay) -> None:
    lab.guest("echo first > etc/f")
    lab.declare("/etc/f", call="first")
    lab.guest("echo second > etc/f")
    lab.declare("/etc/f", call="second")
    (change,) = lab.pending.list()
    assert (change.call, change.before, change.after) == ("second", "old\n", "second\n")


def test_what_is_as_in_the_source_again_is_no_change(lab: Overlay) -> None:
    assert not lab.pending
    lab.guest("echo new > etc/f; echo n > etc/n")
    lab.declare("/etc/f", "/etc/n")
    assert lab.pending
    lab.guest("echo old > etc/f; rm etc/n")
    lab.declare("/etc/f", "/etc/n")
    assert lab.pending.list() == ()
    assert not lab.pending


def test_clear_forgets_everything(lab: Overlay) -> None:
    lab.guest("echo new > etc/f")
    lab.declare("/etc/f")
    lab.pending.clear()
    assert lab.pending.list() == ()


def test_a_changed_mode_owner_or_attribute_alone_is_a_change_and_noted(lab: Overlay) -> None:
    lab.guest("chmod 600 etc/f; chown 1:2 etc/g; setfattr -n user.x -v 1 etc/bin")
    lab.declare("/etc/f", "/etc/g", "/etc/bin")
    notes = {one.path: one.note for one in lab.pending.list()}
    assert notes["/etc/f"] == "mode 0644 becomes 0600"
    assert notes["/etc/g"] == "owner 0:0 becomes 1:2"
    assert notes["/etc/bin"] == "before: binary, 4 bytes; after: binary, 4 bytes; extended attributes change"


def test_long_text_is_cut_even_inside_a_character_and_bad_text_is_binary(lab: Overlay) -> None:
    lab.guest(f"printf '%{TEXT_LIMIT - 1}s\\303\\244' '' > etc/f; printf 'a\\377' > etc/g")
    lab.declare("/etc/f", "/etc/g")
    cut, binary = lab.pending.list()
    assert cut.after == " " * (TEXT_LIMIT - 1)
    assert cut.note == f"after: cut, {TEXT_LIMIT + 1} bytes"
    assert (binary.after, binary.note) == (None, "after: binary, 2 bytes")


@pytest.mark.parametrize("path", ["/usr/lib/x", "/etc/out/lib/x", "/var/log/x.journal", "/etcetera", "/etc"])
def test_paths_outside_the_allowed_directories_are_refused_wherever_symlinks_lead(lab: Overlay, path: str) -> None:
    with pytest.raises(NotOurs):
        lab.declare(path)


def test_a_refused_path_leaves_no_other_of_the_same_call(lab: Overlay) -> None:
    lab.guest("echo new > etc/f")
    with pytest.raises(NotOurs):
        lab.declare("/etc/f", "/usr/x")
    assert lab.pending.list() == ()


@pytest.mark.parametrize(
    "path", ["", "/etc/../etc/f", "/etc//f", "/etc/f/", "/etc/\0", "/etc/" + "a" * 256, "/" + "a/" * 2100]
)
def test_what_is_no_path_is_refused(lab: Overlay, path: str) -> None:
    with pytest.raises(InvalidName):
        lab.declare(path)


@pytest.mark.parametrize(
    "make", ["mkdir etc/x", "mkfifo etc/x", "python3 -c 'import socket; socket.socket(1).bind(\"etc/x\")'"]
)
def test_directories_fifos_and_sockets_are_not_committed(lab: Overlay, make: str) -> None:
    lab.guest(make)
    with pytest.raises(NotOurs, match="only regular files"):
        lab.declare("/etc/x")


def test_other_directories_can_be_allowed(lab: Overlay) -> None:
    pending = PendingChanges(lab.layers, prefixes=("/etc/", "/var/log/"))
    lab.guest("rm var/log/x.journal")
    pending.declare(["/var/log/x.journal"], call="journal_vacuum", args=())
    assert [one.change for one in pending.list()] == [ChangeKind.REMOVED]
