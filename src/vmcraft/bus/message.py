"""Received messages: how long one is, what its header says, and its body once somebody wants it.

It knows header fields and which of them each kind of message must have; how values are read is left to `wire`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final, NamedTuple

from vmcraft.bus.names import is_bus_name, is_interface, is_member
from vmcraft.bus.wire import Budget, ProtocolError, read_signature, readers, skip_padding

MAX_HEADER_BYTES: Final = 64 << 10


class SignatureMismatchError(ValueError):
    """The body has another signature than the one expected; nothing was decoded."""


class Kind(enum.IntEnum):
    """Message types."""

    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


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
        for reader in readers(expected, _ORDERS[frame[0]]):
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
_FIELD_READERS: Final = {(code, order): readers(code, order)[0] for code in "osug" for order in "<>"}


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
    body_at = skip_padding(frame, end, 7)
    kind = Kind(frame[1])
    if not _MANDATORY[kind] <= values.keys():
        raise ProtocolError(f"a {kind.name.lower()} without one of its header fields")
    if values.get("reply_serial") == 0:
        raise ProtocolError("a reply to the serial 0")
    # Compiled here, so that a message with an impossible signature is refused even if nobody wants its body.
    if not readers(values.get("signature", ""), order) and body_bytes:
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
        position = skip_padding(frame, position, 7)
        if position >= end:
            raise ProtocolError("a header that ends in padding")
        code = frame[position]
        if code == 0 or code in seen:
            raise ProtocolError("a header field twice, or with the code 0")
        seen.add(code)
        known = _FIELDS.get(code)
        if known is None:
            # A newer protocol's field: the specification says to accept and ignore it.
            _, position = readers("v", order)[0](frame, position + 1, end, budget)
            continue
        signature, position = read_signature(frame, position + 1, end, budget)
        if signature != known.type:
            raise ProtocolError(f"the header field {known.name} has the type of another")
        value, position = _FIELD_READERS[signature, order](frame, position, end, budget)
        if known.valid is not None and not known.valid(value):
            raise ProtocolError(f"the header field {known.name} is no valid name")
        values[known.name] = value
    return values
