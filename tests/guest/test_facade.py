"""The plain calls on a real guest, as a caller has them: answers that are JSON, and blocks that are transactions."""

import contextlib
import datetime
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import guest_roots
from guest_roots import SLEEP, WANTED, GuestRoot
from vmcraft import VMCraft
from vmcraft.bus.systemd1 import Manager
from vmcraft.errors import (
    Conflict,
    Exists,
    InvalidName,
    InvalidValue,
    NoInit,
    NoSuchFile,
    NoSuchUnit,
    NotLaunched,
    UnknownFormat,
    VMCraftError,
)
from vmcraft.facade.blocking import BlockingVMCraft
from vmcraft.facade.calls import AsyncVMCraft
from vmcraft.host.overlay import STATE_DIR
from vmcraft.model.outcome import Outcome

pytestmark = pytest.mark.guest

NewRoot = Callable[[], GuestRoot]
WANTS = "etc/systemd/system/multi-user.target.wants"
ENABLED = f"{WANTS}/st-disabled.service"
DISABLED = f"{WANTS}/st-enabled.service"
SLOW = "[Service]\nType=notify\nTimeoutStartSec=infinity\nExecStart=/bin/sleep infinity\n"


@pytest.fixture
def g() -> Iterator[BlockingVMCraft]:
    """A booted guest through the blocking facade; nothing is committed."""
    with VMCraft() as opened:
        opened.add_drive_opts(str(guest_roots.planted("bookworm")), readonly=True)
        opened.launch()
        yield opened


@pytest.fixture
def root(new_root: NewRoot) -> GuestRoot:
    """A root of its own."""
    return new_root()


@contextlib.contextmanager
def opened(path: str, **options: Any) -> Iterator[BlockingVMCraft]:
    """A booted guest of a root, in a transaction."""
    with VMCraft() as facade:
        facade.add_drive_opts(path, **options)
        facade.launch()
        yield facade


def is_gone(machine: str) -> bool:
    """Whether nothing is left of a guest's directory on this host."""
    return not os.path.exists(f"{STATE_DIR}/guests/{machine}")


def assert_plain(value: object) -> None:
    """The value is what JSON has and nothing that only looks like it."""
    match value:
        case dict():
            assert type(value) is dict
            for key, inner in value.items():
                assert type(key) is str
                assert_plain(inner)
        case list():
            assert type(value) is list
            for inner in value:
                assert_plain(inner)
        case _:
            assert type(value) in (str, int, float, bool, type(None)), value


def assert_time(text: str) -> None:
    """An ISO 8601 time in UTC, of this boot or of the machine's own past."""
    moment = datetime.datetime.fromisoformat(text)
    assert moment.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - moment) < datetime.timedelta(hours=1)


# --- the answers


def test_every_call_answers_plain_json(g: BlockingVMCraft) -> None:
    changes: dict[str, dict[str, Any]] = {
        "start": g.systemd_service_start("st-static"),
        "start that fails": g.systemd_service_start("st-fail"),
        "stop": g.systemd_service_stop("st-static"),
        "restart": g.systemd_service_restart("st-static"),
        "enable": g.systemd_service_enable("st-disabled"),
        "disable": g.systemd_service_disable("st-enabled"),
        "reload": g.systemd_daemon_reload(),
        "preset": g.systemd_systemctl_preset("st-vendor-on"),
    }
    others: dict[str, object] = {
        "status": g.systemd_service_status("cron"),
        "enable many": g.systemd_services_enable_multiple(["st-vendor", "nope"]),
        "disable many": g.systemd_services_disable_multiple(["st-vendor", "nope"]),
        "mask": g.systemd_services_mask(["st-vendor", "nope"]),
        "warnings": g.warnings,
        "list": g.systemd_list_services(),
        "list some": g.systemd_list_services("running"),
        "failed": g.systemd_list_failed_services(),
        "dependencies": g.systemd_get_service_dependencies("cron"),
        "available": g.systemd_is_systemd_available(),
        "launch": g.launch(),
        "diff": g.diff(),
    }
    for name, answer in (changes | others).items():
        assert_plain(answer)
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer, name
        assert answer, name
    for name, answer in changes.items():
        assert answer.keys() >= {"attempted", "ok", "error", "outcome", "remedy"}, name
        assert (answer["attempted"], answer["ok"]) == (True, name != "start that fails"), name
        assert (answer["outcome"], answer["error"] is None) == (
            ("done", True) if answer["ok"] else ("refused", False)
        ), name


