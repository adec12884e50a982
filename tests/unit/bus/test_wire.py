"""The decoder against dbus-fast's encoder, against crafted frames, and against frames damaged at random."""

import itertools
import string
import time
import tracemalloc
from struct import pack
from typing import Any

import pytest
from dbus_fast import Message, MessageType
from dbus_fast import Variant as Sent
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcraft.bus.message import Kind, SignatureMismatchError, decode, frame_size
from vmcraft.bus.wire import MAX_ELEMENTS, MAX_NUMBER_KEYS, ProtocolError, Variant

pytestmark = pytest.mark.unit

LIMIT = 16 << 20

# A type's signature, a value as dbus-fast takes it, and the value as we must give it back.
Case = tuple[str, Any, Any]


def _same(signature: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    return values.map(lambda value: (signature, value, value))


def _integers(code: str, bits: int, *, signed: bool) -> st.SearchStrategy[Case]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return _same(code, st.integers(low, high))


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PATHS = st.lists(st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=5), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
BASIC = st.one_of(
    _integers("y", 8, signed=False),
    _integers("n", 16, signed=True),
    _integers("q", 16, signed=False),
    _integers("i", 32, signed=True),
    _integers("u", 32, signed=False),
    _integers("x", 64, signed=True),
    _integers("t", 64, signed=False),
    _same("d", st.floats(allow_nan=False)),
    _same("b", st.booleans()),
    _same("s", WORDS),
    _same("o", PATHS),
    _same("g", st.sampled_from(["", "s", "a{sv}", "(ii)as"])),
)


def _array(case: Case) -> Case:
    signature, sent, given_back = case
    if signature == "y":
        return "ay", bytes([sent]) * 3, bytes([sent]) * 3
    return f"a{signature}", [sent] * 3, [given_back] * 3


def _struct(cases: list[Case]) -> Case:
    signatures, sent, given_back = zip(*cases, strict=True)
    return f"({''.join(signatures)})", list(sent), tuple(given_back)


def _dict(key: Case, value: Case) -> Case:
    return f"a{{{key[0]}{value[0]}}}", {key[1]: value[1]}, {key[2]: value[2]}


def _variant(case: Case) -> Case:
    return "v", Sent(case[0], case[1]), Variant(case[0], case[2])


CASES = st.recursive(
    BASIC,
    lambda inner: st.one_of(
        inner.map(_array),
        st.lists(inner, min_size=1, max_size=3).map(_struct),
        st.builds(_dict, BASIC, inner),
        inner.map(_variant),
    ),
    max_leaves=8,
)


def reply(signature: str, body: list[Any]) -> bytes:
    message = Message(
        message_type=MessageType.METHOD_RETURN,
        reply_serial=7,
        sender=":1.1",
        signature=signature,
        body=body,
        serial=3,
    )
    return bytes(message._marshall(False))


def decoded(frame: bytes) -> list[Any]:
    """Everything that the connection does with a frame that somebody wants."""
    if frame_size(frame, LIMIT) != len(frame):
        raise ProtocolError("waits for more, or leaves some")
    message = decode(frame)
    return message.body(message.signature)


@given(st.lists(CASES, max_size=4))
def test_decodes_what_dbus_fast_encodes(cases: list[Case]) -> None:
    signature = "".join(case[0] for case in cases)
    assert decoded(reply(signature, [case[1] for case in cases])) == [case[2] for case in cases]


def test_header_fields_of_every_kind() -> None:
    signal = Message.new_signal("/a/b", "org.example.One", "Changed", "s", ["x"])
    signal.serial, signal.sender = 9, ":1.7"
    received = decode(bytes(signal._marshall(False)))
    assert (received.kind, received.serial, received.path, received.interface, received.member) == (
        Kind.SIGNAL,
        9,
        "/a/b",
        "org.example.One",
        "Changed",
    )
    call = Message("org.example", "/", "org.example.One", "Do", serial=4)
    received = decode(bytes(call._marshall(False)))
    assert (received.kind, received.destination, received.signature) == (Kind.CALL, "org.example", "")
    error = Message(message_type=MessageType.ERROR, reply_serial=5, error_name="org.example.Bad", serial=6)
    received = decode(bytes(error._marshall(False)))
    assert (received.kind, received.reply_serial, received.error_name) == (Kind.ERROR, 5, "org.example.Bad")


def test_a_body_of_another_signature_is_not_decoded() -> None:
    message = decode(crafted("s", b"\xff" * 8))
    with pytest.raises(SignatureMismatchError):
        message.body("as")


def test_a_frame_is_measured_from_its_first_16_bytes() -> None:
    frame = reply("s", ["hello"])
    assert frame_size(frame[:15], LIMIT) is None
    assert frame_size(frame[:16], LIMIT) == len(frame)
    assert frame_size(bytearray(frame) + b"next", LIMIT) == len(frame)


# Frames by hand


def padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def text(value: str | bytes, order: str = "<") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return pack(order + "I", len(raw)) + raw + b"\0"


def header_field(code: int, signature: str, value: bytes) -> bytes:
    return padded(bytes([code, len(signature)]) + signature.encode() + b"\0", 4) + value


REPLY_TO_1 = header_field(5, "u", pack("<I", 1))


def crafted(
    signature: str | None,
    body: bytes,
    *,
    fields: tuple[bytes, ...] = (REPLY_TO_1,),
    order: str = "<",
    kind: int = 2,
    version: int = 1,
    serial: int = 7,
    start: bytes | None = None,
    body_bytes: int | None = None,
    header_bytes: int | None = None,
) -> bytes:
    """A frame put together as it is asked for, right or wrong."""
    if signature is not None:
        raw = signature.encode("latin-1")
        fields = (*fields, bytes([8, 1]) + b"g\0" + bytes([len(raw)]) + raw + b"\0")
    block = b""
    for one in fields:
        block = padded(block, 8) + one
    head = (start or (b"l" if order == "<" else b"B")) + bytes([kind, 0, version])
    head += pack(
        order + "III",
        len(body) if body_bytes is None else body_bytes,
        serial,
        len(block) if header_bytes is None else header_bytes,
    )
    return padded(head + block, 8) + body


BODY_AT = len(crafted("s", b""))


def u32(value: int) -> bytes:
    return pack("<I", value & 0xFFFFFFFF)


REFUSED = {
    "string length that wraps to the start": crafted("s", u32(-1 - BODY_AT - 4) + b"x" * 16),
    "string length that wraps back a little": crafted("as", u32(64) + u32(-5) + b"x" * 64),
    "string of 4 GiB": crafted("s", u32(-1) + b"x" * 16),
    "string over the end of its array": crafted("ass", u32(5) + text("ab")[:5] + b"\0" * 3 + text("c")),
    "string without its length": crafted("s", b"\1\0"),
    "byte array that wraps": crafted("ay", u32(-16) + b"x" * 16),
    "byte array that wraps to the start": crafted("ay", u32(-BODY_AT - 5) + b"x" * 16),
    "array over the end of the body": crafted("as", u32(4096) + text("a")),
    "array without its length": crafted("as", b"\1"),
    "array that ends inside an element": crafted("au", u32(6) + b"\0" * 6),
    "array whose last struct is cut": crafted("a(uu)", u32(12) + b"\0" * 16),
    "struct without members": crafted("a()", u32(16) + b"\0" * 24),
    "struct of a struct without members": crafted("a(())", u32(16) + b"\0" * 24),
    "100 structs": crafted("(" * 100 + "s" + ")" * 100, b"\0" * 4 + text("a")),
    "100 arrays": crafted("a" * 100 + "s", u32(4) + b"\0" * 600),
    "type that does not exist": crafted("Z", b"\0" * 8),
    "dict that is not closed": crafted("a{s", b"\0" * 8),
    "dict of one type": crafted("a{s}", b"\0" * 8),
    "dict of three types": crafted("a{sss}", b"\0" * 8),
    "dict outside an array": crafted("{ss}", b"\0" * 8),
    "array of nothing": crafted("a", b"\0" * 8),
    "struct that is not closed": crafted("(s", b"\0" * 8),
    "struct closed twice": crafted("(s))", b"\0" * 8),
    "body without a signature": crafted(None, b"\0" * 8),
    "signature without a body": crafted("s", b""),
    "300 variants inside one another": crafted("v", b"\1v\0" * 300 + b"\1y\0\1"),
    "variant of two types": crafted("v", b"\2yy\0\1\1"),
    "variant of no type": crafted("v", b"\0\0"),
    "variant that is cut": crafted("v", b"\5s"),
    "string that is not UTF-8": crafted("s", text(b"\xff\xfe\xfd")),
    "string with a surrogate": crafted("s", text(b"\xed\xa0\x80")),
    "NUL in a string": crafted("s", text(b"a\0b")),
    "string without its NUL": crafted("s", u32(3) + b"abcX"),
    "signature value without its NUL": crafted("g", b"\1sX"),
    "signature value of no types": crafted("g", b"\1?\0"),
    "boolean 7": crafted("b", u32(7)),
    "object path of words": crafted("o", text("not a path")),
    "object path that ends in a slash": crafted("o", text("/a/")),
    "object path with two slashes": crafted("o", text("/a//b")),
    "object path with a line break": crafted("o", text("/a\n")),
    "object path without characters": crafted("o", text("")),
    "padding before a number": crafted("yu", b"\1\xff\xff\xff" + u32(5)),
    "padding before a string": crafted("ys", b"\1\0\1\0" + text("")),
    "padding before a struct": crafted("y(y)", b"\1" + b"\0" * 6 + b"\1" + b"\1"),
    "padding before the first array element": crafted("at", u32(8) + b"\1\0\0\0" + b"\0" * 8),
    "padding before a dict entry": crafted("a{yy}", u32(10) + b"\0" * 4 + b"\1\1" + b"\0\0\0\0\0\1" + b"\2\1"),
    "bytes behind the body": crafted("s", text("a") + b"more"),
    "dict with a key twice": crafted("a{yy}", u32(10) + b"\0" * 4 + b"\1\1" + b"\0" * 6 + b"\1\2"),
    "dict with variants as keys": crafted("a{vs}", u32(16) + b"\0" * 20),
    "dict with arrays as keys": crafted("a{ass}", u32(16) + b"\0" * 40),
    "header of 128 MiB": crafted("s", text("a"), header_bytes=(1 << 27) + 1),
    "header of 65 KiB": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(200, "s", text("x" * 66_000)))),
    "body of 128 MiB": crafted("s", text("a"), body_bytes=(1 << 27) + 1),
    "lengths that wrap together": crafted("s", text("a"), body_bytes=0xFFFFFFFF, header_bytes=0xFFFFFFFF),
    "header longer than the frame": crafted("s", text("a"), header_bytes=60_000),
    "version 2": crafted("s", text("a"), version=2),
    "order x": crafted("s", text("a"), start=b"x"),
    "kind 0": crafted("s", text("a"), kind=0),
    "kind 9": crafted("s", text("a"), kind=9),
    "serial 0": crafted("s", text("a"), serial=0),
    "reply to the serial 0": crafted("s", text("a"), fields=(header_field(5, "u", u32(0)),)),
    "reply to a string": crafted("s", text("a"), fields=(header_field(5, "s", text("a")),)),
    "reply to nothing": crafted("s", text("a"), fields=()),
    "error without a name": crafted("s", text("a"), kind=3),
    "signal without a path": crafted(
        "s", text("a"), kind=4, fields=(header_field(2, "s", text("a.b")), header_field(3, "s", text("C")))
    ),
    "call without a member": crafted("s", text("a"), kind=1, fields=(header_field(1, "o", text("/")),)),
    "interface of one element": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(2, "s", text("a")))),
    "member with a dot": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(3, "s", text("a.b")))),
    "member of 256 characters": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(3, "s", text("a" * 256)))),
    "error name with a blank": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(4, "s", text("a. b")))),
    "sender with a line break": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(7, "s", text(":1.1\n")))),
    "header field twice": crafted("s", text("a"), fields=(REPLY_TO_1, REPLY_TO_1)),
    "header field 0": crafted("s", text("a"), fields=(REPLY_TO_1, header_field(0, "u", u32(1)))),
    "padding in the header": crafted("s", text("a"), fields=(REPLY_TO_1, b"\x07\1s\0" + text(":1.1") + b"\1")),
    "nothing": b"",
    "half a header": crafted("s", text("a"))[:10],
}


