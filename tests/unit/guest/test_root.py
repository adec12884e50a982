"""Whether a root can be booted, of trees made by hand: each thing that can be wrong with one, and hostile ones.

They need no rights but those on the temporary directory.
"""

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from vmcraft.errors import NoInit, NotBootable, TooOldForHost, WrongArchitecture
from vmcraft.guest.root import FIRST_ON_UNIFIED, examine, find_program
from vmcraft.host.root_dir import RootDir
from vmcraft.model.guest import RootFacts

pytestmark = [pytest.mark.unit, pytest.mark.timeout(20)]

INIT = "usr/lib/systemd/systemd"
HOST = os.uname().machine


def program() -> bytes:
    """A program of this host, standing for a guest's systemd."""
    return Path("/bin/true").read_bytes()


def put(root: Path, path: str, content: bytes = b"", mode: int = 0o644) -> Path:
    """A file in the tree, and the directories above it."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    return file


def look(root: Path) -> RootFacts:
    """What examine() says of a tree."""
    with RootDir.open(str(root)) as opened:
        return examine(opened, str(root))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A merged-/usr root with a systemd, as little as it needs."""
    put(tmp_path, INIT, program(), 0o755)
    (tmp_path / "lib").symlink_to("usr/lib")
    put(tmp_path, "usr/lib/systemd/libsystemd-shared-252.so")
    put(tmp_path, "usr/lib/os-release", b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    put(tmp_path, "etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    put(tmp_path, "usr/lib/systemd/system/dbus.socket", b"[Socket]\n")
    return tmp_path


def test_a_good_root_says_what_it_is(tree: Path) -> None:
    assert look(tree) == RootFacts(
        init=f"/{INIT}",
        machine=HOST,
        systemd_version=252,
        pretty_name="Debian GNU/Linux 12 (bookworm)",
        first_boot=False,
        has_bus=True,
    )


def test_a_root_without_a_merged_usr_has_its_init_below_lib(tmp_path: Path) -> None:
    put(tmp_path, "lib/systemd/systemd", program(), 0o755)
    put(tmp_path, "lib/systemd/libsystemd-shared-247.so")
    facts = look(tmp_path)
    assert (facts.init, facts.systemd_version) == ("/lib/systemd/systemd", 247)
    assert (facts.pretty_name, facts.first_boot, facts.has_bus) == (None, True, False)


# --- no init


def make_directory(root: Path) -> None:
    (root / INIT).mkdir(parents=True)


def make_fifo(root: Path) -> None:
    (root / INIT).parent.mkdir(parents=True)
    os.mkfifo(root / INIT, 0o755)


def make_unexecutable(root: Path) -> None:
    put(root, INIT, program(), 0o644)


def link_init(root: Path, target: str) -> None:
    """The init, or what should be it, as a symlink."""
    (root / INIT).parent.mkdir(parents=True)
    (root / INIT).symlink_to(target)


@pytest.mark.parametrize(
    "plant",
    [
        lambda root: None,
        lambda root: put(root, "sbin/init", program(), 0o755),
        make_directory,
        make_fifo,
        make_unexecutable,
        lambda root: link_init(root, "systemd"),
        lambda root: link_init(root, "/nowhere"),
        lambda root: link_init(root, "/bin/true"),
        lambda root: link_init(root, "../" * 40 + "bin/true"),
        lambda root: link_init(root, "/proc/self/exe"),
        lambda root: put(root, "usr/lib"),
    ],
    ids=[
        "empty",
        "another init",
        "a directory",
        "a fifo",
        "not executable",
        "a loop",
        "dangling",
        "only on the host, absolute",
        "only on the host, above the root",
        "the host's own process",
        "usr/lib is a file",
    ],
)
def test_root_without_a_systemd_is_refused(tmp_path: Path, plant: Callable[[Path], object]) -> None:
    plant(tmp_path)
    with pytest.raises(NoInit) as caught:
        look(tmp_path)
    assert caught.value.key == "systemd_not_available"
    assert str(tmp_path)[:100] in caught.value.text
    assert caught.value.remedy


# --- symlinks stay inside


def test_absolute_symlinks_lead_below_the_root(tree: Path) -> None:
    (tree / "lib").unlink()
    (tree / "lib").symlink_to("/usr/lib")
    (tree / INIT).rename(tree / "usr/lib/systemd/real")
    (tree / INIT).symlink_to("/lib/systemd/real")
    (tree / "etc/os-release").symlink_to("/usr/lib/os-release")
    facts = look(tree)
    assert (facts.init, facts.machine) == (f"/{INIT}", HOST)
    assert facts.pretty_name == "Debian GNU/Linux 12 (bookworm)"


@pytest.mark.parametrize("way", ["/etc/os-release", "../" * 40 + "etc/os-release", "/proc/1/root/etc/os-release"])
def test_symlink_that_would_escape_reads_nothing_of_the_host(tree: Path, way: str) -> None:
    """All three are files of the host; in the tree, /etc/os-release is the symlink itself, or nothing."""
    (tree / "usr/lib/os-release").unlink()
    (tree / "etc/os-release").symlink_to(way)
    (tree / "etc/machine-id").unlink()
    (tree / "etc/machine-id").symlink_to(way.replace("os-release", "machine-id"))
    facts = look(tree)
    assert facts.pretty_name is None


def test_the_same_escape_finds_the_file_that_the_root_itself_has_there(tree: Path) -> None:
    put(tree, "srv/os-release", b"PRETTY_NAME=Own\n")
    (tree / "etc/os-release").symlink_to("../" * 40 + "srv/os-release")
    assert look(tree).pretty_name == "Own"


# --- architecture


def foreign() -> bytes:
    """The host's program with another processor in its head: s390x, big-endian, which is no test machine."""
    content = bytearray(program())
    content[5] = 2
    content[18:20] = (22).to_bytes(2, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (foreign(), "s390x"),
        (b"#!/bin/sh\nexec /sbin/init\n", "no program"),
        (b"", "no program"),
        (b"\x7fELF", "no program"),
    ],
    ids=["s390x", "a script", "empty", "cut"],
)
def test_init_for_another_processor_is_refused(tree: Path, content: bytes, word: str) -> None:
    put(tree, INIT, content, 0o755)
    with pytest.raises(WrongArchitecture, match=word) as caught:
        look(tree)
    assert HOST in caught.value.text
    assert caught.value.remedy


def test_init_of_an_absurd_size_is_answered_and_not_a_bare_system_error(tree: Path) -> None:
    """A sparse gigabyte costs a hostile root nothing."""
    os.truncate(tree / INIT, 1 << 30)
    with contextlib.suppress(NotBootable):
        assert look(tree).machine == HOST


# --- age


def refused_for_its_age() -> AbstractContextManager[object]:
    """What a systemd that needs cgroup v1 comes to on this host: only a unified hierarchy is too new for it."""
    return pytest.raises(TooOldForHost) if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else nullcontext()


@pytest.mark.parametrize("text", [b"\0systemd 219\0", b"\0systemd 229 (229-4ubuntu21)\0"])
def test_old_systemd_is_known_by_its_own_text_and_refused_on_a_unified_host(tree: Path, text: bytes) -> None:
    (tree / "usr/lib/systemd/libsystemd-shared-252.so").unlink()
    put(tree, INIT, program() + text, 0o755)
    with refused_for_its_age():
        assert look(tree).systemd_version == int(text[9:12])


def test_old_systemd_is_known_by_its_library_too(tree: Path) -> None:
    (tree / "usr/lib/systemd/libsystemd-shared-252.so").rename(tree / "usr/lib/systemd/libsystemd-shared-229.so")
    with refused_for_its_age():
        assert look(tree).systemd_version == 229


def test_first_systemd_for_the_unified_hierarchy_may_boot(tree: Path) -> None:
    (tree / "usr/lib/systemd/libsystemd-shared-252.so").unlink()
    put(tree, INIT, program() + b"\0systemd 230\0", 0o755)
    assert FIRST_ON_UNIFIED == 230
    assert look(tree).systemd_version == 230


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("usr/lib/systemd/libsystemd-shared-252.39-1~deb12u2.so", 252),
        ("usr/lib64/systemd/libsystemd-shared-257.so", 257),
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", 257),
        ("usr/lib/systemd/libsystemd-shared-2521.so", None),
        ("usr/lib/systemd/libsystemd-core-252.so", None),
    ],
)
def test_version_is_in_the_name_of_the_shared_library(tree: Path, name: str, version: int | None) -> None:
    (tree / "usr/lib/systemd/libsystemd-shared-252.so").unlink()
    put(tree, name)
    assert look(tree).systemd_version == version


