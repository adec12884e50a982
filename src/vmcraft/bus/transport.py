"""One connected socket to a D-Bus peer that may be hostile: authentication, a bounded reader, a bounded writer.

It knows bytes, frames and limits, and hands each message over in wire order; which call a reply belongs to is left to
the connection. Whatever breaks a limit or the protocol closes the socket: there is no way to find the next message
again behind a broken one.
"""

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from vmcraft.bus.message import Kind, Received, decode, frame_size
from vmcraft.bus.wire import ProtocolError
from vmcraft.errors import ConnectionLost, NotSupportedByGuest, ReplyMalformed, ReplyTimedOut, VMCraftError
from vmcraft.model.printable import quoted

CALLS_IN_FLIGHT: Final = 64
"""dbus-daemon refuses the 129th pending reply of a connection."""
REPLY_LIMIT_S: Final = 30.0
OPEN_LIMIT_S: Final = 30.0
"""For connecting, authentication, Hello, match rules and the hooks after a reconnect together."""
AUTH_LIMIT_S: Final = 5.0
RELEASE_LIMIT_S: Final = 2.0
"""For giving a match rule back, which a cancelled task must not wait long for."""

_AUTH_READ: Final = 4096
_AUTH_ANSWERS: Final = ((b"OK ",), (b"AGREE_UNIX_FD", b"ERROR"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer may cost us.

    Attributes:
        message_bytes: One message, in either direction.
        auth_bytes: All lines before the first message, and `auth_s` seconds for them.
        read_bytes: One read; also about what is handed over in one turn of the event loop.
        messages_per_turn: Messages handed over in one turn of the event loop.
        outgoing_bytes: What may wait for a peer that does not read.
        unasked_per_s: Signals, calls and unknown replies, averaged over a second.
        unasked_bytes_per_s: Their bytes.
        unknown_replies: Replies to nothing, over the connection's life.
        calls_in_flight: Calls that wait for a reply at the same time; more wait their turn.
        abandoned_calls: Cancelled and timed-out calls whose late replies are still known.
        open_s: Seconds for opening the connection.
        release_s: Seconds for giving a match rule back.
    """

    message_bytes: int = 16 << 20
    auth_bytes: int = 16 << 10
    auth_s: float = AUTH_LIMIT_S
    read_bytes: int = 256 << 10
    messages_per_turn: int = 64
    outgoing_bytes: int = 32 << 20
    unasked_per_s: int = 20_000
    unasked_bytes_per_s: int = 64 << 20
    unknown_replies: int = 1000
    calls_in_flight: int = CALLS_IN_FLIGHT
    abandoned_calls: int = 4096
    open_s: float = OPEN_LIMIT_S
    release_s: float = RELEASE_LIMIT_S


class _Unasked:
    """Counts what the peer sends without having been asked."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._since = now
        self._messages = 0
        self._bytes = 0
        self._replies = 0

    def count(self, message: Received, now: float) -> None:
        if now - self._since >= 1.0:
            self._since, self._messages, self._bytes = now, 0, 0
        self._messages += 1
        self._bytes += len(message.frame)
        if message.kind in (Kind.RETURN, Kind.ERROR):
            self._replies += 1
        if self._messages > self._limits.unasked_per_s:
            raise ProtocolError(f"more than {self._limits.unasked_per_s} unasked messages in a second")
        if self._bytes > self._limits.unasked_bytes_per_s:
            raise ProtocolError(f"more than {self._limits.unasked_bytes_per_s} bytes of unasked messages in a second")
        if self._replies > self._limits.unknown_replies:
            raise ProtocolError(f"more than {self._limits.unknown_replies} replies to calls that were never made")


@dataclass(slots=True)
class _Outgoing:
    """A message, or the rest of one; `fds` are our own copies and go with its first byte."""

    rest: memoryview
    fds: tuple[int, ...]

    def release(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


def _copies(fds: Sequence[int]) -> tuple[int, ...]:
    """Own copies of all descriptors, or an error and none."""
    with contextlib.ExitStack() as undo:
        copies = []
        for fd in fds:
            copies.append(os.dup(fd))
            undo.callback(os.close, copies[-1])
        undo.pop_all()
    return tuple(copies)


class Transport:
    """A D-Bus connection's socket, driven by the running asyncio loop without a task of its own.

    Attributes:
        closed: Why the transport is closed; None while it is open.
        received_bytes: All that was read since authentication.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        peer: str,
        limits: Limits,
        on_message: Callable[[Received], bool],
        on_closed: Callable[[VMCraftError], None],
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: Connected stream socket; the transport closes it.
            peer: Who is at the other end, for messages.
            limits: What the peer may cost.
            on_message: Gets every message in wire order; answers whether it had been asked for (a known reply).
            on_closed: Called once, with the reason.
        """
        sock.setblocking(False)
        self.closed: VMCraftError | None = None
        self.received_bytes = 0
        self._sock = sock
        self._peer = peer
        self._limits = limits
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._unasked = _Unasked(limits, self._loop.time())
        self._incoming = bytearray()
        self._taken = 0
        self._behind = False
        self._outgoing: deque[_Outgoing] = deque()
        self._outgoing_bytes = 0
        self._takes_fds = False
        self._authentication: anyio.CancelScope | None = None

    async def authenticate(self, uid: int) -> None:
        """Authenticate as `uid` (EXTERNAL) and begin to read messages.

        Raises:
            ConnectionLost: The peer hung up, or refuses this uid.
            ReplyMalformed: What it sent is no D-Bus authentication.
            ReplyTimedOut: It did not finish within the limit.
        """
        try:
            with anyio.fail_after(self._limits.auth_s) as self._authentication:
                lines, rest = await self._exchange_auth(uid)
        except ReplyMalformed as error:
            self.close(error)
            raise
        except TimeoutError:
            text = f"{self._peer} did not finish the authentication within {self._limits.auth_s:g} s"
            raise ReplyTimedOut(text) from None
        except OSError as error:
            raise ConnectionLost(f"{self._peer} hung up during the authentication: {error.strerror}") from error
        if self.closed is not None:
            raise ConnectionLost(self.closed.text)
        self._takes_fds = lines[1] == b"AGREE_UNIX_FD"
        # Bytes behind the last line are messages already: systemd's private socket sends signals unasked.
        self._incoming += rest
        self._loop.add_reader(self._sock, self._on_readable)
        self._behind = True
        self._loop.call_soon(self._hand_over)

    async def _exchange_auth(self, uid: int) -> tuple[list[bytes], bytes]:
        identity = str(uid).encode().hex().encode()
        # One write, as sd-bus does it: one round trip, and no state in which the peer could keep us.
        await self._loop.sock_sendall(
            self._sock, b"\0AUTH EXTERNAL " + identity + b"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
        )
        data = b""
        while True:
            *lines, rest = data.split(b"\r\n", 2)
            if lines:
                self._check_auth(lines)
            if len(lines) == 2:
                return lines, rest
            if len(data) > self._limits.auth_bytes:
                limit = self._limits.auth_bytes
                raise ReplyMalformed(f"{self._peer} sent an authentication of more than {limit} bytes")
            chunk = await self._loop.sock_recv(self._sock, _AUTH_READ)
            if not chunk:
                raise ConnectionLost(f"{self._peer} hung up during the authentication")
            data += chunk

    def _check_auth(self, lines: list[bytes]) -> None:
        if lines[0].startswith(b"REJECTED"):
            raise ConnectionLost(f"{self._peer} does not let us in: {quoted(lines[0].decode(errors='replace'))}")
        for line, starts in zip(lines, _AUTH_ANSWERS, strict=False):
            if not line.startswith(starts):
                said = quoted(line.decode(errors="replace"))
                raise ReplyMalformed(f"{self._peer} sent no D-Bus authentication but {said}")

    def send(self, message: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        """Send a message, at once or as soon as the peer reads.

        Args:
            message: One marshalled message.
            fds: Descriptors that go with it; the caller may close its own at once.

        Raises:
            ConnectionLost: The transport is closed, or the peer has not read for too long.
            NotSupportedByGuest: The peer takes no descriptors.
        """
        if self.closed is not None:
            raise ConnectionLost(self.closed.text)
        if fds and not self._takes_fds:
            raise NotSupportedByGuest(f"{self._peer} takes no file descriptors")
        if self._outgoing_bytes + len(message) > self._limits.outgoing_bytes:
            lost = ConnectionLost(f"{self._peer} does not read: {self._outgoing_bytes} bytes wait for it")
            self.close(lost)
            raise lost
        # Copies, because a queued message must not carry whatever the caller's number means by then.
        self._outgoing.append(_Outgoing(memoryview(message), _copies(fds)))
        self._outgoing_bytes += len(message)
        if len(self._outgoing) == 1 and not self._write():
            self._loop.add_writer(self._sock, self._on_writable)

    def close(self, reason: VMCraftError) -> None:
        """Close the socket; the first reason is the one that counts."""
        if self.closed is not None:
            return
        self.closed = reason
        if self._authentication is not None:
            self._authentication.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for message in self._outgoing:
            message.release()
        self._outgoing.clear()
        self._incoming.clear()
        self._taken = 0
        self._on_closed(reason)

    def _on_writable(self) -> None:
        if self._write() and self.closed is None:
            self._loop.remove_writer(self._sock)

    def _write(self) -> bool:
        """Send what the socket takes; answers whether nothing waits any more."""
        try:
            while self._outgoing:
                self._write_some(self._outgoing[0])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.close(ConnectionLost(f"{self._peer} hung up: {error.strerror}"))
        return True

    def _write_some(self, message: _Outgoing) -> None:
        if message.fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds))
            sent = self._sock.sendmsg([message.rest], [rights])
            message.release()
        else:
            sent = self._sock.send(message.rest)
        self._outgoing_bytes -= sent
        message.rest = message.rest[sent:]
        if not message.rest:
            self._outgoing.popleft()

    def _on_readable(self) -> None:
        if self._behind:
            # The rest of the last read comes first; until then the kernel's buffer presses back on the peer.
            return
        try:
            # recv and never recvmsg: so the kernel drops descriptors that the peer attaches.
            chunk = self._sock.recv(self._limits.read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(ConnectionLost(f"{self._peer} hung up: {error.strerror}"))
            return
        if not chunk:
            self.close(ConnectionLost(f"{self._peer} closed the connection"))
            return
        self.received_bytes += len(chunk)
        self._incoming += chunk
        self._hand_over()

    def _hand_over(self) -> None:
        """Hand over one turn's worth of messages; what is left comes in the loop's next turn.

        An error of a signal handler passes through: the loop reports it, and reading goes on.
        """
        self._behind = True
        try:
            self._behind = self._turn()
        except ProtocolError as error:
            self.close(ReplyMalformed(f"{self._peer} broke the D-Bus protocol: {error}"))
        finally:
            del self._incoming[: self._taken]
            self._taken = 0
            if self._behind and self.closed is None:
                self._loop.call_soon(self._hand_over)

    def _turn(self) -> bool:
        """Answers whether more messages may be complete."""
        for _ in range(self._limits.messages_per_turn):
            if self.closed is not None or self._taken >= self._limits.read_bytes:
                break
            frame = self._take()
            if frame is None:
                return False
            self._deliver(decode(frame))
        return True

    def _deliver(self, message: Received) -> None:
        if message.kind in (Kind.RETURN, Kind.ERROR):
            if not self._on_message(message):
                self._unasked.count(message, self._loop.time())
            return
        # Counted first, since a handler may raise.
        self._unasked.count(message, self._loop.time())
        self._on_message(message)

    def _take(self) -> bytes | None:
        """The next whole message, if there is one."""
        size = frame_size(self._incoming[self._taken : self._taken + 16], self._limits.message_bytes)
        stop = self._taken + (size or 0)
        if size is None or stop > len(self._incoming):
            return None
        with memoryview(self._incoming) as view:
            frame = bytes(view[self._taken : stop])
        self._taken = stop
        return frame