def test_control_answers_how_the_job_went(g: BlockingVMCraft) -> None:
    started = g.systemd_service_start("st-static")
    assert (started["job_result"], started["active"], started["sub"]) == ("done", "active", "running")
    assert (started["result"], started["exec_main_code"], started["exec_main_status"], started["log"]) == (
        ("success", 0, 0, [])
    )
    stopped = g.systemd_service_stop("st-static")
    assert (stopped["job_result"], stopped["active"]) == ("done", "inactive")
    failed = g.systemd_service_start("st-fail")
    assert failed["error"].startswith("job-failed: st-fail.service ")
    assert (failed["job_result"], failed["active"], failed["result"]) == ("failed", "failed", "exit-code")
    assert (failed["exec_main_code"], failed["exec_main_status"]) == (1, 1)
    assert "its last words" in [line["message"] for line in failed["log"]]
    for line in failed["log"]:
        assert line.keys() == {"timestamp", "priority", "message"}
        assert_time(line["timestamp"])
    skipped = g.systemd_service_start("st-cond")
    assert (skipped["ok"], skipped["job_result"]) == (False, "done")
    assert skipped["error"].startswith("condition-not-met: ")


def test_status_answers_numbers_and_times(g: BlockingVMCraft) -> None:
    status = g.systemd_service_status("cron")
    assert (status["name"], status["load"], status["active"], status["sub"]) == (
        *("cron.service", "loaded", "active", "running"),
    )
    assert_time(status["active_since"])
    assert type(status["main_pid"]) is int
    assert type(status["drop_ins"]) is list
    assert 0 < len(status["log"]) <= 10
    idle = g.systemd_service_status("st-disabled")
    assert (idle["main_pid"], idle["active_since"], idle["unit_file_state"]) == (None, None, "disabled")


def test_enablement_answers_the_symlinks_and_the_state_read_back(g: BlockingVMCraft) -> None:
    enabled = g.systemd_service_enable("st-disabled")
    assert enabled["changes"] == [
        {"type": "symlink", "path": f"/{ENABLED}", "source": "/etc/systemd/system/st-disabled.service"}
    ]
    assert enabled["unit_file_state"] == "enabled"
    assert g.systemd_service_enable("st-disabled")["changes"] == []
    disabled = g.systemd_service_disable("st-enabled")
    assert [(change["type"], change["path"]) for change in disabled["changes"]] == [("unlink", f"/{DISABLED}")]
    assert disabled["unit_file_state"] == "disabled"


@pytest.mark.parametrize(
    ("unit", "key", "attempted"),
    [
        ("nope", "no-such-unit", True),
        ("../x", "invalid-name", False),
        ("x\n", "invalid-name", False),
        ("x" * 300, "invalid-name", False),
        ("st-static", "not-enableable", None),
        ("st-masked", "not-enableable", None),
        ("st-tmpl@", "invalid-name", None),
    ],
    ids=ascii,
)
def test_what_is_refused_is_answered_with_key_and_sentence(
    g: BlockingVMCraft, unit: str, key: str, attempted: bool | None
) -> None:
    answer = g.systemd_service_enable(unit)
    assert_plain(answer)
    assert (answer["ok"], answer["outcome"]) == (False, "refused")
    found, colon, sentence = answer["error"].partition(": ")
    assert (found, colon) == (key, ": ")
    assert len(sentence) > 10
    assert sentence.isprintable()
    if attempted is not None:
        assert answer["attempted"] is attempted
    assert g.diff() == []


