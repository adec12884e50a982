"""Peers that lie, flood, stall and overflow: each gets an error of its own, within bounds, and leaves nothing."""

import array
import asyncio
import os
import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import anyio
import pytest
from dbus_fast import Message, MessageType
from dbus_fast import Variant as Sent

from bus.conftest import PATIENCE_S, Client, HostilePeer, answer, frame, signal
from vmcraft.bus import interface
from vmcraft.bus.connection import Connection
from vmcraft.bus.signals import SignalMessage
from vmcraft.errors import BusError, ConnectionLost, InvalidValue, NotSupportedByGuest, ReplyMalformed, ReplyTimedOut

pytestmark = pytest.mark.bus

Hostile = Callable[..., tuple[HostilePeer, Connection]]
MEMORY = 96 << 20
"""What a peer may make us hold: one message as received, as a frame, as a value's bytes and as the value; and slack."""


async def ask(connection: Connection, gives: str = "s", limit: float = 15, **more: Any) -> list[Any]:
    return await connection.call(
        destination="org.example", path="/", interface="org.example.One", member="Do", gives=gives, limit=limit, **more
    )


def listen(connection: Connection, handler: Callable[[SignalMessage], None]) -> AbstractAsyncContextManager[None]:
    return connection.signals.on(
        sender="org.example", interface="org.example.One", member="Changed", carries="s", handler=handler
    )


