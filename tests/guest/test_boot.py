"""A guest's boot: what it becomes, what it may not reach, how it ends, and each way in which it cannot be."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import guest_roots
import leaks
from guest_roots import GuestRoot
from vmcraft.bus.systemd1 import Manager
from vmcraft.errors import (
    BootFailed,
    CannotMapIds,
    ConnectionLost,
    Exists,
    GuestGone,
    InvalidValue,
    NoInit,
    NoSuchFile,
    NotLaunched,
    TooOldForHost,
    UnknownFormat,
    WrongArchitecture,
)
from vmcraft.guest.programs import run_in_guest
from vmcraft.host.host_bus import host_bus
from vmcraft.model.drive import Drive
from vmcraft.model.guest import SystemState
from vmcraft.transaction import Transaction

pytestmark = pytest.mark.guest
TRUE = Path("/bin/true").read_bytes()


async def say(transaction: Transaction, *argv: str) -> str:
    """What a program in the guest prints."""
    return (await run_in_guest(transaction.guest, argv)).stdout.decode()


async def test_guest_is_registered_under_a_random_name_and_gone_afterwards(suite: str) -> None:
    names = []
    for _ in range(2):
        async with Transaction.open(str(guest_roots.base(suite)), readonly=True) as transaction:
            names.append(transaction.guest.machine)
            async with host_bus() as host:
                assert transaction.guest.machine in await host.machines.list_machines()
            launched = transaction.guest.launched
            assert launched.state is SystemState.RUNNING
            assert launched.reason is None
            assert launched.failed == ()
            assert launched.ready_s is not None
            assert launched.finished_s is not None
            assert launched.ready_s <= launched.finished_s < 60
            assert await transaction.launch() == launched
    assert names[0] != names[1]
    assert leaks.found() == []


async def test_guest_has_no_way_out(guest: Transaction) -> None:
    pid = guest.guest.leader.pid
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    links = (await say(guest, "/bin/ls", "/sys/class/net")).split()
    assert links == ["lo"]
    routes = await say(guest, "/bin/cat", "/proc/net/route")
    assert len(routes.splitlines()) == 1


async def test_guest_cannot_open_a_vsock_socket(guest: Transaction) -> None:
    """AF_VSOCK is not namespaced: with it a guest could speak to the hypervisor."""
    families = (await say(guest, "/bin/cat", "/proc/self/status")).splitlines()
    assert any(line.startswith("Seccomp:\t2") for line in families)
    perl = "use Socket; socket(my $s, 40, SOCK_STREAM, 0) ? print 'open' : print $!"
    assert "not supported" in await say(guest, "/usr/bin/perl", "-e", perl)


async def test_source_is_never_written_by_the_guest(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        await run_in_guest(transaction.guest, ["/bin/sh", "-c", "rm -rf /opt /etc/cron.d; echo x > /etc/passwd; sync"])
        assert await transaction.diff() == ()
    assert root.changed_paths() == set()


async def test_emergency_is_ready_and_still_not_healthy(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    (root / "etc/systemd/system/default.target").unlink(missing_ok=True)
    (root / "etc/systemd/system/default.target").symlink_to("/lib/systemd/system/emergency.target")
    async with Transaction.open(root.path, readonly=True) as transaction:
        launched = transaction.guest.launched
        assert launched.state is SystemState.MAINTENANCE
        assert "rescue or emergency" in (launched.reason or "")


async def test_hung_boot_can_be_asked_and_names_the_job(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    unit = "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sleep infinity\n" + guest_roots.WANTED
    (root / "etc/systemd/system/st-hang.service").write_text(unit)
    (root / "etc/systemd/system/multi-user.target.wants/st-hang.service").symlink_to("../st-hang.service")
    async with Transaction.open(root.path, boot_limit=3) as transaction:
        launched = transaction.guest.launched
        assert launched.state is SystemState.STARTING
        assert (launched.ready_s, launched.finished_s) == (None, None)
        assert "st-hang.service" in {job.unit for job in launched.hanging}
        assert "st-hang.service" in (launched.reason or "")
        assert (await transaction.services.service_status("st-hang")).active == "activating"
        # A status with its log: our own programs in the guest do not wait for its boot.
        cron = await transaction.services.service_status("cron")
        assert cron.log_error is None
        await transaction.services.service_disable("st-hang")
    wants = "etc/systemd/system/multi-user.target.wants"
    assert f"{wants}/st-hang.service" not in root.changed_paths()
    assert not (root / wants / "st-hang.service").is_symlink()


async def test_boot_that_hangs_before_the_bus_is_asked_over_the_private_socket(
    new_root: Callable[[], GuestRoot],
) -> None:
    root = new_root()
    unit = "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\n"
    (root / "etc/systemd/system/st-early.service").write_text(unit + "ExecStart=/bin/sleep infinity\n")
    wants = root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "st-early.service").symlink_to("../st-early.service")
    async with Transaction.open(root.path, readonly=True, boot_limit=3) as transaction:
        assert not transaction.guest.references
        assert "st-early.service" in (transaction.guest.launched.reason or "")
        assert transaction.guest.launched.state in (SystemState.STARTING, SystemState.INITIALIZING)
        stopped = await transaction.services.service_stop("st-early")
        assert stopped.active != "active"


async def test_guest_without_a_bus_is_driven_over_the_private_socket(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    for unit in ("dbus.service", "dbus.socket"):
        (root / "lib/systemd/system" / unit).unlink()
    async with Transaction.open(root.path) as transaction:
        assert not transaction.guest.references
        assert (await transaction.services.service_start("st-static")).active == "active"
        await transaction.services.service_enable("st-disabled")
        assert any(row.name == "cron.service" for row in await transaction.services.list_services("running"))
    assert "etc/systemd/system/multi-user.target.wants/st-disabled.service" in root.changed_paths()


def fake_root(path: Path, program: bytes) -> str:
    """A directory with nothing but an init."""
    init = path / "usr/lib/systemd/systemd"
    init.parent.mkdir(parents=True)
    init.write_bytes(program)
    init.chmod(0o755)
    return str(path)


async def test_roots_that_cannot_be_booted_each_say_why(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoInit) as caught:
        async with Transaction.open(str(empty)):
            pass
    assert caught.value.key == "systemd_not_available"
    for name, program, error in (
        ("arm", b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x02\0\xb7\0" + b"\0" * 44, WrongArchitecture),
        ("old", TRUE + b"\0systemd 219\0", TooOldForHost),
    ):
        path = fake_root(tmp_path / name, program)
        before = time.monotonic()
        with pytest.raises(error):
            async with Transaction.open(path):
                pass
        assert time.monotonic() - before < 5
    assert leaks.found() == []


async def test_init_that_ends_at_once_is_a_failed_boot_with_its_last_words(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    init = root / "usr/lib/systemd/systemd"
    init.unlink()
    shutil.copy("/bin/false", init)
    before = time.monotonic()
    with pytest.raises(BootFailed):
        async with Transaction.open(root.path, boot_limit=30):
            pass
    assert time.monotonic() - before < 20
    assert leaks.found() == []


async def test_file_system_that_maps_no_ids_says_so_and_boots_without(tmp_path: Path) -> None:
    """The lab's own / is an overlay, which takes no id-mapped mounts; so is the one made here."""
    merged = tmp_path / "merged"
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={guest_roots.base('bookworm')},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    await anyio.run_process(["mount", "-t", "overlay", "overlay", "-o", layers, str(merged)])
    try:
        with pytest.raises(CannotMapIds) as caught:
            async with Transaction.open(str(merged)):
                pass
        assert str(merged) in caught.value.text
        assert "private user" in caught.value.remedy
        async with Transaction.open(str(merged), readonly=True, private_users=False) as transaction:
            assert transaction.guest.launched.state is SystemState.RUNNING
            assert not transaction.guest.leader.own_users
            assert (await transaction.services.service_status("cron")).active == "active"
    finally:
        await anyio.run_process(["umount", str(merged)])


