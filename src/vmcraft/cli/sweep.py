"""vmcraft sweep: remove what killed runs left behind. vmcraft recover: end commits that were killed half-way."""

import argparse

import anyio

from vmcraft.changes.recover import recover
from vmcraft.cli.exit_codes import ExitCode
from vmcraft.cli.opened import add_json
from vmcraft.cli.output import Output
from vmcraft.host.host_bus import host_bus
from vmcraft.host.overlay import STATE_DIR
from vmcraft.host.privileges import require_root
from vmcraft.host.sweep import Swept, sweep
from vmcraft.model.changes import Recovered


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sweep` and `recover`."""
    for name, text, run in (
        ("sweep", "remove the guests that killed runs left behind, and end their commits as recover does", _sweep),
        ("recover", "finish or undo commits that were killed half-way", _recover),
    ):
        parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add_json(parser)
        parser.set_defaults(run=run)


async def _sweep(_args: argparse.Namespace, out: Output) -> ExitCode:
    async with host_bus() as host:
        with out.progress("sweeping"):
            swept: Swept = await sweep(host)
    recovered = await anyio.to_thread.run_sync(recover, STATE_DIR)
    out.result({"guests": swept.guests, "kept": swept.kept, "recovered": recovered})
    for machine in swept.guests:
        out.line(f"removed {machine}")
    for machine in swept.kept:
        out.line(f"{machine} is in use, left alone")
    _tell(recovered, out)
    if not swept.guests and not recovered:
        out.line("nothing was left behind")
    return ExitCode.OK


async def _recover(_args: argparse.Namespace, out: Output) -> ExitCode:
    require_root()
    recovered = await anyio.to_thread.run_sync(recover, STATE_DIR)
    out.result(recovered)
    _tell(recovered, out)
    if not recovered:
        out.line("no commit was interrupted")
    return ExitCode.OK


def _tell(recovered: tuple[Recovered, ...], out: Output) -> None:
    for one in recovered:
        out.line(f"the commit to {one.root} was {one.recovery} ({len(one.paths)} paths)")
