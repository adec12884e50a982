"""vmcraft services: the service calls on one guest."""

import argparse
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from vmcraft.cli import opened as guest
from vmcraft.cli.exit_codes import ExitCode, of_error, of_outcome
from vmcraft.cli.output import Output, described, shown
from vmcraft.errors import OutcomeUnknown, Refused, VMCraftError
from vmcraft.managers.services import SystemdManager
from vmcraft.model.outcome import Outcome
from vmcraft.model.services import (
    ActiveState,
    BulkOutcome,
    LogLine,
    NamedOutcome,
    PresetApplied,
    ServiceRow,
    ServiceRun,
    ServiceStatus,
)
from vmcraft.model.units import Dependencies

T = TypeVar("T")
Run = Callable[[argparse.Namespace, Output], Awaitable[ExitCode]]
_STYLES = {ActiveState.FAILED: "red", ActiveState.ACTIVE: "green", ActiveState.ACTIVATING: "yellow"}
_DEPENDENCIES = (
    "requires",
    "requisite",
    "wants",
    "binds_to",
    "part_of",
    "upholds",
    "conflicts",
    "after",
    "before",
    "required_by",
    "wanted_by",
    "bound_by",
    "triggers",
    "triggered_by",
    "missing",
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `services` and its sub-commands."""
    services = commands.add_parser("services", help="list, examine, enable, disable, mask, start and stop services")
    verbs = services.add_subparsers(metavar="COMMAND", required=True)
    listing = _verb(verbs, "list", "all services, loaded or not", _list)
    listing.add_argument("--state", metavar="STATE", help="only those in this load, active, sub or unit-file state")
    _verb(verbs, "failed", "services that failed, with the cause and the last log lines", _failed)
    _verb(verbs, "status", "one or more services in detail", _status, units=True)
    _verb(verbs, "deps", "what units need, and who needs them", _deps, units=True)
    for name, text in (
        ("enable", "start units at boot"),
        ("disable", "no longer start units at boot"),
        ("mask", "keep units from being started at all"),
        ("preset", "enable or disable units as the distribution wants it"),
    ):
        guest.add_commit(_verb(verbs, name, text, _change, units=True, verb=name))
    for name in ("start", "stop", "restart"):
        text = f"{name} units in the booted guest, and see what happens; nothing of it is left to commit"
        _verb(verbs, name, text, _control, units=True, verb=name)


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Run,
    *,
    units: bool = False,
    verb: str | None = None,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    guest.add_guest(parser)
    if units:
        parser.add_argument("units", metavar="UNIT", nargs="+", help="name of a unit; without a suffix it is a service")
    parser.set_defaults(run=run, verb=verb)
    return parser


# --- questions


async def _list(args: argparse.Namespace, out: Output) -> ExitCode:
    async with guest.opened(args, out) as transaction:
        rows = await transaction.services.list_services(args.state)
    out.result(rows)
    out.rows(
        ("UNIT", "FILE", "LOAD", "ACTIVE", "SUB", "DESCRIPTION"),
        [_cells(row) for row in rows],
        [_STYLES.get(row.active, "") for row in rows],
    )
    out.line(f"{len(rows)} services")
    return ExitCode.OK


def _cells(row: ServiceRow) -> tuple[str, ...]:
    held = " (held back)" if row.held_back else ""
    return row.name, shown(row.unit_file_state), row.load, row.active, row.sub, row.description + held


async def _failed(args: argparse.Namespace, out: Output) -> ExitCode:
    async with guest.opened(args, out) as transaction:
        names = await transaction.services.list_failed_services()
        failed = [await transaction.services.service_status(name) for name in names]
    out.result(failed)
    for status in failed:
        out.line(f"{status.name} - {status.description}", "bold red")
        out.line(f"  cause: {_cause(status)}")
        _show_log(status.log, out)
    out.line(f"{len(failed)} failed service{'' if len(failed) == 1 else 's'}")
    return ExitCode.OK


def _cause(status: ServiceStatus) -> str:
    ended = {1: "exit status", 2: "signal", 3: "signal (dumped core)"}.get(status.exec_main_code or 0)
    restarts = f" after {status.restarts} restarts" if status.restarts else ""
    return (
        f"result {status.result or status.load}" + (f", {ended} {status.exec_main_status}" if ended else "") + restarts
    )


def _show_log(log: Sequence[LogLine], out: Output) -> None:
    for line in log:
        style = "red" if line.priority is not None and line.priority <= 3 else "dim"
        out.line(f"  {line.timestamp:%H:%M:%S} {line.message}", style)


async def _status(args: argparse.Namespace, out: Output) -> ExitCode:
    return await _each(
        args, out, lambda services: services.service_status, lambda _unit, status: _show_status(status, out)
    )


async def _each(
    args: argparse.Namespace,
    out: Output,
    asked: Callable[[SystemdManager], Callable[[str], Awaitable[T]]],
    show: Callable[[str, T], None],
) -> ExitCode:
    """Ask about each unit; one that cannot be answered does not keep the others from it."""
    answers: dict[str, T | dict[str, object]] = {}
    code = ExitCode.OK
    async with guest.opened(args, out) as transaction:
        for unit in args.units:
            try:
                found = await asked(transaction.services)(unit)
            except (Refused, OutcomeUnknown) as error:
                code = _worse(code, of_error(error))
                answers[unit] = described(error)
                _say(error, out)
            else:
                answers[unit] = found
                show(unit, found)
    out.result(answers)
    return code


def _show_status(status: ServiceStatus, out: Output) -> None:
    out.line(f"{status.name} - {status.description}", "bold")
    file = f"{shown(status.fragment_path)}; {shown(status.unit_file_state)}; preset {shown(status.preset)}"
    facts = {
        "loaded": f"{status.load} ({file})",
        "error": status.load_error,
        "active": f"{status.active} ({status.sub})"
        + (f" since {status.active_since:%F %T} UTC" if status.active_since else ""),
        "held back": "VMCraft keeps it from running while the guest is booted" if status.held_back else None,
        "drop-ins": " ".join(status.drop_ins) or None,
        "triggered by": " ".join(status.triggered_by) or None,
        "condition": "not met" if status.condition_result is False else None,
        "result": _cause(status) if status.result not in (None, "success") else None,
        "main pid": status.main_pid,
        "memory": f"{status.memory_bytes / (1 << 20):.1f} MiB" if status.memory_bytes is not None else None,
        "cpu": f"{status.cpu_seconds:.3f} s" if status.cpu_seconds is not None else None,
        "tasks": status.tasks,
    }
    for name, fact in facts.items():
        if fact is not None:
            out.line(f"  {name:>12}: {fact}", _STYLES.get(status.active, "") if name == "active" else "")
    _show_log(status.log, out)
    if status.log_error:
        out.note(f"  the log cannot be read: {status.log_error}", "yellow")


async def _deps(args: argparse.Namespace, out: Output) -> ExitCode:
    def show(unit: str, found: Dependencies) -> None:
        out.line(unit, "bold")
        for kind in _DEPENDENCIES:
            if names := getattr(found, kind):
                out.line(f"  {kind:>12}: {' '.join(names)}", "red" if kind == "missing" else "")

    return await _each(args, out, lambda services: services.get_service_dependencies, show)


# --- changes


async def _change(args: argparse.Namespace, out: Output) -> ExitCode:
    async with guest.opened(args, out, readonly=False) as transaction:
        outcome = await _applied(transaction.services, args.verb, args.units)
        for item in outcome.items:
            _show_item(item, args.verb, out)
        changes = await transaction.diff()
        code, committed = await guest.commit(args, out, transaction, failed=not outcome.ok)
    out.result({"guest": args.guest, "units": outcome.items, "changes": changes, "committed": committed})
    return _worse(code, *(of_outcome(item.outcome) for item in outcome.items))


async def _applied(services: SystemdManager, verb: str, units: Sequence[str]) -> BulkOutcome:
    match verb:
        case "enable":
            return await services.services_enable_multiple(units)
        case "disable":
            return await services.services_disable_multiple(units)
        case "mask":
            return await services.services_mask(units)
        case _:
            return BulkOutcome(items=tuple([await _preset(services, unit) for unit in units]))


async def _preset(services: SystemdManager, unit: str) -> NamedOutcome:
    try:
        done: PresetApplied = await services.systemctl_preset(unit)
    except (Refused, OutcomeUnknown) as error:
        return NamedOutcome(name=unit, outcome=error.outcome, error=error.keyed, remedy=error.remedy or None)
    return NamedOutcome(name=unit, outcome=Outcome.DONE, unit_file_state=done.unit_file_state, changes=done.changes)


def _show_item(item: NamedOutcome, verb: str, out: Output) -> None:
    if item.ok:
        already = "" if item.changes else " already"
        out.line(f"{verb} {item.name}: {shown(item.unit_file_state)}{already}", "green")
    else:
        out.note(f"{verb} {item.name}: {item.error}", "red")
        if item.remedy:
            out.note(f"  what to do: {item.remedy}")
    for warning in item.warnings:
        out.note(f"  {warning.key}: {warning.message}", "yellow")


async def _control(args: argparse.Namespace, out: Output) -> ExitCode:
    answers: list[dict[str, object]] = []
    code = ExitCode.OK
    async with guest.opened(args, out) as transaction:
        calls = {
            "start": transaction.services.service_start,
            "stop": transaction.services.service_stop,
            "restart": transaction.services.service_restart,
        }
        for unit in args.units:
            try:
                with out.progress(f"{args.verb} {unit}"):
                    run = await calls[args.verb](unit)
                out.line(f"{args.verb} {run.unit}: {run.active} ({run.sub})", "green")
                answers.append({"unit": unit, "outcome": Outcome.DONE, "error": None, "run": run})
            except (Refused, OutcomeUnknown) as error:
                code = _worse(code, of_error(error))
                _say(error, out)
                answers.append({"unit": unit, "outcome": error.outcome, "error": error.keyed, "run": error.result})
    out.result(answers)
    return code


def _say(error: VMCraftError, out: Output) -> None:
    out.note(error.keyed, "red")
    if error.remedy:
        out.note(f"  what to do: {error.remedy}")
    if isinstance(error.result, ServiceRun):
        for line in error.result.log:
            out.note(f"  {line.timestamp:%H:%M:%S} {line.message}")


def _worse(*codes: ExitCode) -> ExitCode:
    """The one that matters most: what is unknown before what was refused."""
    return max(codes, key=lambda code: (code is ExitCode.UNKNOWN, code is ExitCode.REFUSED, code))
