"""Run one of the guest's own programs inside it: as a transient unit of its manager, output on pipes, with limits.

No shell, and no expansion: the arguments arrive as they are given. What the program prints is the guest's word.
"""

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from vmcraft.bus.systemd1 import Service, Setting, exec_start
from vmcraft.errors import BusError, OutcomeUnknown, ProgramFailed, first_error
from vmcraft.guest.guest import Guest
from vmcraft.model.services import JobResult

RUN_LIMIT_S = 30.0
OUTPUT_LIMIT_BYTES = 4 << 20
COULD_NOT_EXECUTE = 203
_STOP_LIMIT_S = 2.0
_READ_BYTES = 64 << 10
_KILLED = (2, 3)
"""CLD_KILLED and CLD_DUMPED; source: waitid(2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProgram:
    """How a program in the guest ended.

    Attributes:
        status: Exit status; the signal when `killed`; None where the guest keeps no results (no system bus).
        killed: It ended by a signal.
    """

    job: JobResult
    status: int | None
    killed: bool
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        """Whether it ran to its end and succeeded."""
        return self.job is JobResult.DONE and not self.killed and self.status in (0, None)


async def run_in_guest(
    guest: Guest, argv: Sequence[str], *, limit: float = RUN_LIMIT_S, output_limit: int = OUTPUT_LIMIT_BYTES
) -> GuestProgram:
    """Run a program in the guest to its end.

    Args:
        guest: A booted guest.
        argv: The program's guest path and its arguments, taken literally.
        limit: Seconds; then it is killed.
        output_limit: Bytes of standard output that are taken.

    Raises:
        ProgramFailed: It printed more, or did not end in time.
        OutcomeUnknown: The manager did not answer.
    """
    unit = f"vmcraft-{secrets.token_hex(8)}.service"
    stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    err_read, err_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ours = [stdin, out_write, err_write]
    for fd in ours:
        os.set_blocking(fd, True)
    outputs = {out_read: bytearray(), err_read: bytearray()}

    async def start() -> str:
        try:
            return await guest.manager.start_transient_unit(unit, _settings(guest, argv, limit), fds=ours)
        finally:
            # The pipes end when the program does only if nobody else holds them.
            while ours:
                os.close(ours.pop())

    try:
        with first_error(), anyio.fail_after(limit + 2 * _STOP_LIMIT_S):
            async with anyio.create_task_group() as group:
                for fd, output in outputs.items():
                    group.start_soon(_drain, fd, output, output_limit)
                job = await guest.jobs.run(start(), what=f"the run of {argv[0]}", limit=limit + _STOP_LIMIT_S)
        status, killed = await _ending(guest, unit)
    except TimeoutError:
        raise ProgramFailed(f"{argv[0]} in the guest did not end within {limit:g} s") from None
    finally:
        for fd in (*ours, *outputs):
            os.close(fd)
    return GuestProgram(
        job=job, status=status, killed=killed, stdout=bytes(outputs[out_read]), stderr=bytes(outputs[err_read])
    )


def _settings(guest: Guest, argv: Sequence[str], limit: float) -> list[Setting]:
    settings: list[Setting] = [
        ("Description", "s", "VMCraft program"),
        ("Type", "s", "oneshot"),
        ("CollectMode", "s", "inactive-or-failed"),
        # Else it would wait for sysinit.target, and a guest whose boot hangs could not be asked.
        ("DefaultDependencies", "b", False),
        exec_start(argv),
        ("StandardInputFileDescriptor", "h", 0),
        ("StandardOutputFileDescriptor", "h", 1),
        ("StandardErrorFileDescriptor", "h", 2),
        ("TimeoutStartUSec", "t", int(limit * 1_000_000)),
        ("TimeoutStopUSec", "t", int(_STOP_LIMIT_S * 1_000_000)),
        (
            "Environment",
            "as",
            ["LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        ),
    ]
    return [*settings, ("AddRef", "b", True)] if guest.references else settings


async def _drain(fd: int, output: bytearray, output_limit: int) -> None:
    while True:
        await anyio.wait_readable(fd)
        try:
            chunk = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            continue
        if not chunk:
            return
        output += chunk
        if len(output) > output_limit:
            raise ProgramFailed(f"the guest's program printed more than {output_limit} bytes")


async def _ending(guest: Guest, unit: str) -> tuple[int | None, bool]:
    """Exit status, and whether a signal ended it; read before the reference is given back."""
    if not guest.references:
        return None, False
    try:
        shown = await Service(guest.connection, guest.unit(unit).path).shown()
    finally:
        with anyio.move_on_after(_STOP_LIMIT_S, shield=True), contextlib.suppress(BusError, OutcomeUnknown):
            await guest.manager.unref_unit(unit)
    return shown.exec_main_status, shown.exec_main_code in _KILLED
