"""What a commit writes to the source: exactly what was declared, with everything that belongs to it."""

import fcntl
import os
import subprocess
from collections.abc import Iterator

import pytest

from changes.overlay_lab import BASE, Overlay, changed, manifest, overlay, working_directory
from vmcraft.changes.commit import commit
from vmcraft.changes.pending import PendingChanges
from vmcraft.changes.upper import Layers
from vmcraft.errors import CommitInterrupted, Conflict, InvalidValue, NoSpace, NotOurs
from vmcraft.host import syscalls
from vmcraft.host.root_dir import RootDir
from vmcraft.model.changes import ChangeKind

pytestmark = pytest.mark.changes

BUILD = """
mkdir -p etc/systemd/system/multi-user.target.wants usr/lib/systemd/system
echo '[Unit]' > usr/lib/systemd/system/late.service
ln -s /usr/lib/systemd/system/late.service etc/systemd/system/multi-user.target.wants/old.service
printf 'a=1\\nb=2\\n' > etc/app.conf
chmod 640 etc/app.conf; chown 7:8 etc/app.conf
setfattr -n user.kept -v yes etc/app.conf
echo one > etc/linked; ln etc/linked usr/linked-too
chmod 2755 etc/systemd
"""


@pytest.fixture(params=[BASE, None], ids=["shifted", "plain"])
def lab(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with overlay(BUILD, base=request.param) as made:
        yield made


def test_a_symlink_created_and_one_removed_reach_the_source_and_nothing_else_does(lab: Overlay) -> None:
    before = manifest(lab.source)
    lab.guest(
        "ln -s /usr/lib/systemd/system/late.service etc/systemd/system/multi-user.target.wants/late.service;"
        "rm etc/systemd/system/multi-user.target.wants/old.service;"
        "echo noise > etc/machine-id; echo noise >> etc/app.conf; chmod 700 etc"
    )
    wants = "/etc/systemd/system/multi-user.target.wants"
    lab.declare(f"{wants}/late.service", f"{wants}/old.service", call="service_enable", args=("late",))
    done = commit(lab.source, lab.pending, state_dir=lab.state_dir)
    assert [(one.path, one.change, one.call) for one in done.changes] == [
        (f"{wants}/late.service", ChangeKind.CREATED, "service_enable"),
        (f"{wants}/old.service", ChangeKind.REMOVED, "service_enable"),
    ]
    after = manifest(lab.source)
    assert changed(before, after) == {f"{wants}/late.service", f"{wants}/old.service"}
    assert after[f"{wants}/late.service"][1:4] == (0, 0, "/usr/lib/systemd/system/late.service")
    assert os.listdir(f"{lab.state_dir}/commits") == []


def test_a_file_keeps_owner_mode_acl_capability_attributes_and_time(lab: Overlay) -> None:
    lab.guest(
        "echo c=3 >> etc/app.conf; chown 9:10 etc/app.conf; chmod 4750 etc/app.conf;"
        "setfacl -m u:11:r,g:12:rw etc/app.conf; setcap cap_net_raw+ep etc/app.conf;"
        "setfattr -n user.new -v more etc/app.conf; touch -d @1000000000.5 etc/app.conf"
    )
    lab.declare("/etc/app.conf")
    commit(lab.source, lab.pending, state_dir=lab.state_dir)
    path = f"{lab.source}/etc/app.conf"
    status = os.stat(path)
    assert (status.st_uid, status.st_gid, oct(status.st_mode)) == (9, 10, "0o104770")
    assert status.st_mtime_ns == 1_000_000_000_500_000_000
    acl = subprocess.run(["getfacl", "-npc", path], capture_output=True, text=True, check=True).stdout
    assert {"user:11:r--", "group:12:rw-", "mask::rwx"} <= set(acl.split())
    capability = os.getxattr(path, "security.capability")
    # Version 2: the shifted guest's version 3 with its root id would mean nothing on the real machine.
    assert capability[3] == 2
    assert os.getxattr(path, "user.kept") == b"yes"
    assert os.getxattr(path, "user.new") == b"more"
    assert not [name for name in os.listxattr(path) if name.startswith("trusted.")]


def test_directories_that_the_source_lacks_come_with_the_owner_and_mode_of_the_guest(lab: Overlay) -> None:
    lab.guest(
        "mkdir -p etc/new/deep; chmod 751 etc/new; chown 3:4 etc/new/deep; setfacl -m u:5:rx etc/new/deep;"
        "echo x > etc/new/deep/f; echo undeclared > etc/new/other"
    )
    lab.declare("/etc/new/deep/f")
    before = manifest(lab.source)
    commit(lab.source, lab.pending, state_dir=lab.state_dir)
    after = manifest(lab.source)
    assert changed(before, after) == {"/etc/new", "/etc/new/deep", "/etc/new/deep/f"}
    assert after["/etc/new"][:3] == ("0o40751", 0, 0)
    assert after["/etc/new/deep"][1:3] == (3, 4)
    assert "system.posix_acl_access" in dict(after["/etc/new/deep"][5])  # type: ignore[call-overload]


def test_a_default_acl_of_the_root_is_not_inherited_by_what_is_staged(lab: Overlay) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u:99:rwx", lab.source, f"{lab.source}/etc"], check=True)
    lab.guest(
        "rm etc/app.conf; echo plain > etc/app.conf; setfacl -b etc/app.conf;"
        "mkdir etc/n; setfacl -kb etc/n; echo > etc/n/f"
    )
    lab.declare("/etc/app.conf", "/etc/n/f")
    commit(lab.source, lab.pending, state_dir=lab.state_dir)
    assert [os.listxattr(f"{lab.source}/etc/{name}") for name in ("app.conf", "n", "n/f")] == [[], [], []]


def test_other_names_of_a_file_keep_their_content_and_the_change_says_so(lab: Overlay) -> None:
    lab.guest("echo two > etc/linked")
    lab.declare("/etc/linked")
    assert lab.pending.list()[0].note == "its 1 other names keep the old content"
    commit(lab.source, lab.pending, state_dir=lab.state_dir)
    with (
        open(f"{lab.source}/usr/linked-too", encoding="ascii") as old,
        open(f"{lab.source}/etc/linked", encoding="ascii") as new,
    ):
        assert (old.read(), new.read()) == ("one\n", "two\n")


def test_names_with_newlines_and_odd_bytes_are_written_as_they_are(lab: Overlay) -> None:
    lab.guest("printf x > \"$(printf 'etc/a\\nb\\377')\"; ln -s \"$(printf 'to\\n\\376')\" etc/l")
    lab.declare("/etc/a\nb\udcff", "/etc/l")
    commit(lab.source, lab.pending, state_dir=lab.state_dir)
    assert min(os.listdir(f"{lab.source}/etc".encode())) == b"a\nb\xff"
    assert os.readlink(f"{lab.source}/etc/l".encode()) == b"to\n\xfe"


def test_a_file_without_selinux_label_takes_that_of_its_predecessor_or_its_directory(lab: Overlay) -> None:
    os.setxattr(f"{lab.source}/etc", "security.selinux", b"etc_t\0")
    os.setxattr(f"{lab.source}/etc/app.conf", "security.selinux", b"app_t\0")
    lab.guest("rm etc/app.conf; echo new > etc/app.conf; mkdir etc/d; echo new > etc/d/f; ln -s x etc/l")
    lab.declare("/etc/app.conf", "/etc/d/f", "/etc/l")
    commit(lab.source, lab.pending, state_dir=lab.state_dir)
    labels = {
        name: os.getxattr(f"{lab.source}/etc/{name}", "security.selinux", follow_symlinks=False)
        for name in ("app.conf", "d", "d/f", "l")
    }
    assert labels == {"app.conf": b"app_t\0", "d": b"etc_t\0", "d/f": b"etc_t\0", "l": b"etc_t\0"}


def test_an_empty_change_set_writes_nothing_at_all(lab: Overlay) -> None:
    lab.guest("echo undeclared > etc/app.conf")
    assert commit(lab.source, lab.pending, state_dir=lab.state_dir).changes == ()
    assert not os.path.exists(lab.state_dir)


def test_a_source_that_changed_since_is_a_conflict_that_names_the_path(lab: Overlay) -> None:
    lab.guest("echo mine > etc/app.conf; echo new > etc/fresh; rm etc/linked")
    lab.declare("/etc/app.conf", "/etc/fresh", "/etc/linked")
    with open(f"{lab.source}/etc/app.conf", "a", encoding="ascii") as file:
        file.write("theirs\n")
    with open(f"{lab.source}/etc/fresh", "w", encoding="ascii") as file:
        file.write("theirs\n")
    before = manifest(lab.path + "/source")
    with pytest.raises(Conflict) as raised:
        commit(lab.source, lab.pending, state_dir=lab.state_dir)
    assert "“/etc/app.conf”, “/etc/fresh”" in raised.value.text
    assert "linked" not in raised.value.text
    assert manifest(lab.source) == before


def test_a_root_in_use_by_another_is_a_conflict_and_our_own_lock_is_shared_again(
    lab: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcraft.changes.journal.LOCK_LIMIT_S", 0.1)
    lab.guest("echo mine > etc/app.conf")
    lab.declare("/etc/app.conf")
    ours, other = (os.open(lab.source, os.O_RDONLY) for _ in range(2))
    for fd in (ours, other):
        fcntl.flock(fd, fcntl.LOCK_SH)
    with pytest.raises(Conflict, match="in use"):
        commit(lab.source, lab.pending, state_dir=lab.state_dir, lock_fd=ours)
    os.close(other)
    commit(lab.source, lab.pending, state_dir=lab.state_dir, lock_fd=ours)
    third = os.open(lab.source, os.O_RDONLY)
    fcntl.flock(third, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(third)
    os.close(ours)


def test_a_commit_waits_for_a_lock_that_is_let_go_in_time(lab: Overlay) -> None:
    lab.guest("echo mine > etc/app.conf")
    lab.declare("/etc/app.conf")
    words = ["flock", "--shared", lab.source, "sh", "-c", "echo; exec timeout 0.3 cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        commit(lab.source, lab.pending, state_dir=lab.state_dir)
        assert holder.wait() == 124


@pytest.mark.parametrize("subject", ["etc/app.conf", "etc"])
def test_an_immutable_file_or_directory_is_refused_by_name_before_anything_is_written(
    lab: Overlay, subject: str
) -> None:
    lab.guest("echo mine > etc/app.conf; echo new > etc/fresh")
    lab.declare("/etc/app.conf", "/etc/fresh")
    before = manifest(lab.source)
    subprocess.run(["chattr", "+i", f"{lab.source}/{subject}"], check=True)
    try:
        with pytest.raises(NotOurs, match=f"/{subject}” is immutable"):
            commit(lab.source, lab.pending, state_dir=lab.state_dir)
    finally:
        subprocess.run(["chattr", "-i", f"{lab.source}/{subject}"], check=True)
    assert manifest(lab.source) == before
    assert not os.path.exists(lab.state_dir)


def test_a_symlink_of_the_source_that_is_a_directory_in_the_guest_is_refused(lab: Overlay) -> None:
    os.symlink("/usr", f"{lab.source}/etc/where")
    lab.guest("rm etc/where; mkdir etc/where; echo x > etc/where/f")
    lab.declare("/etc/where/f")
    with pytest.raises(NotOurs, match="is a symlink in the root"):
        commit(lab.source, lab.pending, state_dir=lab.state_dir)
    assert not os.path.exists(f"{lab.source}/usr/f")


def test_a_mount_point_is_refused_and_a_file_on_another_file_system_can_only_be_removed(lab: Overlay) -> None:
    os.mkdir(f"{lab.source}/etc/other")
    lab.guest("echo mine > etc/app.conf; mkdir -p etc/other; echo x > etc/other/f")
    lab.declare("/etc/app.conf")
    mounts = [(f"{lab.source}/etc/linked", f"{lab.source}/etc/app.conf"), (lab.state_dir, f"{lab.source}/etc/other")]
    os.mkdir(lab.state_dir)
    for source, target in mounts:
        syscalls.mount(source.encode(), target.encode(), b"", syscalls.MS_BIND, b"")
    try:
        lab.pending.clear()
        lab.declare("/etc/app.conf")
        with pytest.raises(NotOurs, match="is a mount point"):
            commit(lab.source, lab.pending, state_dir=lab.state_dir)
        lab.pending.clear()
        lab.declare("/etc/other/f")
        with pytest.raises(NotOurs, match="another file system"):
            commit(lab.source, lab.pending, state_dir=lab.state_dir)
        with open(f"{lab.source}/etc/other/f", "w", encoding="ascii") as file:
            file.write("x")
        lab.guest("rm -r etc/other")
        lab.pending.clear()
        lab.declare("/etc/other/f")
        commit(lab.source, lab.pending, state_dir=lab.state_dir)
        assert os.listdir(f"{lab.source}/etc/other") == ["commits"]
    finally:
        for _, target in mounts:
            syscalls.unmount(target.encode())


def test_a_parent_that_became_a_symlink_after_the_call_is_a_conflict(lab: Overlay) -> None:
    lab.guest("mkdir etc/d; echo x > etc/d/f")
    lab.declare("/etc/d/f")
    lab.guest("mv etc/d etc/e; ln -s e etc/d")
    with pytest.raises(Conflict, match="another one in the guest"):
        commit(lab.source, lab.pending, state_dir=lab.state_dir)


def test_another_root_than_the_one_the_changes_were_made_on_is_refused(lab: Overlay) -> None:
    lab.guest("echo mine > etc/app.conf")
    lab.declare("/etc/app.conf")
    with working_directory() as other, pytest.raises(InvalidValue):
        commit(other, lab.pending, state_dir=lab.state_dir)


def test_what_an_earlier_commit_left_must_be_recovered_first(lab: Overlay) -> None:
    lab.guest("echo mine > etc/app.conf")
    lab.declare("/etc/app.conf")
    os.mkdir(f"{lab.source}/.vmcraft-commit-0123456789abcdef")
    with pytest.raises(CommitInterrupted, match="0123456789abcdef"):
        commit(lab.source, lab.pending, state_dir=lab.state_dir)


def test_a_full_file_system_is_refused_before_anything_is_written() -> None:
    with working_directory() as path:
        os.mkdir(f"{path}/small")
        syscalls.mount(b"vmcraft", f"{path}/small".encode(), b"tmpfs", 0, b"size=2m")
        try:
            with overlay("mkdir etc", base=None) as lab:
                lab.guest("head -c 3000000 /dev/zero > etc/big")
                _refused_for_space(lab, f"{path}/small")
        finally:
            syscalls.unmount(f"{path}/small".encode())


def _refused_for_space(lab: Overlay, small: str) -> None:
    os.mkdir(f"{small}/etc")
    with RootDir.open(small) as lower:
        pending = PendingChanges(Layers(lower, lab.layers.upper))
        pending.declare(["/etc/big"], call="test", args=())
        with pytest.raises(NoSpace):
            commit(small, pending, state_dir=lab.state_dir)
    assert os.listdir(small) == ["etc"]
