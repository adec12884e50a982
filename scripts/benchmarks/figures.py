"""Samples, goals, tables: what a part of the benchmark hands on, and how Markdown writes it. Measures nothing."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MS = 1000.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Repetitions of one measurement, in seconds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Sample":
        """Keep the values."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.values)

    @property
    def n(self) -> int:
        """How many repetitions."""
        return len(self.values)

    def __str__(self) -> str:
        """Median (least-most) in milliseconds."""
        low, high = min(self.values), max(self.values)
        return f"{ms(self.median)} ({ms(low)}-{ms(high)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One promise, and whether this run kept it."""

    what: str
    limit: str
    measured: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column is text, the others are figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What one part of the benchmark found.

    Attributes:
        title: Its heading.
        text: How it was measured.
        tables: The figures.
        goals: The promises that these figures decide.
        notes: What follows the tables.
    """

    title: str
    text: str
    tables: tuple[Table, ...]
    goals: tuple[Goal, ...] = field(default=())
    notes: str = ""


def ms(seconds: float) -> str:
    """Milliseconds with three digits that mean something."""
    value = seconds * MS
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def at_most(what: str, measured: float, limit: float, unit: str = "") -> Goal:
    """A goal that is kept by a small figure."""
    return Goal(what=what, limit=f"<= {limit:g}{unit}", measured=f"{measured:.2f}{unit}", passed=measured <= limit)


def at_least(what: str, measured: float, limit: float, unit: str = "") -> Goal:
    """A goal that is kept by a large figure."""
    return Goal(what=what, limit=f">= {limit:g}{unit}", measured=f"{measured:.2f}{unit}", passed=measured >= limit)


def goals_table(goals: Sequence[Goal]) -> Table:
    """All goals with their figures and verdicts."""
    rows = tuple((goal.what, goal.limit, goal.measured, "PASS" if goal.passed else "**MISS**") for goal in goals)
    return Table(("goal", "limit", "measured", "verdict"), rows)


def markdown(section: Section) -> str:
    """A section with its heading."""
    parts = [f"## {section.title}", section.text, *(table_text(table) for table in section.tables), section.notes]
    return "\n\n".join(part for part in parts if part)


def table_text(table: Table) -> str:
    """A table, figures aligned to the right."""
    rule = ["---", *("---:" for _ in table.header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (table.header, rule, *table.rows))