@pytest.mark.parametrize(
    ("unit", "key"),
    [
        ("nope", "no-such-unit"),
        ("a/b", "invalid-name"),
        ("st-masked", "unit-masked"),
        ("st-bad", "bad-setting"),
        ("st-cond", "condition-not-met"),
        ("st-exit3", "job-failed"),
        ("st-app", "dependency-failed"),
    ],
)
def test_start_that_is_refused_has_the_pages_key(g: BlockingVMCraft, unit: str, key: str) -> None:
    answer = g.systemd_service_start(unit)
    assert (answer["ok"], answer["outcome"], answer["error"].partition(": ")[0]) == (False, "refused", key)


@pytest.mark.parametrize("wrong", [None, 3, b"cron", ["cron"], True], ids=repr)
def test_wrong_type_is_raised(g: BlockingVMCraft, wrong: Any) -> None:
    for call in (
        *(g.systemd_service_start, g.systemd_service_stop, g.systemd_service_restart, g.systemd_service_enable),
        *(g.systemd_service_disable, g.systemd_service_status, g.systemd_get_service_dependencies),
        g.systemd_systemctl_preset,
    ):
        with pytest.raises(TypeError):
            call(wrong)


@pytest.mark.parametrize("wrong", [None, "cron", b"cron", 3, ["cron", 3], {"cron": True}, [None]], ids=repr)
def test_bulk_call_with_the_wrong_type_is_raised_and_does_nothing(g: BlockingVMCraft, wrong: Any) -> None:
    for call in (
        g.systemd_services_enable_multiple,
        g.systemd_services_disable_multiple,
        g.systemd_services_mask,
    ):
        with pytest.raises(TypeError):
            call(wrong)
    assert g.diff() == []


def test_query_about_what_does_not_exist_raises_with_all_that_a_program_needs(g: BlockingVMCraft) -> None:
    for query in (g.systemd_service_status, g.systemd_get_service_dependencies):
        with pytest.raises(NoSuchUnit, match=r"^nope\.service is not known to the guest$") as caught:
            query("nope")
        error: VMCraftError = caught.value
        assert (error.key, error.outcome, type(error.remedy)) == ("no-such-unit", Outcome.REFUSED, str)
        with pytest.raises(InvalidName) as invalid:
            query("../x")
        assert (invalid.value.key, invalid.value.outcome) == ("invalid-name", Outcome.REFUSED)
        assert invalid.value.remedy
    with pytest.raises(InvalidValue) as state:
        g.systemd_list_services("bogus")
    assert (state.value.key, state.value.outcome) == ("invalid-value", Outcome.REFUSED)
    assert state.value.remedy
    with pytest.raises(TypeError):
        g.systemd_list_services(3)  # type: ignore[arg-type]


def test_bulk_answers_names_as_given_and_the_warnings_say_why(g: BlockingVMCraft) -> None:
    names = ["st-disabled", "st-vendor.service", "nope", "../x", "st-static"]
    assert list(g.systemd_services_enable_multiple(names).items()) == [
        ("st-disabled", True),
        ("st-vendor.service", True),
        ("nope", False),
        ("../x", False),
        ("st-static", False),
    ]
    assert [(warning["call"], warning["key"]) for warning in g.warnings] == [
        ("services_enable_multiple", "no-such-unit"),
        ("services_enable_multiple", "invalid-name"),
        ("services_enable_multiple", "not-enableable"),
    ]
    assert all(len(warning["message"]) > 10 for warning in g.warnings)
    assert g.systemd_services_mask(("st-vendor-off", "nope")) == {"st-vendor-off": True, "nope": False}
    assert [warning["call"] for warning in g.warnings] == ["services_mask"]
    assert g.systemd_services_disable_multiple([]) == {}
    assert g.warnings == []


