"""The command line as a user types it, on a real guest: exit status, what is printed where, what is written."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import guest_roots
import leaks
from guest_roots import GuestRoot
from vmcraft.cli.exit_codes import ExitCode

pytestmark = pytest.mark.cli
WANTS = "etc/systemd/system/multi-user.target.wants"
Ran = subprocess.CompletedProcess[str]


def vmcraft(*words: str, given: str | None = None) -> Ran:
    """Run the command without a terminal."""
    run = [sys.executable, "-m", "vmcraft", *words]
    return subprocess.run(run, input=given or "", capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def guest() -> str:
    """A guest that no test changes."""
    return str(guest_roots.planted("bookworm"))


@pytest.fixture
def root() -> Iterator[GuestRoot]:
    """A guest of its own."""
    made = guest_roots.copy(guest_roots.planted("bookworm"))
    yield made
    guest_roots.remove(made)


def test_help_has_the_table_of_exit_codes_and_every_command_has_help() -> None:
    ran = vmcraft("--help")
    assert ran.returncode == 0
    for code in ExitCode:
        assert f"\n  {code.value} " in ran.stdout
    for command in (["services"], ["services", "disable"], ["shell"], ["sweep"], ["recover"], ["doctor"]):
        assert vmcraft(*command, "--help").returncode == 0


@pytest.mark.parametrize("words", [[], ["bogus"], ["services"], ["services", "enable"], ["services", "list"]])
def test_wrong_command_line_is_a_usage_error(words: list[str]) -> None:
    ran = vmcraft(*words)
    assert ran.returncode == ExitCode.USAGE
    assert ran.stdout == ""
    assert "usage:" in ran.stderr


def test_list_is_a_table_for_people_and_json_for_programs(guest: str) -> None:
    people = vmcraft("services", "list", guest, "--state", "failed")
    assert people.returncode == ExitCode.OK
    assert people.stdout.splitlines()[1].split()[:2] == ["st-boot-fails.service", "enabled"]
    assert "\x1b" not in people.stdout + people.stderr
    programs = vmcraft("services", "list", guest, "--json")
    rows = json.loads(programs.stdout)
    assert {"name", "load", "active", "sub", "description", "unit_file_state", "held_back"} == set(rows[0])
    assert programs.stderr == ""
    wrong = vmcraft("services", "list", guest, "--state", "bogus")
    assert wrong.returncode == ExitCode.REFUSED
    assert "invalid-value" in wrong.stderr


def test_failed_shows_the_cause_and_the_last_words(guest: str) -> None:
    ran = vmcraft("services", "failed", guest)
    assert ran.returncode == ExitCode.OK
    assert "exit status 4" in ran.stdout
    assert "no such disk" in ran.stdout
    assert "ready in" in ran.stderr
    failed = json.loads(vmcraft("services", "failed", guest, "--json").stdout)
    assert [one["name"] for one in failed] == ["st-boot-fails.service"]


def test_status_and_deps_answer_for_each_unit_and_fail_for_one_that_is_unknown(guest: str) -> None:
    ran = vmcraft("services", "status", guest, "cron", "nope")
    assert ran.returncode == ExitCode.REFUSED
    assert "cron.service" in ran.stdout
    assert "no-such-unit: nope.service" in ran.stderr
    deps = vmcraft("services", "deps", guest, "st-depmissing", "--json")
    assert deps.returncode == ExitCode.OK
    assert json.loads(deps.stdout)["st-depmissing"]["missing"] == ["st-nothere.service", "st-nowhere.service"]


def test_change_without_a_terminal_needs_yes_and_leaves_things_untouched(root: GuestRoot) -> None:
    ran = vmcraft("services", "enable", root.path, "st-disabled")
    assert ran.returncode == ExitCode.NOT_CONFIRMED
    assert f"+ /{WANTS}/st-disabled.service -> /etc/systemd/system/st-disabled.service" in ran.stdout
    assert "--yes" in ran.stderr
    assert root.changed_paths() == set()


def test_dry_run_shows_the_list_and_writes_nothing(root: GuestRoot) -> None:
    ran = vmcraft("services", "disable", root.path, "st-enabled", "--dry-run", "--yes")
    assert ran.returncode == ExitCode.OK
    assert f"- /{WANTS}/st-enabled.service" in ran.stdout
    assert root.changed_paths() == set()


def test_yes_commits_exactly_the_list(root: GuestRoot) -> None:
    ran = vmcraft("services", "disable", root.path, "st-enabled", "--yes", "--json")
    assert ran.returncode == ExitCode.OK
    answer = json.loads(ran.stdout)
    assert answer["committed"] is True
    assert [change["path"] for change in answer["changes"]] == [f"/{WANTS}/st-enabled.service"]
    assert root.changed_paths() == {f"{WANTS}/st-enabled.service"}
    again = vmcraft("services", "disable", root.path, "st-enabled", "--yes")
    assert again.returncode == ExitCode.OK
    assert "nothing to commit" in again.stdout


def test_partial_refusal_commits_nothing_unless_told_to_keep_going(root: GuestRoot) -> None:
    ran = vmcraft("services", "mask", root.path, "cron", "nope", "--yes")
    assert ran.returncode == ExitCode.REFUSED
    assert "no-such-unit" in ran.stderr
    assert root.changed_paths() == set()
    ran = vmcraft("services", "mask", root.path, "cron", "nope", "--yes", "--keep-going")
    assert ran.returncode == ExitCode.REFUSED
    assert root.changed_paths() == {"etc/systemd/system/cron.service"}


def test_output_is_a_new_root_and_the_source_stays(root: GuestRoot) -> None:
    new = root.path + ".new"
    try:
        ran = vmcraft("services", "preset", root.path, "st-vendor-on", "--yes", "--output", new)
        assert ran.returncode == ExitCode.OK
        assert root.changed_paths() == set()
        assert os.path.islink(f"{new}/{WANTS}/st-vendor-on.service")
        assert vmcraft("services", "enable", root.path, "cron", "--yes", "--output", new).returncode == ExitCode.REFUSED
    finally:
        subprocess.run(["rm", "-rf", new], check=True)


def test_start_says_what_happened_and_commits_nothing(root: GuestRoot) -> None:
    good = vmcraft("services", "start", root.path, "st-static")
    assert good.returncode == ExitCode.OK
    assert "active (running)" in good.stdout
    bad = vmcraft("services", "start", root.path, "st-exit3", "st-oneshot", "--json")
    assert bad.returncode == ExitCode.REFUSED
    answers = json.loads(bad.stdout)
    assert [answer["outcome"] for answer in answers] == ["refused", "done"]
    assert answers[0]["run"]["exec_main_status"] == 3
    assert root.changed_paths() == set()


def test_confirmation_on_a_terminal_is_asked_for(root: GuestRoot) -> None:
    for answer, written in ((b"n\n", set()), (b"y\n", {f"{WANTS}/st-enabled.service"})):
        ours, theirs = pty.openpty()
        run = [sys.executable, "-m", "vmcraft", "services", "disable", root.path, "st-enabled"]
        with subprocess.Popen(run, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            said = b""
            while b"[y/N]" not in said:
                said += os.read(ours, 4096)
            os.write(ours, answer)
            code = process.wait(timeout=60)
        os.close(ours)
        assert code == (ExitCode.OK if written else ExitCode.NOT_CONFIRMED)
        assert root.changed_paths() == written


def test_shell_runs_in_the_guest_and_throws_everything_away(root: GuestRoot) -> None:
    script = 'test "$(cat /etc/hostname)" && id -u && rm -rf /opt && exit 7'
    ran = vmcraft("shell", root.path, "--", "/bin/sh", "-c", script)
    assert ran.returncode == 7
    assert ran.stdout.strip() == "0"
    assert vmcraft("shell", root.path, "--boot-limit", "60", "--", "false").returncode == 1
    missing = vmcraft("shell", root.path, "--", "/nope")
    assert missing.returncode == 203
    assert "cannot be executed in the guest" in missing.stderr
    assert vmcraft("shell", root.path, given="echo from $0; exit 3\n").returncode == 3
    assert root.changed_paths() == set()


def test_guests_that_cannot_be_opened_have_an_exit_code_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb")
    for path, code, key in (
        (str(tmp_path), ExitCode.GUEST, "systemd_not_available"),
        (str(tmp_path / "disk.qcow2"), ExitCode.GUEST, "unknown-format"),
        (str(tmp_path / "nothing"), ExitCode.REFUSED, "no-such-file"),
    ):
        ran = vmcraft("services", "list", path)
        assert ran.returncode == code
        assert f"vmcraft: {key}: " in ran.stderr
        assert "Traceback" not in ran.stderr
        shown = json.loads(vmcraft("services", "list", path, "--json").stdout)
        assert shown["key"] == key


def test_without_root_it_says_so(guest: str) -> None:
    run = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "vmcraft"]
    for words in (["services", "list", guest], ["sweep"], ["doctor"]):
        ran = subprocess.run([*run, *words], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == ExitCode.HOST
        assert "root" in ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr


def test_doctor_finds_this_host_fit() -> None:
    ran = vmcraft("doctor", "--json")
    checks = {check["name"]: check["health"] for check in json.loads(ran.stdout)}
    assert ran.returncode == ExitCode.OK
    assert checks["systemd and machined"] == "ok"
    assert checks["id-mapped mounts"] == "ok"
    assert "systemd-nspawn" in vmcraft("doctor").stdout


def test_sweep_and_recover_have_nothing_to_do_after_all_this() -> None:
    assert json.loads(vmcraft("sweep", "--json").stdout) == {"guests": [], "kept": [], "recovered": []}
    assert vmcraft("recover").stdout == "no commit was interrupted\n"
    assert leaks.found() == []


def test_interrupt_ends_the_guest_and_commits_nothing(root: GuestRoot) -> None:
    run = [sys.executable, "-m", "vmcraft", "services", "start", root.path, "st-timeout", "st-timeout", "st-timeout"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "ready in" in process.stderr.readline()
        process.send_signal(2)
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    assert leaks.found() == []


def test_interrupt_at_the_question_ends_it(root: GuestRoot) -> None:
    ours, theirs = pty.openpty()
    run = [sys.executable, "-m", "vmcraft", "services", "disable", root.path, "st-enabled"]
    with subprocess.Popen(run, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        process.send_signal(2)
        assert process.wait(timeout=30) == ExitCode.INTERRUPTED
    os.close(ours)
    assert root.changed_paths() == set()
    assert leaks.found() == []


def test_guest_cannot_forge_the_list_that_is_confirmed(root: GuestRoot) -> None:
    link = root / WANTS / "st-enabled.service"
    link.unlink()
    link.symlink_to("/lib/systemd/\x1b[2K\x1b]0;pwn\a\x1b[1A../../../etc/systemd/system/st-enabled.service")
    ours, theirs = pty.openpty()
    run = [sys.executable, "-m", "vmcraft", "services", "disable", root.path, "st-enabled", "--dry-run"]
    with subprocess.Popen(run, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:
            pass
        process.wait(timeout=30)
    os.close(ours)
    assert b"st-enabled.service" in said
    assert b"\x1b[2K" not in said
    assert b"\x1b]0;" not in said


def test_lost_output_does_not_decide_about_the_commit(root: GuestRoot) -> None:
    words = f"{sys.executable} -m vmcraft services"
    head = f"set -o pipefail; {words} list {root.path} | head -1 >/dev/null"
    assert subprocess.run(["bash", "-c", head], timeout=60, check=False).returncode == ExitCode.OK
    for verb, option in (("disable", "--json"), ("enable", "")):
        full = f"{words} {verb} {root.path} st-enabled --yes {option} >/dev/full"
        ran = subprocess.run(["bash", "-c", full], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == ExitCode.HOST
        assert "were committed" in ran.stderr
        assert "Traceback" not in ran.stderr
        assert (root / WANTS / "st-enabled.service").is_symlink() == (verb == "enable")
