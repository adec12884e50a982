"""Nothing that a hostile guest puts into its root leads a read or a write out of it, or makes it hang."""

import ctypes
import errno
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vmcraft.errors import InvalidName
from vmcraft.host.root_dir import Follow, RootDir
from vmcraft.model.entry import Attributes, EntryKind

pytestmark = pytest.mark.host

PLAIN = Attributes(mode=0o644, uid=0, gid=0, xattrs={})
SECRET = b"outside"

BUILD = """
mkdir -p root/etc/d root/usr outside/d; printf outside > outside/f; printf outside > outside/d/f
printf inside > root/etc/f; printf usr > root/usr/f
cd root/etc
ln -s f near; ln -s /etc/f absolute; ln -s ../../../../../../etc/f climbing; ln -s ../usr linked
ln -s /proc/self/root/etc/passwd magic; ln -s loop loop; ln -s "$OUTSIDE/f" out
ln -s "$OUTSIDE" outdir; ln -s ../../outside up
mkfifo fifo; mknod null c 1 3; mknod tty c 5 0
"""


@pytest.fixture
def path() -> Iterator[str]:
    path = subprocess.run(
        ["mktemp", "-d", "/var/tmp/vmcraft-test-XXXXXXXX"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(["sh", "-euc", BUILD], cwd=path, env=os.environ | {"OUTSIDE": f"{path}/outside"}, check=True)
    try:
        yield path
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


@pytest.fixture
def root(path: str) -> Iterator[RootDir]:
    with RootDir.open(f"{path}/root") as opened:
        yield opened


# --- paths


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "..",
        "/../etc/f",
        "/etc/../f",
        "etc//f",
        "/etc/f/",
        "/etc/./f",
        "//etc",
        "/a\0",
        "/" + "x" * 256,
        "/x" * 2100,
        "/\ud800",
    ],
)
def test_what_is_no_path_is_refused_before_the_kernel_sees_it(root: RootDir, bad: str) -> None:
    for method in (root.read_bytes, root.lstat, root.listdir, root.resolve, root.exists, root.unlink):
        with pytest.raises(InvalidName):
            method(bad)


def test_a_leading_slash_makes_no_difference(root: RootDir) -> None:
    assert root.read_bytes("etc/f") == root.read_bytes("/etc/f") == b"inside"


# --- the guest's symlinks


def test_symlinks_are_followed_inside_the_root_as_the_guest_would(root: RootDir) -> None:
    for name in ("near", "absolute", "climbing"):
        assert root.read_bytes(f"/etc/{name}") == b"inside"
        assert root.resolve(f"/etc/{name}") == "/etc/f"
    assert root.read_bytes("/etc/linked/f") == b"usr"
    assert root.resolve("/etc/linked/new/deep") == "/usr/new/deep"


@pytest.mark.parametrize("name", ["out", "outdir/f", "up/f", "magic"])
def test_symlinks_that_lead_out_lead_to_nothing(root: RootDir, name: str) -> None:
    assert not root.exists(f"/etc/{name}")
    with pytest.raises(FileNotFoundError):
        root.read_bytes(f"/etc/{name}")


def test_a_magic_link_is_not_followed_even_where_proc_is_in_the_root(path: str) -> None:
    with RootDir.open("/") as host, pytest.raises(OSError) as raised:
        host.read_bytes("/proc/self/root/etc/hostname")
    assert raised.value.errno == errno.ELOOP


def test_loops_end(root: RootDir) -> None:
    assert not root.exists("/etc/loop")
    for method in (root.read_bytes, root.resolve, root.listdir):
        with pytest.raises(OSError) as raised:
            method("/etc/loop")
        assert raised.value.errno == errno.ELOOP


def test_without_following_every_symlink_is_an_error(root: RootDir) -> None:
    for name in ("/etc/near", "/etc/linked/f", "/etc/outdir/f"):
        with pytest.raises(OSError) as raised:
            root.read_bytes(name, follow=Follow.NONE)
        assert raised.value.errno == errno.ELOOP
    assert root.find("/etc/linked/f") is None


# --- what is no regular file


@pytest.mark.parametrize("name", ["fifo", "null", "tty", "d", "socket"])
def test_what_is_no_regular_file_is_refused_at_once_and_never_opened(root: RootDir, path: str, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}/root/etc/socket")
        begun = time.monotonic()
        with pytest.raises(OSError) as raised:
            root.read_bytes(f"/etc/{name}")
        assert raised.value.errno == errno.EINVAL
        assert time.monotonic() - begun < 1