def test_typed_managers_are_there_beside_the_plain_calls(g: BlockingVMCraft) -> None:
    status = g.services.service_status("cron")
    assert status.main_pid == g.systemd_service_status("cron")["main_pid"]
    with pytest.raises(NoSuchUnit):
        g.services.service_enable("nope")


def test_launch_twice_gives_the_same_answer_and_the_same_guest(g: BlockingVMCraft) -> None:
    first = g.launch()
    assert first.keys() >= {"state", "ready_s", "finished_s", "machine", "systemd_version", "failed", "hanging"}
    assert (first["state"], first["failed"], first["hanging"]) == ("degraded", ["st-boot-fails.service"], [])
    assert 0 < first["ready_s"] <= first["finished_s"]
    assert first["systemd_version"].startswith("252")
    pid = g.systemd_service_status("cron")["main_pid"]
    assert g.launch() == first
    assert g.launch(boot_limit=1) == first
    assert g.systemd_service_status("cron")["main_pid"] == pid


# --- before a launch


def test_nothing_is_asked_before_launch() -> None:
    with VMCraft() as g:
        g.add_drive_opts(str(guest_roots.planted("bookworm")))
        for call in (g.systemd_list_services, g.systemd_daemon_reload, g.diff, g.commit, g.discard):
            with pytest.raises(NotLaunched, match="not booted"):
                call()
        assert g.systemd_is_systemd_available() is True


def test_root_without_systemd_says_so_before_launch_and_launch_raises(tmp_path: Path) -> None:
    with VMCraft() as g:
        g.add_drive_opts(str(tmp_path))
        assert g.systemd_is_systemd_available() is False
        with pytest.raises(NoInit) as caught:
            g.launch()
        assert caught.value.key == "systemd_not_available"
        assert g.systemd_is_systemd_available() is False
    assert list(tmp_path.iterdir()) == []


def test_drive_that_cannot_be_opened_is_refused_when_it_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    with VMCraft() as g:
        with pytest.raises(NoSuchFile):
            g.add_drive_opts(str(tmp_path / "missing"))
        with pytest.raises(NoSuchFile):
            g.add_drive_opts("a\0b")
        with pytest.raises(UnknownFormat):
            g.add_drive_opts(str(disk))
        with pytest.raises(Exists):
            g.add_drive_opts(str(tmp_path), output=str(disk))
        with pytest.raises(InvalidValue):
            g.add_drive_opts(str(tmp_path), format="raw")
        with pytest.raises(NotLaunched):
            g.launch()


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": None},
        {"path": 3},
        {"path": b"/"},
        {"format": 3},
        {"readonly": "no"},
        {"readonly": None},
        {"output": 3},
        {"output_format": 3},
        {"key_file": 3},
    ],
    ids=repr,
)
def test_drive_with_a_wrong_type_is_a_type_error(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with VMCraft() as g, pytest.raises(TypeError):
        g.add_drive_opts(**{"path": str(tmp_path), **wrong})


@pytest.mark.parametrize("wrong", [{"boot_limit": "120"}, {"boot_limit": None}, {"boot_limit": True}, {"root": 3}])
def test_launch_with_a_wrong_type_is_a_type_error(wrong: dict[str, Any]) -> None:
    with VMCraft() as g:
        g.add_drive_opts(str(guest_roots.planted("bookworm")), readonly=True)
        with pytest.raises(TypeError):
            g.launch(**wrong)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), 1e9])
def test_launch_with_a_limit_that_is_none_is_refused(limit: float) -> None:
    with VMCraft() as g:
        g.add_drive_opts(str(guest_roots.planted("bookworm")), readonly=True)
        with pytest.raises(InvalidValue):
            g.launch(boot_limit=limit)


# --- the use cases of the proposal, as written there


