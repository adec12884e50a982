"""Enable, disable, mask, preset: exactly their symlinks reach the source. On every release."""

import pytest

from guest_roots import GuestRoot
from vmcraft.errors import InvalidName, NoSuchUnit, NotEnableable, NotOurs, OutcomeUnknown
from vmcraft.guest.programs import run_in_guest
from vmcraft.model.changes import ChangeKind
from vmcraft.model.outcome import Outcome
from vmcraft.model.services import UnitFileState
from vmcraft.transaction import Transaction

pytestmark = pytest.mark.guest
WANTS = "etc/systemd/system/multi-user.target.wants"


async def test_enabled_service_stays_enabled_after_commit_and_second_boot(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as first:
        done = await first.services.service_enable("st-disabled")
        assert done.unit_file_state is UnitFileState.ENABLED
        assert [change.path for change in done.changes] == [f"/{WANTS}/st-disabled.service"]
    assert root.changed_paths() == {f"{WANTS}/st-disabled.service"}
    async with Transaction.open(root.path, readonly=True) as second:
        status = await second.services.service_status("st-disabled")
        assert status.unit_file_state is UnitFileState.ENABLED
        assert status.active == "active"
    assert root.changed_paths() == {f"{WANTS}/st-disabled.service"}


async def test_disabled_service_stays_disabled_after_commit(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as first:
        done = await first.services.service_disable("st-enabled")
        assert done.unit_file_state is UnitFileState.DISABLED
    assert root.changed_paths() == {f"{WANTS}/st-enabled.service"}
    async with Transaction.open(root.path, readonly=True) as second:
        assert (await second.services.service_status("st-enabled")).active == "inactive"


async def test_second_enable_and_second_disable_have_no_changes(guest: Transaction) -> None:
    assert (await guest.services.service_enable("st-enabled")).changes == ()
    assert (await guest.services.service_disable("st-disabled")).changes == ()
    assert await guest.diff() == ()


async def test_enable_then_disable_leaves_nothing_to_commit(guest: Transaction) -> None:
    await guest.services.service_enable("st-disabled")
    assert [change.change for change in await guest.diff()] == [ChangeKind.CREATED]
    await guest.services.service_disable("st-disabled")
    assert await guest.diff() == ()


@pytest.mark.parametrize(
    ("unit", "word"),
    [
        ("st-static", "static"),
        ("st-masked", "masked"),
        ("st-gen", "generated"),
        ("systemd-journald", "sysinit.target"),
    ],
)
async def test_unit_with_nothing_to_enable_says_so(guest: Transaction, unit: str, word: str) -> None:
    for call in (guest.services.service_enable, guest.services.service_disable, guest.services.systemctl_preset):
        with pytest.raises(NotEnableable, match=word):
            await call(unit)
    assert await guest.diff() == ()


async def test_transient_unit_is_not_enableable(guest: Transaction) -> None:
    await guest.guest.manager.start_transient_unit(
        "st-transient.service", [("ExecStart", "a(sasb)", [["/bin/sleep", ["/bin/sleep", "1000"], False]])]
    )
    with pytest.raises(NotEnableable, match="transient"):
        await guest.services.service_enable("st-transient")


async def test_unknown_and_impossible_names_are_refused(guest: Transaction) -> None:
    for call in (guest.services.service_enable, guest.services.service_disable, guest.services.systemctl_preset):
        with pytest.raises(NoSuchUnit):
            await call("nope")
        for name in ("../x", "a/b", "x\n", "x\0", "", ".service", "é", "a b", "x" * 260, "x@y@z.service.."):
            with pytest.raises(InvalidName):
                await call(name)
        with pytest.raises(TypeError):
            await call(b"cron")  # type: ignore[arg-type]


async def test_alias_stands_for_its_unit(guest: Transaction) -> None:
    first = await guest.services.service_enable("st-real")
    assert {change.path for change in first.changes} >= {"/etc/systemd/system/st-alias.service"}
    again = await guest.services.service_enable("st-alias")
    assert (again.unit, again.changes, again.unit_file_state) == ("st-real.service", (), UnitFileState.ENABLED)
    assert (await guest.services.service_status("st-alias")).name == "st-real.service"
    gone = await guest.services.service_disable("st-alias")
    assert gone.unit == "st-real.service"
    assert await guest.diff() == ()


async def test_also_brings_its_unit_along_into_the_commit(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        done = await transaction.services.service_enable("st-indirect")
        assert done.unit_file_state is UnitFileState.INDIRECT
    assert root.changed_paths() == {f"{WANTS}/st-disabled.service"}


async def test_template_needs_an_instance_unless_it_names_its_own(guest: Transaction) -> None:
    with pytest.raises(InvalidName, match="template") as caught:
        await guest.services.service_enable("st-tmpl@")
    assert "st-tmpl@INSTANCE.service" in caught.value.remedy
    one = await guest.services.service_enable("st-tmpl@x")
    assert [change.path for change in one.changes] == [f"/{WANTS}/st-tmpl@x.service"]
    default = await guest.services.service_enable("st-tmpldef@")
    assert [change.path for change in default.changes] == [f"/{WANTS}/st-tmpldef@one.service"]
    await guest.services.service_disable("st-tmpl@")
    assert [change.path for change in await guest.diff()] == [f"/{WANTS}/st-tmpldef@one.service"]


async def test_linked_unit_is_enabled_from_where_it_is(guest: Transaction) -> None:
    done = await guest.services.service_enable("st-linked")
    assert done.unit_file_state is UnitFileState.ENABLED
    assert [change.after for change in await guest.diff()] == ["/opt/st-linked.service"]


async def test_dangling_symlink_to_a_unit_that_is_gone_is_removed(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        done = await transaction.services.service_disable("st-dangling")
        assert done.unit_file_state is None
        with pytest.raises(NoSuchUnit):
            await transaction.services.service_enable("st-dangling")
    assert root.changed_paths() == {f"{WANTS}/st-dangling.service"}
    assert not (root / WANTS / "st-dangling.service").is_symlink()


async def test_held_back_unit_is_enabled_by_also_and_committed(root: GuestRoot) -> None:
    """Held back by a mask, systemd-networkd-wait-online would silently lose its symlink here."""
    async with Transaction.open(root.path) as transaction:
        done = await transaction.services.service_enable("systemd-networkd")
        assert not done.held_back
        status = await transaction.services.service_status("systemd-networkd-wait-online")
        assert status.held_back
        assert status.unit_file_state is UnitFileState.ENABLED
        assert status.drop_ins == ()
        assert status.condition_result is None
    changed = root.changed_paths()
    wanted = "etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service"
    assert wanted in changed
    assert (root / wanted).is_symlink()
    assert all(path.startswith("etc/systemd/system/") for path in changed)
    assert not [path for path in changed if "vmcraft" in path]


async def test_held_back_unit_has_its_own_state(guest: Transaction) -> None:
    rows = {row.name: row for row in await guest.services.list_services()}
    row = rows["systemd-networkd-wait-online.service"]
    assert row.held_back
    assert row.unit_file_state is UnitFileState.DISABLED
    assert [row.name for row in rows.values() if row.held_back] == ["systemd-networkd-wait-online.service"]
    assert "iscsid.service" not in rows


async def test_sysv_script_is_enabled_by_the_guests_own_helper(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        status = await transaction.services.service_status("legacyd")
        assert status.unit_file_state is UnitFileState.GENERATED
        done = await transaction.services.service_enable("legacyd")
        assert done.unit_file_state is UnitFileState.GENERATED
        assert "/etc/rc2.d/S01legacyd" in {change.path for change in done.changes}
    changed = root.changed_paths()
    assert {path for path in changed if path.startswith("etc/rc")} == changed
    assert (root / "etc/rc5.d/S01legacyd").readlink().as_posix() == "../init.d/legacyd"
    async with Transaction.open(root.path) as transaction:
        await transaction.services.service_enable("legacyd")
        await transaction.services.service_disable("legacyd")
    assert not (root / "etc/rc5.d/S01legacyd").is_symlink()


async def test_sysv_script_without_a_helper_is_refused(root: GuestRoot) -> None:
    for directory in ("lib/systemd", "usr/lib/systemd"):
        (root / directory / "systemd-sysv-install").unlink(missing_ok=True)
    async with Transaction.open(root.path, readonly=True) as transaction:
        with pytest.raises(NotEnableable, match="systemd-sysv-install"):
            await transaction.services.service_enable("legacyd")


async def test_bulk_calls_keep_each_names_own_outcome(guest: Transaction) -> None:
    enabled = await guest.services.services_enable_multiple(["nope", "st-disabled", "st-static", "../x", "st-vendor"])
    assert {item.name: item.ok for item in enabled.items} == {
        "nope": False,
        "st-disabled": True,
        "st-static": False,
        "../x": False,
        "st-vendor": True,
    }
    errors = {item.name: (item.error or "").partition(":")[0] for item in enabled.items}
    assert errors == {
        "nope": "no-such-unit",
        "st-disabled": "",
        "st-static": "not-enableable",
        "../x": "invalid-name",
        "st-vendor": "",
    }
    disabled = await guest.services.services_disable_multiple(["st-vendor", "nope", "st-enabled"])
    assert [item.ok for item in disabled.items] == [True, False, True]
    assert {change.path for change in await guest.diff()} == {
        f"/{WANTS}/st-disabled.service",
        f"/{WANTS}/st-enabled.service",
    }
    for wrong in ("st-disabled", b"x", ["st-disabled", 3], None):
        with pytest.raises(TypeError):
            await guest.services.services_enable_multiple(wrong)  # type: ignore[arg-type]
    assert (await guest.services.services_enable_multiple([])).items == ()


async def test_mask_refuses_what_does_not_exist_and_what_lies_in_etc(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        masked = await transaction.services.services_mask(["st-vendor", "st-static", "nope", "cron", "st-masked"])
        assert [item.ok for item in masked.items] == [True, False, False, True, True]
        assert (await transaction.services.service_status("st-vendor")).load == "masked"
    assert root.changed_paths() == {"etc/systemd/system/st-vendor.service", "etc/systemd/system/cron.service"}
    assert (root / "etc/systemd/system/st-vendor.service").readlink().as_posix() == "/dev/null"


async def test_preset_is_what_the_distribution_wants(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        on = await transaction.services.systemctl_preset("st-vendor-on")
        assert (on.preset, on.before, on.unit_file_state) == ("enabled", UnitFileState.DISABLED, UnitFileState.ENABLED)
        off = await transaction.services.systemctl_preset("st-vendor-off")
        assert (off.preset, off.before, off.unit_file_state) == ("disabled", "enabled", "disabled")
    assert root.changed_paths() == {f"{WANTS}/st-vendor-on.service", f"{WANTS}/st-vendor-off.service"}


async def test_read_back_is_not_the_stale_property(guest: Transaction) -> None:
    """Unit.UnitFileState says `enabled` after a disable until the next reload; the answer must not."""
    await guest.services.service_status("st-enabled")
    done = await guest.services.service_disable("st-enabled")
    assert done.unit_file_state is UnitFileState.DISABLED
    assert (await guest.services.service_status("st-enabled")).unit_file_state is UnitFileState.DISABLED


async def test_what_the_guest_did_by_itself_is_committed_only_when_a_call_asks_for_it(root: GuestRoot) -> None:
    """A first boot applies presets: a unit is then enabled in the guest, but not in the source."""
    (root / "etc/machine-id").unlink()
    (root / "etc/machine-id").write_text("uninitialized\n")
    before = root.changed_paths()
    async with Transaction.open(root.path) as transaction:
        status = await transaction.services.service_status("st-vendor-on")
        assert status.unit_file_state is UnitFileState.ENABLED
        assert await transaction.diff() == ()
        done = await transaction.services.service_enable("st-vendor-on")
        assert done.changes == ()
    assert root.changed_paths() - before == {f"{WANTS}/st-vendor-on.service"}


async def test_change_that_fails_half_way_is_declared_and_not_blamed_on_the_guest(root: GuestRoot) -> None:
    """A loop of symlinks: disabling another unit removes its symlinks, and then stumbles over the loop."""
    for name, target in (("loopa", "loopb"), ("loopb", "loopa")):
        (root / f"etc/systemd/system/{name}.service").symlink_to(f"{target}.service")
    before = root.changed_paths()
    async with Transaction.open(root.path) as transaction:
        outcome = (await transaction.services.services_disable_multiple(["st-enabled"])).items[0]
        changed = [change.path for change in await transaction.diff()]
        # Refused is known not to have happened; done and unknown are in the list of changes.
        assert changed == ([] if outcome.outcome is Outcome.REFUSED else [f"/{WANTS}/st-enabled.service"])
        await transaction.services.service_enable("st-disabled")
        paths = {change.path[1:] for change in await transaction.diff()}
    assert root.changed_paths() - before == paths
    assert f"{WANTS}/st-disabled.service" in paths


async def test_unit_that_is_enabled_in_run_as_well_is_disabled(guest: Transaction) -> None:
    await run_in_guest(guest.guest, ["/bin/sh", "-c", "systemctl enable --runtime st-enabled.service"])
    done = await guest.services.service_disable("st-enabled")
    assert done.unit_file_state is UnitFileState.DISABLED
    assert [change.path for change in await guest.diff()] == [f"/{WANTS}/st-enabled.service"]


async def test_disable_past_a_symlinked_directory_is_not_ok(root: GuestRoot) -> None:
    (root / WANTS).rename(root / "etc/mw")
    (root / WANTS).symlink_to("/etc/mw")
    async with Transaction.open(root.path, readonly=True) as transaction:
        with pytest.raises(OutcomeUnknown, match="pulled in"):
            await transaction.services.service_disable("st-enabled")


async def test_unit_directory_out_of_etc_is_refused_before_anything_changes(root: GuestRoot) -> None:
    (root / "etc/systemd/system").rename(root / "opt/units")
    (root / "etc/systemd/system").symlink_to("/opt/units")
    async with Transaction.open(root.path, readonly=True) as transaction:
        for call in (transaction.services.service_disable, transaction.services.service_enable):
            with pytest.raises(NotOurs):
                await call("st-enabled")
        assert (await transaction.services.service_status("st-enabled")).unit_file_state is UnitFileState.ENABLED


async def test_each_change_keeps_the_call_that_made_it(guest: Transaction) -> None:
    await guest.services.service_enable("st-tmpl@1")
    await guest.services.service_enable("st-tmpl@2")
    await guest.services.service_disable("cron")
    await guest.services.services_mask(["cron"])
    calls = {change.path.rpartition("/")[2]: (change.call, *change.args) for change in await guest.diff()}
    assert calls["st-tmpl@1.service"] == ("service_enable", "st-tmpl@1.service")
    assert calls["st-tmpl@2.service"] == ("service_enable", "st-tmpl@2.service")
    disabled = [change for change in await guest.diff() if change.path == f"/{WANTS}/cron.service"]
    assert [change.call for change in disabled] == ["service_disable"]


async def test_disable_that_the_first_boot_would_undo_warns(root: GuestRoot) -> None:
    (root / "etc/machine-id").unlink()
    async with Transaction.open(root.path, readonly=True) as transaction:
        done = await transaction.services.service_disable("st-vendor-on")
        assert [warning.key for warning in done.warnings] == ["first-boot"]
        off = await transaction.services.service_disable("st-vendor-off")
        assert off.warnings == ()


async def test_template_has_no_preset(guest: Transaction) -> None:
    with pytest.raises(InvalidName, match="template"):
        await guest.services.systemctl_preset("st-tmpl@")