def test_program_that_says_no_version_has_none(tree: Path) -> None:
    (tree / "usr/lib/systemd/libsystemd-shared-252.so").unlink()
    assert look(tree).systemd_version is None


# --- what it says of itself


@pytest.mark.parametrize(
    "path", ["etc/os-release", "etc/machine-id", "usr/lib/os-release", "etc/systemd/system/dbus.socket"]
)
def test_fifo_in_place_of_a_file_does_not_hang(tree: Path, path: str) -> None:
    (tree / path).unlink(missing_ok=True)
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tree / path)
    facts = look(tree)
    assert facts.machine == HOST
    assert not facts.first_boot
    assert (facts.pretty_name is None) == (path == "usr/lib/os-release")


@pytest.mark.parametrize("plant", [lambda file: file.mkdir(), lambda file: file.symlink_to("os-release")])
def test_os_release_that_is_no_file_leaves_the_vendors(tree: Path, plant: Callable[[Path], None]) -> None:
    plant(tree / "etc/os-release")
    assert look(tree).pretty_name == "Debian GNU/Linux 12 (bookworm)"


def test_os_release_without_end_is_not_read(tree: Path) -> None:
    os.truncate(put(tree, "usr/lib/os-release", b"PRETTY_NAME=x\n"), 1 << 40)
    assert look(tree).pretty_name is None


