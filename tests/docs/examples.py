"""The examples of the documents: found, run as they are written, and compared with the output that is shown.

The conventions, which CONTRIBUTING.md need not repeat since a document that breaks them fails its test:

- A block marked `python` is a whole program; one marked `console` is a terminal: lines that begin with `$ ` are typed,
  a backslash continues them, the other lines are what is printed (standard output and standard error).
- A `text` or `json` block right behind a `python` block is what that prints. All other blocks only show a shape.
- A command ends with status 0, unless `$ echo $?` follows it; a program always does.
- In an output, a line `...` stands for any lines, and `...` at the end of a line for the rest of it.
- Blocks below one `##` or `###` heading run in their order and see each other's commits; every such section has its
  own guests. The guests are those of example_guests.py, at /srv/guests, a path that is replaced when they run.
"""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs import example_guests

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = ("README.md", *(f"docs/SYSTEMD_{name}.md" for name in ("INTEGRATION", "MIGRATION_GUIDE", "RECIPES")))
LIMIT_S = 90

_FENCE = re.compile(r"```(\w*)")
_HEADING = re.compile(r"#{1,3} +(.+)")
_IN_USE = re.compile(r"vmcraft-[0-9a-f]{12} is in use, left alone")
_STATUS = re.compile("\0(\\d+)\0")
_UNSTABLE = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "CLOCK"),
    (re.compile(r"vmcraft-[0-9a-f]{12}"), "MACHINE"),
    (re.compile(r"\b2\d\d(?:\.\d+)?-\d+~deb\d+u\d+"), "VERSION"),
    (re.compile(r"\b\d+ (ms|MiB)\b"), r"N \1"),
    (re.compile(r"\b\d+\.\d+(e-\d+)?\b"), "FLOAT"),
    (re.compile(r"((?:main_pid|memory_bytes|tasks|\bid)['\"]: )\d+"), r"\1N"),
    (re.compile(r"((?:main pid|tasks): )\d+"), r"\1N"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block of a document, and the one that shows its output.

    Attributes:
        line: Of its opening fence.
        output: Lines of the block right behind it; None where there is none.
    """

    language: str
    line: int
    lines: tuple[str, ...]
    output: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The blocks that run, below one heading of a document."""

    document: str
    heading: str
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        name = self.document.rpartition("/")[2].removesuffix(".md").removeprefix("SYSTEMD_")
        return f"{name}: {self.heading}"

    @property
    def host_wide(self) -> bool:
        """Whether its commands see the guests of all others on this host."""
        return any(re.match(r"\$ vmcraft (?:sweep|recover)\b", line) for block in self.blocks for line in block.lines)

    def guests(self) -> list[str]:
        """The guests that its blocks name, or all of the usual ones where they name their directory."""
        text = "\n".join(line for block in self.blocks for line in block.lines)
        named = {name for name in example_guests.GUESTS if re.search(rf"/srv/guests/{name}(?![\w.-])", text)}
        if re.search(r"/srv/guests(?!/)", text):
            named |= {"web1", "web2", "db1"}
        return sorted(named)


def sections() -> list[Section]:
    """Every section of every document that has something to run."""
    return [section for document in DOCUMENTS for section in _sections_of(document)]


def _sections_of(document: str) -> Iterator[Section]:
    heading, blocks = document, list[Block]()
    for found in _blocks((CHECKOUT / document).read_text(encoding="utf-8").splitlines()):
        if isinstance(found, Block):
            blocks.append(found)
            continue
        if blocks:
            yield Section(document=document, heading=heading, blocks=tuple(blocks))
        heading, blocks = found, []
    if blocks:
        yield Section(document=document, heading=heading, blocks=tuple(blocks))


def _blocks(lines: Sequence[str]) -> Iterator[Block | str]:
    """The headings, as text, and the blocks that run."""
    waiting: Block | None = None
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        fence = _FENCE.match(line)
        if fence is None:
            if line.strip() and waiting is not None:
                yield waiting
                waiting = None
            if heading := _HEADING.match(line):
                yield heading[1]
            continue
        end = lines.index("```", at)
        block = Block(language=fence[1], line=at, lines=tuple(lines[at:end]))
        at = end + 1
        if waiting is not None:
            shows = block.language in ("text", "json")
            yield Block(
                language="python", line=waiting.line, lines=waiting.lines, output=block.lines if shows else None
            )
            waiting = None
            if shows:
                continue
        if block.language == "python":
            waiting = block
        elif block.language == "console":
            yield block
    if waiting is not None:
        yield waiting


def run(section: Section, place: Path) -> list[str]:
    """Run its blocks on the guests at `place`; answers what is not as the document says."""
    wrong = []
    for block in section.blocks:
        found = _python(block, place) if block.language == "python" else _console(block, place)
        wrong += [f"{section.document}:{block.line}: {problem}" for problem in found]
    return wrong


def _python(block: Block, place: Path) -> list[str]:
    program = "\n".join(block.lines).replace(example_guests.PLACE, str(place))
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if ran.returncode:
        return [f"the program ended with status {ran.returncode}\n{ran.stdout}{ran.stderr}"]
    return [] if block.output is None else _compared(block.output, ran.stdout, place)


def _console(block: Block, place: Path) -> list[str]:
    typed = _typed(block.lines)
    script = "".join(
        f"{command}\n__status=$?; printf '\\0%d\\0' $__status; (exit $__status)\n" for command, _ in typed
    ).replace(example_guests.PLACE, str(place))
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=place,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    pieces = _STATUS.split(ran.stdout)
    printed, statuses = pieces[0::2], [int(status) for status in pieces[1::2]]
    if len(statuses) != len(typed):
        return [f"the terminal ended early:\n{ran.stdout}"]
    wrong = []
    for number, (command, shown) in enumerate(typed):
        asked = number + 1 < len(typed) and typed[number + 1][0] == "echo $?"
        if statuses[number] and not asked:
            wrong.append(f"$ {command}: status {statuses[number]}, and no $ echo $? behind it\n{printed[number]}")
        if shown:
            wrong += [f"$ {command}: {problem}" for problem in _compared(shown, printed[number], place)]
    return wrong


def _typed(lines: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each command, and the lines that are shown behind it."""
    found: list[tuple[str, list[str]]] = []
    continues = False
    for line in lines:
        if continues:
            found[-1] = (found[-1][0] + "\n" + line, [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
        continues = (continues or line.startswith("$ ")) and line.endswith("\\")
    return [(command, tuple(shown)) for command, shown in found]


def _environment() -> dict[str, str]:
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}


def _compared(shown: Sequence[str], printed: str, place: Path) -> list[str]:
    lines = printed.replace(str(place), example_guests.PLACE).splitlines()
    # Guests of others on this host are no concern of an example.
    wanted, found = (_stable(line for line in some if not _IN_USE.match(line)) for some in (shown, lines))
    if _matches(wanted, found):
        return []
    return ["printed is\n" + "\n".join(lines) + "\nand shown is\n" + "\n".join(shown)]


def _stable(lines: Iterable[str]) -> list[str]:
    """The lines without what differs from run to run, and log lines that stand together sorted.

    A journal keeps what a service prints and what systemd says about it in the order in which they arrive.
    """
    stable = []
    for line in lines:
        for pattern, word in _UNSTABLE:
            line = pattern.sub(word, line)
        stable.append(line.rstrip())
    return [
        line
        for logged, together in itertools.groupby(stable, lambda line: line.startswith("  CLOCK "))
        for line in (sorted(together) if logged else together)
    ]


def _matches(wanted: Sequence[str], found: Sequence[str]) -> bool:
    """Whether the lines are as shown; a line `...` stands for any number of lines."""
    if not wanted:
        return not found
    if wanted[0].strip() == "...":
        return any(_matches(wanted[1:], found[at:]) for at in range(len(found) + 1))
    return bool(found) and _line_matches(wanted[0], found[0]) and _matches(wanted[1:], found[1:])


def _line_matches(wanted: str, found: str) -> bool:
    if wanted.endswith("..."):
        return found.startswith(wanted.removesuffix("..."))
    return wanted == found
