"""Which reply belongs to which call of one connection, and what it says: the values asked for, or one of our errors.

Late replies to calls that nobody waits for any more are known too, up to a bound; all others are strangers, which the
transport counts.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from vmcraft.bus.message import Kind, Received, SignatureMismatchError
from vmcraft.bus.names import BUS
from vmcraft.errors import BusError, ConnectionLost, ReplyMalformed, ReplyTimedOut, VMCraftError
from vmcraft.model.printable import quoted

Answer: TypeAlias = list[Any] | VMCraftError
"""The reply's values, or why there are none: handed over as a value, so that nobody has to retrieve the errors of
cancelled calls."""

_ERROR: Final = f"{BUS}.Error."
# The call had been delivered, or may have been, when these came.
_RECIPIENT_LEFT: Final = frozenset({_ERROR + "NoReply", _ERROR + "Disconnected"})
_NO_ANSWER_IN_TIME: Final = frozenset({_ERROR + "Timeout", _ERROR + "TimedOut"})


@dataclass(frozen=True, slots=True)
class _Pending:
    """A call that waits."""

    member: str
    gives: str
    reply: asyncio.Future[Answer]


class Replies:
    """The calls of one connection that have been sent and not answered."""

    def __init__(self, peer: str, *, abandoned_calls: int) -> None:
        """Begin with no call.

        Args:
            peer: Who is at the other end, for messages.
            abandoned_calls: How many calls are remembered that nobody waits for any more.
        """
        self._peer = peer
        self._abandoned_calls = abandoned_calls
        self._pending: dict[int, _Pending] = {}
        # Serials whose late replies are dropped; a dict, because it keeps the order and the oldest go first.
        self._abandoned: dict[int, None] = {}

    def expect(self, serial: int, member: str, gives: str) -> asyncio.Future[Answer]:
        """Wait for the reply to a call; `drop` has to follow.

        Args:
            serial: The call's.
            member: What was called, for messages.
            gives: Signature that the reply must have.
        """
        reply: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[serial] = _Pending(member, gives, reply)
        return reply

    def drop(self, serial: int) -> None:
        """Nobody waits for this call any more; if it was not answered, its late reply will be no surprise."""
        if self._pending.pop(serial, None) is None:
            return
        self._abandoned[serial] = None
        if len(self._abandoned) > self._abandoned_calls:
            del self._abandoned[next(iter(self._abandoned))]

    def fail_all(self, reason: VMCraftError) -> None:
        """The connection ended: so does every call, and no late reply will come."""
        waiting, self._pending = self._pending, {}
        self._abandoned.clear()
        lost = ReplyMalformed if isinstance(reason, ReplyMalformed) else ConnectionLost
        for call in waiting.values():
            _settle(call, lost(f"{reason.text}; {call.member} had not been answered"))

    def received(self, message: Received) -> bool:
        """Settle the call that this answers; answers whether there is one, waited for or not."""
        serial = message.reply_serial
        call = self._pending.get(serial)
        if call is not None:
            # Decoded before the entry goes: a body that breaks the protocol must still fail this call.
            _settle(call, self._answer(message, call))
            del self._pending[serial]
            return True
        if serial in self._abandoned:
            del self._abandoned[serial]
            return True
        return False

    def _answer(self, message: Received, call: _Pending) -> Answer:
        if message.kind is Kind.ERROR:
            return self._failure(message, call)
        try:
            return message.body(call.gives)
        except SignatureMismatchError as error:
            return ReplyMalformed(f"{self._peer} answered {call.member} with the {error}")

    def _failure(self, message: Received, call: _Pending) -> VMCraftError:
        name, said = message.error_name or "", ""
        # An error may come without a text, or with something else in its place.
        if message.signature.startswith("s"):
            said = message.body(message.signature)[0]
        if name in _RECIPIENT_LEFT:
            return ConnectionLost(f"{call.member}: the service ended before it answered: {quoted(said)}")
        if name in _NO_ANSWER_IN_TIME:
            return ReplyTimedOut(f"{call.member}: the service did not answer in time: {quoted(said)}")
        return BusError(name, said, member=call.member)


def _settle(call: _Pending, answer: Answer) -> None:
    if not call.reply.done():
        call.reply.set_result(answer)
