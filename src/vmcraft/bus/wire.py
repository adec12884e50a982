"""The strict, bounded decoder of D-Bus messages: bytes that a hostile guest chose become values, or a ProtocolError.

It knows the wire format in both byte orders and nothing of sockets or calls. Each signature is compiled once to nested
closures `read(buffer, position, end, budget) -> (value, position)`; a length is compared with `end` before it is used,
every step moves forward, and `budget` bounds what one message can make us build.
"""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias

MAX_DEPTH: Final = 32
"""Containers and variants inside one another."""
MAX_HEADER_BYTES: Final = 64 << 10
MAX_ELEMENTS: Final = 1_000_000
"""Values that one message may hold (see `Budget`)."""
MAX_SIGNATURE: Final = 255
MAX_NAME: Final = 255


class ProtocolError(ValueError):
    """The peer sent what the protocol forbids; the connection cannot be trusted any more."""


class SignatureMismatchError(ValueError):
    """The body has another signature than the one expected; nothing was decoded."""


class Variant(NamedTuple):
    """A received variant.

    Attributes:
        signature: Signature of the value, one complete type.
        value: The value; arrays are lists (`ay` bytes), dicts dicts, structs tuples.
    """

    signature: str
    value: Any


class Kind(enum.IntEnum):
    """Message types."""

    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Budget:
    """What one message may still make us build: one for each leaf of each array element, more for a variant."""

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_ELEMENTS) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        """Take `count` off, or refuse the message."""
        self.left -= count
        if self.left < 0:
            raise ProtocolError("a message with too many values")


# Values are Any: a signature known at run time decides their type, and callers name it in their Method tables.
Reader: TypeAlias = Callable[[bytes, int, int, Budget], tuple[Any, int]]

_NAME_ELEMENT = "[A-Za-z_][A-Za-z0-9_]*+"
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_]++)++", re.ASCII).fullmatch
_INTERFACE = re.compile(rf"{_NAME_ELEMENT}(?:\.{_NAME_ELEMENT})++", re.ASCII).fullmatch
_MEMBER = re.compile(_NAME_ELEMENT, re.ASCII).fullmatch
_BUS_NAME = re.compile(
    r":[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)++|[A-Za-z_-][A-Za-z0-9_-]*+(?:\.[A-Za-z_-][A-Za-z0-9_-]*+)++", re.ASCII
).fullmatch


def is_path(text: str) -> bool:
    """Whether this is an object path."""
    return _PATH(text) is not None


def is_interface(text: str) -> bool:
    """Whether this is an interface name, or an error name, which has the same form."""
    return len(text) <= MAX_NAME and _INTERFACE(text) is not None


def is_member(text: str) -> bool:
    """Whether this is the name of a method, signal or property."""
    return len(text) <= MAX_NAME and _MEMBER(text) is not None


def is_bus_name(text: str) -> bool:
    """Whether this is a unique or a well-known bus name."""
    return len(text) <= MAX_NAME and _BUS_NAME(text) is not None


_FIXED: Final = {
    "y": ("B", 1),
    "n": ("h", 2),
    "q": ("H", 2),
    "i": ("i", 4),
    "u": ("I", 4),
    "h": ("I", 4),
    "x": ("q", 8),
    "t": ("Q", 8),
    "d": ("d", 8),
}
_ALIGNMENT: Final = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}
_KEYS: Final = frozenset("ybnqiuxtdhsog")
_NOT_A_TYPE: Final = re.compile(r"[^ybnqiuxtdhsogav(){}]").search
_ZEROS: Final = tuple(bytes(count) for count in range(8))


def _skip_padding(buffer: bytes, position: int, mask: int) -> int:
    """The next position that is aligned; what lies between must be zero."""
    count = -position & mask
    if count and not buffer.startswith(_ZEROS[count], position):
        raise ProtocolError("padding that is cut off or not zero")
    return position + count


def _padded(order: str, form: str, alignment: int) -> list[Callable[[bytes, int], tuple[Any, ...]]]:
    """Unpackers for a number after 0, 1, 2... bytes of padding: padding and number in one step, the hot path."""
    return [Struct(f"{order}{count}s{form}").unpack_from for count in range(alignment)]


def _fixed(code: str, order: str) -> Reader:
    form, size = _FIXED[code]
    unpack = _padded(order, form, size)
    mask = size - 1

    def read(buffer: bytes, position: int, end: int, _budget: Budget) -> tuple[Any, int]:
        count = -position & mask
        stop = position + count + size
        if stop > end:
            raise ProtocolError("a number past the end")
        padding, value = unpack[count](buffer, position)
        if padding != _ZEROS[count]:
            raise ProtocolError("padding that is not zero")
        return value, stop

    return read


