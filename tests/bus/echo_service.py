"""A service on the test bus, in a process of its own: answers, keeps silent, reads descriptors, signals.

Usage: echo_service.py SOCKET. Prints one line when org.example.Echo is its name.
"""

import asyncio
import os
import sys
from typing import Any

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

ERRORS: dict[str, tuple[str, list[Any]]] = {
    "empty": ("", []),
    "number": ("u", [7]),
    "huge": ("s", ["x" * 1_000_000]),
    "text": ("s", ["went wrong"]),
    "more": ("su", ["first", 2]),
}


class Service:
    """What org.example.Echo does with each method."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus

    def on_message(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != "org.example.Echo":
            return False
        match message.member:
            case "Echo":
                return Message.new_method_return(message, message.signature, message.body)
            case "Hang":
                return True
            case "Fail":
                signature, body = ERRORS[message.body[1]]
                return Message(
                    message_type=MessageType.ERROR,
                    reply_serial=message.serial,
                    destination=message.sender,
                    error_name=message.body[0],
                    signature=signature,
                    body=body,
                )
            case "ReadDescriptors":
                return Message.new_method_return(message, "as", [[_read(fd) for fd in message.unix_fds]])
            case "Signal":
                # Before the reply, so that the caller can tell which of the two it saw first.
                self._bus.send(Message.new_signal("/org/example", "org.example.Echo", "Changed", "s", message.body))
                return Message.new_method_return(message)
            case "End":
                os._exit(0)
        return False


def _read(fd: int) -> str:
    with os.fdopen(fd, "rb") as stream:
        return stream.read().decode()


async def main(path: str) -> None:
    bus = await MessageBus(bus_address=f"unix:path={path}", negotiate_unix_fd=True).connect()
    bus.add_message_handler(Service(bus).on_message)
    await bus.request_name("org.example.Echo")
    print("ready", flush=True)
    await asyncio.Event().wait()  # until the test ends this process


asyncio.run(main(sys.argv[1]))
