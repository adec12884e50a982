"""Jobs awaited: results that come early, limits, cancellation, and a connection that ends in between.

The bus is real where the bus is what ends. Which comes first, a result or the reply, and what becomes of a job that is
cancelled, a real manager does not let us choose; there the peer is a hostile one.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from dbus_fast import Message

from bus.conftest import Client, Daemon, Echo, HostilePeer, answer, frame
from vmcraft.bus.connection import Connection
from vmcraft.bus.jobs import Jobs, watching
from vmcraft.bus.message import Received
from vmcraft.bus.systemd1 import MANAGER_PATH, Manager
from vmcraft.errors import BusError, ConnectionLost, JobTimedOut, ReplyMalformed
from vmcraft.model.services import JobResult

pytestmark = pytest.mark.bus

Hostile = Callable[..., tuple[HostilePeer, Connection]]
JOB = f"{MANAGER_PATH}/job/7"
PATIENCE_S = 20


def removed(path: str = JOB, result: str = "done") -> bytes:
    return frame(Message.new_signal(MANAGER_PATH, Manager.name, "JobRemoved", "uoss", [7, path, "a.service", result]))


def job_made(call: Received, path: str = JOB) -> bytes:
    assert call.member == "StartUnit"
    return answer(call.serial, "o", path)


def ask(jobs: Jobs, manager: Manager, *, limit: float = PATIENCE_S, cancel: bool = True) -> Awaitable[JobResult]:
    return jobs.run(manager.start_unit("a.service"), what="the start of a.service", limit=limit, cancel=cancel)


@asynccontextmanager
async def following(hostile: Hostile, script: Callable[[Client], None]) -> AsyncIterator[tuple[Manager, Jobs]]:
    """Jobs of a peer that lets us in and goes on as scripted."""

    def whole(client: Client) -> None:
        client.login()
        script(client)
        client.wait_for_end()

    _, connection = hostile(whole)
    manager = Manager(connection)
    async with watching(manager) as jobs:
        yield manager, jobs


class Cancelled:
    """A script: makes a job that does not end, and notes which call comes next."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[int]]] = []

    def __call__(self, client: Client) -> None:
        client.send(job_made(client.read_call()))
        call = client.read_call()
        self.calls.append((call.member, call.body(call.signature)))
        client.send(answer(call.serial))


# Results


