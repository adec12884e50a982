"""Our own commit with one system call that kills it, or that fails; by strace, so that the product knows nothing."""

import contextlib
import itertools
import json
import os
import re
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmcraft.changes import commit as commit_module

LIMIT = 100
"""More than one commit makes of any call."""
CHILD = os.path.join(os.path.dirname(__file__), "commit_child.py")
SOURCES = os.path.abspath(os.path.join(os.path.dirname(commit_module.__file__), "..", ".."))
PYTHON = [sys.executable, "-I", "-S", "-B", CHILD, str(LIMIT), ":".join([SOURCES, *site.getsitepackages()])]

# What changes the disk or a lock; to die between two of these is to die at the second one.
# fmt: off
CHANGING = [
    "mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "symlinkat", "fsync",
    "syncfs", "fchown", "fchownat", "lchown", "chown", "fchmod", "fsetxattr", "setxattr", "lsetxattr", "fremovexattr",
    "utimensat", "write", "ftruncate", "flock",
]
# fmt: on
# Those that a full disk can stop.
GROWING = ["mkdir", "mkdirat", "rename", "renameat", "symlinkat", "write", "fsync", "fsetxattr", "setxattr"]

KILLED = -9
NO_SPACE, HOST_ERROR, INTERRUPTED = 10, 11, 12


@dataclass(frozen=True, kw_only=True)
class Point:
    """The nth call of one kind."""

    call: str
    number: int


class Runner:
    """A process that runs commits in children of its own; what goes wrong in them was said to strace."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, words: Sequence[str], point: Point | None = None) -> int:
        """Run to the end; answers the exit status, negative for a signal."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([point.call if point else None, point.number if point else 0, list(words)]) + "\n")
        stdin.flush()
        return int(stdout.readline())


@contextlib.contextmanager
def runner(*strace: str) -> Iterator[Runner]:
    """A runner, below strace where it gets options."""
    # Programs that a run starts are let go: they have calls of their own.
    command = ["strace", "-f", "-b", "execve", "-qq", *strace, *PYTHON] if strace else PYTHON
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Runner(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def killing(calls: Sequence[str] = CHANGING) -> contextlib.AbstractContextManager[Runner]:
    """A runner whose runs die at a point."""
    # Not with --seccomp-bpf, fast as it is: strace 6.1 then drops the signal.
    return runner(*_lying(calls, "signal=KILL"))


def failing(error: str, calls: Sequence[str]) -> contextlib.AbstractContextManager[Runner]:
    """A runner in whose runs the call at a point answers an error, without being made."""
    return runner("--seccomp-bpf", *_lying(calls, f"error={error}"))


def _lying(calls: Sequence[str], what: str) -> list[str]:
    names = ",".join(calls)
    return ["-o", "/dev/null", "-e", f"trace={names}", "-e", f"inject={names}:{what}:when={LIMIT}"]


def points(words: Sequence[str], *, log: str, calls: Sequence[str] = CHANGING) -> list[Point]:
    """Run it unharmed and answer every call that it makes itself, without those of the programs that it starts."""
    with runner("-o", log, "-e", f"trace={','.join(calls)}") as unharmed:
        assert unharmed.run(words) == 0
    with open(log, encoding="utf-8", errors="replace") as file:
        made = [(match[1], match[2]) for line in file if (match := re.match(r"(\d+) +(\w+)\(", line))]
    # The run makes its first call before the runner answers, and before any program that it starts.
    ours = made[0][0]
    calls_made = sorted(call for pid, call in made if pid == ours)
    return [
        Point(call=call, number=number)
        for call, group in itertools.groupby(calls_made)
        for number, _ in enumerate(group, 1)
    ]
