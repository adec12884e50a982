"""The strict, bounded decoder of D-Bus values: bytes that a hostile guest chose become values, or a ProtocolError.

It knows types in both byte orders and nothing of messages. Each signature is compiled once to nested closures
`read(buffer, position, end, budget) -> (value, position)`; a length is compared with `end` before it is used, every
step moves forward, and `budget` bounds what one message can make us build.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias

from vmcraft.bus.names import is_path

MAX_DEPTH: Final = 32
"""Containers and variants inside one another."""
MAX_ELEMENTS: Final = 400_000
"""Values that one message may hold (see `Budget`); a guest of 20,000 units lists 220,000."""
MAX_NUMBER_KEYS: Final = 1024
"""Entries of a dict keyed by numbers: their hashes are known, so a peer could make each collide with all others."""
MAX_SIGNATURE: Final = 255


class ProtocolError(ValueError):
    """The peer sent what the protocol forbids; the connection cannot be trusted any more."""


class Variant(NamedTuple):
    """A received variant.

    Attributes:
        signature: Signature of the value, one complete type.
        value: The value; arrays are lists (`ay` bytes), dicts dicts, structs tuples.
    """

    signature: str
    value: Any


class Budget:
    """What one message may still make us build: one for each value of each array element, more for a variant."""

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


def skip_padding(buffer: bytes, position: int, mask: int) -> int:
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
        if value != "/" and not is_path(value):
            raise ProtocolError("an object path of the wrong form")
        return value, position

    return read


def read_signature(buffer: bytes, position: int, end: int, _budget: Budget) -> tuple[str, int]:
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
        position = skip_padding(buffer, position, 3) + 4
        if position > end:
            raise ProtocolError("an array length past the end")
        length = unpack(buffer, position - 4)[0]
        position = skip_padding(buffer, position, mask)
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


def _dict(key: Reader, value: Reader, order: str, weight: int, most: int) -> Reader:
    bounds = _bounds(order, 8)

    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[dict[Any, Any], int]:
        position, stop = bounds(buffer, position, end)
        values: dict[Any, Any] = {}
        while position < stop:
            name, position = key(buffer, skip_padding(buffer, position, 7), stop, budget)
            if name in values:
                raise ProtocolError("a dict with a key twice")
            if len(values) == most:
                raise ProtocolError("a dict with too many keys")
            values[name], position = value(buffer, position, stop, budget)
            budget.spend(weight)
        return values, stop

    return read


def _struct(parts: tuple[Reader, ...]) -> Reader:
    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[tuple[Any, ...], int]:
        if position & 7:
            position = skip_padding(buffer, position, 7)
        values = []
        for part in parts:
            value, position = part(buffer, position, end, budget)
            values.append(value)
        return tuple(values), position

    return read


def _variant(order: str, depth: int) -> Reader:
    def read(buffer: bytes, position: int, end: int, budget: Budget) -> tuple[Variant, int]:
        signature, position = read_signature(buffer, position, end, budget)
        # The square, because a peer may send ever new signatures, and a long one takes long to compile.
        budget.spend(len(signature) ** 2)
        parts = readers(signature, order, depth + 1)
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
            return read_signature, at + 1
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
        return _array(element, _ALIGNMENT.get(code, 4), order, _weight(signature, at, stop)), stop
    if signature[at + 1 : at + 2] not in _KEYS:
        raise ProtocolError("a dict whose key is no basic type")
    key, middle = _one(signature, at + 1, order, depth)
    value, stop = _one(signature, middle, order, depth)
    if signature[stop : stop + 1] != "}":
        raise ProtocolError("a dict entry with other than two types")
    most = MAX_NUMBER_KEYS if signature[at + 1] in _FIXED else MAX_ELEMENTS
    return _dict(key, value, order, _weight(signature, at, stop), most), stop + 1


def _one_struct(signature: str, at: int, order: str, depth: int) -> tuple[Reader, int]:
    parts = []
    while signature[at : at + 1] != ")":
        part, at = _one(signature, at, order, depth)
        parts.append(part)
    if not parts:
        raise ProtocolError("a struct without members")
    return _struct(tuple(parts)), at + 1


def _weight(signature: str, at: int, stop: int) -> int:
    """How many values one array element stands for, structs among them, before what its own arrays hold."""
    return sum(code not in "){}" for code in signature[at:stop])


# Bounded, because the peer chooses the signatures.
@lru_cache(maxsize=256)
def readers(signature: str, order: str, depth: int = 0) -> tuple[Reader, ...]:
    """Compile a signature; answers a reader for each of its complete types.

    Args:
        signature: Zero or more complete types.
        order: `<` or `>`, as in struct.
        depth: How deep in other values they are.

    Raises:
        ProtocolError: It is no signature, or one over a limit.
    """
    if len(signature) > MAX_SIGNATURE:
        raise ProtocolError("a signature that is too long")
    compiled, at = [], 0
    while at < len(signature):
        reader, at = _one(signature, at, order, depth)
        compiled.append(reader)
    return tuple(compiled)
