"""vmcraft doctor: what this host lacks."""

import argparse

from vmcraft.cli.exit_codes import ExitCode
from vmcraft.cli.opened import add_json
from vmcraft.cli.output import Output
from vmcraft.host.doctor import Health, examine

_STYLES = {Health.OK: "green", Health.WARNING: "yellow", Health.MISSING: "bold red"}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor`."""
    text = "what this host lacks for booting guests, with the command that mends it"
    parser = commands.add_parser("doctor", help=text, description=text[0].upper() + text[1:] + ".")
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(_args: argparse.Namespace, out: Output) -> ExitCode:
    checks = await examine()
    out.result(checks)
    for check in checks:
        out.line(f"{check.health:>8}  {check.name}: {check.found}", _STYLES[check.health])
        if check.remedy:
            out.line(f"{'':>8}  what to do: {check.remedy}")
    return ExitCode.HOST if any(check.health is Health.MISSING for check in checks) else ExitCode.OK
