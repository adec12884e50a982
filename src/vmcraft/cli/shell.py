"""vmcraft shell: a root shell in the booted guest, on the overlay, thrown away."""

import argparse
import os
import sys

import anyio

from vmcraft.cli import opened as guest
from vmcraft.cli.output import Output
from vmcraft.errors import MissingProgram, NotSupportedByGuest

_NOT_EXECUTABLE = 203
"""systemd's exit status for it; systemd.exec(5), "Process Exit Codes"."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `shell`."""
    text = "a root shell in the booted guest; everything that it changes is thrown away"
    parser = commands.add_parser("shell", help=text, description=text[0].upper() + text[1:] + ".")
    guest.add_guest(parser)
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="run this instead of a shell; put -- before it")
    parser.set_defaults(run=_run)


async def _run(args: argparse.Namespace, out: Output) -> int:
    command: list[str] = args.command
    async with guest.opened(args, out) as transaction:
        if not transaction.guest.references:
            raise NotSupportedByGuest(
                "a shell needs the guest's system bus, and it has none (yet)",
                remedy="raise --boot-limit, or end what the boot waits for: vmcraft services stop",
            )
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
    if status == _NOT_EXECUTABLE:
        out.note(f"{command[0] if command else '/bin/sh'} cannot be executed in the guest", "red")
    return status if status >= 0 else 128 - status