def seed_cleanup(root_path: str) -> None:
    """Disable what belongs to the old hypervisor, enable what belongs to the new one."""
    with VMCraft() as g:
        g.add_drive_opts(root_path)
        g.launch()
        vmware_services = ["vmtoolsd", "vmware-tools", "open-vm-tools"]
        g.systemd_services_disable_multiple(vmware_services)
        g.systemd_service_enable("qemu-guest-agent")


def seed_failures(root_path: str) -> None:
    """Tell which services fail, and how."""
    with VMCraft() as g:
        g.add_drive_opts(root_path)
        g.launch()
        failed = g.systemd_list_failed_services()
        if failed:
            print(f"Failed services: {', '.join(failed)}")
            for service in failed:
                print(f"{service}: {g.systemd_service_status(service)}")


def test_use_case_of_guest_tools_leaves_exactly_their_symlinks(root: GuestRoot) -> None:
    vendor, etc = root / "lib/systemd/system", root / "etc/systemd/system"
    (vendor / "open-vm-tools.service").write_text(SLEEP + WANTED + "Alias=vmtoolsd.service\n")
    (vendor / "qemu-guest-agent.service").write_text(SLEEP + WANTED)
    (etc / "vmtoolsd.service").symlink_to("/lib/systemd/system/open-vm-tools.service")
    (root / WANTS / "open-vm-tools.service").symlink_to("/lib/systemd/system/open-vm-tools.service")
    planted = guest_roots.manifest(root.path)
    seed_cleanup(root.path)
    after = guest_roots.manifest(root.path)
    assert planted.keys() - after.keys() == {"etc/systemd/system/vmtoolsd.service", f"{WANTS}/open-vm-tools.service"}
    assert after.keys() - planted.keys() == {f"{WANTS}/qemu-guest-agent.service"}
    assert {path for path in planted.keys() & after.keys() if planted[path] != after[path]} == set()
    assert (root / WANTS / "qemu-guest-agent.service").readlink().name == "qemu-guest-agent.service"


def test_use_case_of_guest_tools_changes_nothing_where_there_are_none(root: GuestRoot) -> None:
    seed_cleanup(root.path)
    assert root.changed_paths() == set()


def test_use_case_of_failed_services_tells_how_they_failed(root: GuestRoot, capsys: pytest.CaptureFixture[str]) -> None:
    seed_failures(root.path)
    printed = capsys.readouterr().out
    assert printed.startswith("Failed services: st-boot-fails.service\nst-boot-fails.service: {")
    assert "no such disk" in printed
    assert "'exec_main_status': 4" in printed
    assert root.changed_paths() == set()


# --- the block is a transaction


def test_block_that_ends_normally_is_committed(root: GuestRoot) -> None:
    with opened(root.path) as g:
        assert g.systemd_service_enable("st-disabled")["ok"]
        assert g.systemd_service_disable("st-enabled")["ok"]
        assert root.changed_paths() == set()
    assert root.changed_paths() == {ENABLED, DISABLED}
    assert (root / ENABLED).readlink() == Path("/etc/systemd/system/st-disabled.service")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_that_leaves_the_block_is_the_callers_and_nothing_is_written(
    root: GuestRoot, error: type[BaseException]
) -> None:
    def block() -> None:
        with opened(root.path) as g:
            assert g.systemd_service_enable("st-disabled")["ok"]
            raise error("the caller's own")

    with pytest.raises(error, match="the caller's own"):
        block()
    assert root.changed_paths() == set()


def test_refused_change_does_not_keep_the_others_from_being_committed(root: GuestRoot) -> None:
    with opened(root.path) as g:
        assert not g.systemd_service_enable("nope")["ok"]
        assert g.systemd_service_enable("st-disabled")["ok"]
    assert root.changed_paths() == {ENABLED}


def test_readonly_drive_is_never_written(root: GuestRoot) -> None:
    with opened(root.path, readonly=True) as g:
        assert g.systemd_service_enable("st-disabled")["ok"]
        assert [change["path"] for change in g.diff()] == [f"/{ENABLED}"]
        with pytest.raises(InvalidValue, match="readonly") as caught:
            g.commit()
        assert caught.value.remedy
    assert root.changed_paths() == set()


