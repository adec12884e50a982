"""The guest's own journalctl, run inside it: the last lines about a unit in this boot."""

import datetime

import msgspec

from vmcraft.errors import ProgramFailed, ReplyMalformed
from vmcraft.guest.guest import Guest
from vmcraft.guest.programs import run_in_guest
from vmcraft.guest.root import find_program
from vmcraft.host.root_dir import RootDir
from vmcraft.model.printable import printable
from vmcraft.model.services import LogLine

LIMIT_S = 15.0
OUTPUT_LIMIT_BYTES = 1 << 20
_FIELDS = "MESSAGE,PRIORITY"


class _Entry(msgspec.Struct):
    """One line of `-o json`; a field with unprintable bytes comes as a list of numbers, repeated ones as a list."""

    timestamp: str = msgspec.field(name="__REALTIME_TIMESTAMP")
    message: object = msgspec.field(name="MESSAGE", default=None)
    priority: object = msgspec.field(name="PRIORITY", default=None)


async def last_lines(guest: Guest, unit: str, *, count: int) -> tuple[LogLine, ...]:
    """The newest lines of this boot that a unit wrote or that systemd wrote about it, oldest first.

    Empty also where the guest has no journalctl.

    Raises:
        ProgramFailed: journalctl ended badly; the text names what it said.
        ReplyMalformed: It printed something else than journal entries.
    """
    with RootDir.open(guest.source) as root:
        program = find_program(root, "journalctl")
    if program is None:
        return ()
    argv = [
        program,
        "--no-pager",
        "--boot",
        "--output=json",
        f"--output-fields={_FIELDS}",
        f"--lines={count}",
        "--unit",
        unit,
    ]
    ended = await run_in_guest(guest, argv, limit=LIMIT_S, output_limit=OUTPUT_LIMIT_BYTES)
    if not ended.ok:
        said = printable(ended.stderr.decode(errors="replace"), limit=500)
        raise ProgramFailed(f"the guest's journalctl failed ({ended.job}, status {ended.status}): {said}")
    return tuple(_line(raw) for raw in ended.stdout.splitlines()[-count:])


def _line(raw: bytes) -> LogLine:
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
        when = datetime.datetime.fromtimestamp(int(entry.timestamp) / 1e6, tz=datetime.UTC)
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError) as error:
        raise ReplyMalformed("the guest's journalctl printed something else than journal entries") from error
    return LogLine(timestamp=when, priority=_priority(entry.priority), message=_text(entry.message))


def _priority(raw: object) -> int | None:
    return int(raw) if isinstance(raw, str) and raw in tuple("01234567") else None


def _text(raw: object) -> str:
    match raw:
        case str():
            return printable(raw)
        case [int(), *_]:
            return printable(bytes(byte & 0xFF for byte in raw if isinstance(byte, int)).decode(errors="replace"))
        case [str() as first, *_]:
            return printable(first)
        case _:
            return ""
