"""Until a guest is ready, and until it is gone: one at a time, and eight at once; ours against systemd-nspawn's."""

import time
from dataclasses import dataclass

import anyio
from scripts.benchmarks import by_hand
from scripts.benchmarks.figures import Goal, Sample, Section, Table, at_most
from scripts.benchmarks.places import Roots

from vmcraft import VMCraft

READY_RATIO = 1.3
EIGHT_RATIO = 1.5
AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBoot:
    """One guest of ours, in seconds: to the end of launch, to READY as launch tells it, and to the end of the block."""

    launch: float
    ready: float
    end: float


async def own_boot(root: str, *, private_users: bool = True) -> OwnBoot:
    """Launch a guest and end it."""
    async with VMCraft(private_users=private_users) as g:
        await g.add_drive_opts(root, readonly=True)
        begin = time.perf_counter()
        launched = await g.launch()
        took = time.perf_counter() - begin
        begin = time.perf_counter()
    end = time.perf_counter() - begin
    return OwnBoot(launch=took, ready=float(launched["ready_s"]), end=end)


def bare_boot(root: str) -> tuple[float, float]:
    """Boot a copy by hand and stop it: seconds to READY and to the end."""
    with by_hand.booted(root) as (bare, ready):
        return ready, bare.stop()


def bare_terminate(root: str) -> float:
    """Boot a copy by hand and kill it."""
    with by_hand.booted(root) as (bare, _):
        return bare.terminate()


async def own_eight(root: str) -> tuple[float, float]:
    """Eight guests of one process at once: seconds until all are launched, and until all are gone."""
    launched = anyio.Event()
    up = 0

    async def one() -> None:
        nonlocal up
        async with VMCraft() as g:
            await g.add_drive_opts(root, readonly=True)
            await g.launch()
            up += 1
            if up == AT_ONCE:
                launched.set()
            await launched.wait()

    begin = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(one)
        await launched.wait()
        ready = time.perf_counter() - begin
        begin = time.perf_counter()
    return ready, time.perf_counter() - begin


async def one_at_a_time(roots: list[Roots], repetitions: int) -> Section:
    """Guest ready and terminate, ours and by hand in turns."""
    ready_rows, end_rows = [], []
    goals: list[Goal] = []
    for each in roots:
        copy = each.copies[0]
        ours, bare, killed, mapped = [], [], [], []
        for _ in range(repetitions + 1):
            bare.append(await anyio.to_thread.run_sync(bare_boot, copy))
            ours.append(await own_boot(each.source))
            mapped.append((await own_boot(each.source, private_users=False)).launch)
        for _ in range(min(repetitions, 5) + 1):
            took = await anyio.to_thread.run_sync(bare_terminate, copy)
            killed.append(took)
        launch, ready, end = (
            Sample.of(getattr(boot, name) for boot in ours[1:]) for name in ("launch", "ready", "end")
        )
        bare_ready, bare_end = (Sample.of(pair[part] for pair in bare[1:]) for part in (0, 1))
        ratio = launch.median / bare_ready.median
        plain = Sample.of(mapped[1:])
        ready_rows.append(
            (each.release, str(launch), str(ready), str(plain), str(bare_ready), f"{ratio:.2f}", str(launch.n))
        )
        end_ratio = end.median / bare_end.median
        end_rows.append(
            (each.release, str(end), str(bare_end), f"{end_ratio:.2f}", str(Sample.of(killed[1:])), str(end.n))
        )
        goals.append(at_most(f"guest ready against bare, {each.release}", ratio, READY_RATIO))
    return Section(
        title="Guest ready, and its end",
        text=(
            f"By hand: `{by_hand.BARE_COMMAND}`, from the call to READY, on a private copy, since such a boot writes "
            "into its root. Ours: `launch()` with everything that belongs to it (directory, overlay, private user "
            "namespace, connection to the guest's manager, the end of the start-up), on the root itself. Both in "
            "turns; the first of each is thrown away, so the page cache is warm.\n\n"
            "The end of the block is a clean power-off and the removal of all traces, against `systemctl stop` of the "
            "bare unit; `machinectl terminate` kills, and counts here until the unit is gone."
        ),
        tables=(
            Table(
                ("ready, ms", "launch()", "ready_s", "launch() without private users", "bare", "launch : bare", "n"),
                tuple(ready_rows),
            ),
            Table(
                ("end, ms", "end of block", "systemctl stop (bare)", "ratio", "machinectl terminate (bare)", "n"),
                tuple(end_rows),
            ),
        ),
        goals=tuple(goals),
    )


async def eight_at_once(roots: list[Roots], repetitions: int) -> Section:
    """Eight guests at once, ours and by hand in turns."""
    rows = []
    goals: list[Goal] = []
    for each in roots:
        ours, bare = [], []
        for _ in range(repetitions + 1):
            bare.append(await anyio.to_thread.run_sync(by_hand.all_at_once, each.copies[:AT_ONCE]))
            ours.append(await own_eight(each.source))
        ready, end = (Sample.of(pair[part] for pair in ours[1:]) for part in (0, 1))
        bare_ready, bare_end = (Sample.of(pair[part] for pair in bare[1:]) for part in (0, 1))
        ratio = ready.median / bare_ready.median
        rows.append((each.release, str(ready), str(bare_ready), f"{ratio:.2f}", str(end), str(bare_end), str(ready.n)))
        goals.append(at_most(f"eight guests at once against by hand, {each.release}", ratio, EIGHT_RATIO))
    return Section(
        title="Eight guests at once",
        text=(
            "Ours: eight `AsyncVMCraft` in one process and one task group, until the last is launched. By hand: eight "
            "of the commands above, started in parallel on eight private copies, until the last is READY. In turns, "
            "the first of each thrown away."
        ),
        tables=(Table(("ms", "ours", "by hand", "ratio", "end, ours", "end, by hand", "n"), tuple(rows)),),
        goals=tuple(goals),
    )
