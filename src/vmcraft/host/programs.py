"""Run a program of the host: no shell, an empty environment, limits on time and output, killed when cancelled."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import ByteReceiveStream, Process

from vmcraft.errors import MissingProgram, ProgramFailed

OUTPUT_LIMIT_BYTES = 1 << 20
_END_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended."""

    status: int
    stdout: bytes
    stderr: bytes


async def run_program(
    argv: Sequence[str],
    *,
    limit: float,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    output_limit: int = OUTPUT_LIMIT_BYTES,
) -> Finished:
    """Run a program to its end and take what it prints.

    Raises:
        MissingProgram: It is not installed.
        ProgramFailed: It ran longer than `limit` seconds or printed more than `output_limit` bytes; it was killed.
    """
    try:
        process = await anyio.open_process(
            list(argv), stdin=subprocess.DEVNULL, pass_fds=tuple(pass_fds), env=dict(environment or {}), cwd="/"
        )
    except FileNotFoundError as error:
        raise MissingProgram(f"{argv[0]} is not installed", remedy="run: vmcraft doctor") from error
    outputs: dict[str, bytes] = {}
    try:
        with anyio.fail_after(limit):
            async with anyio.create_task_group() as group:
                for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
                    if stream is not None:
                        group.start_soon(_take, name, stream, outputs, output_limit)
                status = await process.wait()
    except TimeoutError as error:
        raise ProgramFailed(f"{os.path.basename(argv[0])} did not end within {limit:g} s") from error
    finally:
        await _ended(process)
    if any(len(output) > output_limit for output in outputs.values()):
        raise ProgramFailed(f"{os.path.basename(argv[0])} printed more than {output_limit} bytes")
    return Finished(status=status, stdout=outputs.get("stdout", b""), stderr=outputs.get("stderr", b""))


async def _take(name: str, stream: ByteReceiveStream, outputs: dict[str, bytes], output_limit: int) -> None:
    taken = bytearray()
    async for chunk in stream:
        if len(taken) <= output_limit:
            taken += chunk
    outputs[name] = bytes(taken)


async def _ended(process: Process) -> None:
    """Nothing of the program stays behind, also when we are cancelled."""
    with anyio.move_on_after(_END_LIMIT_S, shield=True):
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.aclose()