@pytest.fixture
def output() -> Iterator[Path]:
    """A path for a new root, on the file system of the others; removed at the end."""
    path = guest_roots.CACHE / "test-roots" / f"output-{os.urandom(4).hex()}"
    yield path
    if path.exists():
        shutil.rmtree(path)


def test_output_gets_the_changes_and_the_source_is_untouched(root: GuestRoot, output: Path) -> None:
    with opened(root.path, output=str(output)) as g:
        assert g.systemd_service_enable("st-disabled")["ok"]
        assert not output.exists()
    assert root.changed_paths() == set()
    copy = guest_roots.manifest(str(output))
    assert {path for path in copy.keys() | root.before.keys() if copy.get(path) != root.before.get(path)} == {ENABLED}
    with opened(str(output), readonly=True) as g:
        assert g.systemd_service_status("st-disabled")["unit_file_state"] == "enabled"


def test_output_is_not_made_when_an_exception_leaves_the_block(root: GuestRoot, output: Path) -> None:
    def block() -> None:
        with opened(root.path, output=str(output)) as g:
            assert g.systemd_service_enable("st-disabled")["ok"]
            raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        block()
    assert not output.exists()
    assert [one.name for one in output.parent.iterdir() if one.name.startswith(output.name)] == []
    assert root.changed_paths() == set()


def test_commit_in_the_middle_is_followed_by_more_changes(root: GuestRoot) -> None:
    with opened(root.path) as g:
        g.systemd_service_enable("st-disabled")
        committed = g.commit()
        assert_plain(committed)
        assert ([change["path"] for change in committed["changes"]], committed["output"]) == ([f"/{ENABLED}"], None)
        assert root.changed_paths() == {ENABLED}
        assert g.diff() == []
        assert g.systemd_service_disable("st-enabled")["ok"]
        assert [change["path"] for change in g.diff()] == [f"/{DISABLED}"]
    assert root.changed_paths() == {ENABLED, DISABLED}


def test_committed_change_can_be_taken_back_in_the_same_block(root: GuestRoot) -> None:
    with opened(root.path) as g:
        g.systemd_service_enable("st-disabled")
        g.commit()
        assert g.systemd_service_disable("st-disabled")["ok"]
        assert [(change["path"], change["change"]) for change in g.diff()] == [(f"/{ENABLED}", "removed")]
    assert root.changed_paths() == set()


@pytest.mark.parametrize("ending", ["block", "commit"])
def test_change_that_was_taken_back_before_the_commit_does_not_hinder_the_others(root: GuestRoot, ending: str) -> None:
    with opened(root.path) as g:
        assert g.systemd_service_enable("st-vendor")["ok"]
        assert g.systemd_service_disable("st-vendor")["ok"]
        assert g.systemd_service_enable("st-disabled")["ok"]
        assert [change["path"] for change in g.diff()] == [f"/{ENABLED}"]
        if ending == "commit":
            assert [change["path"] for change in g.commit()["changes"]] == [f"/{ENABLED}"]
    assert root.changed_paths() == {ENABLED}


def test_commit_after_all_was_taken_back_writes_nothing(root: GuestRoot) -> None:
    with opened(root.path) as g:
        assert g.systemd_service_enable("st-vendor")["ok"]
        assert g.systemd_service_disable("st-vendor")["ok"]
        assert g.commit() == {"changes": [], "output": None}
    assert root.changed_paths() == set()


def test_commit_of_nothing_writes_nothing(root: GuestRoot) -> None:
    with opened(root.path) as g:
        assert g.commit() == {"changes": [], "output": None}
    assert root.changed_paths() == set()


