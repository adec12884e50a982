"""The one tree of errors; the class says what happened and what to do about it.

VMCraftError
├─ Refused              known not to have happened
│   ├─ InvalidName InvalidValue           before anything was asked
│   ├─ NoSuchUnit NoSuchFile              what is asked about does not exist
│   ├─ NotEnableable
│   ├─ JobFailed (UnitMasked BadSetting ConditionNotMet DependencyFailed)
│   ├─ NotSupportedByGuest Exists NotOurs Conflict
├─ OutcomeUnknown       asked for, not read back
│   ├─ ReplyTimedOut ConnectionLost JobTimedOut ReadBackDiffers ReplyMalformed
├─ GuestError
│   ├─ NotLaunched GuestGone
│   ├─ NotBootable (NoInit WrongArchitecture TooOldForHost)
│   ├─ BootFailed BootHung
├─ ImageError (UnknownFormat)
└─ HostError
    ├─ MissingProgram NotPrivileged NoSystemd NoSpace ProgramFailed
    └─ CannotMapIds CommitInterrupted
BusError                a D-Bus error reply that no caller has given a meaning yet (below Refused)

`key` is the stable word that programs match on, `outcome` what is known, `remedy` what to do now; `result` may carry
the value that the call would have answered (the failed job's log lines).
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

from vmcraft.model.outcome import Outcome
from vmcraft.model.printable import printable, quoted


class VMCraftError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes:
        key: Stable word for programs.
        outcome: What is known about the operation.
        attempted: Whether the guest (or the host) was asked at all.
        remedy: What to do now; may be empty.
        result: What the call would have answered, as far as it is known; else None.
    """

    key: ClassVar[str] = "error"
    outcome: ClassVar[Outcome] = Outcome.REFUSED
    attempted: ClassVar[bool] = True

    def __init__(self, text: str, *, remedy: str = "", result: object = None) -> None:
        super().__init__(printable(text, newlines=True))
        self.remedy = remedy
        self.result = result

    @property
    def text(self) -> str:
        """The sentence alone."""
        return str(self.args[0])

    @property
    def keyed(self) -> str:
        """The key, a colon and the sentence, as answers carry it."""
        return f"{self.key}: {self.text}"


class Refused(VMCraftError):
    """Known not to have happened."""

    key = "refused"


class InvalidName(Refused):
    """A name that no unit, file or link can have, or that the call does not take."""

    key = "invalid-name"
    attempted = False


class InvalidValue(Refused):
    """A value that can never be right for this call."""

    key = "invalid-value"
    attempted = False


class NoSuchUnit(Refused):
    """The guest knows no such unit."""

    key = "no-such-unit"

    def __init__(self, unit: str, *, remedy: str = "", result: object = None) -> None:
        super().__init__(f"{printable(unit)} is not known to the guest", remedy=remedy, result=result)
        self.unit = unit


class NoSuchFile(Refused):
    """A path that does not exist."""

    key = "no-such-file"


class NotEnableable(Refused):
    """The unit has nothing that enabling, disabling or a preset could act on."""

    key = "not-enableable"


class JobFailed(Refused):
    """The job ended, and the unit is not in the state that was asked for."""

    key = "job-failed"


class UnitMasked(JobFailed):
    """The unit is masked, so it cannot be started."""

    key = "unit-masked"


class BadSetting(JobFailed):
    """The guest's manager cannot use the unit's file."""

    key = "bad-setting"


class ConditionNotMet(JobFailed):
    """The manager skipped the unit: one of its conditions or asserts is false."""

    key = "condition-not-met"


class DependencyFailed(JobFailed):
    """A unit that this one requires failed or does not exist."""

    key = "dependency-failed"


class NotSupportedByGuest(Refused):
    """The guest's systemd, or the channel to it, does not have this."""

    key = "not-supported-by-guest"
    attempted = False


class Exists(Refused):
    """Something is there already and would be overwritten."""

    key = "exists"


class NotOurs(Refused):
    """Belongs to the vendor or to another; a change set may not touch it."""

    key = "not-ours"


