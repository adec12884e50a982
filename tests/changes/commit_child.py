"""A process of its own that commits and recovers, and that strace can kill or lie to at any system call.

It reads one run a line: a JSON list of the call to fail, its number, and the words of the run; forks for each, and
answers its exit status (negative for a signal). strace counts the calls of each process apart and lets the LIMITth
fail: so a run first makes that call, with arguments that do nothing, often enough for the wanted one to be the LIMITth.

Runs: ["commit", SOURCE, UPPER, STATE_DIR] or with OUTPUT: all that differs below /etc; ["recover", STATE_DIR, ...].
"""

import ctypes
import json
import os
import sys
import traceback

sys.path[:0] = sys.argv[2].split(":")

from vmcraft.changes.commit import commit, commit_to_output  # noqa: E402
from vmcraft.changes.pending import PendingChanges  # noqa: E402
from vmcraft.changes.recover import recover  # noqa: E402
from vmcraft.changes.upper import Layers  # noqa: E402
from vmcraft.errors import CommitInterrupted, HostError, NoSpace, VMCraftError  # noqa: E402
from vmcraft.host.root_dir import RootDir  # noqa: E402

LIMIT = int(sys.argv[1])
STATUS: dict[type[VMCraftError], int] = {NoSpace: 10, HostError: 11, CommitInterrupted: 12}


def run(words: list[str]) -> int:
    verb, *paths = words
    try:
        if verb == "recover":
            for state_dir in paths:
                recover(state_dir)
        else:
            _commit(*paths)
    except VMCraftError as error:
        return STATUS.get(type(error), 1)
    return 0


def _commit(source: str, upper: str, state_dir: str, output: str | None = None) -> None:
    with RootDir.open(source) as lower, RootDir.open(upper) as over:
        layers = Layers(lower, over)
        pending = PendingChanges(layers)
        pending.declare(layers.differences("/etc", recursive=True), call="test", args=())
        if output is None:
            commit(source, pending, state_dir=state_dir)
        else:
            commit_to_output(source, pending, output, state_dir=state_dir)


def main() -> None:
    libc = ctypes.CDLL(None)
    for line in sys.stdin:
        call, number, words = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 99
            try:
                for _ in range(LIMIT - number if call else 0):
                    getattr(libc, call)(-1, -1, -1, -1, -1)
                status = run(words)
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
