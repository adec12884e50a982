"""vmcraft shell: a root shell in the booted guest, on the overlay, thrown away."""

import argparse
import os
import sys

import anyio

from vmcraft.cli import opened as guest
from vmcraft.cli.output import Output
from vmcraft.errors import MissingProgram


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `shell`."""
    text = "a root shell in the booted guest; everything that it changes is thrown away"
    parser = commands.add_parser("shell", help=text, description=text[0].upper() + text[1:] + ".")
    guest.add_guest(parser)
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="run this instead of a shell")
    parser.set_defaults(run=_run)


async def _run(args: argparse.Namespace, out: Output) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    async with guest.opened(args, out) as transaction:
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        argv = [
            "systemd-run",
            f"--machine={transaction.guest.machine}",
            "--pty" if terminal else "--pipe",
            "--wait",
            "--collect",
            "--quiet",
            "--service-type=exec",
            "--setenv=TERM=" + (os.environ.get("TERM", "dumb") if terminal else "dumb"),
            "--",
            *(command or ["/bin/sh", "-l"]),
        ]
        if not command:
            out.note("a shell in the guest; leave it with exit. Nothing that it changes is kept")
        try:
            process = await anyio.open_process(argv, stdin=None, stdout=None, stderr=None)
        except FileNotFoundError as error:
            raise MissingProgram("systemd-run is not installed", remedy="apt-get install systemd") from error
        async with process:
            status = await process.wait()
    return status if status >= 0 else 128 - status
