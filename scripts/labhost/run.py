"""A command in the lab's namespaces, with our stdio, directory and environment, and our signals forwarded."""

import os
import signal
import socket

from scripts.labhost import channel
from scripts.labhost.keeper import Keeper
from scripts.labhost.system import enter, fork, kill
from scripts.labhost.terminal import Terminal

SI_KERNEL = 0x80


class Run:
    """Our side of one command; the other one is keeper.py."""

    def __init__(self, leader: int, cgroup: str, command: list[str]) -> None:
        """Look at the terminal; touches nothing.

        Args:
            leader: The lab's PID 1.
            cgroup: Where the command shall live: a directory that is there.
            command: The program and its arguments.
        """
        self.leader = leader
        self.cgroup = cgroup
        self.command = command
        self.terminal = Terminal.look()
        self.signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        if not self.terminal.has_own_group:
            self.signals -= {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
        self.pid = 0

    def run(self) -> int:
        """Start it, forward signals to it, wait for it; return its exit code.

        Raises:
            LabError: The lab's namespaces cannot be entered.
        """
        ours, go = self._start_keeper()
        self.pid = channel.receive_pid(ours)
        self.terminal.give(self.pid)
        os.write(go, b"!")
        try:
            return self._wait(ours)
        finally:
            self.terminal.take_back()

    def _start_keeper(self) -> tuple[socket.socket, int]:
        ours, keepers = channel.pair()
        go_read, go_write = os.pipe()
        keeper = Keeper(
            channel=keepers,
            go=go_read,
            namespaces=[self._namespace(kind) for kind in ("cgroup", "ipc", "uts", "net", "mnt")],
            cgroup=self.cgroup,
            command=self.command,
            cwd=os.path.realpath(os.getcwd()),
            has_own_group=self.terminal.has_own_group,
            signal_mask=signal.pthread_sigmask(signal.SIG_BLOCK, self.signals),
        )
        enter(self._namespace("pid"))

        def start() -> int:  # and end, so that the lab's PID 1 becomes the keeper's parent
            ours.close()
            os.close(go_write)
            fork(keeper.keep)
            return 0

        os.waitpid(fork(start), 0)
        keepers.close()
        os.close(go_read)
        return ours, go_write

    def _namespace(self, kind: str) -> int:
        return os.open(f"/proc/{self.leader}/ns/{kind}", os.O_RDONLY)

    def _wait(self, ours: socket.socket) -> int:
        channel.notify_by_signal(ours)
        while True:
            try:
                status = channel.receive_status(ours)
            except BlockingIOError:
                info = signal.sigwaitinfo(self.signals)
                if info.si_signo not in (signal.SIGIO, signal.SIGCHLD):
                    self._forward(info)
                continue
            if status is None:  # the keeper was killed: the lab ended
                return 128 + signal.SIGKILL
            if os.WIFSTOPPED(status):
                self.terminal.suspend(self.pid)
            else:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _forward(self, info: signal.struct_siginfo) -> None:
        from_terminal = info.si_code == SI_KERNEL
        if from_terminal and not self.terminal.has_own_group:
            return
        kill(-self.pid if from_terminal else self.pid, info.si_signo)
        if info.si_signo == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)
