"""vmcraft: the command."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence

import anyio

from vmcraft import __version__
from vmcraft.cli import doctor, exit_codes, services, shell, sweep
from vmcraft.cli.exit_codes import ExitCode
from vmcraft.cli.output import Output
from vmcraft.errors import VMCraftError, first_error

_DESCRIPTION = """Boots a Linux guest from its root directory, on an overlay and without a network, asks and changes
its live systemd, and commits exactly the changes that were made through it, or nothing."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="vmcraft",
        description=_DESCRIPTION,
        epilog=exit_codes.table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"vmcraft {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in (services, shell, sweep, doctor):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit status."""
    words, command = _split(list(sys.argv[1:] if arguments is None else arguments))
    args = parser().parse_args(words)
    if command is not None:
        args.command = command
    out = Output(json=args.json)
    try:
        code = int(anyio.run(_interruptible, args, out, backend="asyncio"))
    except VMCraftError as error:
        out.error(error)
        code = exit_codes.of_error(error)
    return _told(code, out)


def _split(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The words before a shell's --, and the command behind it: argparse takes no options between two positionals."""
    if words[:1] != ["shell"] or "--" not in words:
        return words, None
    end = words.index("--")
    return words[:end], words[end + 1 :]


async def _interruptible(args: argparse.Namespace, out: Output) -> int:
    """Run the command; Ctrl-C, SIGTERM and SIGHUP end it in order, and once: the guest is ended before we are."""
    interrupted = False
    code: int = ExitCode.INTERRUPTED

    async def watch() -> None:
        nonlocal interrupted
        async for _number in signals:
            interrupted = True
            group.cancel_scope.cancel()

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals, first_error():
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            code = await args.run(args, out)
            group.cancel_scope.cancel()
    if interrupted:
        done = f"the changes to {out.committed} were" if out.committed else "nothing was"
        out.note(f"interrupted; {done} committed", "yellow")
        return ExitCode.INTERRUPTED
    return code


def _told(code: int, out: Output) -> int:
    """The exit status, and what is to say about an output that could not be written."""
    # What Python still holds for an output whose reader has left goes nowhere, instead of failing at the end.
    if out.gone:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if out.failure is None:
        return code
    done = f"; the changes to {out.committed} were committed" if out.committed else ""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"vmcraft: standard output cannot be written: {out.failure.strerror}{done}\n")
    return code or ExitCode.HOST


if __name__ == "__main__":
    sys.exit(main())