def _boolean(order: str) -> Reader:
    number = _fixed("u", order)

    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[bool, int]:
        value, position = number(buffer, position, end, budget)
        if value > 1:
            raise ProtocolError("a boolean that is neither 0 nor 1")
        return value == 1, position

    return read


def _string(order: str) -> Reader:
    unpack = _padded(order, "I", 4)

    def read(buffer: bytes, position: int, end: int, _budget: Budget) -> tuple[str, int]:
        count = -position & 3
        start = position + count + 4
        if start > end:
            raise ProtocolError("a string length past the end")
        padding, length = unpack[count](buffer, position)
        if padding != _ZEROS[count]:
            raise ProtocolError("padding that is not zero")
        stop: int = start + length
        # One search answers three questions: inside the limits, terminated, no NUL before the terminator.
        if buffer.find(0, start, end) != stop:
            raise ProtocolError("a string past the end, without its NUL or with a NUL inside")
        try:
            return buffer[start:stop].decode(), stop + 1
        except UnicodeDecodeError:
            raise ProtocolError("a string that is not UTF-8") from None

    return read


def _path(order: str) -> Reader:
    string = _string(order)

    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[str, int]:
        value, position = string(buffer, position, end, budget)
        # "/" stands for "none" in most rows of systemd's lists.
        if value != "/" and not _PATH(value):
            raise ProtocolError("an object path of the wrong form")
        return value, position

    return read


def _read_signature(buffer: bytes, position: int, end: int, _budget: Budget) -> tuple[str, int]:
    """A signature as a value; its structure is checked by whoever compiles it."""
    if position >= end:
        raise ProtocolError("a signature past the end")
    stop = position + 1 + buffer[position]
    if stop >= end or buffer[stop]:
        raise ProtocolError("a signature past the end or without its NUL")
    value = buffer[position + 1 : stop].decode("latin-1")
    if _NOT_A_TYPE(value):
        raise ProtocolError("a signature with characters that are no types")
    return value, stop + 1


def _bounds(order: str, alignment: int) -> Callable[[bytes, int, int], tuple[int, int]]:
    """How to read an array's length: gives where its elements start and stop."""
    unpack = Struct(order + "I").unpack_from
    mask = alignment - 1

    def read(buffer: bytes, position: int, end: int) -> tuple[int, int]:
        position = _skip_padding(buffer, position, 3) + 4
        if position > end:
            raise ProtocolError("an array length past the end")
        length = unpack(buffer, position - 4)[0]
        position = _skip_padding(buffer, position, mask)
        if position + length > end:
            raise ProtocolError("an array past the end")
        return position, position + length

    return read


def _numbers(code: str, order: str) -> Reader:
    """Arrays of fixed-size numbers, unpacked in one go; `ay` is bytes."""
    form, size = _FIXED[code]
    bounds = _bounds(order, size)

    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[Any, int]:
        position, stop = bounds(buffer, position, end)
        if code == "y":
            return buffer[position:stop], stop
        count, rest = divmod(stop - position, size)
        if rest:
            raise ProtocolError("an array that ends inside a number")
        budget.spend(count)
        # iter_unpack, because a Struct with the peer's count in its format would fill the struct module's cache.
        return [value for (value,) in Struct(order + form).iter_unpack(buffer[position:stop])], stop

    return read


def _array(element: Reader, alignment: int, order: str, weight: int) -> Reader:
    bounds = _bounds(order, alignment)

    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[list[Any], int]:
        position, stop = bounds(buffer, position, end)
        values: list[Any] = []
        while position < stop:
            value, position = element(buffer, position, stop, budget)
            values.append(value)
            budget.spend(weight)
        return values, stop

    return read


def _dict(key: Reader, value: Reader, order: str, weight: int) -> Reader:
    bounds = _bounds(order, 8)

    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[dict[Any, Any], int]:
        position, stop = bounds(buffer, position, end)
        values: dict[Any, Any] = {}
        while position < stop:
            name, position = key(buffer, _skip_padding(buffer, position, 7), stop, budget)
            if name in values:
                raise ProtocolError("a dict with a key twice")
            values[name], position = value(buffer, position, stop, budget)
            budget.spend(weight)
        return values, stop

    return read


def _struct(parts: tuple[Reader, ...]) -> Reader:
    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[tuple[Any, ...], int]:
        if position & 7:
            position = _skip_padding(buffer, position, 7)
        values = []
        for part in parts:
            value, position = part(buffer, position, end, budget)
            values.append(value)
        return tuple(values), position

    return read


