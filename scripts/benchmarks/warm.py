"""The fifteen calls on a booted guest, one by one and in a row, against systemctl in an un-booted root."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
from scripts.benchmarks import by_hand
from scripts.benchmarks.calls import CASES, RESET_WORDS, Case, Life, reset, settled
from scripts.benchmarks.figures import Goal, Sample, Section, Table, at_least, at_most, ms
from scripts.benchmarks.places import ROWS, Roots

from vmcraft import VMCraft
from vmcraft.bus.systemd1 import BUS_NAME, MANAGER_PATH
from vmcraft.errors import Refused
from vmcraft.facade.calls import AsyncVMCraft
from vmcraft.transaction import Transaction

UNBOOTED = 5
ROW_RATIO = 2.0
FILES = ("list-unit-files", "--type=service")
LIST_LIMIT_MS = 5.0
PEER = "org.freedesktop.DBus.Peer"


@contextlib.asynccontextmanager
async def life(root: str, *, readonly: bool = True) -> AsyncIterator[Life]:
    """A launched guest."""
    transaction = Transaction()
    async with AsyncVMCraft(transaction) as g:
        await g.add_drive_opts(root, readonly=readonly)
        await g.launch()
        yield Life(transaction, g)


async def took(asked: Awaitable[Any]) -> tuple[float, Any]:
    """Seconds and answer."""
    begin = time.perf_counter()
    answer = await asked
    return time.perf_counter() - begin, answer


async def unbooted(root: str, words: tuple[str, ...]) -> tuple[float, int]:
    """As `by_hand.unbooted`; the guest's signals are read meanwhile."""
    return await anyio.to_thread.run_sync(by_hand.unbooted, root, words)


def checked(call: str, answer: object) -> None:
    """Refuse to time a change that did not happen."""
    values = list(answer.values()) if isinstance(answer, dict) else []
    is_bulk = bool(values) and all(isinstance(value, bool) for value in values)
    failed = (is_bulk and not all(values)) or (isinstance(answer, dict) and answer.get("ok") is False)
    if failed:
        raise Refused(f"{call} did not work, so there is nothing to time: {answer}")