@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED)
def test_crafted_frame_is_refused_at_once(frame: bytes) -> None:
    before = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decoded(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Generous: what the bug would cost is gigabytes and for ever.
    assert peak < 4 << 20
    assert time.monotonic() - before < 5


def test_unknown_header_field_and_unknown_flags_are_ignored() -> None:
    frame = bytearray(crafted("s", text("a"), fields=(REPLY_TO_1, header_field(99, "u", u32(5)))))
    frame[2] = 0xF8
    assert decoded(bytes(frame)) == ["a"]


# Bombs: legal by the grammar, but small on the wire and large in memory.

BOMBS = {
    "numbers": crafted("aq", u32(8 << 20) + bytes(8 << 20)),
    "empty signatures": crafted("ag", u32(4 << 20) + bytes(4 << 20)),
    "empty arrays": crafted("aas", u32(8 << 20) + bytes(8 << 20)),
    "empty dicts": crafted("aa{sv}", u32(8 << 20) + bytes(8 << 20)),
    "bytes in variants": crafted("av", u32(8 << 20) + b"\1y\0\1" * (2 << 20)),
    "structs of bytes": crafted("a(yyyyyyyy)", padded(u32(8 << 20), 8) + bytes(8 << 20)),
    "structs in structs": crafted("a" + "(" * 30 + "y" + ")" * 30, padded(u32(20_000 * 8), 8) + bytes(20_000 * 8)),
    "variants in variants": crafted("av", u32(28 * 300_000) + (b"\1v\0" * 8 + b"\1y\0\0") * 300_000),
}


@pytest.mark.parametrize("frame", BOMBS.values(), ids=BOMBS)
def test_a_message_of_too_many_values_is_refused_within_bounds(frame: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="too many values"):
            decoded(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 96 << 20


def test_ever_new_signatures_are_refused_before_compiling_them_costs_much() -> None:
    signatures = (f"({''.join(types)})" for types in itertools.product("ynqiuxtd", repeat=5))
    frame = reply("av", [[Sent(signature, [0] * 5) for signature in signatures]])
    before = time.process_time()
    with pytest.raises(ProtocolError, match="too many values"):
        decoded(frame)
    assert time.process_time() - before < 10


def test_as_many_values_as_allowed_and_one_more() -> None:
    [values] = decoded(crafted("ag", u32(2 * MAX_ELEMENTS) + bytes(2 * MAX_ELEMENTS)))
    assert len(values) == MAX_ELEMENTS
    with pytest.raises(ProtocolError, match="too many values"):
        decoded(crafted("ag", u32(2 * MAX_ELEMENTS + 2) + bytes(2 * MAX_ELEMENTS + 2)))


@pytest.mark.parametrize("code", "nqiuxtd")
def test_a_dict_keyed_by_numbers_stays_small(code: str) -> None:
    # A peer knows the hashes of numbers: 175,000 keys that collide kept the event loop for 55 s.
    rows: dict[Any, str] = dict.fromkeys(range(MAX_NUMBER_KEYS), "")
    assert decoded(reply(f"a{{{code}s}}", [rows])) == [rows]
    with pytest.raises(ProtocolError, match="too many keys"):
        decoded(reply(f"a{{{code}s}}", [rows | {MAX_NUMBER_KEYS: ""}]))


def test_a_dict_keyed_by_words_may_be_large() -> None:
    rows = {str(number): "" for number in range(20_000)}
    assert decoded(reply("a{ss}", [rows])) == [rows]


def test_a_list_of_20_000_units_is_within_the_bounds() -> None:
    row = ["a.service", "An example", "loaded", "active", "running", "", "/a", 0, "", "/"]
    [rows] = decoded(reply("a(ssssssouso)", [[row] * 20_000]))
    assert len(rows) == 20_000


# Damage

WHOLE = [
    reply("a(ssssssouso)", [[["a", "b", "c", "", "", "", "/a/b", 0, "", "/"]] * 3]),
    reply("a{sv}", [{"a": Sent("as", ["x"]), "b": Sent("t", 5), "c": Sent("a(sasb)", [["x", ["y"], True]])}]),
    reply("sybgoaydv", ["a", 1, True, "as", "/", b"xyz", 0.5, Sent("v", Sent("s", "z"))]),
    crafted("s", text("hello")),
]


@settings(max_examples=2000, deadline=5000)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 12),
)
def test_damaged_frame_is_a_value_or_a_protocol_error(whole: bytes, damage: list[tuple[int, int]], cut: int) -> None:
    frame = bytearray(whole)
    for at, byte in damage:
        frame[at % len(frame)] = byte
    try:
        decoded(bytes(frame[: len(frame) - cut]))
    except ProtocolError:
        pass


