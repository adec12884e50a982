"""A commit of one symlink and of a hundred, against cp and sync of the same."""

import os
import subprocess
import time

import anyio
from scripts.benchmarks import places
from scripts.benchmarks.figures import Sample, Section, Table
from scripts.benchmarks.places import Roots
from scripts.benchmarks.warm import checked, life, took

MANY = 100
WANTS = "etc/systemd/system/multi-user.target.wants"


async def committed(root: str, names: list[str]) -> tuple[float, float]:
    """Enable units in a guest, then commit: the seconds of both."""
    async with life(root, readonly=False) as guest:
        enabling, answer = await took(guest.g.systemd_services_enable_multiple(names))
        checked("services_enable_multiple", answer)
        committing, written = await took(guest.g.commit())
        if len(written["changes"]) != len(names):
            raise AssertionError(f"{len(names)} changes were made, {len(written['changes'])} committed")
    return enabling, committing


def copied(root: str, names: list[str]) -> float:
    """The same symlinks by hand: `cp -a` into the directory, `sync` of the directory."""
    new = os.path.join(root, "new")
    os.mkdir(new)
    for name in names:
        os.symlink("/etc/systemd/system/st-tmpl@.service", os.path.join(new, f"{name}.service"))
    target = os.path.join(root, WANTS)
    begin = time.perf_counter()
    subprocess.run(["cp", "-a", f"{new}/.", target], check=True)
    subprocess.run(["sync", target], check=True)
    return time.perf_counter() - begin


async def commit(roots: list[Roots], repetitions: int) -> Section:
    """In turns, each on a copy of its own."""
    each = roots[-1]
    rows = []
    for count in (1, MANY):
        names = [f"st-tmpl@{number}" for number in range(1, count + 1)]
        ours, theirs = [], []
        for _ in range(repetitions + 1):
            with places.hard_linked(each.source) as root:
                ours.append(await committed(root, names))
            with places.hard_linked(each.source) as root:
                theirs.append(await anyio.to_thread.run_sync(copied, root, names))
        enabling, committing = (Sample.of(pair[part] for pair in ours[1:]) for part in (0, 1))
        rows.append((str(count), str(committing), str(Sample.of(theirs[1:])), str(enabling), str(enabling.n)))
    return Section(
        title="Commit",
        text=(
            f"Instances of a template are enabled in a guest ({each.release}) in one call, and committed: journalled, "
            "staged, synced, renamed, synced. By hand: `cp -a` of the same symlinks and `sync` of their directory, "
            "neither atomic nor guarded."
        ),
        tables=(Table(("symlinks", "commit(), ms", "cp and sync, ms", "the enabling call, ms", "n"), tuple(rows)),),
    )