def test_name_from_the_root_cannot_steer_a_terminal(tree: Path) -> None:
    put(tree, "usr/lib/os-release", b'PRETTY_NAME="\x1b[2J\xff\x9b' + b"x" * 1000 + b'"\n')
    name = look(tree).pretty_name
    assert name is not None
    assert name.isprintable()
    assert len(name) == 256


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (b"0123456789abcdef0123456789abcdef\n", False),
        (b"0123456789abcdef0123456789abcdef", False),
        (b"uninitialized\n", True),
        (b"uninitialized", True),
        (b"", False),
        (b"0" * 5000, False),
    ],
)
def test_machine_id_tells_whether_the_guest_has_booted_before(tree: Path, content: bytes, first: bool) -> None:
    put(tree, "etc/machine-id", content)
    assert look(tree).first_boot is first


def test_bus_unit_is_looked_for_in_every_place(tree: Path) -> None:
    unit = tree / "usr/lib/systemd/system/dbus.socket"
    unit.unlink()
    assert not look(tree).has_bus
    unit.symlink_to("dbus.socket")
    assert not look(tree).has_bus
    put(tree, "etc/systemd/system/dbus.socket")
    assert look(tree).has_bus


def test_etc_that_is_a_loop_is_a_root_all_the_same(tree: Path) -> None:
    (tree / "etc/machine-id").unlink()
    (tree / "etc").rmdir()
    (tree / "etc").symlink_to("etc")
    facts = look(tree)
    assert (facts.first_boot, facts.has_bus, facts.systemd_version) == (False, True, 252)


# --- find_program


@pytest.mark.parametrize("path", ["usr/bin/tool", "bin/tool", "usr/sbin/tool", "usr/lib/systemd/tool"])
def test_program_is_found_in_the_usual_places(tree: Path, path: str) -> None:
    put(tree, path, program(), 0o755)
    with RootDir.open(str(tree)) as root:
        assert find_program(root, "tool") == f"/{path}"


@pytest.mark.parametrize(
    "plant",
    [
        lambda root: None,
        lambda root: put(root, "usr/bin/tool", program(), 0o644),
        lambda root: (root / "usr/bin/tool").mkdir(parents=True),
        lambda root: put(root, "usr/bin/x").with_name("tool").symlink_to("/bin/true"),
        lambda root: put(root, "usr/bin/x").with_name("tool").symlink_to("tool"),
        lambda root: put(root, "usr/bin"),
    ],
    ids=["missing", "not executable", "a directory", "only on the host", "a loop", "its directory is a file"],
)
def test_what_is_no_program_is_not_found(tree: Path, plant: Callable[[Path], object]) -> None:
    plant(tree)
    with RootDir.open(str(tree)) as root:
        assert find_program(root, "tool") is None


def test_loop_does_not_hide_a_program_further_on(tree: Path) -> None:
    put(tree, "usr/bin/x").with_name("tool").symlink_to("tool")
    put(tree, "usr/sbin/tool", program(), 0o755)
    with RootDir.open(str(tree)) as root:
        assert find_program(root, "tool") == "/usr/sbin/tool"
