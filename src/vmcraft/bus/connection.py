"""One connection to a bus, the host's or a hostile guest's, or to systemd's private socket: calls, signals, reconnects.

It knows calls, replies, match rules and who owns which name. Bytes, limits on a flood and the end of a socket are the
transport's; what the members of an interface are called is written down with `interface`.

Two orders hold. Signal handlers run in wire order, inside the reader, before a task that awaits a reply resumes. After
a reconnect, match rules and hooks are in place before any other call is sent; a call that was in flight when the
connection ended is never sent again, since it may have had its effect.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import anyio
from dbus_fast import Message
from dbus_fast.errors import DBusFastError
from dbus_fast.signature import get_signature_tree

from vmcraft.bus.transport import REPLY_LIMIT_S, Limits, Transport
from vmcraft.bus.wire import (
    Kind,
    Received,
    SignatureMismatchError,
    is_bus_name,
    is_interface,
    is_member,
    is_path,
)
from vmcraft.errors import (
    BusError,
    ConnectionLost,
    InvalidName,
    InvalidValue,
    ReplyMalformed,
    ReplyTimedOut,
    VMCraftError,
)
from vmcraft.model.printable import quoted

__all__ = ["REPLY_LIMIT_S", "Connection", "Connector", "Limits", "SignalMessage", "unix_connector"]

Connector: TypeAlias = Callable[[], Awaitable[socket.socket]]
"""Makes a connected stream socket; called once for each (re)connect."""

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
_ERROR: Final = "org.freedesktop.DBus.Error."
# The call had been delivered, or may have been, when these came.
_RECIPIENT_LEFT = frozenset({_ERROR + "NoReply", _ERROR + "Disconnected"})
_NO_ANSWER_IN_TIME = frozenset({_ERROR + "Timeout", _ERROR + "TimedOut"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalMessage:
    """One received signal.

    Attributes:
        sender: Unique name of the sender; on systemd's private socket whatever the peer wrote, or None.
        path: Object that emitted it.
        interface: Its interface.
        member: Its name.
        body: The decoded values, of the signature that was asked for.
    """

    sender: str | None
    path: str
    interface: str
    member: str
    body: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Subscription:
    sender: str
    path: str | None
    carries: str
    handler: Callable[[SignalMessage], None]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A call that waits; errors are handed over as values, so that nobody has to retrieve those of cancelled calls."""

    member: str
    gives: str
    reply: asyncio.Future[list[Any] | VMCraftError]


@dataclass(slots=True)
class _Match:
    """A match rule that the bus has from us; `watches` is the name whose owner it follows."""

    watches: str | None
    users: int = 0


# Which opening a task belongs to: its own calls (Hello, match rules, hooks) must not wait for that opening. Signal
# handlers and tasks that they start inherit it from the reader; so it counts only while that very opening goes on.
_opening: ContextVar[object] = ContextVar("_opening", default=None)


