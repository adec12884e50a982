"""What the command's exit status means; `vmcraft --help` shows the same table."""

import enum
from typing import assert_never

from vmcraft.errors import GuestError, HostError, ImageError, VMCraftError
from vmcraft.model.outcome import Outcome


class ExitCode(enum.IntEnum):
    """Exit status."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_CONFIRMED = 3
    GUEST = 4
    HOST = 5
    UNKNOWN = 6
    INTERRUPTED = 130


MEANING = {
    ExitCode.OK: "done, or there was nothing to do",
    ExitCode.REFUSED: "something was refused or failed; nothing was committed",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.NOT_CONFIRMED: "the changes were shown and not confirmed; nothing was committed",
    ExitCode.GUEST: "the guest cannot be opened, did not boot, or is gone",
    ExitCode.HOST: "this host lacks something (see vmcraft doctor), or could not write",
    ExitCode.UNKNOWN: "it was asked for, but could not be read back",
    ExitCode.INTERRUPTED: "interrupted; nothing was committed, or it says what was",
}


def table() -> str:
    """The table, as --help shows it."""
    return "exit status:\n" + "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANING.items())


def of_error(error: VMCraftError) -> ExitCode:
    """The exit status for an error that ended the command."""
    if isinstance(error, (GuestError, ImageError)):
        return ExitCode.GUEST
    if isinstance(error, HostError):
        return ExitCode.HOST
    return of_outcome(error.outcome)


def of_outcome(outcome: Outcome) -> ExitCode:
    """The exit status for how an operation ended."""
    match outcome:
        case Outcome.DONE:
            return ExitCode.OK
        case Outcome.REFUSED:
            return ExitCode.REFUSED
        case Outcome.UNKNOWN:
            return ExitCode.UNKNOWN
        case _:
            assert_never(outcome)