@settings(max_examples=500, deadline=5000)
@given(st.binary(max_size=300), st.text("ybnqiuxtdsogav(){}", max_size=12))
def test_random_body_of_random_signature_is_a_value_or_a_protocol_error(body: bytes, signature: str) -> None:
    try:
        decoded(crafted(signature, body))
    except ProtocolError:
        pass


# The other byte order


def test_big_endian_message() -> None:
    body = text("hi", ">") + b"\0" + pack(">I", 0x01020304) + pack(">I", 1) + pack(">I", 4) + pack(">hh", -2, 3)
    fields = (header_field(5, "u", pack(">I", 0x0A0B0C0D)),)
    frame = crafted("subanv", body + b"\1d\0" + b"\0" * 5 + pack(">d", 2.5), fields=fields, order=">", serial=1 << 24)
    message = decode(frame)
    assert (message.serial, message.reply_serial) == (1 << 24, 0x0A0B0C0D)
    assert message.body("subanv") == ["hi", 0x01020304, True, [-2, 3], Variant("d", 2.5)]


def test_big_endian_lengths_are_checked_too() -> None:
    fields = (header_field(5, "u", pack(">I", 1)),)
    for body in (pack(">I", 0xFFFFFFFF) + b"x" * 16, pack(">I", 5) + b"abc\0", text("a", "<")):
        with pytest.raises(ProtocolError):
            decoded(crafted("s", body, fields=fields, order=">"))
