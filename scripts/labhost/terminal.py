"""How a command in the lab stands towards our terminal, and who has it.

- interactive (stdin and stdout are our terminal, we are in its foreground): the command gets a process group of its
  own and the terminal; when it stops, so do we (job control).
- in a pipe line that starts at the terminal: it stays in our group, so that it may read; what the terminal sends
  reaches it without us.
- else: a group of its own, so that each signal reaches it once: from us.
"""

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Terminal:
    """Our standing."""

    is_interactive: bool
    has_own_group: bool

    @classmethod
    def look(cls) -> "Terminal":
        """See how we stand ourselves; touches nothing."""
        at_terminal = os.isatty(0) and _foreground() == os.getpgrp()
        is_interactive = at_terminal and os.isatty(1)
        return cls(is_interactive, is_interactive or not at_terminal)

    def give(self, pid: int) -> None:
        """Give the command the terminal, or let go of our copies of its stdio."""
        if self.is_interactive:
            os.tcsetpgrp(0, pid)
        else:
            release(0, 1)

    def take_back(self) -> None:
        """Take the terminal from a command that has ended."""
        if self.is_interactive and _foreground() != os.getpgrp():
            os.tcsetpgrp(0, os.getpgrp())

    def suspend(self, pid: int) -> None:
        """The command was stopped (Ctrl-Z): take the terminal and stop, until somebody continues us."""
        if not self.is_interactive:
            return
        if _foreground() == pid:
            os.tcsetpgrp(0, os.getpgrp())
        os.killpg(os.getpgrp(), signal.SIGSTOP)
        if _foreground() == os.getpgrp():
            os.tcsetpgrp(0, pid)
        os.killpg(pid, signal.SIGCONT)


def _foreground() -> int:
    """The process group that has the terminal."""
    try:
        return os.tcgetpgrp(0)
    except OSError:  # a terminal, but not ours
        return -1


def release(*descriptors: int) -> None:
    """Let go of our copies of the command's stdio: when it closes them, the other end must notice."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)