async def test_result_that_comes_before_the_reply(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        call = client.read_call()
        # One write: the result is handed over before the task that awaits the reply runs again.
        client.send(removed() + job_made(call))

    async with following(hostile, script) as (manager, jobs):
        assert await ask(jobs, manager) == JobResult.DONE
        assert jobs._results == {}


async def test_result_that_comes_after_the_reply_among_those_of_others(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.send(job_made(client.read_call()) + removed(f"{MANAGER_PATH}/job/6") + removed(result="failed"))

    async with following(hostile, script) as (manager, jobs):
        assert await ask(jobs, manager) == JobResult.FAILED
        assert jobs._results == {}


async def test_results_are_kept_while_somebody_waits_only_and_up_to_a_bound(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.send(b"".join(removed(f"{MANAGER_PATH}/job/{number}") for number in range(100)))
        client.send(answer(client.read_call().serial))
        call = client.read_call()
        client.send(b"".join(removed(f"{MANAGER_PATH}/job/{number}") for number in range(10_000, 16_000)))
        client.send(answer(call.serial, "o", f"{MANAGER_PATH}/job/10000"))

    async with following(hostile, script) as (manager, jobs):
        await manager.subscribe()
        assert jobs._results == {}
        kept = 0

        async def start() -> str:
            nonlocal kept
            path = await manager.start_unit("a.service")
            kept = len(jobs._results)
            return path

        assert await jobs.run(start(), what="the start", limit=PATIENCE_S) == JobResult.DONE
        assert kept == 4096
        assert jobs._results == {}


async def test_request_that_fails_leaves_nothing(bus: Connection) -> None:
    manager = Manager(bus)
    async with watching(manager) as jobs:
        with pytest.raises(BusError):
            await ask(jobs, manager)
        assert not jobs._waiters


# The connection ends


async def never_ending(connection: Connection, number: int) -> str:
    """The path of a job whose end nobody tells; the test bus has no manager."""
    [path] = await connection.call(
        destination="org.example.Echo",
        path="/org/example",
        interface="org.example.Echo",
        member="Echo",
        takes="o",
        body=[f"{MANAGER_PATH}/job/{number}"],
        gives="o",
    )
    return str(path)


async def test_every_waiter_is_told_when_the_bus_ends(bus: Connection, echo: Echo, daemon: Daemon) -> None:
    lost: list[str] = []
    async with watching(Manager(bus)) as jobs:

        async def one(number: int) -> None:
            with pytest.raises(ConnectionLost) as caught:
                await jobs.run(never_ending(bus, number), what=f"start {number}", limit=math.inf)
            lost.append(caught.value.text)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(one, number)
                while len(bus._replies._pending) or sum(jobs._waiters.values()) < 10:
                    await anyio.lowlevel.checkpoint()
                daemon.stop()
        assert not jobs._waiters
    assert sorted(lost) == [
        f"start {number}: the connection to the manager ended while its job ran" for number in range(10)
    ]


async def test_waiter_is_told_although_the_bus_is_back_at_once(bus: Connection, echo: Echo, daemon: Daemon) -> None:
    restarted = anyio.Event()
    async with watching(Manager(bus)) as jobs, anyio.create_task_group() as tasks:

        async def one() -> None:
            async def slow() -> str:
                path = await never_ending(bus, 7)
                restarted.set()
                return path

            with pytest.raises(ConnectionLost, match="ended while its job ran"):
                await jobs.run(slow(), what="the start", limit=PATIENCE_S)

        tasks.start_soon(one)
        await restarted.wait()
        daemon.stop()
        daemon.start()
        while not bus.lost:
            await anyio.lowlevel.checkpoint()
        await bus.open()
        assert bus.generation == 2


async def test_waiter_is_told_when_the_peer_turns_hostile(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.send(job_made(client.read_call()))
        client.send(b"x" * 64)

    async with following(hostile, script) as (manager, jobs):
        # Which of the two it is depends on whether the reply's task ran in between.
        with pytest.raises((ConnectionLost, ReplyMalformed)):
            await ask(jobs, manager)


async def test_result_that_came_before_the_end_counts(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.send(job_made(client.read_call()) + removed())
        client.sock.shutdown(2)

    async with following(hostile, script) as (manager, jobs):
        assert await ask(jobs, manager) == JobResult.DONE


# Limits and cancellation


async def test_job_is_cancelled_at_the_limit(hostile: Hostile) -> None:
    script = Cancelled()
    async with following(hostile, script) as (manager, jobs):
        with pytest.raises(JobTimedOut, match=r"the start of a\.service was still running after 0\.2 s"):
            await ask(jobs, manager, limit=0.2)
        assert not jobs._waiters
    assert script.calls == [("CancelJob", [7])]


async def test_job_is_cancelled_with_its_waiter(hostile: Hostile) -> None:
    script = Cancelled()
    async with following(hostile, script) as (manager, jobs):
        with anyio.move_on_after(0.2) as scope:
            await ask(jobs, manager)
        assert scope.cancelled_caught
        assert not jobs._waiters
    assert script.calls == [("CancelJob", [7])]


@pytest.mark.parametrize("path", [JOB, "/", f"{MANAGER_PATH}/job/x"])
async def test_job_that_is_not_to_be_or_cannot_be_cancelled(hostile: Hostile, path: str) -> None:
    calls: list[str | None] = []

    def script(client: Client) -> None:
        client.send(job_made(client.read_call(), path))
        calls.append(client.read_call().member)

    async with following(hostile, script) as (manager, jobs):
        with pytest.raises(JobTimedOut):
            await ask(jobs, manager, limit=0.1, cancel=path != JOB)
        manager.connection.close()
    assert calls == []


async def test_cancelling_fails_quietly_when_the_job_has_just_ended(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.send(job_made(client.read_call()))
        call = client.read_call()
        client.send(frame(Message.new_error(_call(call), "org.freedesktop.systemd1.NoSuchJob", "No such job")))

    async with following(hostile, script) as (manager, jobs):
        with pytest.raises(JobTimedOut):
            await ask(jobs, manager, limit=0.1)
        assert not manager.connection.lost


def _call(call: Received) -> Message:
    return Message(path="/", interface="a.b", member="C", serial=call.serial)
