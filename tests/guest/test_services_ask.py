"""Status, lists, dependencies, reload: what the live manager shows. On every release."""

import datetime

import anyio
import pytest

from guest_roots import GuestRoot
from vmcraft.bus.systemd1 import Manager
from vmcraft.errors import InvalidName, InvalidValue, NoSuchUnit
from vmcraft.guest.programs import run_in_guest
from vmcraft.model.services import ActiveState, LoadState, UnitFileState
from vmcraft.transaction import Transaction

pytestmark = pytest.mark.guest


async def test_status_of_a_running_service(guest: Transaction) -> None:
    status = await guest.services.service_status("cron")
    assert status.name == "cron.service"
    assert (status.load, status.active, status.sub) == (LoadState.LOADED, ActiveState.ACTIVE, "running")
    assert status.unit_file_state is UnitFileState.ENABLED
    assert status.preset == "enabled"
    assert status.active_since is not None
    assert abs(status.active_since - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)
    assert status.fragment_path is not None
    assert status.fragment_path.endswith("/lib/systemd/system/cron.service")
    assert status.cpu_seconds is None or status.cpu_seconds >= 0
    assert len(status.log) <= 10
    assert not status.held_back


async def test_status_of_a_service_that_failed_at_boot(guest: Transaction) -> None:
    status = await guest.services.service_status("st-boot-fails")
    assert (status.active, status.result, status.exec_main_code, status.exec_main_status) == (
        "failed",
        "exit-code",
        1,
        4,
    )
    assert "no such disk" in [line.message for line in status.log]
    assert status.active_since is None
    assert guest.guest.launched.state == "degraded"
    assert guest.guest.launched.failed == ("st-boot-fails.service",)


async def test_status_of_units_that_are_not_plain(guest: Transaction) -> None:
    masked = await guest.services.service_status("st-masked")
    assert (masked.load, masked.unit_file_state) == (LoadState.MASKED, UnitFileState.MASKED)
    bad = await guest.services.service_status("st-bad")
    assert bad.load is LoadState.BAD_SETTING
    assert bad.load_error
    target = await guest.services.service_status("st-target.target")
    assert (target.result, target.main_pid, target.restarts) == (None, None, None)
    await guest.services.service_start("st-timer.timer")
    triggered = await guest.services.service_status("st-oneshot")
    assert "st-timer.timer" in triggered.triggered_by
    with pytest.raises(NoSuchUnit):
        await guest.services.service_status("nope")
    with pytest.raises(InvalidName):
        await guest.services.service_status("st-tmpl@")


async def test_file_changed_under_the_manager_needs_a_reload(guest: Transaction) -> None:
    await guest.services.service_start("st-static")
    await run_in_guest(
        guest.guest,
        ["/bin/sh", "-c", "echo '# changed' >> /etc/systemd/system/st-static.service; touch -d 2001-01-01 $0"],
    )
    assert (await guest.services.service_status("st-static")).need_daemon_reload
    await guest.services.daemon_reload()
    assert not (await guest.services.service_status("st-static")).need_daemon_reload


async def test_list_has_loaded_units_and_files_alike(guest: Transaction) -> None:
    rows = {row.name: row for row in await guest.services.list_services()}
    assert rows["cron.service"].sub == "running"
    idle = rows["st-vendor.service"]
    assert (idle.load, idle.active, idle.sub) == (LoadState.NOT_LOADED, ActiveState.INACTIVE, "dead")
    assert idle.unit_file_state is UnitFileState.DISABLED
    assert rows["st-tmpl@.service"].load is LoadState.NOT_LOADED
    assert rows["st-masked.service"].unit_file_state is UnitFileState.MASKED
    assert list(rows) == sorted(rows)


@pytest.mark.parametrize(
    ("state", "member"),
    [
        ("failed", "st-boot-fails.service"),
        ("running", "cron.service"),
        ("active", "cron.service"),
        ("loaded", "cron.service"),
        ("not-loaded", "st-vendor.service"),
        ("enabled", "st-enabled.service"),
        ("disabled", "st-vendor.service"),
        ("static", "st-static.service"),
        ("masked", "st-masked.service"),
        ("indirect", "st-indirect.service"),
        ("linked", "st-linked.service"),
        ("generated", "legacyd.service"),
        ("dead", "st-static.service"),
    ],
)
async def test_list_filters_by_every_kind_of_state(guest: Transaction, state: str, member: str) -> None:
    rows = await guest.services.list_services(state)
    assert member in {row.name for row in rows}
    assert all(state in (row.load, row.active, row.sub, row.unit_file_state) for row in rows)


async def test_list_with_a_word_that_is_no_state_is_an_error_and_one_without_members_is_empty(
    guest: Transaction,
) -> None:
    with pytest.raises(InvalidValue):
        await guest.services.list_services("bogus")
    with pytest.raises(TypeError):
        await guest.services.list_services(3)  # type: ignore[arg-type]
    assert await guest.services.list_services("reloading") == ()


