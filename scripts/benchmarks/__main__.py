"""Measure VMCraft against what one would do by hand, and write docs/performance.md."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from scripts.benchmarks import boots, commits, memory, places, warm
from scripts.benchmarks.figures import Section
from scripts.benchmarks.page import page
from scripts.benchmarks.places import Roots

import guest_roots
from vmcraft.host.host_bus import host_bus
from vmcraft.host.sweep import sweep

PAGE = guest_roots.CHECKOUT / "docs" / "performance.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How often what is repeated."""

    releases: tuple[str, ...]
    boots: int
    eight: int
    calls: int
    rows: int
    commits: int


WHOLE = Amount(releases=guest_roots.SUITES, boots=15, eight=5, calls=40, rows=7, commits=5)
QUICK = Amount(releases=("bookworm",), boots=3, eight=2, calls=10, rows=2, commits=2)

PARTS: dict[str, Callable[[list[Roots], Amount], Awaitable[Section]]] = {
    "boots": lambda roots, amount: boots.one_at_a_time(roots, amount.boots),
    "eight": lambda roots, amount: boots.eight_at_once(roots, amount.eight),
    "calls": lambda roots, amount: warm.each_call(roots, amount.calls),
    "row": lambda roots, amount: warm.in_a_row(roots, amount.rows),
    "list": lambda roots, amount: warm.listing(roots, amount.calls),
    "memory": lambda roots, _amount: memory.memory(roots),
    "commit": lambda roots, amount: commits.commit(roots, amount.commits),
}


async def measure(parts: Sequence[str], amount: Amount) -> list[Section]:
    """The sections of the named parts, in order."""
    copies = boots.AT_ONCE if "eight" in parts else 1
    with contextlib.ExitStack() as stack:
        roots = [stack.enter_context(places.roots(release, copies)) for release in amount.releases]
        sections = []
        for part in parts:
            begin = time.monotonic()
            sections.append(await PARTS[part](roots, amount))
            print(f"bench: {part} took {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        return sections


async def leftovers() -> tuple[str, ...]:
    """Guests without an owner: there must be none after a benchmark."""
    async with host_bus() as host:
        return (await sweep(host)).guests


def main() -> int:
    """Measure, write or print; 0 also where a goal is missed: the page says it."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog="A busy machine gives wrong figures: let nothing else run.",
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions, bookworm only; printed, not written")
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="only this part (repeatable); printed, not written"
    )
    parser.add_argument("--output", type=Path, help="write the page there (default: docs/performance.md)")
    arguments = parser.parse_args()
    parts = arguments.part or list(PARTS)
    load = os.getloadavg()[0]
    begin = time.monotonic()
    with places.alone():
        sections = anyio.run(measure, parts, QUICK if arguments.quick else WHOLE)
    if left := anyio.run(leftovers):
        print(f"bench: guests were left behind, now removed: {', '.join(left)}", file=sys.stderr)
        return 1
    options = " --quick" * arguments.quick + "".join(f" --part {part}" for part in arguments.part or ())
    text = page(sections, command=f"scripts/bench{options}", load=load, took=time.monotonic() - begin)
    target = arguments.output or (None if options else PAGE)
    if target is None:
        print(text, end="")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"bench: wrote {target.name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
