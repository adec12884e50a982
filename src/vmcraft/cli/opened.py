"""The guest of a command: opened with the options that all of them share, and the one way to a commit."""

import argparse
import contextlib
import os
from collections.abc import AsyncIterator

from vmcraft.cli.exit_codes import ExitCode
from vmcraft.cli.output import Output, milliseconds
from vmcraft.guest.boot import BOOT_LIMIT_S
from vmcraft.model.changes import Change, ChangeKind
from vmcraft.model.drive import Drive
from vmcraft.model.guest import Launched, SystemState
from vmcraft.transaction import Transaction

_SIGNS = {ChangeKind.CREATED: ("+", "green"), ChangeKind.MODIFIED: ("~", "yellow"), ChangeKind.REMOVED: ("-", "red")}


def add_guest(parser: argparse.ArgumentParser) -> None:
    """The guest, and how it is opened."""
    parser.add_argument(
        "guest", metavar="GUEST", help="root directory of the guest; it is never written to but by a commit"
    )
    parser.add_argument(
        "--boot-limit",
        type=float,
        default=BOOT_LIMIT_S,
        metavar="SECONDS",
        help="how long to wait for the end of the boot (default: %(default)g); the guest is used all the same",
    )
    parser.add_argument(
        "--no-private-users", action="store_true", help="boot without a user namespace (less safe; see vmcraft doctor)"
    )
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")


def add_commit(parser: argparse.ArgumentParser) -> None:
    """How a change reaches the root."""
    parser.add_argument("--yes", action="store_true", help="commit without asking")
    parser.add_argument("--dry-run", action="store_true", help="show what would be committed, and commit nothing")
    parser.add_argument("--keep-going", action="store_true", help="commit what was done also when a part was refused")
    parser.add_argument("--output", metavar="DIR", help="write a new root there instead of changing GUEST")


@contextlib.asynccontextmanager
async def opened(args: argparse.Namespace, out: Output, *, readonly: bool = True) -> AsyncIterator[Transaction]:
    """The booted guest; nothing is committed but by `commit`."""
    transaction = Transaction(private_users=not args.no_private_users)
    transaction.add_drive(Drive(path=args.guest, readonly=readonly, output=getattr(args, "output", None)))
    try:
        with out.progress(f"booting {args.guest}"):
            launched = await transaction.launch(boot_limit=args.boot_limit)
        _tell(args.guest, launched, out)
        yield transaction
    finally:
        with out.progress("ending the guest"):
            await transaction.close(commit=False)


def _tell(guest: str, launched: Launched, out: Output) -> None:
    name = os.path.basename(os.path.normpath(guest)) or guest
    ready = f"ready in {milliseconds(launched.ready_s)}" if launched.ready_s is not None else "not ready at the limit"
    out.note(f"{name}: {launched.state}, {ready}, systemd {launched.systemd_version}")
    if launched.reason:
        out.note(f"{name}: {launched.reason}", "yellow" if launched.state is SystemState.DEGRADED else "bold yellow")
    for recovered in launched.recovered:
        out.note(f"{name}: an interrupted commit was {recovered.recovery}", "yellow")


def show_changes(changes: tuple[Change, ...], out: Output) -> None:
    """The exact list of what a commit writes."""
    for change in changes:
        sign, style = _SIGNS[change.change]
        target = change.after if change.after is not None else change.before
        arrow = f" -> {target}" if target is not None and "\n" not in target else ""
        out.line(f"  {sign} {change.path}{arrow}", style)


async def commit(
    args: argparse.Namespace, out: Output, transaction: Transaction, *, failed: bool
) -> tuple[ExitCode, bool]:
    """Show the changes and write them, if that is wanted; answers the exit status, and whether they were written.

    Args:
        args: With --yes, --dry-run, --keep-going, --output.
        out: Where to show and ask.
        transaction: The opened guest.
        failed: Whether a part was refused: then nothing is written without --keep-going.
    """
    changes = await transaction.diff()
    target = args.output or args.guest
    if not changes:
        out.line("nothing to commit")
        return (ExitCode.REFUSED if failed else ExitCode.OK), False
    out.line(f"{len(changes)} change{'' if len(changes) == 1 else 's'} to {target}:")
    show_changes(changes, out)
    if args.dry_run:
        out.line("dry run: nothing was committed")
        return (ExitCode.REFUSED if failed else ExitCode.OK), False
    if failed and not args.keep_going:
        out.note("nothing was committed, since a part was refused; --keep-going commits the rest", "yellow")
        return ExitCode.REFUSED, False
    if not args.yes and not (out.interactive and not out.json and await out.confirm(f"Commit to {target}?")):
        out.note("not confirmed, nothing was committed; --yes commits without asking", "yellow")
        return ExitCode.NOT_CONFIRMED, False
    with out.progress(f"committing to {target}"):
        await transaction.commit()
        out.committed = target
    out.line(f"committed to {target}", "bold green")
    return (ExitCode.REFUSED if failed else ExitCode.OK), True
