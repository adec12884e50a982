"""What the command prints: results on standard output, everything else on standard error; colour on a terminal only."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from vmcraft.errors import VMCraftError
from vmcraft.facade.answers import encoded
from vmcraft.model.printable import printable


class Output:
    """One command's output.

    Attributes:
        json: Results are printed as JSON, and nothing else on standard output.
        committed: Where to changes were committed already; None when nowhere.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.committed: str | None = None
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def result(self, value: object) -> None:
        """The command's result, for programs; prints only with --json."""
        if self.json:
            text = msgspec.json.format(encoded(value), indent=2).decode()
            sys.stdout.write(text + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """One line for people; left out with --json."""
        if not self.json:
            self._out.print(Text(text, style=style))

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
            self._err.print(Text(text, style=style))

    def error(self, error: VMCraftError) -> None:
        """An error that ended the command, and what to do about it; as an object with --json."""
        if self.json:
            self.result(
                {"error": error.keyed, "key": error.key, "outcome": str(error.outcome), "remedy": error.remedy or None}
            )
            return
        self._err.print(Text(f"vmcraft: {error.keyed}", style="bold red"))
        if error.remedy:
            self._err.print(Text(f"  what to do: {error.remedy}"))

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Show that something takes its time; only on a terminal."""
        if self.json or not self._err.is_terminal:
            yield
            return
        with self._err.status(Text(text)):
            yield

    def confirm(self, question: str) -> bool:
        """Ask on the terminal; anything but yes is no."""
        self._err.print(Text(f"{question} [y/N] ", style="bold"), end="")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def milliseconds(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def shown(value: object) -> str:
    """A value in a cell; a dash where there is none."""
    return "-" if value is None or value == "" else printable(str(value))