async def test_list_agrees_with_the_guests_own_systemctl(guest: Transaction) -> None:
    ran = await run_in_guest(
        guest.guest, ["/bin/systemctl", "list-unit-files", "--type=service", "--no-legend", "--no-pager", "--full"]
    )
    theirs = {words[0]: words[1] for line in ran.stdout.decode().splitlines() if len(words := line.split()) >= 2}
    ours = {row.name: row.unit_file_state for row in await guest.services.list_services()}
    assert len(theirs) > 60
    # The listing itself runs as a transient unit, which is gone when we list.
    assert {name: ours.get(name) for name in theirs if not name.startswith("vmcraft-")} == {
        name: state for name, state in theirs.items() if not name.startswith("vmcraft-")
    }


async def test_list_sees_changes_of_ours_and_of_the_guest(guest: Transaction) -> None:
    async def state(unit: str) -> UnitFileState | None:
        return next(row.unit_file_state for row in await guest.services.list_services() if row.name == unit)

    assert await state("st-vendor.service") is UnitFileState.DISABLED
    await guest.services.service_enable("st-vendor")
    assert await state("st-vendor.service") is UnitFileState.ENABLED
    await run_in_guest(guest.guest, ["/bin/systemctl", "disable", "st-vendor.service"])
    assert await state("st-vendor.service") is UnitFileState.DISABLED


async def test_failed_services_are_those_that_failed(guest: Transaction) -> None:
    assert await guest.services.list_failed_services() == ("st-boot-fails.service",)
    with pytest.raises(Exception, match="st-exit3"):
        await guest.services.service_start("st-exit3")
    assert await guest.services.list_failed_services() == ("st-boot-fails.service", "st-exit3.service")


async def test_dependencies_are_the_live_managers_and_name_what_is_missing(guest: Transaction) -> None:
    found = await guest.services.get_service_dependencies("st-depmissing")
    assert "st-nothere.service" in found.requires
    assert "st-nowhere.service" in found.wants
    assert found.missing == ("st-nothere.service", "st-nowhere.service")
    db = await guest.services.get_service_dependencies("st-db")
    assert "st-mount-root.service" in db.requires
    assert "st-mount-root.service" in db.after
    timer = await guest.services.get_service_dependencies("st-timer.timer")
    assert timer.triggers == ("st-oneshot.service",)
    with pytest.raises(NoSuchUnit):
        await guest.services.get_service_dependencies("nope")


async def test_dependencies_show_an_enablement_of_a_moment_ago(guest: Transaction) -> None:
    await guest.services.service_enable("st-vendor")
    found = await guest.services.get_service_dependencies("st-vendor")
    assert "multi-user.target" in found.wanted_by


async def test_reload_names_the_units_that_load_worse_than_before(guest: Transaction) -> None:
    good = await guest.services.daemon_reload()
    assert good.newly_failing == ()
    assert good.duration > 0
    await run_in_guest(guest.guest, ["/bin/sh", "-c", "echo '[Service]' > /etc/systemd/system/cron.service"])
    bad = await guest.services.daemon_reload()
    assert "cron.service" in bad.newly_failing


async def test_reload_waits_for_a_slow_generator_and_sends_no_second_one(root: GuestRoot) -> None:
    generator = root / "etc/systemd/system-generators/slow"
    generator.write_text("#!/bin/sh\n[ -e /run/booted ] && sleep 8\ntouch /run/booted\n")
    generator.chmod(0o755)
    async with Transaction.open(root.path, readonly=True) as transaction:
        reloaded = await transaction.services.daemon_reload()
        assert reloaded.duration > 7


async def test_systemd_is_available_in_a_booted_guest(guest: Transaction) -> None:
    assert await guest.services.is_systemd_available()


async def test_concurrent_calls_on_one_guest_all_answer(guest: Transaction) -> None:
    answers: list[bool] = []

    async def ask(unit: str) -> None:
        await guest.services.service_enable(unit)
        status = await guest.services.service_status(unit)
        answers.append(status.unit_file_state is UnitFileState.ENABLED)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, f"st-tmpl@{number}")
            group.start_soon(guest.services.list_services)
    assert answers == [True] * 20
    assert len(await guest.diff()) == 20


async def test_status_of_another_unit_needs_no_reload_and_of_a_changed_one_does(guest: Transaction) -> None:
    reloads = 0

    def reloading(active: bool) -> None:
        nonlocal reloads
        reloads += active

    async with guest.guest.manager.on(Manager.RELOADING, reloading):
        await guest.services.service_enable("st-vendor")
        await guest.services.services_mask(["st-vendor-on"])
        cron = await guest.services.service_status("cron")
        assert not cron.need_daemon_reload
        if guest.guest.version < 257:
            assert reloads == 0
        masked = await guest.services.service_status("st-vendor-on")
        assert masked.load is LoadState.MASKED
        assert reloads == 1
        await guest.services.service_status("st-vendor")
        assert reloads == 1
