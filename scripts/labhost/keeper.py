"""A command in the lab, and the keeper that stands between it and us, a child of the lab's PID 1.

If the command was our own child and we were killed, it would become a child of the machine's PID 1; where that does
not reap (`docker run` without --init), the dead command would stay in the lab's process namespace for ever, and the lab
could never end.
"""

import os
import signal
import socket
import sys
from dataclasses import dataclass

from scripts.labhost import cgroups, channel
from scripts.labhost.system import LabError, die_with_parent, enter, fork, write_into
from scripts.labhost.terminal import release

# The machine's session: meaningless or harmful next to another PID 1, bus and journal.
SESSION_VARIABLES = """
    CREDENTIALS_DIRECTORY DBUS_SESSION_BUS_ADDRESS DBUS_STARTER_ADDRESS DBUS_STARTER_BUS_TYPE
    DBUS_SYSTEM_BUS_ADDRESS DISPLAY INVOCATION_ID JOURNAL_STREAM LISTEN_FDNAMES LISTEN_FDS LISTEN_PID MAINPID
    MANAGERPID NOTIFY_SOCKET SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION SSH_TTY SYSTEMD_EXEC_PID WATCHDOG_PID
    WATCHDOG_USEC WAYLAND_DISPLAY WINDOWID XAUTHORITY XDG_RUNTIME_DIR XDG_SEAT XDG_SESSION_CLASS
    XDG_SESSION_ID XDG_SESSION_TYPE XDG_VTNR container container_uuid
"""


@dataclass(frozen=True)
class Keeper:
    """What both processes know from us; the methods run in them."""

    channel: socket.socket
    go: int  # a pipe: the command waits for a byte, and gives up when it is closed
    namespaces: list[int]
    cgroup: str
    command: list[str]
    cwd: str
    has_own_group: bool
    signal_mask: set[int | signal.Signals]

    def keep(self) -> int:
        """Start the command, report how it fares; when our caller is gone, kill all of this run."""
        write_into(f"{self.cgroup}/cgroup.procs", "0")
        pid = fork(self._execute)
        os.close(self.go)
        os.setpgid(0, 0)  # or we would stop with our caller
        release(0, 1, 2)
        channel.notify_by_signal(self.channel)
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if ended:
                channel.send_status(self.channel, status)
                if not os.WIFSTOPPED(status):
                    return 0
            elif channel.is_closed(self.channel):
                cgroups.remove(self.cgroup)  # with ourselves
            else:
                signal.sigwait({signal.SIGCHLD, signal.SIGIO})

    def _execute(self) -> int:
        """In the command's process. Exit codes as those of a shell."""
        die_with_parent()
        if self.has_own_group:
            os.setpgid(0, 0)
        channel.send_pid(self.channel)
        if not os.read(self.go, 1):
            return 128 + signal.SIGKILL
        try:
            self._enter()
        except LabError as error:
            print(f"lab: {self.command[0]}: {error}", file=sys.stderr)
            return 126
        self._restore_signals()
        session = SESSION_VARIABLES.split()
        return execute(self.command, {key: value for key, value in os.environ.items() if key not in session})

    def _enter(self) -> None:
        for namespace in self.namespaces:
            enter(namespace)
        try:
            os.chdir(self.cwd)
        except OSError as error:
            raise LabError(f"the lab does not see {self.cwd}: {error.strerror}") from error

    def _restore_signals(self) -> None:
        """Python ignores some, which what we execute would inherit, and makes an exception of Ctrl-C."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.signal_mask)


def execute(command: list[str], environment: dict[str, str]) -> int:
    """Become the command; return a shell's exit code if that fails: 127 not found, 126 cannot be executed."""
    try:
        os.execvpe(command[0], command, environment)
    except (FileNotFoundError, NotADirectoryError):
        print(f"lab: {command[0]}: not found", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"lab: {command[0]}: {error.strerror}", file=sys.stderr)
        return 126
