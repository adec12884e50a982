"""The signals of one connection: who listens, which match rules the bus has from us, who owns the senders' names.

Handlers run inside the reader, in wire order. A match rule is the bus's filter and no protection: a signal counts only
if its sender owns the name now.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import anyio

from vmcraft.bus.message import Received
from vmcraft.bus.names import BUS, BUS_PATH, check_names
from vmcraft.errors import BusError, VMCraftError

_NO_OWNER: Final = f"{BUS}.Error.NameHasNoOwner"


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


@dataclass(slots=True)
class _Match:
    """A match rule that the bus has from us; `watches` is the name whose owner it follows."""

    watches: str | None
    users: int = 0


class _AskBus(Protocol):
    def __call__(self, member: str, *words: str, gives: str = "") -> Awaitable[list[Any]]: ...


class Signals:
    """What one connection listens to, over all its reconnects."""

    def __init__(self, ask_bus: _AskBus, *, message_bus: bool, lost: Callable[[], bool], release_s: float) -> None:
        """Begin with nobody listening.

        Args:
            ask_bus: Calls a method of the bus itself.
            message_bus: Whether there is a bus; without one all signals are the peer's.
            lost: Whether the connection is gone, and its match rules with it.
            release_s: Seconds for giving a match rule back.
        """
        self._ask_bus = ask_bus
        self._message_bus = message_bus
        self._lost = lost
        self._release_s = release_s
        self._subscriptions: dict[tuple[str, str], list[_Subscription]] = {}
        self._matches: dict[str, _Match] = {}
        # Who owns the watched names now; None: nobody.
        self._owners: dict[str, str | None] = {}
        self._matching = anyio.Lock(fast_acquire=True)

    @asynccontextmanager
    async def on(
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
        check_names(sender, path or "/", interface, member)
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

    async def restore(self) -> None:
        """Give a new connection's bus the match rules of the one before."""
        for rule, match in tuple(self._matches.items()):
            await self._ask_bus("AddMatch", rule)
            if match.watches is not None:
                await self._learn_owner(match.watches)

    def forget_owners(self) -> None:
        """The connection ended; who owns a name is asked anew."""
        self._owners.clear()

    def received(self, message: Received) -> None:
        """Hand a signal to those who listen."""
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

    @asynccontextmanager
    async def _matched(self, rule: str, sender: str) -> AsyncIterator[None]:
        """Have the bus send us these signals, and know who owns the sender's name."""
        if not self._message_bus:
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
            with anyio.move_on_after(self._release_s, shield=True), suppress(VMCraftError):
                await self._release(rule, match)

    async def _release(self, rule: str, match: _Match) -> None:
        async with self._matching:
            if match.users or self._matches.get(rule) is not match:
                return
            del self._matches[rule]
            if match.watches is not None:
                self._owners.pop(match.watches, None)
            if not self._lost():
                await self._ask_bus("RemoveMatch", rule)

    async def _learn_owner(self, name: str) -> None:
        if name in self._owners:
            return
        try:
            [owner] = await self._ask_bus("GetNameOwner", name, gives="s")
        except BusError as error:
            if error.name != _NO_OWNER:
                raise
            owner = None
        # A NameOwnerChanged that came meanwhile is at least as new as this answer.
        self._owners.setdefault(name, owner)

    def _wants(self, entry: _Subscription, message: Received) -> bool:
        if entry.carries != message.signature or entry.path not in (None, message.path):
            return False
        if not self._message_bus:
            return True
        # Match rules do not protect: any client may send a signal straight to our unique name.
        owner = entry.sender if _is_exact(entry.sender) else self._owners.get(entry.sender)
        return owner is not None and owner == message.sender

    def _follow_owner(self, name: str, _old: str, new: str) -> None:
        if _owner_rule(name) in self._matches:
            self._owners[name] = new or None


def _is_exact(sender: str) -> bool:
    """Whether signals carry this very name; those of other names carry their owner's unique name."""
    return sender.startswith(":") or sender == BUS


def _owner_rule(name: str) -> str:
    return f"type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',member='NameOwnerChanged',arg0='{name}'"
