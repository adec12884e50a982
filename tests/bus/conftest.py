"""The two kinds of peer that the bus tests need: a real dbus-daemon of our own, and one whose every byte we choose."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from dbus_fast import Message, MessageType

from vmcraft.bus.connection import Connection, unix_connector
from vmcraft.bus.message import Received, decode, frame_size
from vmcraft.bus.transport import Limits

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"""
ECHO = Path(__file__).with_name("echo_service.py")
PATIENCE_S = 20


class Daemon:
    """A dbus-daemon with nobody else on it; it can be ended and started again at the same place."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "bus")
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(socket=self.path))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        self._process = _started(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--print-address"]
        )

    def stop(self) -> None:
        if self._process is not None:
            _ended(self._process)
            self._process = None

    def connection(self, **options: Any) -> Connection:
        return Connection(unix_connector(self.path), peer="the test bus", **options)


class Echo:
    """`echo_service.py` in a process of its own, as org.example.Echo."""

    def __init__(self, daemon: Daemon) -> None:
        self._process = _started([sys.executable, str(ECHO), daemon.path])

    def stop(self) -> None:
        _ended(self._process)


def _started(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a program that prints one line when it is ready."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline(), f"{arguments[0]} did not start"
    return process


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    bus = Daemon(tmp_path)
    yield bus
    bus.stop()


@pytest.fixture
def echo(daemon: Daemon) -> Iterator[Echo]:
    service = Echo(daemon)
    yield service
    service.stop()


@pytest.fixture
async def bus(daemon: Daemon) -> AsyncIterator[Connection]:
    async with daemon.connection() as connection:
        yield connection


def frame(message: Message, serial: int = 1) -> bytes:
    """The bytes of a message that the hostile side sends."""
    message.serial = serial
    return bytes(message._marshall(False))


def answer(serial: int, signature: str = "", *body: object) -> bytes:
    return frame(
        Message(message_type=MessageType.METHOD_RETURN, reply_serial=serial, signature=signature, body=list(body))
    )


def signal(member: str = "Changed", signature: str = "", *body: object) -> bytes:
    return frame(Message.new_signal("/org/example", "org.example.One", member, signature, list(body)))


class Client:
    """The far end of one connection, as the scripts see it; blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = 0
        self._read = b""

    def login(self, extra: bytes = b"") -> None:
        """Authenticate whoever comes; `extra` goes out in the same write."""
        self.read_auth()
        self.send(b"OK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n" + extra)

    def read_auth(self) -> None:
        while b"BEGIN\r\n" not in self._read:
            self._read += self._more()
        self._read = self._read.partition(b"BEGIN\r\n")[2]

    def read_call(self) -> Received:
        while True:
            size = frame_size(self._read, 1 << 27)
            if size is not None and len(self._read) >= size:
                whole, self._read = self._read[:size], self._read[size:]
                return decode(whole)
            self._read += self._more()

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            count = self.sock.send(rest)
            self.sent += count
            rest = rest[count:]

    def flood(self, data: bytes) -> None:
        """Send without end; the script ends when we are hung up on."""
        block = data * max(1, (64 << 10) // len(data))
        while True:
            self.send(block)

    def wait_for_end(self) -> None:
        while self._more():
            pass

    def _more(self) -> bytes:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        return data


Script = Callable[[Client], None]


class HostilePeer:
    """A peer that follows a script, in a thread for each connection.

    Attributes:
        clients: The far ends of all connections so far.
    """

    def __init__(self, script: Script) -> None:
        self.clients: list[Client] = []
        self._script = script
        self._threads: list[threading.Thread] = []

    async def connect(self) -> socket.socket:
        """The connector to give to a Connection."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE_S)
        client = Client(theirs)
        thread = threading.Thread(target=self._run, args=(client,))
        self.clients.append(client)
        self._threads.append(thread)
        thread.start()
        return ours

    def _run(self, client: Client) -> None:
        # Being hung up on is how most scripts end.
        with contextlib.suppress(ConnectionError, TimeoutError), client.sock:
            self._script(client)

    @property
    def sent(self) -> int:
        return sum(client.sent for client in self.clients)

    async def ended(self) -> None:
        """Wait until all scripts have run to their end, which they do once we have hung up."""
        for thread in self._threads:
            await anyio.to_thread.run_sync(thread.join)


@pytest.fixture
async def hostile() -> AsyncIterator[Callable[..., tuple[HostilePeer, Connection]]]:
    """Make a peer that follows a script, and a connection to it as to a private socket."""
    made: list[tuple[HostilePeer, Connection]] = []

    def make(script: Script, *, message_bus: bool = False, **limits: Any) -> tuple[HostilePeer, Connection]:
        peer = HostilePeer(script)
        connection = Connection(peer.connect, peer="the hostile peer", message_bus=message_bus, limits=Limits(**limits))
        made.append((peer, connection))
        return peer, connection

    yield make
    for peer, connection in made:
        connection.close()
        await peer.ended()