def _variant(order: str, depth: int) -> Reader:
    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[Variant, int]:
        signature, position = _read_signature(buffer, position, end, budget)
        # The square, because a peer may send ever new signatures, and a long one takes long to compile.
        budget.spend(len(signature) ** 2)
        parts = _compiled(signature, order, depth + 1)
        if len(parts) != 1:
            raise ProtocolError("a variant that is not of one type")
        value, position = parts[0](buffer, position, end, budget)
        return Variant(signature, value), position

    return read


def _one(signature: str, at: int, order: str, depth: int) -> tuple[Reader, int]:
    """Compile the complete type that starts at `at`; answers its reader and where the next type starts."""
    if depth > MAX_DEPTH:
        raise ProtocolError(f"values nested deeper than {MAX_DEPTH}")
    code = signature[at : at + 1]
    if code in _FIXED:
        return _fixed(code, order), at + 1
    match code:
        case "s":
            return _string(order), at + 1
        case "b":
            return _boolean(order), at + 1
        case "o":
            return _path(order), at + 1
        case "g":
            return _read_signature, at + 1
        case "v":
            return _variant(order, depth), at + 1
        case "a":
            return _one_array(signature, at + 1, order, depth + 1)
        case "(":
            return _one_struct(signature, at + 1, order, depth + 1)
    raise ProtocolError("a signature that cannot be read")


def _one_array(signature: str, at: int, order: str, depth: int) -> tuple[Reader, int]:
    code = signature[at : at + 1]
    if code in _FIXED:
        return _numbers(code, order), at + 1
    if code != "{":
        element, stop = _one(signature, at, order, depth)
        return _array(element, _ALIGNMENT.get(code, 4), order, _leaves(signature, at, stop)), stop
    if signature[at + 1 : at + 2] not in _KEYS:
        raise ProtocolError("a dict whose key is no basic type")
    key, middle = _one(signature, at + 1, order, depth)
    value, stop = _one(signature, middle, order, depth)
    if signature[stop : stop + 1] != "}":
        raise ProtocolError("a dict entry with other than two types")
    return _dict(key, value, order, _leaves(signature, at, stop)), stop + 1


def _one_struct(signature: str, at: int, order: str, depth: int) -> tuple[Reader, int]:
    parts = []
    while signature[at : at + 1] != ")":
        part, at = _one(signature, at, order, depth)
        parts.append(part)
    if not parts:
        raise ProtocolError("a struct without members")
    return _struct(tuple(parts)), at + 1


def _leaves(signature: str, at: int, stop: int) -> int:
    """How many values one array element stands for, before what its own arrays hold."""
    return sum(code not in "(){}" for code in signature[at:stop])