class Connection:
    """A D-Bus connection that belongs to one event loop.

    Attributes:
        generation: Grows with each (re)connect; callers drop what they cached when it changes.
        message_bus: Whether there is a bus between us and the services; False on systemd's private socket.
        peer: Who is at the other end, for messages.
        unique_name: Our name on the bus; None before Hello and on a private socket.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        peer: str,
        uid: int = 0,
        message_bus: bool = True,
        limits: Limits | None = None,
    ) -> None:
        """Prepare a connection; the first call, or `open`, connects.

        Args:
            connector: Makes the socket, now and after each loss.
            peer: Who is at the other end, for messages.
            uid: Whom to authenticate as, as the peer counts uids.
            message_bus: False for systemd's private socket: no Hello, no match rules, no destination.
            limits: What the peer may cost us.
        """
        self.generation = 0
        self.message_bus = message_bus
        self.peer = peer
        self.unique_name: str | None = None
        self._connector = connector
        self._uid = uid
        self._limits = limits or Limits()
        self._transport: Transport | None = None
        self._ready = False
        self._opener: object | None = None
        # Why it will never be opened again: closed by us, or the peer is hostile.
        self._over: VMCraftError | None = None
        self._serial = 0
        self._pending: dict[int, _Pending] = {}
        # Serials whose late replies are dropped; a dict, because it keeps the order and the oldest go first.
        self._abandoned: dict[int, None] = {}
        self._hooks: list[Callable[[Connection], Awaitable[None]]] = []
        self._when_lost: list[Callable[[], None]] = []
        self._subscriptions: dict[tuple[str, str], list[_Subscription]] = {}
        self._matches: dict[str, _Match] = {}
        # Who owns the watched names now; None: nobody.
        self._owners: dict[str, str | None] = {}
        self._gate = anyio.Lock(fast_acquire=True)
        self._matching = anyio.Lock(fast_acquire=True)
        self._slots = anyio.Semaphore(self._limits.calls_in_flight, fast_acquire=True)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    @property
    def lost(self) -> bool:
        """Whether the connection, once open, has ended; the next call opens it again, unless it is over."""
        return self.generation > 0 and not self._ready

    async def open(self) -> None:
        """Connect now rather than with the first call; does nothing while connected.

        Raises:
            ConnectionLost: There is no connection to be had, or `close` was called.
            ReplyMalformed: The peer broke the protocol, now or earlier.
            ReplyTimedOut: The peer does not answer.
        """
        await self._opened()

    def close(self) -> None:
        """Close for good; calls in flight and later ones raise ConnectionLost."""
        lost = ConnectionLost(f"the connection to {self.peer} is closed")
        if self._over is None:
            self._over = lost
        if self._transport is not None:
            self._transport.close(lost)

    @contextmanager
    def on_lost(self, tell: Callable[[], None]) -> Iterator[None]:
        """Have `tell` called whenever the connection ends, while the block runs; it must not block or raise."""
        self._when_lost.append(tell)
        try:
            yield
        finally:
            self._when_lost.remove(tell)

    def on_reopened(self, again: Callable[["Connection"], Awaitable[None]]) -> None:
        """Have `again` run after each reconnect (not the first connect), before other calls.

        Args:
            again: Brings back what the peer forgot, such as Manager.Subscribe; an error of it fails the reconnect.
        """
        self._hooks.append(again)

    async def call(
        self,
        *,
        destination: str,
        path: str,
        interface: str,
        member: str,
        takes: str = "",
        body: Sequence[object] = (),
        gives: str = "",
        fds: Sequence[int] = (),
        limit: float = REPLY_LIMIT_S,
    ) -> list[Any]:
        """Call a method and wait for its reply.

        Args:
            destination: Bus name of the service; left out of the message on a private socket.
            path: Object.
            interface: Interface.
            member: Method.
            takes: Signature of `body`.
            body: The arguments; variants made with `interface.variant`, arrays as lists, `ay` as bytes.
            gives: Signature that the reply must have.
            fds: Descriptors that go with the message; `h` arguments are indices into it. The caller keeps its own.
            limit: Seconds to wait for the reply, counted from when the message is sent.

        Returns:
            The values of the reply.

        Raises:
            BusError: The peer answered with an error.
            InvalidValue: The arguments do not fit `takes`; nothing was sent.
            ReplyTimedOut: No reply within the limit.
            ReplyMalformed: The reply has another signature, or the peer broke the protocol.
            ConnectionLost: The connection, or the service, ended before the reply came.
        """
        _check_names(destination, path, interface, member)
        self._serial = self._serial % 0xFFFFFFFF + 1
        serial, called = self._serial, f"{interface}.{member}"
        message = Message(
            destination if self.message_bus else None,
            path,
            interface,
            member,
            serial=serial,
            signature=takes,
            body=list(body),
            unix_fds=list(fds),
        )
        frame = self._marshal(message, called)
        reply: asyncio.Future[list[Any] | VMCraftError] = asyncio.get_running_loop().create_future()
        inside = self._opener is not None and _opening.get() is self._opener
        slot: AbstractAsyncContextManager[Any] = nullcontext() if inside else self._slots
        async with slot:
            transport = self._transport if inside and self._transport is not None else await self._opened()
            self._pending[serial] = _Pending(called, gives, reply)
            try:
                transport.send(frame, fds)
                with anyio.fail_after(limit):
                    answer = await reply
            except TimeoutError:
                raise ReplyTimedOut(f"{self.peer} did not answer {called} within {limit:g} s") from None
            finally:
                if self._pending.pop(serial, None) is not None:
                    self._abandon(serial)
        if isinstance(answer, VMCraftError):
            raise answer
        return answer

    @asynccontextmanager
    async def on_signal(
        self,
        *,
        sender: str,
        path: str | None = None,
        interface: str,
        member: str,
        carries: str,
        handler: Callable[[SignalMessage], None],
    ) -> AsyncIterator[None]:
        """Have `handler` called for each such signal while the block runs.

        Signals of another sender than the owner of that name do not come through, whatever they claim; nor do those of
        another signature than `carries`. On a private socket all signals are the peer's.

        Args:
            sender: Well-known or unique name.
            path: Only this object's; None for any.
            interface: Interface.
            member: Signal.
            carries: Signature of its values.
            handler: Synchronous; its errors go to the event loop's exception handler.
        """
        _check_names(sender, path or "/", interface, member)
        rule = f"type='signal',sender='{sender}',interface='{interface}',member='{member}'"
        if path is not None:
            rule += f",path='{path}'"
        subscription = _Subscription(sender=sender, path=path, carries=carries, handler=handler)
        async with self._matched(rule, sender):
            table = self._subscriptions.setdefault((interface, member), [])
            table.append(subscription)
            try:
                yield
            finally:
                table.remove(subscription)

    # Opening

    async def _opened(self) -> Transport:
        """The transport, after a reconnect if it was lost."""
        if self._transport is None or not self._ready:
            async with self._gate:
                if not self._ready:
                    await self._open_anew()
        if self._transport is None or self._over is not None:
            raise self._refusal()
        return self._transport

    def _refusal(self) -> VMCraftError:
        """Why there is no connection, as an error of its own for each caller."""
        if isinstance(self._over, ReplyMalformed):
            return ReplyMalformed(f"{self._over.text}; this connection is not opened again")
        return ConnectionLost(self._over.text if self._over is not None else f"no connection to {self.peer}")

    async def _open_anew(self) -> None:
        if self._over is not None:
            raise self._refusal()
        again = self.generation > 0
        self._opener = object()
        before = _opening.set(self._opener)
        try:
            with anyio.fail_after(self._limits.open_s):
                transport = await self._connect()
                for hook in self._hooks if again else ():
                    await hook(self)
            if transport.closed is not None:
                raise ConnectionLost(transport.closed.text)
            self._ready = True
        except TimeoutError:
            raise ConnectionLost(f"no connection to {self.peer} within {self._limits.open_s:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"cannot connect to {self.peer}: {error.strerror or error}") from error
        finally:
            _opening.reset(before)
            self._opener = None
            if not self._ready and self._transport is not None:
                self._transport.close(ConnectionLost(f"the connection to {self.peer} could not be opened"))

    async def _connect(self) -> Transport:
        transport = self._transport = Transport(
            await self._connector(),
            peer=self.peer,
            limits=self._limits,
            on_message=self._on_message,
            on_closed=self._on_closed,
        )
        if self._over is not None:
            raise self._refusal()
        await transport.authenticate(self._uid)
        if self.message_bus:
            [self.unique_name] = await self._ask_bus("Hello", gives="s")
            for rule, match in tuple(self._matches.items()):
                await self._ask_bus("AddMatch", rule)
                if match.watches is not None:
                    await self._learn_owner(match.watches)
        self.generation += 1
        return transport

    async def _ask_bus(self, member: str, *words: str, gives: str = "") -> list[Any]:
        return await self.call(
            destination=BUS,
            path=BUS_PATH,
            interface=BUS,
            member=member,
            takes="s" * len(words),
            body=words,
            gives=gives,
        )

    def _on_closed(self, reason: VMCraftError) -> None:
        self._ready = False
        self.unique_name = None
        hostile = isinstance(reason, ReplyMalformed)
        if hostile and self._over is None:
            self._over = reason
        waiting, self._pending = self._pending, {}
        self._abandoned.clear()
        self._owners.clear()
        for call in waiting.values():
            text = f"{reason.text}; {call.member} had not been answered"
            _settle(call, ReplyMalformed(text) if hostile else ConnectionLost(text))
        for tell in tuple(self._when_lost):
            tell()

    # Calls

    def _marshal(self, message: Message, called: str) -> bytearray:
        try:
            # dbus-fast itself would send a struct with members missing, and then the bus would hang up on us.
            get_signature_tree(message.signature).verify(message.body)
            frame: bytearray = message._marshall(bool(message.unix_fds))  # noqa: SLF001
        except (DBusFastError, UnicodeEncodeError) as error:
            raise InvalidValue(f"the arguments of {called} cannot be sent: {error}") from error
        if len(frame) > self._limits.message_bytes:
            raise InvalidValue(f"the arguments of {called} have {len(frame)} bytes, more than a message may have")
        return frame

    def _abandon(self, serial: int) -> None:
        """Remember a call that nobody waits for any more, so that its reply is no surprise."""
        self._abandoned[serial] = None
        if len(self._abandoned) > self._limits.abandoned_calls:
            del self._abandoned[next(iter(self._abandoned))]

    def _on_message(self, message: Received) -> bool:
        if message.kind in (Kind.RETURN, Kind.ERROR):
            return self._on_reply(message)
        if message.kind is Kind.SIGNAL:
            self._on_signal(message)
        # Calls to us are not answered: we offer nothing, and a peer must not be able to make us write.
        return False

    def _on_reply(self, message: Received) -> bool:
        """Answers whether this is the reply to a call of ours."""
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

    def _answer(self, message: Received, call: _Pending) -> list[Any] | VMCraftError:
        if message.kind is Kind.ERROR:
            return self._failure(message, call)
        try:
            return message.body(call.gives)
        except SignatureMismatchError as error:
            return ReplyMalformed(f"{self.peer} answered {call.member} with the {error}")

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

    # Signals

    @asynccontextmanager
    async def _matched(self, rule: str, sender: str) -> AsyncIterator[None]:
        """Have the bus send us these signals, and know who owns the sender's name."""
        if not self.message_bus:
            yield
            return
        async with AsyncExitStack() as rules:
            if not _is_exact(sender):
                await rules.enter_async_context(self._match(_owner_rule(sender), watches=sender))
                await self._learn_owner(sender)
            await rules.enter_async_context(self._match(rule))
            yield

    @asynccontextmanager
    async def _match(self, rule: str, *, watches: str | None = None) -> AsyncIterator[None]:
        async with self._matching:
            if rule not in self._matches:
                await self._ask_bus("AddMatch", rule)
                # Entered when the bus has it: had a reconnect come first, it would have been added twice.
                self._matches[rule] = _Match(watches)
            match = self._matches[rule]
            match.users += 1
        try:
            yield
        finally:
            match.users -= 1
            with anyio.move_on_after(self._limits.release_s, shield=True), suppress(VMCraftError):
                await self._release(rule, match)

    async def _release(self, rule: str, match: _Match) -> None:
        async with self._matching:
            if match.users or self._matches.get(rule) is not match:
                return
            del self._matches[rule]
            if match.watches is not None:
                self._owners.pop(match.watches, None)
            if not self.lost:
                await self._ask_bus("RemoveMatch", rule)

    async def _learn_owner(self, name: str) -> None:
        if name in self._owners:
            return
        try:
            [owner] = await self._ask_bus("GetNameOwner", name, gives="s")
        except BusError as error:
            if error.name != _ERROR + "NameHasNoOwner":
                raise
            owner = None
        # A NameOwnerChanged that came meanwhile is at least as new as this answer.
        self._owners.setdefault(name, owner)

    def _on_signal(self, message: Received) -> None:
        if message.sender == BUS and message.member == "NameOwnerChanged" and message.signature == "sss":
            self._follow_owner(*message.body("sss"))
        table = self._subscriptions.get((message.interface or "", message.member or ""))
        wanted = [entry for entry in table or () if self._wants(entry, message)]
        if not wanted:
            return
        signal = SignalMessage(
            sender=message.sender,
            path=message.path or "",
            interface=message.interface or "",
            member=message.member or "",
            body=message.body(message.signature),
        )
        # The stack runs all of them even if one raises, last in first out; the error then goes to the event loop.
        with ExitStack() as handlers:
            for entry in reversed(wanted):
                handlers.callback(entry.handler, signal)

    def _wants(self, entry: _Subscription, message: Received) -> bool:
        if entry.carries != message.signature or entry.path not in (None, message.path):
            return False
        if not self.message_bus:
            return True
        # Match rules do not protect: any client may send a signal straight to our unique name.
        owner = entry.sender if _is_exact(entry.sender) else self._owners.get(entry.sender)
        return owner is not None and owner == message.sender

    def _follow_owner(self, name: str, _old: str, new: str) -> None:
        if _owner_rule(name) in self._matches:
            self._owners[name] = new or None


def _settle(call: _Pending, answer: list[Any] | VMCraftError) -> None:
    if not call.reply.done():
        call.reply.set_result(answer)


def _is_exact(sender: str) -> bool:
    """Whether signals carry this very name; those of other names carry their owner's unique name."""
    return sender.startswith(":") or sender == BUS


def _owner_rule(name: str) -> str:
    return f"type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',member='NameOwnerChanged',arg0='{name}'"


def _check_names(destination: str, path: str, interface: str, member: str) -> None:
    """Refuse what would end our own connection, or change the meaning of a match rule."""
    checks = ((is_bus_name, destination), (is_path, path), (is_interface, interface), (is_member, member))
    for check, name in checks:
        if not check(name):
            raise InvalidName(f"{quoted(name)} is no D-Bus {check.__name__.removeprefix('is_').replace('_', ' ')}")


def unix_connector(path: str) -> Connector:
    """A connector for a socket that this process sees itself: the host's own bus.

    Never for a guest's: its sockets are entered from inside its namespaces.
    """

    async def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # AF_UNIX connects at once or not at all (EAGAIN: the queue is full), so this does not block.
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return sock

    return connect
