"""org.freedesktop.DBus.Properties: the signal that says that a property changed."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from vmcraft.bus.interface import Interface, Signal


class Properties(Interface):
    """Of any object; source: the D-Bus specification, "Standard Interfaces"."""

    name = "org.freedesktop.DBus.Properties"

    CHANGED = Signal("PropertiesChanged", "sa{sv}as")

    @classmethod
    def watched(cls, interface: Interface, changed: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Call `changed` whenever any property of the interface's object changes."""
        properties = cls(interface.connection, interface.destination, interface.path)
        return properties.on(cls.CHANGED, lambda *_values: changed())