@contextmanager
def within(limit: int) -> Iterator[None]:
    """What the block makes Python allocate stays below the limit."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def refused(connection: Connection, why: str) -> None:
    """The connection ends because of that, and is never opened again."""
    with pytest.raises(ReplyMalformed, match=why):
        await ask(connection)
    generation = connection.generation
    with pytest.raises(ReplyMalformed, match="not opened again"):
        await ask(connection)
    assert connection.generation == generation


def answering(*data: bytes) -> Callable[[Client], None]:
    """A script that answers the first call with these bytes."""

    def script(client: Client) -> None:
        client.login()
        client.read_call()
        for one in data:
            client.send(one)
        client.wait_for_end()

    return script


# Authentication


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no D-Bus authentication"),
        (b"OK 0123\r\nWHAT\r\n", "no D-Bus authentication"),
        (b"\r\n\r\n", "no D-Bus authentication"),
        (b"\0" * 100 + b"\r\n\r\n", "no D-Bus authentication"),
        (b"x" * 100_000, "more than 16384 bytes"),
        (b"OK " + b"x" * 100_000, "more than 16384 bytes"),
    ],
)
async def test_what_is_no_authentication(hostile: Hostile, lines: bytes, why: str) -> None:
    def script(client: Client) -> None:
        client.read_auth()
        client.send(lines)
        client.wait_for_end()

    _, connection = hostile(script)
    with within(1 << 20):
        await refused(connection, why)


async def test_an_auth_line_without_end(hostile: Hostile) -> None:
    peer, connection = hostile(lambda client: client.flood(b"x"))
    with within(4 << 20):
        await refused(connection, "more than 16384 bytes")
    await peer.ended()
    assert peer.sent < 2 << 20


@pytest.mark.parametrize("said", [b"", b"OK 01", b"OK 0123\r\n", b"OK 0123\r\nAGREE_UNIX_FD\r"])
async def test_an_authentication_that_does_not_end(hostile: Hostile, said: bytes) -> None:
    def script(client: Client) -> None:
        client.send(said)
        client.wait_for_end()

    _, connection = hostile(script, auth_s=0.1)
    with pytest.raises(ReplyTimedOut, match=r"authentication within 0\.1 s"):
        await connection.open()


async def test_an_authentication_that_drips(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        ended = client.sock.dup()
        ended.settimeout(0.01)
        with ended:
            while True:
                client.send(b"O")
                try:
                    client.wait_for_end()
                except TimeoutError:
                    continue

    peer, connection = hostile(script, auth_s=0.2)
    with pytest.raises((ReplyTimedOut, ReplyMalformed)):
        await connection.open()
    await peer.ended()


async def test_a_peer_that_hangs_up_during_authentication(hostile: Hostile) -> None:
    _, connection = hostile(lambda client: client.send(b"OK 01"))
    with pytest.raises(ConnectionLost, match="hung up during the authentication"):
        await connection.open()


async def test_messages_in_the_same_write_as_the_authentication(hostile: Hostile) -> None:
    seen: list[SignalMessage] = []

    def script(client: Client) -> None:
        client.login(signal("Changed", "s", "early") * 3 + signal("Changed", "s", "cut")[:50])
        client.send(signal("Changed", "s", "cut")[50:])
        client.send(answer(client.read_call().serial, "s", "x"))
        client.wait_for_end()

    _, connection = hostile(script)
    async with listen(connection, seen.append):
        assert await ask(connection) == ["x"]
    assert [message.body for message in seen] == [["early"], ["early"], ["early"], ["cut"]]


async def test_a_peer_without_descriptors(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.read_auth()
        client.send(b"OK 01\r\nERROR\r\n")
        client.send(answer(client.read_call().serial, "s", "x"))
        client.wait_for_end()

    _, connection = hostile(script)
    with pytest.raises(NotSupportedByGuest, match="no file descriptors"):
        await ask(connection, takes="h", body=[0], fds=[0])
    assert await ask(connection) == ["x"]


# Broken messages

GOOD = answer(1, "s", "hello")


def changed(at: int, data: bytes) -> bytes:
    return GOOD[:at] + data + GOOD[at + len(data) :]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"x" * 64, "start no D-Bus message"),
        (changed(1, b"\7"), "start no D-Bus message"),
        (changed(3, b"\2"), "start no D-Bus message"),
        (changed(8, b"\0\0\0\0"), "serial 0"),
        (changed(4, struct.pack("<I", 1 << 27)), "at most 16777216"),
        (changed(12, struct.pack("<I", 1 << 27)), "header of 134217728 bytes"),
        (changed(4, b"\xff\xff\xff\xff"), "at most 16777216"),
        (GOOD[:-10] + struct.pack("<I", 0xFFFFFFFF) + b"hello\0", "past the end"),
        (GOOD[:-10] + struct.pack("<I", 5) + b"he\0lo\0", "NUL inside"),
        (GOOD[:-10] + struct.pack("<I", 5) + b"h\xffllo\0", "not UTF-8"),
        (GOOD[:-10] + struct.pack("<I", 5) + b"hello!", "without its NUL"),
        (GOOD.replace(b"\5\1u\0", b"\5\1i\0"), "type of another"),
    ],
)
async def test_broken_message_closes_for_good(hostile: Hostile, data: bytes, why: str) -> None:
    _, connection = hostile(answering(data))
    with within(1 << 20):
        await refused(connection, why)


async def test_a_body_that_wraps_around_in_every_reader(hostile: Hostile) -> None:
    for wrapped in (0xFFFFFFFF, 0xFFFFFFFB, 0xFFFFFFF0, 0x80000000):
        whole = answer(1, "as", ["xxxx", "yyyy"])
        _, connection = hostile(answering(whole.replace(b"\4\0\0\0yyyy", struct.pack("<I", wrapped) + b"yyyy")))
        with pytest.raises(ReplyMalformed, match="past the end"):
            await ask(connection, "as")


async def test_a_deep_variant(hostile: Hostile) -> None:
    value = Sent("s", "x")
    for _ in range(40):
        value = Sent("v", value)
    _, connection = hostile(answering(answer(1, "v", value)))
    with pytest.raises(ReplyMalformed, match="nested deeper than 32"):
        await ask(connection, "v")


async def test_a_message_that_is_cut_off_by_the_end(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        client.read_call()
        client.send(GOOD[:-1])

    _, connection = hostile(script)
    with pytest.raises(ConnectionLost, match="closed the connection"):
        await ask(connection)
    assert connection.lost


async def test_a_large_message_is_refused_by_its_header_alone(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        client.read_call()
        client.send(changed(4, struct.pack("<I", 100 << 20)))
        client.flood(b"x")

    peer, connection = hostile(script)
    with within(4 << 20):
        await refused(connection, "at most 16777216")
    await peer.ended()
    assert peer.sent < 2 << 20


async def test_the_largest_message_is_taken(hostile: Hostile) -> None:
    _, connection = hostile(answering(answer(1, "s", "x" * ((16 << 20) - 200))))
    with within(MEMORY):
        [text] = await ask(connection)
    assert len(text) == (16 << 20) - 200


async def test_an_answer_that_would_grow_in_memory(hostile: Hostile) -> None:
    _, connection = hostile(answering(answer(1, "aas", [[]] * 1_000_000)))
    with within(MEMORY), pytest.raises(ReplyMalformed, match="too many values"):
        await ask(connection, "aas")


@pytest.mark.parametrize("seed", range(20))
async def test_garbage(hostile: Hostile, seed: int) -> None:
    noise = random.Random(seed)
    data = noise.randbytes(5000) if seed % 2 else b"l\2\0\1" + noise.randbytes(5000)
    _, connection = hostile(answering(data))
    with within(8 << 20), pytest.raises((ReplyMalformed, ReplyTimedOut)):
        await ask(connection, limit=1)


@pytest.mark.parametrize("signature", ["", "u", "ss", "as"])
async def test_wrong_type_fails_the_call_but_not_the_connection(hostile: Hostile, signature: str) -> None:
    values: dict[str, list[Any]] = {"": [], "u": [5], "ss": ["a", "b"], "as": [["a"]]}
    _, connection = hostile(answering(answer(1, signature, *values[signature]), answer(2, "s", "x")))
    with pytest.raises(ReplyMalformed, match="instead of 's'"):
        await ask(connection)
    assert not connection.lost
    assert connection.generation == 1


# Too much


async def test_flood_of_signals_is_cut_off_and_the_loop_stays_responsive(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        client.read_call()
        client.flood(signal("Changed", "s", "x"))

    peer, connection = hostile(script)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    seen: list[SignalMessage] = []
    async with listen(connection, seen.append), anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        with pytest.raises(ReplyMalformed, match="more than 20000 unasked messages in a second"):
            await ask(connection)
        tasks.cancel_scope.cancel()
    # In one turn of the loop at most two slices of 64 are handed over (the rest of one read, and the next read): a
    # timer is never late by more than those take.
    assert len(seen) <= 20_000
    assert turns >= len(seen) // 128
    await peer.ended()
    assert peer.sent < 16 << 20


@pytest.mark.parametrize(
    ("data", "limits", "why"),
    [
        (answer(4711), {}, "more than 1000 replies to calls that were never made"),
        (signal("Changed", "s", "x" * 60_000), {"unasked_bytes_per_s": 1 << 20}, "more than 1048576 bytes of unasked"),
        (signal("Unknown"), {"unasked_per_s": 50}, "more than 50 unasked messages"),
        (frame(Message("org.example", "/", "org.example.One", "Do")), {"unasked_per_s": 50}, "more than 50 unasked"),
        (
            frame(Message(message_type=MessageType.ERROR, reply_serial=99, error_name="a.b")),
            {"unknown_replies": 10},
            "more than 10 replies",
        ),
    ],
)
async def test_flood_is_cut_off(hostile: Hostile, data: bytes, limits: dict[str, int], why: str) -> None:
    def script(client: Client) -> None:
        client.login()
        client.read_call()
        client.flood(data)

    peer, connection = hostile(script, **limits)
    with within(8 << 20):
        await refused(connection, why)
    await peer.ended()
    assert peer.sent < 16 << 20


async def test_flood_without_any_call_of_ours(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        client.flood(signal())

    peer, connection = hostile(script)
    await connection.open()
    await peer.ended()
    with pytest.raises(ReplyMalformed, match="not opened again"):
        await connection.open()


async def test_handlers_that_raise_do_not_get_round_the_bound(hostile: Hostile) -> None:
    reported = 0

    def report(_loop: object, _context: object) -> None:
        nonlocal reported
        reported += 1

    asyncio.get_running_loop().set_exception_handler(report)

    def broken(_message: SignalMessage) -> None:
        raise RuntimeError

    def script(client: Client) -> None:
        client.login()
        client.read_call()
        client.flood(signal("Changed", "s", "x"))

    _, connection = hostile(script, unasked_per_s=100)
    async with listen(connection, broken):
        await refused(connection, "more than 100 unasked messages")
    assert reported == 100


async def test_signals_of_another_signature_do_not_reach_the_handler(hostile: Hostile) -> None:
    seen: list[SignalMessage] = []
    _, connection = hostile(answering(signal("Changed", "u", 7), signal("Changed"), answer(1, "s", "x")))
    async with listen(connection, seen.append):
        assert await ask(connection) == ["x"]
    assert seen == []


async def test_calls_to_us_are_not_answered(hostile: Hostile) -> None:
    replies: list[bytes] = []

    def script(client: Client) -> None:
        client.login()
        serial = client.read_call().serial
        client.send(frame(Message("a.b", "/", "org.freedesktop.DBus.Peer", "Ping"), 5) * 10)
        client.send(answer(serial, "s", "x"))
        client.sock.settimeout(0.2)
        replies.append(client.sock.recv(100))

    peer, connection = hostile(script)
    assert await ask(connection) == ["x"]
    connection.close()
    await peer.ended()
    assert replies in ([], [b""])


async def test_descriptors_that_the_peer_attaches_are_dropped(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 0, 0]))
        for number in range(1, 101):
            serial = client.read_call().serial
            client.sock.sendmsg([signal("Changed", "s", str(number))], [rights])
            client.sock.sendmsg([answer(serial, "s", str(number))], [rights])
        client.wait_for_end()

    _, connection = hostile(script)
    await connection.open()
    before = descriptors()
    for number in range(1, 101):
        assert await ask(connection) == [str(number)]
    assert descriptors() == before


# Too little


async def test_silence(hostile: Hostile) -> None:
    _, connection = hostile(answering())
    with pytest.raises(ReplyTimedOut, match=r"org\.example\.One\.Do within 0\.1 s"):
        await ask(connection, limit=0.1)
    assert not connection.lost


async def test_a_reply_that_drips_in(hostile: Hostile) -> None:
    _, connection = hostile(answering(*(bytes([byte]) for byte in GOOD)))
    assert await ask(connection) == ["hello"]


async def test_a_reply_that_stops_in_the_middle(hostile: Hostile) -> None:
    _, connection = hostile(answering(GOOD[:30]))
    with pytest.raises(ReplyTimedOut):
        await ask(connection, limit=0.1)


async def test_a_late_reply_is_no_surprise_but_a_second_one_is(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        first = client.read_call().serial
        second = client.read_call().serial
        client.send(answer(first, "s", "late") * 2 + answer(second, "s", "x"))
        client.wait_for_end()

    _, connection = hostile(script, unknown_replies=0)
    with pytest.raises(ReplyTimedOut):
        await ask(connection, limit=0.1)
    await refused(connection, "more than 0 replies to calls that were never made")


async def test_a_peer_that_does_not_read(hostile: Hostile) -> None:
    done = threading.Event()

    def script(client: Client) -> None:
        client.login()
        done.wait(PATIENCE_S)

    _, connection = hostile(script, outgoing_bytes=4 << 20)
    try:
        with within(MEMORY):
            for _ in range(4):
                with pytest.raises(ReplyTimedOut):
                    await ask(connection, takes="s", body=["x" * (1 << 20)], limit=0)
            with pytest.raises(ConnectionLost, match="does not read"):
                await ask(connection, takes="s", body=["x" * (1 << 20)], limit=0)
    finally:
        done.set()


async def test_queued_descriptors_are_copies_and_go_with_their_message(hostile: Hostile) -> None:
    queued, got = threading.Event(), anyio.Event()
    said: list[bytes] = []
    loop = asyncio.get_running_loop()

    def script(client: Client) -> None:
        client.login()
        queued.wait(PATIENCE_S)
        while not said:
            _, ancillary, _, _ = client.sock.recvmsg(1 << 16, socket.CMSG_SPACE(16))
            for _level, _kind, raw in ancillary:
                [fd] = array.array("i", raw)
                said.append(os.read(fd, 100))
                os.close(fd)
        loop.call_soon_threadsafe(got.set)
        client.wait_for_end()

    _, connection = hostile(script)
    await connection.open()
    before = descriptors()
    reader, writer = os.pipe()
    os.write(writer, b"through the pipe")
    # The first fills the socket, so that the second has to wait; then our caller gives up and closes its own.
    for arguments in ({"takes": "s", "body": ["x" * (3 << 20)]}, {"takes": "h", "body": [0], "fds": [reader]}):
        with pytest.raises(ReplyTimedOut):
            await ask(connection, limit=0, **arguments)
    os.close(reader)
    os.close(writer)
    queued.set()
    with anyio.fail_after(PATIENCE_S):
        await got.wait()
    assert said == [b"through the pipe"]
    assert descriptors() == before


async def test_queued_descriptors_are_closed_with_the_connection(hostile: Hostile) -> None:
    done = threading.Event()

    def script(client: Client) -> None:
        client.login()
        done.wait(PATIENCE_S)

    before = descriptors()
    peer, connection = hostile(script)
    for arguments in ({"takes": "s", "body": ["x" * (3 << 20)]}, {"takes": "h", "body": [0], "fds": [0]}):
        with pytest.raises(ReplyTimedOut):
            await ask(connection, limit=0, **arguments)
    connection.close()
    done.set()
    await peer.ended()
    assert descriptors() == before


# A bus that lies


async def test_a_bus_that_gives_no_name(hostile: Hostile) -> None:
    _, connection = hostile(answering(answer(1, "u", 5)), message_bus=True)
    with pytest.raises(ReplyMalformed, match=r"Hello with the signature 'u' instead of 's'"):
        await connection.open()


async def test_owner_changes_for_names_that_nobody_watches_are_not_kept(hostile: Hostile) -> None:
    def script(client: Client) -> None:
        client.login()
        client.send(answer(client.read_call().serial, "s", ":1.1"))
        for number in range(1000):
            message = Message.new_signal(
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "NameOwnerChanged",
                "sss",
                [f"org.example.N{number}", "", ":1.5"],
            )
            message.sender = "org.freedesktop.DBus"
            client.send(frame(message))
        client.send(answer(client.read_call().serial, "s", "x"))
        client.wait_for_end()

    _, connection = hostile(script, message_bus=True)
    assert await ask(connection) == ["x"]
    assert connection.signals._owners == {}


async def test_error_text_of_a_peer_is_cut_and_printable(hostile: Hostile) -> None:
    bad = Message(
        message_type=MessageType.ERROR,
        reply_serial=1,
        error_name="org.example.Bad",
        signature="s",
        body=["\x1b[2J" + "x" * 1_000_000],
    )
    _, connection = hostile(answering(frame(bad)))
    with pytest.raises(BusError) as caught:
        await ask(connection)
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value) + caught.value.said
    assert len(caught.value.said) == 4096


# Introspection

ENTITIES = """<!DOCTYPE node [<!ENTITY a "xxxxxxxxxx"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<node><interface name="&b;"/></node>"""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (ENTITIES, "entity declaration"),
        ('<!DOCTYPE node [<!ENTITY a SYSTEM "file:///etc/passwd">]><node>&a;</node>', "entity declaration"),
        ("<node>" * 5000, "too deep or too long"),
        ("<node>" + "<a/>" * 200_000 + "</node>", "too deep or too long"),
        ("<node", "no XML"),
        ("", "no XML"),
        ("x" * (5 << 20), "introspection of 5242880 characters"),
    ],
)
async def test_introspection_that_is_an_attack(hostile: Hostile, text: str, why: str) -> None:
    _, connection = hostile(answering(answer(1, "s", text)))
    with within(MEMORY), pytest.raises(ReplyMalformed, match=why):
        await interface.introspect(connection, "org.example", "/")


async def test_introspection_takes_a_nodes_own_interfaces_only(hostile: Hostile) -> None:
    text = """<node>
        <interface name="a.B">
            <method name="Do"><arg name="x"/></method><property name="P"/><signal name="S"/>
        </interface>
        <node name="child"><interface name="c.D"/></node>
    </node>"""
    _, connection = hostile(answering(answer(1, "s", text)))
    assert await interface.introspect(connection, "org.example", "/") == {"a.B": {"Do", "P", "S"}}


def test_a_variant_to_send_is_checked() -> None:
    for signature, content in (("u", -1), ("s", 5), ("Z", 1), ("ss", "a"), ("(su)", ["a"])):
        with pytest.raises(InvalidValue):
            interface.variant(signature, content)
