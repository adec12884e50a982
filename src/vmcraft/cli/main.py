"""vmcraft: the command."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import anyio

from vmcraft import __version__
from vmcraft.cli import doctor, exit_codes, services, shell, sweep
from vmcraft.cli.exit_codes import ExitCode
from vmcraft.cli.output import Output
from vmcraft.errors import VMCraftError

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
    args = parser().parse_args(arguments)
    out = Output(json=args.json)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Ended like Ctrl-C: the guest is ended before we are.
        signal.signal(number, signal.default_int_handler)
    try:
        return int(anyio.run(args.run, args, out, backend="asyncio"))
    except VMCraftError as error:
        out.error(error)
        return exit_codes.of_error(error)
    except KeyboardInterrupt:
        out.note(
            f"interrupted; {f'the changes to {out.committed} were' if out.committed else 'nothing was'} committed",
            "yellow",
        )
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough of it; what Python still holds for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
