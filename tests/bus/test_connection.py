"""The connection on a real bus: calls, cancellation, signals, descriptors, and a bus that is started again."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from dbus_fast import Message
from dbus_fast.aio import MessageBus

from bus.conftest import Daemon, Echo
from vmcraft.bus.connection import Connection, unix_connector
from vmcraft.bus.interface import (
    Interface,
    Method,
    Property,
    Signal,
    Variant,
    introspect,
    value,
    variant,
)
from vmcraft.bus.names import BUS, BUS_PATH
from vmcraft.bus.signals import SignalMessage
from vmcraft.bus.transport import Limits
from vmcraft.errors import (
    BusError,
    ConnectionLost,
    InvalidName,
    InvalidValue,
    NotSupportedByGuest,
    ReplyMalformed,
    ReplyTimedOut,
)

pytestmark = pytest.mark.bus

NAME = "org.example.Echo"
PATH = "/org/example"


class Example(Interface):
    """The test service."""

    name = NAME
    ECHO_TEXT = Method("Echo", takes="s", gives="s")
    ECHO_TWO = Method("Echo", takes="su", gives="su")
    ECHO_NONE = Method("Echo")
    ECHO_VARIANTS = Method("Echo", takes="a{sv}", gives="a{sv}")
    ECHO_WRONG = Method("Echo", takes="s", gives="as")
    ECHO_STRUCT = Method("Echo", takes="(su)", gives="(su)")
    ECHO_PATH = Method("Echo", takes="o", gives="o")
    HANG = Method("Hang", since=300)
    FAIL = Method("Fail", takes="ss")
    READ = Method("ReadDescriptors", takes="ah", gives="as")
    SIGNAL = Method("Signal", takes="s")
    END = Method("End")
    CHANGED = Signal("Changed", "s")

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, NAME, PATH)


class Bus(Interface):
    """The bus itself, which has properties."""

    name = BUS
    FEATURES = Property("Features", "as")
    FEATURES_WRONG = Property("Features", "s")
    MISSING = Property("NoSuchThing", "u")

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, BUS, BUS_PATH)


@pytest.fixture
def example(bus: Connection, echo: Echo) -> Example:
    return Example(bus)


@asynccontextmanager
async def stranger(daemon: Daemon) -> AsyncIterator[MessageBus]:
    """Another client of the same bus."""
    client = await MessageBus(bus_address=f"unix:path={daemon.path}").connect()
    try:
        yield client
    finally:
        client.disconnect()


def changed(text: str, destination: str | None = None) -> Message:
    message = Message.new_signal(PATH, NAME, "Changed", "s", [text])
    message.destination = destination
    return message


async def settled(connection: Connection) -> None:
    """All that the bus sent before this is handed over."""
    await connection.call(destination=BUS, path=BUS_PATH, interface=BUS, member="GetId", gives="s")


# Calls


async def test_hello_gives_a_unique_name(bus: Connection) -> None:
    assert bus.unique_name is not None
    assert bus.unique_name.startswith(":")
    assert (bus.generation, bus.lost) == (1, False)


async def test_replies_of_no_one_and_two_values(example: Example) -> None:
    assert await example.call(Example.ECHO_NONE) is None
    assert await example.call(Example.ECHO_TEXT, "a") == "a"
    assert await example.call(Example.ECHO_TWO, "a", 1) == ("a", 1)


async def test_variants_go_and_come(example: Example) -> None:
    sent = {"a": variant("as", ["x"]), "b": variant("(st)", ["y", 5])}
    assert await example.call(Example.ECHO_VARIANTS, sent) == {
        "a": Variant("as", ["x"]),
        "b": Variant("(st)", ("y", 5)),
    }


async def test_properties_are_checked_against_their_type(bus: Connection) -> None:
    itself = Bus(bus)
    assert isinstance(await itself.get(Bus.FEATURES), list)
    rows = await itself.get_all()
    assert isinstance(value(rows, Bus.FEATURES, None), list)
    assert value(rows, Bus.MISSING, 0) == 0
    with pytest.raises(ReplyMalformed, match="Features has the type"):
        await itself.get(Bus.FEATURES_WRONG)
    with pytest.raises(ReplyMalformed, match="Features has the type"):
        value(rows, Bus.FEATURES_WRONG, None)
    with pytest.raises(BusError):
        await itself.get(Bus.MISSING)


async def test_introspection_names_the_members(bus: Connection) -> None:
    found = await introspect(bus, BUS, BUS_PATH)
    assert {"Hello", "AddMatch", "NameOwnerChanged", "Features"} <= found[BUS]


async def test_method_that_the_peer_lacks_is_not_sent(example: Example) -> None:
    example.features = frozenset({"Echo"})
    with pytest.raises(NotSupportedByGuest, match="systemd 300"):
        await example.call(Example.HANG)
    assert await example.call(Example.ECHO_TEXT, "a") == "a"


def test_members_are_the_constants() -> None:
    assert Bus.members() == {
        "FEATURES": Bus.FEATURES,
        "FEATURES_WRONG": Bus.FEATURES_WRONG,
        "MISSING": Bus.MISSING,
    }


async def test_reply_of_another_signature_fails_its_call_only(example: Example) -> None:
    with pytest.raises(ReplyMalformed, match="signature 's' instead of 'as'"):
        await example.call(Example.ECHO_WRONG, "a")
    assert await example.call(Example.ECHO_TEXT, "b") == "b"
    assert example.connection.generation == 1


@pytest.mark.parametrize(
    ("shape", "said"),
    [("empty", ""), ("number", ""), ("text", "went wrong"), ("more", "first"), ("huge", "x" * 4095 + "…")],
)
async def test_error_replies_of_every_shape(example: Example, shape: str, said: str) -> None:
    with pytest.raises(BusError) as caught:
        await example.call(Example.FAIL, "org.example.Bad", shape)
    assert (caught.value.name, caught.value.said, caught.value.member) == ("org.example.Bad", said, f"{NAME}.Fail")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("NoReply", ConnectionLost),
        ("Disconnected", ConnectionLost),
        ("Timeout", ReplyTimedOut),
        ("TimedOut", ReplyTimedOut),
    ],
)
async def test_errors_that_leave_the_outcome_open(example: Example, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await example.call(Example.FAIL, f"org.freedesktop.DBus.Error.{name}", "text")
    assert not example.connection.lost


async def test_a_service_that_ends_during_the_call(example: Example) -> None:
    with pytest.raises(ConnectionLost, match="ended before it answered"):
        await example.call(Example.END)
    assert not example.connection.lost


async def test_a_name_without_owner_is_refused(bus: Connection) -> None:
    with pytest.raises(BusError) as caught:
        await Example(bus).call(Example.ECHO_NONE)
    assert caught.value.name == "org.freedesktop.DBus.Error.ServiceUnknown"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (Example.ECHO_TEXT, (1,)),
        (Example.ECHO_TEXT, ()),
        (Example.ECHO_TEXT, ("a", "b")),
        (Example.ECHO_TEXT, ("a\0b",)),
        (Example.ECHO_TEXT, ("\ud800",)),
        (Example.ECHO_TEXT, (None,)),
        (Example.ECHO_TWO, ("a", -1)),
        (Example.ECHO_TWO, ("a", 1 << 32)),
        (Example.ECHO_STRUCT, (("a",),)),
        (Example.ECHO_PATH, ("no path",)),
        (Example.ECHO_VARIANTS, ({"a": 1},)),
        (Example.ECHO_TEXT, ("x" * (17 << 20),)),
    ],
)
async def test_arguments_that_do_not_fit_are_not_sent(
    example: Example, method: Method, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(InvalidValue):
        await example.call(method, *arguments)
    assert await example.call(Example.ECHO_TEXT, "still here") == "still here"
    assert example.connection.generation == 1


@pytest.mark.parametrize(
    "change", [{"path": "/a\n"}, {"path": "a'"}, {"interface": "a"}, {"member": "a.b"}, {"destination": "a',b='c"}]
)
async def test_names_that_would_end_our_own_connection_are_not_sent(bus: Connection, change: dict[str, str]) -> None:
    names = {"destination": NAME, "path": PATH, "interface": NAME, "member": "Echo"} | change
    with pytest.raises(InvalidName):
        await bus.call(
            destination=names["destination"],
            path=names["path"],
            interface=names["interface"],
            member=names["member"],
        )
    with pytest.raises(InvalidName):
        async with bus.signals.on(
            sender=names["destination"],
            path=names["path"],
            interface=names["interface"],
            member=names["member"],
            carries="",
            handler=print,
        ):
            pass


# Many, cancelled and late


async def test_200_calls_at_once_stay_below_the_bus_limit(example: Example) -> None:
    answers: dict[int, str] = {}

    async def one(number: int) -> None:
        # Short, since the service is dbus-fast's, whose own writer dies of a full socket.
        answers[number] = await example.call(Example.ECHO_TEXT, str(number))

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(one, number)
    assert answers == {number: str(number) for number in range(200)}


async def test_calls_in_flight_are_capped(daemon: Daemon, echo: Echo) -> None:
    async with daemon.connection(limits=Limits(calls_in_flight=3)) as connection, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(Example(connection).call, Example.HANG)
        await anyio.wait_all_tasks_blocked()
        assert len(connection._replies._pending) == 3
        tasks.cancel_scope.cancel()


async def test_cancelled_calls_leave_nothing_and_their_late_replies_are_dropped(example: Example) -> None:
    connection = example.connection
    for number in range(300):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(example.call, Example.ECHO_TEXT, str(number))
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert connection._replies._pending == {}
    assert await example.call(Example.ECHO_TEXT, "after") == "after"
    # A reply to each came before that one, and none was a stranger.
    assert connection._replies._abandoned == {}
    assert connection._transport is not None
    assert connection._transport._unasked._replies == 0


async def test_time_limit_says_what_did_not_answer(example: Example) -> None:
    with pytest.raises(ReplyTimedOut, match=r"org\.example\.Echo\.Hang within 0\.05 s"):
        await example.call(Example.HANG, limit=0.05)
    assert example.connection._replies._pending == {}
    assert await example.call(Example.ECHO_TEXT, "a") == "a"


async def test_abandoned_calls_are_bounded(daemon: Daemon, echo: Echo) -> None:
    async with daemon.connection(limits=Limits(abandoned_calls=5)) as connection:
        for _ in range(9):
            with pytest.raises(ReplyTimedOut):
                await Example(connection).call(Example.HANG, limit=0)
        assert len(connection._replies._abandoned) == 5


# Descriptors


async def test_descriptors_arrive_and_none_is_left_here(example: Example) -> None:
    def pipe_with(text: bytes) -> int:
        reader, writer = os.pipe()
        os.write(writer, text)
        os.close(writer)
        return reader

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        fds = [pipe_with(b"first"), pipe_with(b"second")]
        try:
            assert await example.call(Example.READ, [1, 0], fds=fds) == ["first", "second"]
        finally:
            for fd in fds:
                os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_late_reply_finds_the_callers_descriptors_closed_and_their_numbers_used_again(example: Example) -> None:
    connection = example.connection
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    # The service answers when the pipe ends: after the call was given up.
    with anyio.move_on_after(0.05):
        await example.call(Example.READ, [0], fds=[reader])
    os.close(reader)
    again = os.open(os.devnull, os.O_RDONLY)
    assert again == reader
    # The message's own descriptor arrived all the same: the pipe has a reader still.
    os.write(writer, b"late")
    os.close(writer)
    assert await example.call(Example.ECHO_TEXT, "after") == "after"
    assert os.path.samestat(os.fstat(again), os.stat(os.devnull))
    os.close(again)
    assert (connection._replies._pending, connection._replies._abandoned) == ({}, {})
    assert connection._transport is not None
    assert connection._transport._unasked._replies == 0
    assert len(os.listdir("/proc/self/fd")) == before


async def test_descriptors_that_are_not_open_are_not_sent(example: Example) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        await example.call(Example.READ, [0, 1], fds=[0, 1_000_000])
    assert len(os.listdir("/proc/self/fd")) == before


async def test_opening_and_closing_leaves_no_descriptor(daemon: Daemon) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with daemon.connection() as connection:
            await settled(connection)
    assert len(os.listdir("/proc/self/fd")) == before


# Signals


async def test_signal_handler_runs_before_the_reply_that_came_after_it(example: Example) -> None:
    seen: list[str] = []
    async with example.on(Example.CHANGED, seen.append):
        for number in range(50):
            await example.call(Example.SIGNAL, str(number))
            assert seen[-1] == str(number)
    await example.call(Example.SIGNAL, "nobody listens")
    assert len(seen) == 50


async def test_signal_of_another_client_does_not_reach_the_handler(example: Example, daemon: Daemon) -> None:
    seen: list[str] = []
    async with example.on(Example.CHANGED, seen.append), stranger(daemon) as other:
        # Straight to our name: this one passes every match rule.
        await other.send(changed("faked", example.connection.unique_name))
        await other.send(changed("faked"))
        await other.call(Message(BUS, BUS_PATH, BUS, "GetId"))
        await settled(example.connection)
        await example.call(Example.SIGNAL, "real")
    assert seen == ["real"]


async def test_new_owner_of_the_name_is_followed(bus: Connection, daemon: Daemon) -> None:
    seen: list[str] = []
    async with Example(bus).on(Example.CHANGED, seen.append), stranger(daemon) as first, stranger(daemon) as second:
        for owner, text in ((first, "one"), (second, "two")):
            await owner.request_name(NAME)
            await owner.send(changed(text))
            await owner.release_name(NAME)
            await owner.send(changed("without the name"))
            await owner.call(Message(BUS, BUS_PATH, BUS, "GetId"))
        await settled(bus)
    assert seen == ["one", "two"]


async def test_only_the_path_and_signature_asked_for(example: Example) -> None:
    seen: list[SignalMessage] = []

    def on(path: str | None, carries: str) -> Any:
        return example.connection.signals.on(
            sender=NAME, path=path, interface=NAME, member="Changed", carries=carries, handler=seen.append
        )

    async with on("/another", "s"), on(PATH, "u"), on(None, "s"):
        await example.call(Example.SIGNAL, "a")
    assert [(message.path, message.body) for message in seen] == [(PATH, ["a"])]


async def test_match_rules_are_given_back_with_their_last_user(example: Example) -> None:
    connection = example.connection
    seen: list[str] = []
    async with example.on(Example.CHANGED, seen.append):
        async with example.on(Example.CHANGED, seen.append):
            await example.call(Example.SIGNAL, "two")
        await example.call(Example.SIGNAL, "one")
        assert len(connection.signals._matches) == 2
    assert seen == ["two", "two", "one"]
    assert (connection.signals._matches, connection.signals._owners) == ({}, {})


async def test_match_rule_is_given_back_when_the_block_is_cancelled(example: Example) -> None:
    with anyio.CancelScope() as scope:
        async with example.on(Example.CHANGED, print):
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert example.connection.signals._matches == {}


async def test_handler_that_raises_is_reported_and_the_others_run(example: Example) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    seen: list[str] = []

    def broken(text: str) -> None:
        raise RuntimeError(text)

    async with example.on(Example.CHANGED, broken), example.on(Example.CHANGED, seen.append):
        for number in range(3):
            await example.call(Example.SIGNAL, str(number))
    assert seen == ["0", "1", "2"]
    assert [str(context["exception"]) for context in reported] == seen


# Loss and reconnect


async def test_a_restarted_bus_is_found_again_with_matches_and_hooks(daemon: Daemon) -> None:
    seen: list[str] = []
    hooks: list[int] = []

    async def again(connection: Connection) -> None:
        await settled(connection)
        hooks.append(connection.generation)

    async with daemon.connection() as connection:
        connection.on_reopened(again)
        async with Example(connection).on(Example.CHANGED, seen.append):
            daemon.stop()
            with pytest.raises(ConnectionLost):
                await settled(connection)
            assert connection.lost
            daemon.start()
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(settled, connection)
            assert (connection.generation, connection.lost, hooks) == (2, False, [2])
            async with stranger(daemon) as owner:
                await owner.request_name(NAME)
                await owner.send(changed("after"))
                await owner.call(Message(BUS, BUS_PATH, BUS, "GetId"))
                await settled(connection)
    assert seen == ["after"]


async def test_calls_in_flight_fail_when_the_bus_ends_and_are_not_sent_again(example: Example, daemon: Daemon) -> None:
    failed: list[str] = []

    async def one() -> None:
        with pytest.raises(ConnectionLost) as caught:
            await example.call(Example.HANG)
        failed.append(caught.value.text)

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        daemon.stop()
    assert len(failed) == 100
    # 64 had been sent; the rest waited for their turn and found no bus.
    assert sum("Hang had not been answered" in text for text in failed) == 64
    assert example.connection._replies._pending == {}


async def test_failed_hook_fails_the_reconnect_and_the_next_call_tries_again(daemon: Daemon) -> None:
    attempts: list[int] = []

    async def again(connection: Connection) -> None:
        attempts.append(connection.generation)
        if len(attempts) == 1:
            await Example(connection).call(Example.ECHO_NONE)

    async with daemon.connection() as connection:
        connection.on_reopened(again)
        daemon.stop()
        daemon.start()
        with pytest.raises(ConnectionLost):
            await settled(connection)
        with pytest.raises(BusError):
            await settled(connection)
        assert connection.lost
        await settled(connection)
    assert attempts == [2, 3]


async def test_tasks_that_a_handler_starts_reconnect_as_others_do(daemon: Daemon) -> None:
    # The reader runs in the context of the task that opened the connection, and so do tasks started from there.
    restarted = anyio.Event()

    async def later(connection: Connection) -> None:
        await restarted.wait()
        await settled(connection)

    def start(_text: str) -> None:
        tasks.start_soon(later, connection)

    async with (
        daemon.connection() as connection,
        anyio.create_task_group() as tasks,
        Example(connection).on(Example.CHANGED, start),
    ):
        async with stranger(daemon) as owner:
            await owner.request_name(NAME)
            await owner.send(changed("now"))
            await owner.call(Message(BUS, BUS_PATH, BUS, "GetId"))
            await settled(connection)
        daemon.stop()
        with pytest.raises(ConnectionLost):
            await settled(connection)
        daemon.start()
        restarted.set()
        await anyio.wait_all_tasks_blocked()
    assert connection.generation == 2


async def test_no_bus_is_an_error_of_its_own(daemon: Daemon) -> None:
    daemon.stop()
    connection = daemon.connection()
    with pytest.raises(ConnectionLost, match="cannot connect to the test bus"):
        await connection.open()
    assert not connection.lost
    daemon.start()
    await connection.open()
    connection.close()


async def test_a_connector_that_hangs_meets_the_limit() -> None:
    async def never() -> socket.socket:
        await anyio.sleep_forever()
        raise AssertionError

    connection = Connection(never, peer="nobody", limits=Limits(open_s=0.05))
    with pytest.raises(ConnectionLost, match=r"nobody within 0\.05 s"):
        await connection.open()


async def test_an_identity_that_is_not_ours_is_not_let_in(daemon: Daemon) -> None:
    with pytest.raises(ConnectionLost, match="does not let us in"):
        await daemon.connection(uid=12345).open()


async def test_closing_twice_is_closing_once(bus: Connection) -> None:
    bus.close()
    bus.close()
    for call in (settled(bus), bus.open()):
        with pytest.raises(ConnectionLost, match="is closed"):
            await call
    assert bus.lost


@pytest.mark.parametrize("ready", [settled, lambda connection: connection.open()])
async def test_closing_while_it_opens(daemon: Daemon, ready: Callable[[Connection], Any]) -> None:
    connection = Connection(unix_connector(daemon.path), peer="the test bus")

    async def one() -> None:
        with pytest.raises(ConnectionLost):
            await ready(connection)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        await anyio.lowlevel.checkpoint()
        connection.close()