def test_discarded_call_really_changes_again(root: GuestRoot) -> None:
    with opened(root.path) as g:
        first = g.systemd_service_enable("st-disabled")
        assert len(first["changes"]) == 1
        g.discard()
        assert g.diff() == []
        assert g.systemd_service_status("st-disabled")["unit_file_state"] == "disabled"
        assert root.changed_paths() == set()
        again = g.systemd_service_enable("st-disabled")
        assert again == first
        assert [change["path"] for change in g.diff()] == [f"/{ENABLED}"]
    assert root.changed_paths() == {ENABLED}


def test_discard_leaves_nothing_to_commit(root: GuestRoot) -> None:
    with opened(root.path) as g:
        g.systemd_service_enable("st-disabled")
        g.discard()
    assert root.changed_paths() == set()


def test_diff_tells_what_a_commit_writes(g: BlockingVMCraft) -> None:
    g.systemd_service_enable("st-disabled")
    g.systemd_service_disable("st-enabled")
    g.systemd_services_mask(["cron"])
    found = g.diff()
    assert_plain(found)
    assert [(change["path"], change["change"], change["call"], change["args"]) for change in found] == [
        ("/etc/systemd/system/cron.service", "created", "services_mask", ["cron.service"]),
        (f"/{ENABLED}", "created", "service_enable", ["st-disabled.service"]),
        (f"/{DISABLED}", "removed", "service_disable", ["st-enabled.service"]),
    ]
    assert [(change["before"], change["after"]) for change in found] == [
        (None, "/dev/null"),
        (None, "/etc/systemd/system/st-disabled.service"),
        ("/etc/systemd/system/st-enabled.service", None),
    ]


def test_symlink_whose_target_is_not_utf8_can_be_told_and_committed(root: GuestRoot) -> None:
    link = os.fsencode(root / DISABLED)
    os.unlink(link)
    os.symlink(b"/opt/\xff/../../etc/systemd/system/st-enabled.service", link)
    (root / os.fsdecode(b"opt/\xff")).mkdir()
    before = root.changed_paths()
    with opened(root.path) as g:
        assert g.systemd_service_disable("st-enabled")["ok"]
        found = g.diff()
        assert_plain(found)
        assert [(change["path"], change["change"]) for change in found] == [(f"/{DISABLED}", "removed")]
        assert [change["path"] for change in g.commit()["changes"]] == [f"/{DISABLED}"]
    assert not os.path.lexists(link)
    assert root.changed_paths() == before


@pytest.mark.parametrize("name", ["a $HOME", "cost$$5", "50%n", "a:b,c\\d", "ü 'x' \"y\"", "-x", "${PATH}"])
def test_root_with_an_odd_path_is_the_one_that_is_booted(root: GuestRoot, name: str) -> None:
    """The path passes a unit's command line, nspawn's and overlayfs' options; each has its own special characters."""
    parent = guest_roots.CACHE / "test-roots" / f"odd-{os.urandom(4).hex()}"
    parent.mkdir()
    os.rename(root.path, parent / name)
    try:
        with opened(str(parent / name)) as g:
            assert g.systemd_service_enable("st-disabled")["ok"]
        assert (parent / name / ENABLED).is_symlink()
    finally:
        os.rename(parent / name, root.path)
        parent.rmdir()


# --- two at once


def test_two_guests_of_one_root_live_side_by_side_and_know_nothing_of_each_other(root: GuestRoot) -> None:
    with opened(root.path, readonly=True) as first, opened(root.path, readonly=True) as second:
        assert first.launch()["machine"] != second.launch()["machine"]
        assert first.systemd_service_enable("st-disabled")["ok"]
        assert second.systemd_service_status("st-disabled")["unit_file_state"] == "disabled"
        assert second.diff() == []
        assert second.systemd_service_start("st-static")["ok"]
        assert first.systemd_service_status("st-static")["active"] == "inactive"
    assert root.changed_paths() == set()


