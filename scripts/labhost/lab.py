"""The life of a lab: started when it is needed, started anew when it is stale, ended without a trace."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator

from scripts.labhost import cgroups, leftovers, loops, nspawn, record, tree
from scripts.labhost.layout import STATE_ROOT, Layout
from scripts.labhost.places import real_places
from scripts.labhost.record import Record
from scripts.labhost.run import Run
from scripts.labhost.system import LabError, Process, below, read, write_into

INOTIFY_INSTANCES = 1024
INOTIFY_LIMIT = "/proc/sys/fs/inotify/max_user_instances"


class Lab:
    """One lab: a host root, a directory of ours, a name."""

    def __init__(self, root: str, state: str | None) -> None:
        """Name the lab; touches nothing."""
        self.layout = Layout.of(root, state)

    def start(self) -> None:
        """Start it, or do nothing.

        Raises:
            LabError: It does not come up.
        """
        with self._lock():
            self._ensure_started()

    def stop(self) -> None:
        """End it with all that runs in it."""
        with self._lock():
            self._stop()

    def run(self, command: list[str]) -> int:
        """Run a command in the lab as if it was run here; return its exit code.

        Raises:
            LabError: The lab does not come up, or ends before the command has begun.
        """
        cgroup = f"{self.layout.payload}/lab-run-{os.getpid()}"
        with contextlib.ExitStack() as until_the_end:
            with self._lock():
                leader = self._ensure_started().leader
                self._remove_left_runs()
                until_the_end.enter_context(self._use())
                os.makedirs(cgroup, exist_ok=True)
                until_the_end.callback(cgroups.remove, cgroup)
            return Run(leader.pid, cgroup, command).run()

    def status(self) -> str:
        """What there is to say of a living lab, "" if there is none."""
        found = record.load(self.layout)
        if not found or not found.alive():
            return ""
        stale = found.why_stale(self.layout)
        return f"running: PID 1 is {found.leader.pid}, {len(self._runs())} commands" + (stale and f"; stale: {stale}")

    # Who else is there

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold off every other start, stop and beginning of a run of this lab."""
        state = self.layout.state
        os.makedirs(state, mode=0o755, exist_ok=True)
        for directory in (STATE_ROOT, state) if below(state, STATE_ROOT) else (state,):
            if os.lstat(directory).st_uid != 0:  # /var/tmp is everybody's
                raise LabError(f"{directory} is not root's: remove it")
        with open(f"{state}/lock", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        """Keep others from starting it anew."""
        with open(f"{self.layout.state}/active", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def _is_busy(self) -> bool:
        """Whether somebody uses the lab: a command runs, or a guest."""
        with open(f"{self.layout.state}/active", "w", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return cgroups.is_populated(f"{self.layout.payload}/machine.slice")

    def _runs(self) -> list[str]:
        """The cgroups of `run` commands, of living and of killed ones."""
        with contextlib.suppress(FileNotFoundError):
            return [entry.path for entry in os.scandir(self.layout.payload) if entry.name.startswith("lab-run-")]
        return []

    def _remove_left_runs(self) -> None:
        for cgroup in self._runs():
            if not Process.of(int(cgroup.rpartition("-")[2])).alive():
                cgroups.remove(cgroup)

    # Start and stop; somebody above holds the lock

    def _ensure_started(self) -> Record:
        """Return the running lab; start it first, clean up what is half dead, replace what is stale and idle."""
        found = record.load(self.layout)
        if found and found.alive():
            reason = found.why_stale(self.layout)
            if not reason:
                return found
            if self._is_busy():
                print(f"lab: {reason}; it is in use, so it stays for now", file=sys.stderr)
                return found
            print(f"lab: starting it anew: {reason}", file=sys.stderr)
        self._stop()
        try:
            return self._start()
        except BaseException:
            self._stop()
            raise

    def _start(self) -> Record:
        layout, places = self.layout, real_places()
        for directory in (layout.guest_state, layout.overlay, layout.cgroups[0]):
            os.makedirs(directory, mode=0o755, exist_ok=True)
        _raise_inotify_limit()
        controllers = cgroups.hand_down_controllers(layout.hierarchies[0])
        attached, packages = list(loops.attached(layout.state)), record.packages(layout.root)
        outer, leader = nspawn.start(layout, places)
        root = f"/proc/{leader.pid}/root"
        tree.make_device_nodes(f"{root}/dev")
        made = Record(
            nspawn=outer,
            leader=leader,
            name=layout.name,
            version=record.version(),
            boot_id=read(f"{root}/proc/sys/kernel/random/boot_id").strip().replace("-", ""),
            root=f"{os.stat(f'{root}/').st_dev}:{os.stat(f'{root}/').st_ino}",
            packages=packages,
            binds=places,
            loops=attached,
            controllers=controllers,
        )
        record.save(layout, made)
        return made

    def _stop(self) -> None:
        """End it, alive or half dead, with all that it left on the machine."""
        found = record.load(self.layout)
        if found and found.alive():
            nspawn.power_off(found.nspawn, found.leader, self._runs())
        leftovers.remove(self.layout, found)


def _raise_inotify_limit() -> None:
    """A guest takes 7 inotify instances of root's 128: the 17th would not start. Said in --help."""
    if int(read(INOTIFY_LIMIT) or INOTIFY_INSTANCES) < INOTIFY_INSTANCES:
        write_into(INOTIFY_LIMIT, f"{INOTIFY_INSTANCES}\n")
