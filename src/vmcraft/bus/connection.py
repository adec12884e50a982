"""One connection to a bus, the host's or a hostile guest's, or to systemd's private socket: calls, signals, reconnects.

It knows how it is opened, and opened again, and how a call goes out. Which reply is whose is left to `replies`, who
listens to what to `signals`; bytes, limits on a flood and the end of a socket are the transport's.

Two orders hold. Signal handlers run in wire order, inside the reader, before a task that awaits a reply resumes. After
a reconnect, match rules and hooks are in place before any other call is sent; a call that was in flight when the
connection ended is never sent again, since it may have had its effect.
"""

import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Self, TypeAlias

import anyio
from dbus_fast import Message
from dbus_fast.errors import DBusFastError
from dbus_fast.signature import get_signature_tree

from vmcraft.bus.message import Kind, Received
from vmcraft.bus.names import BUS, BUS_PATH, check_names
from vmcraft.bus.replies import Replies
from vmcraft.bus.signals import Signals
from vmcraft.bus.transport import REPLY_LIMIT_S, Limits, Transport
from vmcraft.errors import ConnectionLost, InvalidValue, ReplyMalformed, ReplyTimedOut, VMCraftError

Connector: TypeAlias = Callable[[], Awaitable[socket.socket]]
"""Makes a connected stream socket; called once for each (re)connect."""

# Which opening a task belongs to: its own calls (Hello, match rules, hooks) must not wait for that opening. Signal
# handlers and tasks that they start inherit it from the reader; so it counts only while that very opening goes on.
_opening: ContextVar[object] = ContextVar("_opening", default=None)


class Connection:
    """A D-Bus connection that belongs to one event loop.

    Attributes:
        generation: Grows with each (re)connect; callers drop what they cached when it changes.
        message_bus: Whether there is a bus between us and the services; False on systemd's private socket.
        peer: Who is at the other end, for messages.
        signals: What it listens to.
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
        self.signals = Signals(
            self._ask_bus, message_bus=message_bus, lost=lambda: self.lost, release_s=self._limits.release_s
        )
        self._transport: Transport | None = None
        self._ready = False
        self._opener: object | None = None
        # Why it will never be opened again: closed by us, or the peer is hostile.
        self._over: VMCraftError | None = None
        self._serial = 0
        self._replies = Replies(peer, abandoned_calls=self._limits.abandoned_calls)
        self._hooks: list[Callable[[Connection], Awaitable[None]]] = []
        self._when_lost: list[Callable[[], None]] = []
        self._gate = anyio.Lock(fast_acquire=True)
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
        check_names(destination, path, interface, member)
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
        inside = self._opener is not None and _opening.get() is self._opener
        slot: AbstractAsyncContextManager[Any] = nullcontext() if inside else self._slots
        async with slot:
            transport = self._transport if inside and self._transport is not None else await self._opened()
            reply = self._replies.expect(serial, called, gives)
            try:
                transport.send(frame, fds)
                with anyio.fail_after(limit):
                    answer = await reply
            except TimeoutError:
                raise ReplyTimedOut(f"{self.peer} did not answer {called} within {limit:g} s") from None
            finally:
                self._replies.drop(serial)
        if isinstance(answer, VMCraftError):
            raise answer
        return answer

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
            await self.signals.restore()
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
        if isinstance(reason, ReplyMalformed) and self._over is None:
            self._over = reason
        self._replies.fail_all(reason)
        self.signals.forget_owners()
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

    def _on_message(self, message: Received) -> bool:
        if message.kind in (Kind.RETURN, Kind.ERROR):
            return self._replies.received(message)
        if message.kind is Kind.SIGNAL:
            self.signals.received(message)
        # Calls to us are not answered: we offer nothing, and a peer must not be able to make us write.
        return False


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
