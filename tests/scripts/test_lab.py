"""scripts/lab: a command in the lab is as good as one on a systemd host, and nothing is left after it.

The lab cannot be started inside itself, so scripts/test runs this folder outside, with a lab of its own. Where PID 1 is
systemd (a real host, or the rest of the suite inside the lab) there is no lab to test: only that commands pass through.
"""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.scripts, pytest.mark.timeout(120)]

SCRIPT = str(Path(__file__).resolve().parents[2] / "scripts" / "lab")
PYTHON = "/usr/bin/python3"
INSIDE = Path("/run/systemd/system").is_dir()
needs_lab = pytest.mark.skipif(INSIDE, reason="PID 1 is systemd: this machine needs no lab")

# Blocks every signal, says "ready", and tells by its exit code which one came.
SIGWAIT = """
import signal, sys
waited = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, waited)
print("ready", flush=True)
sys.exit(40 + signal.sigwait(waited))
"""

JOB = """
import signal
signal.signal(signal.SIGCONT, lambda *_: print("continued", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


class Lab:
    """The script with a state directory of our own, so that the shared lab is not disturbed."""

    def __init__(self, state: Path, script: str = SCRIPT) -> None:
        self.state = state
        self.prefix = [script, "--state", str(state)]

    def __call__(
        self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **(env or {})}
        command = [*self.prefix, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=environment)

    def output(self, *arguments: str) -> str:
        """The output of a command in the lab that must succeed in silence."""
        done = self("run", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.prefix, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def record(self) -> dict[str, Any]:
        """What the script knows of its lab."""
        found: dict[str, Any] = json.loads((self.state / "lab.json").read_text())
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    assert lab("stop").returncode == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script needs of its checkout, to be changed."""
    scripts = Path(SCRIPT).parent
    copy = tmp_path / "a checkout" / "scripts"
    shutil.copytree(scripts / "labhost", copy / "labhost", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(scripts / "lab", copy)
    return copy.parent


def traces(record: dict[str, Any], state: Path, files: str = "no files") -> dict[str, list[str]]:
    """Everything on this machine that is of one lab. Others work on it, too: only what carries its names."""
    nspawn = [str(path) for path in Path("/run/systemd/nspawn").rglob("*")]
    loops = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    private = [
        path for place in ("/tmp", "/var/tmp") for path in Path(place).glob(f"systemd-private-{record['boot_id']}-*")
    ]
    return {
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").rglob(record["name"])],
        "nspawn": [path for path in nspawn if record["name"] in path or path.endswith(f"inode-{record['root']}")],
        "private": [str(path) for path in private],
        "loops": [path for path in loops if files in path],
        "mounts": [line for line in mounts if str(state) in line or record["name"] in line],
        "processes": processes(f"--machine={record['name']}"),
    }


def found(traces: dict[str, list[str]]) -> set[str]:
    """The kinds of which there are any."""
    return {kind for kind, those in traces.items() if those}


def processes(mark: str) -> list[str]:
    """Processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [str(path)] * (mark.encode() in words)
    return found


# --- a host ----------------------------------------------------------------------------------------------------------


@needs_lab
def test_is_a_running_systemd_host_where_nothing_failed(lab: Lab) -> None:
    assert lab.output("systemctl", "is-system-running") == "running\n"
    assert lab.output("cat", "/proc/1/comm") == "systemd\n"
    assert lab.output("machinectl", "list", "--no-legend") == ""


@needs_lab
def test_starts_none_of_the_services_that_the_machine_has_enabled(lab: Lab) -> None:
    running = lab.output("systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend")
    assert {line.split()[0] for line in running.splitlines()} == {
        "dbus.service",
        "polkit.service",
        "systemd-journald.service",
        "systemd-logind.service",
        "systemd-machined.service",
    }


@needs_lab
def test_has_no_network_card(lab: Lab) -> None:
    assert [link["ifname"] for link in json.loads(lab.output("ip", "-j", "link"))] == ["lo"]


@needs_lab
@pytest.mark.parametrize("path", ["/dev/fuse", "/dev/loop-control", "/dev/loop0", "/dev/loop20", "/dev/net/tun"])
def test_has_the_device_nodes_that_images_and_cards_need(lab: Lab, path: str) -> None:
    assert lab("run", "test", "-c" if "/dev/loop" not in path or "control" in path else "-b", path).returncode == 0


@needs_lab
def test_a_boot_does_not_clean_the_machines_tmp(lab: Lab, tmp_path: Path) -> None:
    # Debian's tmpfiles.d empties /tmp at boot and removes /tmp/systemd-private-*: in the lab /tmp is the machine's.
    kept = [Path(directory, f"systemd-private-vmlab-test-{os.getpid()}") for directory in ("/tmp", "/var/tmp")]
    lab("stop")
    try:
        for path in kept:
            path.mkdir()
        assert lab.output("stat", "-c", "%i", str(kept[0])) == f"{kept[0].stat().st_ino}\n"
        assert [path.is_dir() for path in kept] == [True, True]
        assert tmp_path.is_dir()
    finally:
        for path in kept:
            path.rmdir()


@needs_lab
def test_idmapped_mounts_and_overlay_uppers_work_where_people_keep_roots(lab: Lab) -> None:
    for directory in ("/tmp", "/var/tmp", "/var/cache", "/root", "/var/lib/vmcraft"):
        kind = lab.output("findmnt", "-no", "FSTYPE", "-T", directory)
        assert (
            kind == subprocess.run(["findmnt", "-no", "FSTYPE", "-T", directory], capture_output=True, text=True).stdout
        )


# --- a command in it -------------------------------------------------------------------------------------------------


@needs_lab
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["/etc/passwd"], 126),
        (["no-such-program"], 127),
        (["/no/such/program"], 127),
    ],
)
def test_the_exit_code_is_the_commands(lab: Lab, command: list[str], code: int) -> None:
    assert lab("run", *command).returncode == code


@needs_lab
def test_stdin_stdout_and_stderr_are_the_commands(lab: Lab) -> None:
    done = lab("run", "sh", "-c", "cat; echo error >&2", stdin="text\n" * 100_000)
    assert (done.stdout, done.stderr) == ("text\n" * 100_000, "error\n")


@needs_lab
def test_a_command_can_close_its_stdin_and_stdout(lab: Lab) -> None:
    with lab.popen("run", PYTHON, "-c", "import os, signal; os.close(0); os.close(1); signal.pause()") as run:
        assert run.stdin
        assert run.stdout
        assert run.stdout.read() == ""
        with pytest.raises(BrokenPipeError):
            os.write(run.stdin.fileno(), b"text")
        run.terminate()
    assert run.returncode == 128 + signal.SIGTERM


@needs_lab
def test_directory_and_environment_are_the_callers_but_not_its_session(lab: Lab, tmp_path: Path) -> None:
    command = [*lab.prefix, "run", "sh", "-c", "pwd; env"]
    environment = {
        **os.environ,
        "VMCRAFT_TEST": "a b",
        "NOTIFY_SOCKET": "/x",
        "DBUS_SESSION_BUS_ADDRESS": "unix:path=/x",
    }
    lines = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == str(tmp_path)
    assert "VMCRAFT_TEST=a b" in lines
    assert f"PATH={os.environ['PATH']}" in lines
    assert not [line for line in lines if line.startswith(("NOTIFY_SOCKET=", "DBUS_SESSION_BUS_ADDRESS="))]


@needs_lab
def test_a_directory_that_the_lab_does_not_see_is_an_error(lab: Lab) -> None:
    done = subprocess.run([*lab.prefix, "run", "true"], cwd="/proc/self", capture_output=True, text=True)
    assert done.returncode == 126
    assert "the lab does not see /proc/" in done.stderr


@needs_lab
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_reach_the_command(lab: Lab, number: signal.Signals) -> None:
    with lab.popen("run", PYTHON, "-c", SIGWAIT) as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        assert run.wait() == 40 + number


@needs_lab
def test_a_killed_wrapper_takes_the_command_along_and_the_next_run_the_rest(lab: Lab) -> None:
    mark = f"mark-{os.getpid()}"
    script = f"{PYTHON} -c 'import signal; signal.pause()' {mark} >/dev/null & echo ready; read never"
    with lab.popen("run", "sh", "-c", script) as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        run.kill()
        assert run.stdout.read() == ""  # its other end closes only when the command is gone
    assert lab.output("sh", "-c", "echo /sys/fs/cgroup/lab-run-*; cat /proc/self/cgroup").count("lab-run-") == 2
    assert processes(mark) == []
    # A dead process that only the machine's PID 1 could reap would hold the lab's process namespace, and so stop.
    orphans = [line.split() for line in lab.output("ps", "-eo", "ppid=,comm=").splitlines()]
    assert [name for parent, name in orphans if parent == "0"] == ["systemd"]


@needs_lab
def test_what_a_command_leaves_running_ends_with_it(lab: Lab) -> None:
    mark = f"mark-{os.getpid()}"
    script = f"setsid {PYTHON} -c 'import signal; signal.pause()' {mark} >/dev/null 2>&1 & echo $!"
    assert lab.output("sh", "-c", script).strip().isdigit()
    assert processes(mark) == []


# --- at a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A command whose stdin, stdout, stderr and controlling terminal is a pty of ours."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.execve(command[0], command, {**os.environ, "SHELL": "/bin/bash", "PS1": "prompt: "})
            finally:
                os._exit(1)

    def read_until(self, text: str) -> str:
        """Everything up to a text, which must come."""
        found = b""
        while text.encode() not in found:
            assert select.select([self.master], [], [], 20)[0], found
            try:
                found += os.read(self.master, 1024)
            except OSError:  # the other end is closed
                raise AssertionError(found) from None
        return found.decode()

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, options: int = 0) -> int:
        return os.waitpid(self.pid, options)[1]


@needs_lab
def test_ctrl_c_and_ctrl_z_at_a_terminal(lab: Lab) -> None:
    terminal = Terminal([*lab.prefix, "run", PYTHON, "-c", SIGWAIT])
    terminal.read_until("ready")
    terminal.write("\x1a")
    assert os.WIFSTOPPED(terminal.wait(os.WUNTRACED))
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.write("\x03")
    assert os.waitstatus_to_exitcode(terminal.wait()) == 40 + signal.SIGINT


@needs_lab
def test_ctrl_c_reaches_a_command_whose_output_is_piped_once(lab: Lab) -> None:
    terminal = Terminal(
        ["/bin/bash", "-c", f"{SCRIPT} --state {lab.state} run {PYTHON} -c '{SIGWAIT}' | cat; echo ${{PIPESTATUS[0]}}"]
    )
    terminal.read_until("ready")
    terminal.write("\x03")
    terminal.read_until(f"{40 + signal.SIGINT}\r\n")
    terminal.wait()


@needs_lab
def test_a_shell_has_job_control(lab: Lab, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(JOB)
    terminal = Terminal([*lab.prefix, "shell"])
    # The words that we wait for are not those that the terminal echoes.
    terminal.write("set -o | grep monitor; cat /proc/1/com?\n")
    assert "monitor        \ton" in terminal.read_until("systemd\r\n")
    terminal.write(f"{PYTHON} {program}\n")
    terminal.read_until("ready\r\n")
    terminal.write("\x1a")
    terminal.read_until("Stopped")
    terminal.write("fg\n")
    terminal.read_until("continued\r\n")
    terminal.write("\x03")
    terminal.read_until("KeyboardInterrupt")
    terminal.write("exit 5\n")
    terminal.read_until("exit\r\n")
    assert os.waitstatus_to_exitcode(terminal.wait()) == 5


# --- its life --------------------------------------------------------------------------------------------------------


@needs_lab
def test_status_tells_whether_it_runs(lab: Lab) -> None:
    lab("start")
    assert lab("status").returncode == 0
    lab("stop")
    assert (lab("status").returncode, lab("status").stdout) == (3, "stopped\n")


@needs_lab
def test_two_starts_at_once_give_one_lab(lab: Lab) -> None:
    lab("stop")
    starts = [lab.popen("start") for _ in range(4)]
    assert [start.communicate()[0] for start in starts] == [""] * 4
    assert [start.returncode for start in starts] == [0] * 4
    assert len(processes(f"--machine={lab.record()['name']}")) == 1


def kill_and_wait(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([descriptor], [], [])
    os.close(descriptor)


def kill_nspawn(lab: Lab) -> None:
    kill_and_wait(lab.record()["nspawn"][0])


def kill_leader(lab: Lab) -> None:
    kill_and_wait(lab.record()["leader"][0])


def nothing(lab: Lab) -> None:
    pass


@needs_lab
@pytest.mark.parametrize("kill", [kill_nspawn, kill_leader])
def test_a_half_dead_lab_is_replaced(lab: Lab, kill: Callable[[Lab], None]) -> None:
    mark = f"mark-{os.getpid()}"
    lab.output("systemd-run", "--quiet", "--unit=left", PYTHON, "-c", "import signal; signal.pause()", mark)
    before = lab.record()["leader"]
    kill(lab)
    assert lab.output("systemctl", "is-system-running") == "running\n"
    assert lab.record()["leader"] != before
    assert processes(mark) == []
    assert len(processes(f"--machine={lab.record()['name']}")) == 1


@needs_lab
@pytest.mark.parametrize("kill", [nothing, kill_nspawn, kill_leader])
def test_stop_leaves_nothing(lab: Lab, tmp_path: Path, kill: Callable[[Lab], None]) -> None:
    mark = f"mark-{os.getpid()}"
    disk = tmp_path / f"{mark}-on-disk"
    disk.write_bytes(bytes(1 << 20))
    lab.output("sh", "-c", f"cp {disk} /dev/shm/{mark} && losetup -f {disk} && losetup -f /dev/shm/{mark}")
    lab.output("systemd-run", "--quiet", "--unit=left", PYTHON, "-c", "import signal; signal.pause()", mark)
    record = lab.record()
    during = traces(record, lab.state, files=mark)
    # Its mounts are in a mount namespace of its own: not even a living lab has any on the machine.
    assert found(during) == {"cgroups", "nspawn", "private", "loops", "processes"}
    assert len(during["loops"]) == 2
    kill(lab)
    assert lab("stop").returncode == 0
    assert found(traces(record, lab.state, files=mark)) == set()
    assert processes(mark) == []
    assert sorted(path.name for path in lab.state.iterdir()) == ["active", "console.log", "lock"]


@needs_lab
def test_stop_does_not_detach_a_loop_device_that_is_not_the_labs(lab: Lab, tmp_path: Path) -> None:
    lab("start")
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    command = ["losetup", "--find", "--show", str(tmp_path / "disk")]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        lab("stop")
        listed = subprocess.run(
            ["losetup", "-nO", "BACK-FILE", device], check=True, capture_output=True, text=True
        ).stdout
        assert listed.strip() == str(tmp_path / "disk")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@needs_lab
def test_a_command_dies_with_its_lab(lab: Lab) -> None:
    with lab.popen("run", "sh", "-c", "trap '' TERM; echo ready; read never") as run:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
        lab("stop")
        assert run.wait() == 137


@needs_lab
def test_a_stale_lab_is_replaced_unless_somebody_uses_it(lab: Lab) -> None:
    lab("start")
    record = lab.record()
    (lab.state / "lab.json").write_text(json.dumps({**record, "packages": [0, 0, 0]}))
    with lab.popen("run", "sh", "-c", "echo ready; read never") as busy:  # starts the lab anew, and then uses it
        assert busy.stdout
        assert busy.stdout.readline() == "ready\n"
        assert lab.record()["leader"] != record["leader"]
        record = lab.record()
        (lab.state / "lab.json").write_text(json.dumps({**record, "packages": [0, 0, 0]}))
        assert "packages of its root have changed" in lab("run", "true").stderr
        assert lab.record()["leader"] == record["leader"]
        busy.communicate("\n")
    lab("run", "true")
    assert lab.record()["leader"] != record["leader"]


@needs_lab
@pytest.mark.parametrize("file", ["lab", "labhost/__init__.py", "labhost/loops.py"])
def test_a_change_of_any_file_of_the_script_makes_the_lab_stale(lab: Lab, checkout: Path, file: str) -> None:
    lab("start")
    changed = Lab(lab.state, str(checkout / "scripts" / "lab"))
    assert "stale" not in changed("status").stdout
    with (checkout / "scripts" / file).open("a") as text:
        text.write("# changed\n")
    assert "stale: it was started by another version" in changed("status").stdout


@needs_lab
def test_a_lab_of_an_older_version_that_wrote_down_less_is_ended_in_order(lab: Lab) -> None:
    lab("start")
    record = lab.record()
    older = {key: record[key] for key in ("nspawn", "leader", "boot_id", "root")}
    (lab.state / "lab.json").write_text(json.dumps(older))
    assert "another version" in lab("start").stderr
    assert lab.record()["leader"] != record["leader"]
    assert found(traces(record, lab.state)) == {"cgroups", "nspawn", "processes"}  # the new one's


@needs_lab
def test_a_machine_with_nothing_but_cgroup_v2(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    command = f"{SCRIPT} --state {tmp_path}"
    script = "umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
    script += f"{command} run systemctl is-system-running && cat {tmp_path}/lab.json && {command} stop"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    state, _, record = done.stdout.partition("\n")
    assert (done.returncode, state, done.stderr) == (0, "running", "")
    assert lab("status").returncode == 3
    assert found(traces(json.loads(record), tmp_path)) == set()


# --- where PID 1 is systemd ------------------------------------------------------------------------------------------


@pytest.fixture
def on_host(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run something where PID 1 is systemd: here, or in the lab."""
    prefix = [] if INSIDE else [*request.getfixturevalue("lab").prefix, "run"]
    return lambda *command: subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)