# Bounded, because the peer chooses the signatures.
@lru_cache(maxsize=256)
def _compiled(signature: str, order: str, depth: int = 0) -> tuple[Reader, ...]:
    if len(signature) > MAX_SIGNATURE:
        raise ProtocolError("a signature that is too long")
    readers, at = [], 0
    while at < len(signature):
        reader, at = _one(signature, at, order, depth)
        readers.append(reader)
    return tuple(readers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One message; its header is checked, its body is still bytes.

    Attributes:
        kind: Message type.
        serial: The sender's serial, not 0.
        reply_serial: Serial of the call that this answers; 0 in calls and signals.
        sender: Unique name of the sender, as the bus says; None on a direct connection.
        signature: Signature of the body, well-formed.
    """

    kind: Kind
    serial: int
    reply_serial: int = 0
    path: str | None = None
    interface: str | None = None
    member: str | None = None
    error_name: str | None = None
    destination: str | None = None
    sender: str | None = None
    signature: str = ""
    frame: bytes = field(repr=False)
    body_at: int = field(repr=False)

    def body(self, expected: str) -> list[Any]:
        """Decode the body.

        Args:
            expected: The signature that the body must have.

        Raises:
            SignatureMismatchError: It has another one; nothing was decoded.
            ProtocolError: The bytes are not what the signature says.
        """
        if self.signature != expected:
            raise SignatureMismatchError(f"signature {self.signature!r} instead of {expected!r}")
        frame, position, end, budget = self.frame, self.body_at, len(self.frame), Budget()
        values = []
        for reader in _compiled(expected, _ORDERS[frame[0]]):
            value, position = reader(frame, position, end, budget)
            values.append(value)
        if position != end:
            raise ProtocolError("a body that is longer than its signature says")
        return values


_ORDERS: Final = {ord("l"): "<", ord("B"): ">"}
_HEAD: Final = {order: Struct(order + "III").unpack_from for order in "<>"}
_HEAD_BYTES: Final = 16


class _Field(NamedTuple):
    name: str
    type: str
    valid: Callable[[str], bool] | None


_FIELDS: Final = {
    1: _Field("path", "o", None),
    2: _Field("interface", "s", is_interface),
    3: _Field("member", "s", is_member),
    4: _Field("error_name", "s", is_interface),
    5: _Field("reply_serial", "u", None),
    6: _Field("destination", "s", is_bus_name),
    7: _Field("sender", "s", is_bus_name),
    8: _Field("signature", "g", None),
    9: _Field("fds", "u", None),
}
_MANDATORY: Final = {
    Kind.CALL: {"path", "member"},
    Kind.RETURN: {"reply_serial"},
    Kind.ERROR: {"reply_serial", "error_name"},
    Kind.SIGNAL: {"path", "interface", "member"},
}
_FIELD_READERS: Final = {(code, order): _one(code, 0, order, 0)[0] for code in "osug" for order in "<>"}


def frame_size(buffer: bytes | bytearray, limit: int) -> int | None:
    """How many bytes the message that starts `buffer` has; None while too few are there to tell.

    Args:
        buffer: Received bytes; only the first 16 are looked at.
        limit: Bytes that a message may have.

    Raises:
        ProtocolError: This is no D-Bus message, or one over a limit.
    """
    if len(buffer) < _HEAD_BYTES:
        return None
    order = _ORDERS.get(buffer[0])
    if order is None or buffer[3] != 1 or not Kind.CALL <= buffer[1] <= Kind.SIGNAL:
        raise ProtocolError("bytes that start no D-Bus message")
    body, serial, fields = _HEAD[order](buffer, 4)
    if not serial:
        raise ProtocolError("a message with the serial 0")
    if fields > MAX_HEADER_BYTES:
        raise ProtocolError(f"a message header of {fields} bytes")
    size: int = _HEAD_BYTES + fields + (-fields & 7) + body
    if size > limit:
        raise ProtocolError(f"a message of {size} bytes; at most {limit} are taken")
    return size


def decode(frame: bytes) -> Received:
    """Check a whole message's header; the body is decoded later, if somebody wants it.

    Args:
        frame: Exactly the bytes that `frame_size` told.

    Raises:
        ProtocolError: The header is not what the protocol demands.
    """
    if frame_size(frame, len(frame)) != len(frame):
        raise ProtocolError("a message that is cut off")
    order = _ORDERS[frame[0]]
    body_bytes, serial, field_bytes = _HEAD[order](frame, 4)
    end = _HEAD_BYTES + field_bytes
    values = _fields(frame, end, order)
    body_at = _skip_padding(frame, end, 7)
    kind = Kind(frame[1])
    if not _MANDATORY[kind] <= values.keys():
        raise ProtocolError(f"a {kind.name.lower()} without one of its header fields")
    if values.get("reply_serial") == 0:
        raise ProtocolError("a reply to the serial 0")
    # Compiled here, so that a message with an impossible signature is refused even if nobody wants its body.
    if not _compiled(values.get("signature", ""), order) and body_bytes:
        raise ProtocolError("a body without a signature")
    values.pop("fds", None)
    return Received(kind=kind, serial=serial, frame=frame, body_at=body_at, **values)


def _fields(frame: bytes, end: int, order: str) -> dict[str, Any]:
    """The known header fields by name."""
    values: dict[str, Any] = {}
    seen = set()
    budget = Budget(MAX_HEADER_BYTES)
    position = _HEAD_BYTES
    while position < end:
        position = _skip_padding(frame, position, 7)
        if position >= end:
            raise ProtocolError("a header that ends in padding")
        code = frame[position]
        if code == 0 or code in seen:
            raise ProtocolError("a header field twice, or with the code 0")
        seen.add(code)
        known = _FIELDS.get(code)
        if known is None:
            # A newer protocol's field: the specification says to accept and ignore it.
            _, position = _variant(order, 0)(frame, position + 1, end, budget)
            continue
        signature, position = _read_signature(frame, position + 1, end, budget)
        if signature != known.type:
            raise ProtocolError(f"the header field {known.name} has the type of another")
        value, position = _FIELD_READERS[signature, order](frame, position, end, budget)
        if known.valid is not None and not known.valid(value):
            raise ProtocolError(f"the header field {known.name} is no valid name")
        values[known.name] = value
    return values
