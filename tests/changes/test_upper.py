"""What an overlay shows, computed from its layers, is what the kernel shows."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from changes.overlay_lab import BASE, Overlay, overlay, working_directory
from vmcraft.changes.upper import Layers
from vmcraft.errors import HostError, NotOurs
from vmcraft.host.root_dir import RootDir
from vmcraft.model.entry import EntryKind

pytestmark = pytest.mark.changes

BUILD = """
mkdir -p etc/systemd/system/a.wants etc/systemd/system/b.wants etc/rc2.d etc/gone/deep usr/lib/real
ln -s /usr/lib/systemd/system/a.service etc/systemd/system/a.wants/a.service
ln -s /usr/lib/systemd/system/b.service etc/systemd/system/b.wants/b.service
ln -s /usr/lib/systemd/system/c.service etc/systemd/system/b.wants/c.service
echo kept > etc/kept; echo text > etc/gone/f; echo text > etc/gone/deep/f
ln -s ../usr/lib/real etc/linked; echo inside > usr/lib/real/f
echo a > etc/one; echo a > etc/two
"""


@pytest.fixture(params=[BASE, None], ids=["shifted", "plain"])
def lab(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with overlay(BUILD, base=request.param) as made:
        yield made


def agrees(lab: Overlay) -> None:
    """Compare every path of the source and of the merged view with what Layers says of it."""
    base = lab.base or 0
    paths = set()
    for top in (lab.source, lab.merged):
        for directory, names, files in os.walk(top):
            paths |= {os.path.join(directory, name).removeprefix(top) for name in (*names, *files)}
    for path in paths:
        try:
            status = os.lstat(f"{lab.merged}{path}")
        except (FileNotFoundError, NotADirectoryError):
            assert lab.layers.entry(path) is None, path
            continue
        entry = lab.layers.entry(path)
        assert entry is not None, path
        assert (entry.uid, entry.gid) == (status.st_uid - base, status.st_gid - base), path
        assert (entry.mode, entry.size, entry.mtime_ns) == (
            status.st_mode & 0o7777,
            status.st_size if entry.kind is not EntryKind.DIRECTORY else entry.size,
            status.st_mtime_ns,
        ), path


def test_whiteouts_opaque_directories_and_replaced_kinds_show_as_the_kernel_shows_them(lab: Overlay) -> None:
    lab.guest(
        "rm etc/one etc/two;"
        "rm -r etc/gone; mkdir etc/gone; echo new > etc/gone/new;"
        "rm -r etc/rc2.d; echo file > etc/rc2.d;"
        "rm etc/kept; mkdir etc/kept; echo x > etc/kept/x;"
        "rm etc/linked; mkdir etc/linked; echo y > etc/linked/y;"
        "rm -r etc/systemd/system/a.wants; ln -s b.wants etc/systemd/system/a.wants;"
        "chown 5:6 usr/lib/real/f; chmod 4711 usr/lib/real/f"
    )
    agrees(lab)
    # The two whiteouts are one inode with two names; that says nothing of the files.
    assert lab.layers.upper.lstat("/etc/one").links > 1  # type: ignore[union-attr]


def test_differences_are_the_files_and_symlinks_that_changed_and_not_what_was_only_copied_up(lab: Overlay) -> None:
    lab.guest(
        "touch -c etc/systemd/system/a.wants; chmod 755 etc/systemd;"
        "rm etc/systemd/system/a.wants/a.service;"
        "ln -s x etc/systemd/system/d.service; ln -sf /dev/null etc/systemd/system/b.wants/b.service;"
        "cat etc/kept > k; cat k > etc/kept; rm k;"
        "rm -r etc/gone; mkdir etc/gone; echo new > etc/gone/new"
    )
    system = "/etc/systemd/system"
    assert lab.layers.differences(system) == (f"{system}/d.service",)
    assert lab.layers.differences(system, recursive=True) == (
        f"{system}/a.wants/a.service",
        f"{system}/b.wants/b.service",
        f"{system}/d.service",
    )
    assert lab.layers.differences("/etc/gone", recursive=True) == ("/etc/gone/deep/f", "/etc/gone/f", "/etc/gone/new")
    assert "/etc/kept" not in lab.layers.differences("/etc", recursive=True)
    assert lab.layers.differences("/nowhere") == ()


def test_the_files_of_a_removed_directory_are_differences(lab: Overlay) -> None:
    lab.guest("rm -r etc/systemd/system/b.wants")
    assert lab.layers.differences("/etc/systemd", recursive=True) == (
        "/etc/systemd/system/b.wants/b.service",
        "/etc/systemd/system/b.wants/c.service",
    )


def test_differences_have_a_limit(lab: Overlay) -> None:
    lab.guest("mkdir etc/many; for i in $(seq 60); do echo > etc/many/$i; done")
    assert len(lab.layers.differences("/etc/many", limit=60)) == 60
    with pytest.raises(OSError, match="more than 59"):
        lab.layers.differences("/etc/many", limit=59)


def test_symlinked_parents_are_followed_in_the_merged_view_and_inside_the_root(lab: Overlay) -> None:
    assert lab.layers.resolve("/etc/linked/f") == "/usr/lib/real/f"
    lab.guest(
        "rm etc/linked; ln -s /etc/gone etc/linked;"
        "ln -s ../../../../../../etc/gone etc/up; ln -s /etc/up/../kept etc/chain; ln -s loop etc/loop"
    )
    assert lab.layers.resolve("/etc/linked/f") == "/etc/gone/f"
    assert lab.layers.resolve("/etc/up/f") == "/etc/gone/f"
    assert lab.layers.resolve("/etc/chain") == "/etc/chain"
    assert lab.layers.resolve("/etc/chain", last=True) == "/etc/kept"
    assert lab.layers.resolve("/etc/up/not/there") == "/etc/gone/not/there"
    with pytest.raises(OSError, match="symbolic links"):
        lab.layers.resolve("/etc/loop/f")
    with pytest.raises(NotADirectoryError):
        lab.layers.resolve("/etc/kept/f")


def test_a_file_that_its_directory_hides_is_not_there(lab: Overlay) -> None:
    lab.guest("rm -r etc/gone; ln -s /etc etc/gone")
    assert lab.layers.entry("/etc/gone/f") is None
    assert lab.layers.source_entry("/etc/gone/f") is not None


def test_a_device_node_is_refused_and_named() -> None:
    with overlay(BUILD, base=None) as lab:
        lab.guest("mknod etc/sda b 8 0")
        with pytest.raises(NotOurs, match="/etc/sda"):
            lab.layers.entry("/etc/sda")


def test_an_upper_read_without_the_mapping_shifts_owners_and_refuses_foreign_ones() -> None:
    with overlay(BUILD) as lab, RootDir.open(f"{lab.path}/upper") as raw:
        layers = Layers(lab.layers.lower, raw, base=BASE)
        lab.guest("echo x > etc/one; chown 5:6 etc/one; rm etc/two; echo a > etc/acl; setfacl -m u:1:r etc/acl")
        entry = layers.entry("/etc/one")
        assert entry is not None
        assert (entry.uid, entry.gid) == (5, 6)
        assert layers.entry("/etc/two") is None
        with pytest.raises(NotOurs, match="reverse id mapping"):
            layers.entry("/etc/acl")
        os.chown(f"{lab.path}/upper/etc/one", 0, 0)
        with pytest.raises(NotOurs, match="nobody of this guest"):
            layers.entry("/etc/one")


@pytest.mark.parametrize("name", ["redirect", "metacopy"])
def test_an_overlay_mounted_otherwise_is_refused(name: str) -> None:
    with working_directory() as path:
        subprocess.run(["sh", "-euc", "mkdir -p lower/etc upper/etc; echo > upper/etc/f"], cwd=path, check=True)
        os.setxattr(f"{path}/upper/etc/f", f"trusted.overlay.{name}", b"/x")
        with (
            RootDir.open(f"{path}/lower") as lower,
            RootDir.open(f"{path}/upper") as upper,
            pytest.raises(HostError, match=name),
        ):
            Layers(lower, upper).entry("/etc/f")
