"""What the command prints: results on standard output, everything else on standard error; colour on a terminal only.

What a guest says can be in any of it: control characters never reach a terminal. Output that cannot be written (a
reader that has had enough, a full disk) never changes what the command does.
"""

import contextlib
import errno
import io
import sys
from collections.abc import Iterator, Sequence

import anyio
import msgspec
from rich.console import Console
from rich.text import Text

from vmcraft.errors import VMCraftError
from vmcraft.facade.answers import encoded
from vmcraft.model.printable import printable

_LINE_LIMIT = 16 << 10


class Output:
    """One command's output.

    Attributes:
        json: Results are printed as JSON, and nothing else on standard output.
        committed: Where to changes were committed already; None when nowhere.
        gone: Standard output cannot be written any more.
        failure: Why standard output could not be written; None while it can, and when its reader has left.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.committed: str | None = None
        self.failure: OSError | None = None
        self.gone = False
        # Rich only says how a line looks: one that writes as well ends the program when its reader has left.
        self._out = _renderer(sys.stdout.isatty())
        self._err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._err_lines = _renderer(self._err.is_terminal)

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def result(self, value: object) -> None:
        """The command's result, for programs; prints only with --json."""
        if self.json:
            self._write(msgspec.json.format(encoded(value), indent=2).decode() + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """One line for people; left out with --json."""
        if not self.json:
            self._write(_rendered(self._out, printable(text, limit=_LINE_LIMIT), style))

    def _write(self, text: str) -> None:
        """Write to standard output, or no longer."""
        if self.gone:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            self.gone = True
            self.failure = None if error.errno == errno.EPIPE else error

    def rows(self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
        """Aligned columns under a heading; the last column takes what it needs."""
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        self.line(self._aligned(head, widths), "bold")
        for number, row in enumerate(rows):
            self.line(self._aligned(row, widths), styles[number] if styles else "")

    @staticmethod
    def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    def note(self, text: str, style: str = "dim") -> None:
        """A remark on standard error; left out with --json."""
        if not self.json:
            self._say(printable(text, limit=_LINE_LIMIT, newlines=True), style)

    def error(self, error: VMCraftError) -> None:
        """An error that ended the command, and what to do about it; as an object with --json."""
        if self.json:
            self.result(described(error))
            return
        self._say(f"vmcraft: {error.keyed}", "bold red")
        if error.remedy:
            self._say(f"  what to do: {error.remedy}", "")

    def _say(self, text: str, style: str, end: str = "\n") -> None:
        with contextlib.suppress(OSError):
            fit = printable(text, limit=_LINE_LIMIT, newlines=True)
            sys.stderr.write(_rendered(self._err_lines, fit, style, end))
            sys.stderr.flush()

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Show that something takes its time; only on a terminal."""
        if self.json or not self._err.is_terminal:
            yield
            return
        with self._err.status(Text(printable(text))):
            yield

    async def confirm(self, question: str) -> bool:
        """Ask on the terminal; anything but yes is no. An interrupt ends the question."""
        self._say(f"{question} [y/N] ", "bold", end="")
        # Only a whole line makes a terminal readable, so the read does not block.
        await anyio.wait_readable(sys.stdin)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _renderer(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, highlight=False, markup=False, soft_wrap=True)


def _rendered(console: Console, text: str, style: str, end: str = "\n") -> str:
    with console.capture() as captured:
        console.print(Text(text, style=style), end=end)
    return captured.get()


def described(error: VMCraftError) -> dict[str, object]:
    """An error as --json shows it."""
    return {"error": error.keyed, "key": error.key, "outcome": str(error.outcome), "remedy": error.remedy or None}


def milliseconds(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def shown(value: object) -> str:
    """A value in a cell; a dash where there is none."""
    return "-" if value is None or value == "" else printable(str(value))
