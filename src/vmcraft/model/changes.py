"""A change set's values: what was changed by which call, what was written, what a recovery did."""

import enum
from dataclasses import dataclass


class ChangeKind(enum.StrEnum):
    """What happens to one path of the source."""

    CREATED = "created"
    MODIFIED = "modified"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One path that the source and the booted guest have differently, and the call that made it so.

    Attributes:
        path: Canonical path in the guest; odd bytes as surrogate escapes.
        change: Created, modified or removed, seen from the source.
        call: The last call that declared the path.
        args: That call's arguments, as text.
        before: Text of the file in the source, or target of the symlink; None where there was none, or it is binary.
        after: The same for the guest.
        note: What the texts do not show: binary content with its size, a cut, a mode or owner that changes.
    """

    path: str
    change: ChangeKind
    call: str
    args: tuple[str, ...]
    before: str | None
    after: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a commit wrote.

    Attributes:
        changes: The changes, sorted by path; empty where nothing was pending.
        output: The new root that they were written to; None for the source itself.
    """

    changes: tuple[Change, ...]
    output: str | None


class Recovery(enum.StrEnum):
    """How a commit that was cut off was ended."""

    UNDONE = "undone"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """One commit that a killed process had left, and what became of it.

    Attributes:
        root: The root (or the output) that the commit was for.
        recovery: Undone: the root is as before it; finished: as after it.
        paths: The paths of that commit; empty where it had not come so far.
    """

    root: str
    recovery: Recovery
    paths: tuple[str, ...]