async def test_drives_that_are_no_roots_are_refused(tmp_path: Path) -> None:
    transaction = Transaction()
    with pytest.raises(NoSuchFile):
        transaction.add_drive(Drive(path=str(tmp_path / "nothing")))
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb")
    with pytest.raises(UnknownFormat):
        transaction.add_drive(Drive(path=str(tmp_path / "disk.qcow2")))
    with pytest.raises(NotLaunched):
        await transaction.launch()
    transaction.add_drive(Drive(path=str(tmp_path)))
    with pytest.raises(InvalidValue):
        transaction.add_drive(Drive(path=str(tmp_path)))
    with pytest.raises(NotLaunched):
        await transaction.diff()
    await transaction.close(commit=True)


async def test_cancelled_boot_leaves_nothing(suite: str) -> None:
    for limit in (0.001, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        with anyio.move_on_after(limit):
            async with Transaction.open(str(guest_roots.base(suite)), readonly=True):
                pass
        assert leaks.found() == []


async def test_eight_guests_at_once() -> None:
    root = str(guest_roots.base("bookworm"))
    states: list[SystemState] = []

    async def one() -> None:
        async with Transaction.open(root, readonly=True) as transaction:
            assert (await transaction.services.service_status("cron")).active == "active"
            states.append(transaction.guest.launched.state)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(one)
    assert states == [SystemState.RUNNING] * 8
    assert leaks.found() == []


async def test_guest_that_dies_while_it_is_used_is_told_as_gone(guest: Transaction) -> None:
    async with host_bus() as host:
        await host.machines.terminate_machine(guest.guest.machine)
    with anyio.fail_after(20):
        while guest.guest.alive:
            await anyio.lowlevel.checkpoint()
    with pytest.raises((GuestGone, ConnectionLost)):
        await guest.services.list_failed_services()
    for call in (guest.services.list_failed_services, guest.launch):
        with pytest.raises(GuestGone, match="ended"):
            await call()


async def test_guests_bus_restarts_and_the_next_call_works(guest: Transaction) -> None:
    await guest.services.list_services()
    generation = guest.guest.connection.generation
    await run_in_guest(guest.guest, ["/bin/true"])
    killed = await guest.guest.manager.unit("dbus.service")
    assert (await killed.shown()).active == "active"
    # The reply travels over the bus that is killed: it may not come.
    lost = anyio.Event()
    with guest.guest.connection.on_lost(lost.set), anyio.fail_after(20):
        with contextlib.suppress(ConnectionLost):
            await guest.guest.manager.kill_unit("dbus.service", "main", 9)
        await lost.wait()
    assert (await guest.services.service_status("cron")).active == "active"
    assert guest.guest.connection.generation > generation
    # The job's signal proves that the subscription came back, too.
    assert (await guest.services.service_restart("cron")).active == "active"


async def test_guests_unit_is_bound_to_the_agents_lease_and_limits(guest: Transaction) -> None:
    async with host_bus() as host:
        machine = guest.guest.machine
        unit = await host.systemd.get_unit(f"vmcraft-guest-{machine}.service")
        links = await unit.links()
        assert links.binds_to == (f"vmcraft-lease-{machine}.service",)
        assert isinstance(host.systemd, Manager)


async def test_root_with_an_odd_path_and_a_symlink_to_it(new_root: Callable[[], GuestRoot], tmp_path: Path) -> None:
    root = new_root()
    link = tmp_path / "link"
    with root.renamed("a $HOME %n b,c:d é\n e") as odd:
        link.symlink_to(odd.path)
        async with Transaction.open(f"{link}/") as transaction:
            await transaction.services.service_enable("st-disabled")
        assert odd.changed_paths() == {"etc/systemd/system/multi-user.target.wants/st-disabled.service"}


async def test_unit_directory_behind_a_symlink(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    (root / "etc/systemd/system").rename(root / "etc/units")
    (root / "etc/systemd/system").symlink_to("../units")
    async with Transaction.open(root.path) as transaction:
        await transaction.services.service_enable("st-disabled")
    assert (root / "etc/units/multi-user.target.wants/st-disabled.service").is_symlink()


async def test_two_launches_at_once_are_one_and_nothing_works_after_the_end() -> None:
    transaction = Transaction()
    transaction.add_drive(Drive(path=str(guest_roots.base("bookworm")), readonly=True))
    machines = set()

    async def launch() -> None:
        machines.add((await transaction.launch()).machine)

    async with anyio.create_task_group() as group:
        group.start_soon(launch)
        group.start_soon(launch)
    assert len(machines) == 1
    await transaction.close(commit=True)
    await transaction.close(commit=True)
    with pytest.raises(NotLaunched, match="closed"):
        await transaction.launch()
    with pytest.raises(NotLaunched, match="closed"):
        await transaction.is_systemd_available()
    with pytest.raises(NotLaunched, match="closed"):
        await transaction.diff()
    assert leaks.found() == []


async def test_unit_that_would_wait_for_a_network_does_not_hold_up_the_boot(root: GuestRoot) -> None:
    """Enabled on the source, systemd-networkd-wait-online would hang every boot without a card for two minutes."""
    async with Transaction.open(root.path) as transaction:
        await transaction.services.service_enable("systemd-networkd")
    async with Transaction.open(root.path, readonly=True, boot_limit=60) as transaction:
        launched = transaction.guest.launched
        assert launched.finished_s is not None
        assert launched.finished_s < 30
        wait = await transaction.services.service_status("systemd-networkd-wait-online")
        assert (wait.held_back, wait.active, wait.unit_file_state) == (True, "inactive", "enabled")
        assert (await transaction.services.service_status("systemd-networkd")).unit_file_state == "enabled"


async def test_block_that_ends_while_it_is_launched_leaves_no_guest() -> None:
    transaction = Transaction()
    transaction.add_drive(Drive(path=str(guest_roots.base("bookworm")), readonly=True))
    ends: list[type[BaseException] | None] = []

    async def launch() -> None:
        try:
            await transaction.launch()
        except NotLaunched as error:
            ends.append(type(error))

    async with anyio.create_task_group() as group:
        group.start_soon(launch)
        with anyio.move_on_after(0.15):
            await anyio.Event().wait()
        await transaction.close(commit=True)
    assert ends == [NotLaunched]
    assert leaks.found() == []


async def test_discard_boots_anew_and_launch_tells_the_new_guest(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    async with Transaction.open(root.path) as transaction:
        first = (await transaction.launch()).machine
        await transaction.services.service_enable("st-disabled")
        await transaction.discard()
        second = await transaction.launch()
        assert second.machine == transaction.guest.machine != first
        assert await transaction.diff() == ()
        done = await transaction.services.service_enable("st-disabled")
        assert len(done.changes) == 1
    assert root.changed_paths() == {"etc/systemd/system/multi-user.target.wants/st-disabled.service"}


async def test_guest_that_died_is_not_committed(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    with pytest.raises(GuestGone):  # noqa: PT012 - the end of the block commits
        async with Transaction.open(root.path) as transaction:
            await transaction.services.service_enable("st-disabled")
            async with host_bus() as host:
                await host.machines.terminate_machine(transaction.guest.machine)
            with anyio.fail_after(20):
                await anyio.wait_readable(transaction.guest.leader.pidfd)
    assert root.changed_paths() == set()


async def test_guest_that_lives_without_its_bus_is_not_called_gone(guest: Transaction) -> None:
    lost = anyio.Event()
    with guest.guest.connection.on_lost(lost.set), anyio.fail_after(20):
        with contextlib.suppress(ConnectionLost):
            await run_in_guest(
                guest.guest, ["/bin/sh", "-c", "systemctl stop dbus.socket dbus.service --job-mode=ignore-dependencies"]
            )
        await lost.wait()
    with pytest.raises(ConnectionLost, match="lives"):
        await guest.services.list_failed_services()
    assert guest.guest.alive


async def test_outputs_that_cannot_be_written_are_refused_before_the_boot(
    new_root: Callable[[], GuestRoot], tmp_path: Path
) -> None:
    root = new_root()
    for output, error in (
        (f"{root.path}/new", InvalidValue),
        (f"{root.path}/etc/new", InvalidValue),
        (str(tmp_path / "nothing/new"), NoSuchFile),
        (str(tmp_path), Exists),
    ):
        with pytest.raises(error):
            Transaction().add_drive(Drive(path=root.path, output=output))
    with pytest.raises(InvalidValue, match="UTF-8"):
        Transaction().add_drive(Drive(path=os.fsdecode(b"/srv/\xff")))


async def test_output_is_written_once(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    new = f"{root.path}.new"
    try:
        async with Transaction.open(root.path, output=new) as transaction:
            await transaction.services.service_enable("st-disabled")
            await transaction.commit()
        written = guest_roots.manifest(new)
        assert "etc/systemd/system/multi-user.target.wants/st-disabled.service" in written
        assert root.changed_paths() == set()
    finally:
        shutil.rmtree(new)