def test_limits(root: RootDir, path: str) -> None:
    assert root.read_bytes("/etc/f", limit=6) == b"inside"
    with pytest.raises(OSError, match="larger than 5"):
        root.read_bytes("/etc/f", limit=5)
    with open(f"{path}/root/huge", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(OSError, match="larger than"):
        root.read_bytes("/huge")
    assert len(root.listdir("/", limit=3)) == 3
    with pytest.raises(OSError, match="more than 2"):
        root.listdir("/", limit=2)


def test_an_entry_tells_kind_owner_mode_and_target(root: RootDir, path: str) -> None:
    os.chown(f"{path}/root/etc/f", 3, 4)
    os.chmod(f"{path}/root/etc/f", 0o4751)
    os.utime(f"{path}/root/etc/f", ns=(0, 1_234_567_890_123_456_789))
    entry = root.lstat("/etc/f")
    assert entry is not None
    assert (entry.kind, entry.uid, entry.gid, entry.mode, entry.size, entry.mtime_ns) == (
        EntryKind.FILE, 3, 4, 0o4751, 6, 1_234_567_890_123_456_789,
    )  # fmt: skip
    kinds = {
        name: getattr(root.lstat(f"/etc/{name}"), "kind", None) for name in ("d", "fifo", "null", "near", "nothing")
    }
    assert kinds == {
        "d": EntryKind.DIRECTORY, "fifo": EntryKind.FIFO, "null": EntryKind.CHARACTER_DEVICE,
        "near": EntryKind.SYMLINK, "nothing": None,
    }  # fmt: skip
    assert root.read_link("/etc/near") == "f"
    assert root.lstat("/etc/f/below") is None


def test_odd_names_come_and_go_as_surrogates(root: RootDir) -> None:
    root.create_file("/etc/a\nb\udcff", [b"x"], PLAIN)
    root.make_symlink("/etc/l", "to\udcfe", PLAIN)
    assert "a\nb\udcff" in root.listdir("/etc")
    assert root.read_bytes("/etc/a\nb\udcff") == b"x"
    assert root.read_link("/etc/l") == "to\udcfe"


# --- writing


def test_a_new_file_has_everything_at_once(root: RootDir, path: str) -> None:
    xattrs = {"user.x": b"1", "security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}
    wanted = Attributes(mode=0o6755, uid=5, gid=6, xattrs=xattrs, mtime_ns=1_000_000_001)
    root.create_file("/etc/new", [b"a" * 3_000_000, b"", b"b"], wanted)
    entry = root.lstat("/etc/new")
    assert entry is not None
    assert (entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns) == (0o6755, 5, 6, 3_000_001, 1_000_000_001)
    assert root.xattrs("/etc/new") == xattrs


@pytest.mark.parametrize("parent", ["/etc/linked", "/etc/outdir", "/etc/up", "/etc/f"])
def test_no_write_follows_a_symlink(root: RootDir, path: str, parent: str) -> None:
    writes: tuple[Callable[[str], None], ...] = (
        lambda name: root.create_file(name, [b"x"], PLAIN),
        lambda name: root.make_directory(name, PLAIN),
        lambda name: root.make_symlink(name, "x", PLAIN),
        lambda name: root.rename("/etc/near", name),
        lambda name: root.rename(name, "/etc/near"),
        root.unlink,
        root.remove_directory,
    )
    for write in writes:
        with pytest.raises(OSError) as raised:
            write(f"{parent}/f")
        assert raised.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert sorted(os.listdir(f"{path}/outside")) == ["d", "f"]
    assert root.read_bytes("/usr/f") == b"usr"


def test_a_write_never_opens_what_is_there(root: RootDir, path: str) -> None:
    for name in ("out", "f", "fifo", "d"):
        with pytest.raises(FileExistsError):
            root.create_file(f"/etc/{name}", [b"x"], PLAIN)
    root.rename("/etc/f", "/etc/out")
    with open(f"{path}/outside/f", "rb") as file:
        assert file.read() == SECRET


def test_the_root_itself_cannot_be_replaced_or_removed(root: RootDir) -> None:
    with pytest.raises(InvalidName):
        root.remove_directory("/")
    with pytest.raises(InvalidName):
        root.rename("/etc", "/")


def test_xattrs_of_a_symlink_are_its_own(root: RootDir, path: str) -> None:
    os.setxattr(f"{path}/root/etc/near", "security.selinux", b"link", follow_symlinks=False)
    os.setxattr(f"{path}/root/etc/f", "user.x", b"file")
    assert root.xattrs("/etc/near") == {"security.selinux": b"link"}
    assert root.xattrs("/etc/near", follow=Follow.ALL) == {"user.x": b"file"}


# --- races

RENAME_EXCHANGE = 2
RACE_S = 0.8


def test_while_directories_and_symlinks_are_swapped_no_byte_from_outside_is_ever_read_or_written(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    directory, symlink = f"{path}/root/etc/d".encode(), f"{path}/root/etc/outdir".encode()
    with open(f"{path}/root/etc/d/f", "wb") as file:
        file.write(b"inside")
    # Seen from a process that is not confined this one leads out; seen from inside it leads to nothing.
    os.symlink(f"{path}/outside/d", f"{path}/root/etc/outdir.new")
    os.rename(f"{path}/root/etc/outdir.new", f"{path}/root/etc/outdir")
    ended = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not ended.is_set():
            assert libc.renameat2(-100, directory, -100, symlink, RENAME_EXCHANGE) == 0
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[bytes] = set()
    plain: set[bytes] = set()
    failed: set[int | None] = set()
    reads = 0
    try:
        with RootDir.open(f"{path}/root") as root:
            until = time.monotonic() + RACE_S
            while time.monotonic() < until:
                for follow in Follow:
                    reads += 1
                    try:
                        seen.add(root.read_bytes("/etc/d/f", follow=follow))
                        root.create_file(f"/etc/d/w{reads}", [b""], PLAIN)
                    except OSError as error:
                        failed.add(error.errno)
                try:
                    with open(f"{path}/root/etc/d/f", "rb") as unconfined:
                        plain.add(unconfined.read())
                except FileNotFoundError:
                    pass
    finally:
        ended.set()
        thread.join()
    assert seen == {b"inside"}
    assert failed <= {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EAGAIN}
    assert sorted(os.listdir(f"{path}/outside/d")) == ["f"]
    # The race was real: an open that is not confined fell for it.
    assert plain == {b"inside", SECRET}
    assert swaps > 100
    assert reads > 100


def test_no_descriptor_is_left_open_whatever_fails(root: RootDir) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("f", "fifo", "loop", "nothing", "d", "outdir/f"):
        for method in (root.read_bytes, root.listdir, root.read_link, root.xattrs, root.unlink, root.sync_directory):
            try:
                method(f"/etc/{name}")
            except OSError:
                pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert before < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