class Conflict(Refused):
    """The root is not what it was when the change was made, or somebody else has it open."""

    key = "conflict"


class BusError(Refused):
    """An error reply over D-Bus, with its name.

    Attributes:
        name: The D-Bus error name, as the peer sent it (printable, cut).
        member: Interface and member that was called.
        said: The peer's own text, empty where it gave none.
    """

    key = "bus-error"

    def __init__(self, name: str, said: str, *, member: str) -> None:
        super().__init__(f"{member} answered {printable(name, limit=255)}: {quoted(said)}")
        self.name = printable(name, limit=255)
        self.said = printable(said)
        self.member = member


class OutcomeUnknown(VMCraftError):
    """It was asked for, but the effect could not be read back."""

    key = "outcome-unknown"
    outcome = Outcome.UNKNOWN


class ReplyTimedOut(OutcomeUnknown):
    """No reply within the limit."""

    key = "reply-timed-out"


class ConnectionLost(OutcomeUnknown):
    """The connection to a bus ended before the reply came."""

    key = "connection-lost"


class JobTimedOut(OutcomeUnknown):
    """The job was still running at the limit; it was cancelled."""

    key = "job-timed-out"


class ReadBackDiffers(OutcomeUnknown):
    """The manager agreed, but the state that it then shows is another."""

    key = "read-back-differs"

    def __init__(self, subject: str, *, wanted: str, found: str, result: object = None) -> None:
        super().__init__(
            f"{printable(subject)}: the manager agreed, but finds {quoted(found)} and not {wanted}", result=result
        )


class ReplyMalformed(OutcomeUnknown):
    """The peer sent what the protocol or the signature forbids."""

    key = "reply-malformed"


class GuestError(VMCraftError):
    """The guest as a whole cannot do what was asked."""

    key = "guest-error"


class NotLaunched(GuestError):
    """The call needs a booted guest."""

    key = "not-launched"


class GuestGone(GuestError):
    """The guest has ended while it was used."""

    key = "guest-gone"
    outcome = Outcome.UNKNOWN


class NotBootable(GuestError):
    """The root cannot be booted."""

    key = "not-bootable"


class NoInit(NotBootable):
    """There is no systemd in the root."""

    key = "systemd_not_available"


class WrongArchitecture(NotBootable):
    """The root's programs are for another processor."""

    key = "wrong-architecture"


class TooOldForHost(NotBootable):
    """The guest's systemd cannot run below this host's cgroup hierarchy."""

    key = "guest-systemd-too-old-for-host"


class BootFailed(GuestError):
    """The guest ended before it was ready."""

    key = "boot-failed"


class BootHung(GuestError):
    """The guest did not answer at all within the limit."""

    key = "boot-hung"


class ImageError(VMCraftError):
    """Something about a disk image."""

    key = "image-error"


class UnknownFormat(ImageError):
    """Not something that can be opened as a guest."""

    key = "unknown-format"


class HostError(VMCraftError):
    """The machine that we run on lacks something, or an operation on it failed."""

    key = "host-error"


class MissingProgram(HostError):
    """A program that is needed is not installed."""

    key = "missing-program"


class NotPrivileged(HostError):
    """Root's rights are needed."""

    key = "not-privileged"


class NoSystemd(HostError):
    """This host's own systemd, its system bus or systemd-machined does not answer."""

    key = "no-systemd-host"


class NoSpace(HostError):
    """A file system is full, or would be."""

    key = "no-space"


class ProgramFailed(HostError):
    """A program of the host ended badly, or not within its limits."""

    key = "program-failed"


class CannotMapIds(HostError):
    """The file system of the root does not take id-mapped mounts."""

    key = "cannot-map-ids"


class CommitInterrupted(HostError):
    """A commit stopped half-way and could neither be finished nor undone."""

    key = "commit-interrupted"
    outcome = Outcome.UNKNOWN


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Around a task group: the error that ended it, instead of a group that holds just this one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            ours = [inner for inner in error.exceptions if not isinstance(inner, BaseExceptionGroup)]
            error = ours[0] if ours else error.exceptions[0]
        raise error from error.__cause__
