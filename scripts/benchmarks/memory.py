"""Memory of the agent, with one guest and with more."""

import json
import subprocess
import sys
from pathlib import Path

import anyio
from scripts.benchmarks.boots import AT_ONCE
from scripts.benchmarks.figures import Goal, Section, Table, at_most
from scripts.benchmarks.places import Roots

CHILD = Path(__file__).with_name("memory_child.py")
AGENT_LIMIT_MB = 60.0
GUEST_LIMIT_MB = 2.0
MB = 1_000_000


def measured(facade: str, root: str, guests: int) -> list[dict[str, int]]:
    """What a fresh agent says of itself before the first guest and after each."""
    run = [sys.executable, str(CHILD), facade, root, str(guests)]
    found: list[dict[str, int]] = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return found


async def memory(roots: list[Roots]) -> Section:
    """Both facades."""
    each = roots[-1]
    rows = []
    goals: list[Goal] = []
    for facade in ("async", "blocking"):
        found = await anyio.to_thread.run_sync(measured, facade, each.source, AT_ONCE)
        first, last = found[1], found[-1]
        further = {kind: (last[kind] - first[kind]) / (len(found) - 2) / MB for kind in ("rss", "pss")}
        figures = [value[kind] / MB for value in (found[0], first, last) for kind in ("rss", "pss")]
        rows.append(
            (facade, *(f"{figure:.1f}" for figure in figures), f"{further['rss']:.2f}", f"{further['pss']:.2f}")
        )
        goals.append(at_most(f"agent with one guest, {facade} facade, RSS", first["rss"] / MB, AGENT_LIMIT_MB, " MB"))
        goals.append(at_most(f"each further guest, {facade} facade, RSS", further["rss"], GUEST_LIMIT_MB, " MB"))
    columns = [f"{when}, {kind}" for when in ("no guest", "1 guest", f"{AT_ONCE} guests") for kind in ("RSS", "PSS")]
    return Section(
        title="Memory of the agent",
        text=(
            f"A fresh process opens {AT_ONCE} guests ({each.release}) one after the other and asks each for its "
            "services and a status; from smaps_rollup, after a garbage collection. 1 MB is 1,000,000 bytes. The "
            "guests' own processes are not the agent's."
        ),
        tables=(Table(("MB", *columns, "further guest, RSS", "further guest, PSS"), tuple(rows)),),
        goals=tuple(goals),
    )