def test_commit_while_another_guest_lives_on_the_root_is_a_conflict_and_can_be_repeated(root: GuestRoot) -> None:
    with opened(root.path) as first:
        first.systemd_service_enable("st-disabled")
        with opened(root.path, readonly=True) as second:
            with pytest.raises(Conflict, match="in use") as caught:
                first.commit()
            assert (caught.value.key, caught.value.outcome) == ("conflict", Outcome.REFUSED)
            assert caught.value.remedy
            assert root.changed_paths() == set()
            assert second.systemd_service_status("st-disabled")["unit_file_state"] == "disabled"
        assert [change["path"] for change in first.diff()] == [f"/{ENABLED}"]
    assert root.changed_paths() == {ENABLED}


def test_commit_that_fails_at_the_end_of_the_block_raises_and_the_guest_is_gone(root: GuestRoot) -> None:
    machines = []

    def block() -> None:
        with opened(root.path) as g:
            machines.append(g.launch()["machine"])
            assert g.systemd_service_enable("st-disabled")["ok"]

    with opened(root.path, readonly=True) as other:
        with pytest.raises(Conflict):
            block()
        assert root.changed_paths() == set()
        assert [is_gone(machine) for machine in machines] == [True]
        assert not is_gone(other.launch()["machine"])
        assert other.systemd_is_systemd_available()


# --- an interrupt in the middle of a call


async def job_of(manager: Manager, unit: str) -> None:
    """Return when a job of the unit is there."""
    with anyio.fail_after(20):
        while not [job for job in await manager.list_jobs() if job.unit == unit]:
            await anyio.lowlevel.checkpoint()


@contextlib.contextmanager
def control_c_when(g: BlockingVMCraft, unit: str) -> Iterator[None]:
    """Have a user press Ctrl-C once the unit has a job; SIGINT is as at a terminal (a background job ignores it)."""

    def press() -> None:
        g._portal.call(job_of, g._inner._transaction.guest.manager, unit)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


async def usable(g: AsyncVMCraft) -> None:
    """The guest does what it did before."""
    assert (await g.systemd_service_start("st-static"))["ok"]
    assert (await g.systemd_service_stop("st-slow"))["active"] in ("inactive", "failed")
    assert (await g.systemd_service_status("st-slow"))["active"] in ("inactive", "failed")


async def test_cancelled_start_takes_its_job_back_and_leaves_the_guest_usable(root: GuestRoot) -> None:
    (root / "etc/systemd/system/st-slow.service").write_text(SLOW)
    async with VMCraft() as g:
        await g.add_drive_opts(root.path, readonly=True)
        await g.launch()
        manager = g._transaction.guest.manager
        returned = []

        async def start() -> None:
            returned.append(await g.systemd_service_start("st-slow"))

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            await job_of(manager, "st-slow.service")
            group.cancel_scope.cancel()
        assert returned == []
        assert await manager.list_jobs() == ()
        await usable(g)


def test_interrupt_in_a_blocking_call_takes_its_job_back(root: GuestRoot) -> None:
    (root / "etc/systemd/system/st-slow.service").write_text(SLOW)
    with opened(root.path, readonly=True) as g:
        with control_c_when(g, "st-slow.service"), pytest.raises(KeyboardInterrupt):
            g.systemd_service_start("st-slow")
        assert g._portal.call(g._inner._transaction.guest.manager.list_jobs) == ()
        g._portal.call(usable, g._inner)


def test_interrupt_that_leaves_the_block_writes_nothing(root: GuestRoot) -> None:
    (root / "etc/systemd/system/st-slow.service").write_text(SLOW)
    before = root.changed_paths()

    machines = []

    def block() -> None:
        with opened(root.path) as g:
            machines.append(g.launch()["machine"])
            assert g.systemd_service_enable("st-disabled")["ok"]
            with control_c_when(g, "st-slow.service"):
                g.systemd_service_start("st-slow")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert root.changed_paths() == before
    assert [is_gone(machine) for machine in machines] == [True]