def test_on_a_systemd_host_commands_run_on_the_host(
    on_host: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    same_process = on_host("sh", "-c", f"echo $$; exec {SCRIPT} run sh -c 'echo $$; exit 5'")
    assert same_process.returncode == 5
    assert len(set(same_process.stdout.split())) == 1
    assert on_host(SCRIPT, "status").stdout == "this machine's own systemd\n"
    assert [on_host(SCRIPT, action).returncode for action in ("start", "stop")] == [0, 0]
    assert on_host(SCRIPT, "run", "no-such-program").returncode == 127


def test_help_names_every_command_and_what_it_changes_on_the_machine() -> None:
    text = subprocess.run([SCRIPT, "--help"], check=True, capture_output=True, text=True).stdout
    assert [
        word for word in ("run", "shell", "start", "status", "stop", "--root", "--state", "inotify") if word not in text
    ] == []


def test_is_called_through_a_symlink_from_anywhere_and_leaves_no_compiled_files(tmp_path: Path, checkout: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(checkout / "scripts" / "lab")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for directory in ("/", str(tmp_path)):
        subprocess.run([link, "--help"], cwd=directory, env=environment, check=True, capture_output=True)
    assert [path for path in checkout.rglob("*") if path.name == "__pycache__" or path.suffix == ".pyc"] == []