async def one_call(guest: Life, case: Case, copy: str, repetitions: int) -> tuple[Sample, Sample, Sample, int]:
    """One call, ours and un-booted in turns: seconds, seconds without the settle time, un-booted, its exit status."""
    gross: list[float] = []
    net: list[float] = []
    theirs: list[float] = []
    status = 0
    share = max(1, repetitions // UNBOOTED)
    for number in range(repetitions + 1):
        if case.before is not None:
            checked(f"what is before {case.call}", await case.before(guest))
        seconds, answer = await took(case.ask(guest))
        checked(case.call, answer)
        gross.append(seconds)
        net.append(seconds - settled(answer))
        if number % share == 0 and len(theirs) <= UNBOOTED:
            if case.words_before is not None:
                await unbooted(copy, case.words_before)
            seconds, status = await unbooted(copy, case.words)
            theirs.append(seconds)
    return Sample.of(gross[1:]), Sample.of(net[1:]), Sample.of(theirs[1:]), status


async def each_call(roots: list[Roots], repetitions: int) -> Section:
    """Each of the fifteen calls warm."""
    tables, goals = [], []
    for each in roots:
        rows = []
        async with life(each.source) as guest:
            for case in CASES:
                often = repetitions if case.cheap else max(2, repetitions // 4)
                gross, net, theirs, status = await one_call(guest, case, each.copies[0], often)
                ratio = theirs.median / net.median
                settle = gross.median - net.median
                rows.append(
                    (
                        case.call,
                        str(net),
                        ms(settle) if settle else "",
                        str(gross.n),
                        str(theirs),
                        str(status),
                        f"{ratio:.1f}",
                    )
                )
                if case.factor is not None:
                    what = f"{case.call} against un-booted, {each.release}"
                    goals.append(at_least(what, ratio, case.factor, " x"))
        header = (each.release, "ours, ms", "settle, ms", "n", "un-booted, ms", "exit status", "times faster")
        tables.append(Table(header, tuple(rows)))
    return Section(
        title="Each call, warm",
        text=(
            "Ours: the calls of `AsyncVMCraft` on a launched guest, each change a real one (what it changes is set "
            "back before it, untimed; the first of each is thrown away). The settle time, for which a started service "
            "is watched, is told apart: a start or restart that answers `running` holds exactly one. A reload that a "
            "change makes necessary is done by the next call that needs it, so it is not in the figures of enable, "
            "disable and mask; it is in those of the fifteen in a row below.\n\n"
            f"Un-booted: `systemd-nspawn -q -D COPY systemctl ...`, {UNBOOTED} times in turns with ours. An exit "
            "status other than 0 says that it failed: without a manager in the root there is nobody to answer."
        ),
        tables=tuple(tables),
        goals=tuple(goals),
    )


async def in_a_row(roots: list[Roots], repetitions: int) -> Section:
    """All fifteen calls, one after the other."""
    rows, goals, shares = [], [], []
    for each in roots:
        gross, net, theirs = [], [], []
        failed = 0
        parts: list[list[float]] = [[] for _ in CASES]
        async with life(each.source) as guest:
            for _ in range(repetitions + 1):
                total = settle = 0.0
                for part, case in zip(parts, CASES, strict=True):
                    seconds, answer = await took(case.ask(guest))
                    checked(case.call, answer)
                    part.append(seconds - settled(answer))
                    total, settle = total + seconds, settle + settled(answer)
                gross.append(total)
                net.append(total - settle)
                await reset(guest)
                done = [await unbooted(each.copies[0], case.words) for case in CASES]
                theirs.append(sum(seconds for seconds, _ in done))
                failed = sum(status != 0 for _, status in done)
                for words in RESET_WORDS:
                    await unbooted(each.copies[0], words)
        ours, whole, others = Sample.of(net[1:]), Sample.of(gross[1:]), Sample.of(theirs[1:])
        ratio = others.median / ours.median
        rows.append((each.release, str(ours), str(whole), str(others), str(failed), f"{ratio:.2f}", str(ours.n)))
        goals.append(at_least(f"fifteen calls in a row against un-booted, {each.release}", ratio, ROW_RATIO, " x"))
        shares.append([ms(Sample.of(part[1:]).median) for part in parts])
    header = ("ms", "ours, settle apart", "ours, whole", "un-booted", "of 15 failed", "times faster", "n")
    where = tuple((case.call, *(share[number] for share in shares)) for number, case in enumerate(CASES))
    return Section(
        title="All fifteen calls in a row",
        text=(
            "In the order of the table, in one launched guest, against the same fifteen commands un-booted; in turns, "
            "the first of each thrown away. The settle times are counted by the answers (one for each start or "
            "restart that answers `running`: two in a row) and subtracted.\n\n"
            "The second table shows where our time goes: a call that comes after a change of unit files and whose "
            "answer depends on it holds the reload (service_status, list_services), and list_services also reads "
            "the table of unit files again."
        ),
        tables=(
            Table(header, tuple(rows)),
            Table(("medians, ms, settle apart", *(each.release for each in roots)), where),
        ),
        goals=tuple(goals),
    )


async def listing(roots: list[Roots], repetitions: int) -> Section:
    """list_services cached and not, and what is below it."""
    rows, bus_rows = [], []
    goals: list[Goal] = []
    for each in roots:
        async with life(each.source) as guest:
            count = len(await guest.g.systemd_list_services())
            cached = await repeated(guest.g.systemd_list_services, repetitions)
            reloaded, enabled, files = [], [], []
            for _ in range(max(2, repetitions // 4)):
                await guest.g.systemd_daemon_reload()
                reloaded.append((await took(guest.g.systemd_list_services()))[0])
                await guest.g.systemd_service_enable("st-disabled")
                enabled.append((await took(guest.g.systemd_list_services()))[0])
                await guest.g.systemd_service_disable("st-disabled")
                files.append((await unbooted(each.copies[0], FILES))[0])
            bus_rows.append((each.release, *await bus_figures(guest, repetitions)))
        forgotten, changed = Sample.of(reloaded), Sample.of(enabled)
        figures = (
            str(cached),
            str(forgotten),
            str(changed),
            str(Sample.of(files)),
            f"{cached.n}, {forgotten.n}, {changed.n}",
        )
        rows.append((each.release, str(count), *figures))
        what = f"list_services warm, {count} services, {each.release}"
        goals.append(at_most(what, cached.median * 1000, LIST_LIMIT_MS, " ms"))
    hop = await anyio.to_thread.run_sync(blocking_call, roots[0].source, repetitions)
    return Section(
        title="list_services, and the bus below it",
        text=(
            f"The roots have at least {ROWS} services. Cached: nothing changed since the last call. After a reload: "
            "the guest's signals have told that the table of unit files is old, so PID 1 lists them again. After a "
            "change: the same and the reload itself, which an enable left for this call. Un-booted, `list-units` has "
            "no answer; `list-unit-files --type=service` has the half of it that is on disk.\n\n"
            "Below: what a call to the guest's manager costs by itself, and ListUnits with every row made a value."
        ),
        tables=(
            Table(
                ("list_services, ms", "services", "cached", "after a reload", "after a change", "un-booted files", "n"),
                tuple(rows),
            ),
            Table(("bus, ms", "Ping", "SystemState", "ListUnits", "units", "ListUnits by us", "n"), tuple(bus_rows)),
        ),
        goals=tuple(goals),
        notes=(
            f"`systemd_is_systemd_available()` of the blocking facade, {roots[0].release}: {hop} ms (n = {hop.n}); the "
            "difference to the same call of the async one is the way between two threads."
        ),
    )


async def bus_figures(guest: Life, repetitions: int) -> tuple[str, ...]:
    """What a call to the guest's manager costs by itself, and decoded into values of ours."""
    connection, manager = guest.transaction.guest.connection, guest.transaction.guest.manager

    async def ping() -> None:
        await connection.call(destination=BUS_NAME, path=MANAGER_PATH, interface=PEER, member="Ping")

    async def raw_units() -> list[object]:
        reply: list[object] = await manager.call(manager.LIST_UNITS)
        return reply

    times = [await repeated(ask, repetitions) for ask in (ping, manager.system_state, raw_units, manager.list_units)]
    units = len(await raw_units())
    return (*(str(each) for each in times[:3]), str(units), str(times[3]), str(times[0].n))


async def repeated(ask: Callable[[], Awaitable[Any]], repetitions: int) -> Sample:
    """The same question again and again; the first is thrown away."""
    return Sample.of([(await took(ask()))[0] for _ in range(repetitions + 1)][1:])


def blocking_call(root: str, repetitions: int) -> Sample:
    """A cheap call of the blocking facade."""
    times = []
    with VMCraft() as g:
        g.add_drive_opts(root, readonly=True)
        g.launch()
        for _ in range(repetitions + 1):
            begin = time.perf_counter()
            g.systemd_is_systemd_available()
            times.append(time.perf_counter() - begin)
    return Sample.of(times[1:])
