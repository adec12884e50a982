"""How a binding is written: an Interface with its Methods, Properties and Signals as constants.

The constants are what the contract tests compare with real systemd's introspection, and what replies are checked
against. It knows nothing of any particular service; the modules named after bus names do.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final, TypeAlias
from xml.parsers import expat

import dbus_fast
from dbus_fast.errors import DBusFastError

from vmcraft.bus.connection import Connection
from vmcraft.bus.transport import REPLY_LIMIT_S
from vmcraft.bus.wire import Variant
from vmcraft.errors import InvalidValue, NotSupportedByGuest, ReplyMalformed
from vmcraft.model.printable import quoted

__all__ = ["Interface", "Member", "Method", "Property", "Signal", "Variant", "introspect", "value", "variant"]

PROPERTIES: Final = "org.freedesktop.DBus.Properties"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
XML_LIMIT: Final = 4 << 20
"""Characters of one introspection; systemd's manager has 40 thousand."""
XML_DEPTH: Final = 8
XML_ELEMENTS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Method:
    """A method: the signatures of its arguments and of its reply.

    Attributes:
        member: Its D-Bus name.
        takes: Signature of the arguments.
        gives: Signature of the reply.
        since: The systemd version that has it first, where that matters to us.
    """

    member: str
    _: KW_ONLY
    takes: str = ""
    gives: str = ""
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Property:
    """A property and the signature of its value."""

    member: str
    type: str
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal and the signature of its values."""

    member: str
    carries: str = ""


Member: TypeAlias = Method | Property | Signal


class Interface:
    """One interface of one object; a binding derives from it and names its members.

    Attributes:
        name: The interface's D-Bus name.
        connection: What the calls go through.
        destination: Bus name of the service.
        path: The object.
        features: Members that the peer has, if they were asked for (`introspect`): a method that is not among them
            raises NotSupportedByGuest before anything is sent.
    """

    name: ClassVar[str]

    def __init__(self, connection: Connection, destination: str, path: str) -> None:
        self.connection = connection
        self.destination = destination
        self.path = path
        self.features: frozenset[str] | None = None

    async def call(
        self, method: Method, *args: object, fds: Sequence[int] = (), limit: float = REPLY_LIMIT_S
    ) -> Any:  # What it is, the method's `gives` says.
        """Call a method.

        Args:
            method: One of this interface's.
            args: Its arguments.
            fds: Descriptors that go with the call; `h` arguments are indices into it.
            limit: Seconds to wait for the reply.

        Returns:
            None for an empty reply, the value for one value, else a tuple.

        Raises:
            NotSupportedByGuest: The peer is known not to have the method; nothing was sent.
            BusError: The peer answered with an error.
            OutcomeUnknown: See `Connection.call`.
        """
        if self.features is not None and method.member not in self.features:
            since = f", which came with systemd {method.since}" if method.since else ""
            raise NotSupportedByGuest(f"the guest has no {self.name}.{method.member}{since}")
        values = await self._ask(
            self.name, method.member, takes=method.takes, body=args, gives=method.gives, fds=fds, limit=limit
        )
        match values:
            case []:
                return None
            case [single]:
                return single
            case _:
                return tuple(values)

    async def get(self, prop: Property) -> Any:  # What it is, the property's `type` says.
        """Read a property.

        Raises:
            BusError: The object has no such property.
            ReplyMalformed: It is of another type.
        """
        [found] = await self._ask(PROPERTIES, "Get", takes="ss", body=(self.name, prop.member), gives="v")
        return _checked(found, prop)

    async def get_all(self) -> dict[str, Variant]:
        """Read all properties of this interface; `value` picks one out."""
        [rows] = await self._ask(PROPERTIES, "GetAll", takes="s", body=(self.name,), gives="a{sv}")
        found: dict[str, Variant] = rows
        return found

    def on(self, signal: Signal, handler: Callable[..., None]) -> AbstractAsyncContextManager[None]:
        """Have `handler` called with the values of each such signal of this object while the block runs."""
        return self.connection.signals.on(
            sender=self.destination,
            path=self.path,
            interface=self.name,
            member=signal.member,
            carries=signal.carries,
            handler=lambda message: handler(*message.body),
        )

    @classmethod
    def members(cls) -> dict[str, Member]:
        """What this binding claims that the interface has, by the names of the constants."""
        found: dict[str, Member] = {}
        for part in reversed(cls.__mro__):
            found |= {name: member for name, member in vars(part).items() if isinstance(member, Member)}
        return found

    async def _ask(self, interface: str, member: str, **rest: Any) -> list[Any]:
        return await self.connection.call(
            destination=self.destination, path=self.path, interface=interface, member=member, **rest
        )


def _checked(found: Variant, prop: Property) -> Any:
    if found.signature != prop.type:
        raise ReplyMalformed(f"{prop.member} has the type {quoted(found.signature)} instead of {prop.type}")
    return found.value


def value(rows: Mapping[str, Variant], prop: Property, default: Any) -> Any:
    """Pick a property out of a GetAll answer.

    Args:
        rows: The answer.
        prop: Which one, and of what type.
        default: What it is where this systemd does not have it.

    Raises:
        ReplyMalformed: It is there, but of another type.
    """
    found = rows.get(prop.member)
    return default if found is None else _checked(found, prop)


def variant(signature: str, content: object) -> object:
    """A variant to send.

    Args:
        signature: Signature of the value, one complete type.
        content: The value: arrays as lists, structs as lists or tuples, `ay` as bytes, variants made with `variant`.

    Raises:
        InvalidValue: The value is not of that type.
    """
    try:
        return dbus_fast.Variant(signature, content)
    except (DBusFastError, ValueError) as error:
        raise InvalidValue(f"no value of the type {quoted(signature)}: {error}") from error


class _Introspection:
    """Collects the members of a node's own interfaces from untrusted XML."""

    def __init__(self) -> None:
        self.interfaces: dict[str, set[str]] = {}
        self._open: list[str] = []
        self._current: set[str] = set()
        self._elements = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._open.append(tag)
        self._elements += 1
        if len(self._open) > XML_DEPTH or self._elements > XML_ELEMENTS:
            raise ReplyMalformed("an introspection that is too deep or too long")
        match self._open:
            case ["node", "interface"]:
                self._current = self.interfaces.setdefault(attributes.get("name", ""), set())
            case ["node", "interface", "method" | "property" | "signal"]:
                self._current.add(attributes.get("name", ""))

    def end(self, _tag: str) -> None:
        self._open.pop()

    def entity(self, *_declaration: object) -> None:
        # Entities that hold entities grow without end; D-Bus introspection has none.
        raise ReplyMalformed("an introspection with an entity declaration")


async def introspect(connection: Connection, destination: str, path: str) -> dict[str, frozenset[str]]:
    """Ask an object which interfaces it has, and which methods, properties and signals in each.

    Raises:
        ReplyMalformed: The answer is no introspection document.
    """
    [text] = await connection.call(
        destination=destination, path=path, interface=INTROSPECTABLE, member="Introspect", gives="s"
    )
    if len(text) > XML_LIMIT:
        raise ReplyMalformed(f"an introspection of {len(text)} characters")
    return _interfaces(text)


def _interfaces(text: str) -> dict[str, frozenset[str]]:
    found = _Introspection()
    parser = expat.ParserCreate()
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.EntityDeclHandler = found.entity
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ReplyMalformed(f"an introspection that is no XML: {error}") from error
    return {name: frozenset(members) for name, members in found.interfaces.items()}
