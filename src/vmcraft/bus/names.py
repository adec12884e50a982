"""Which names D-Bus allows, and the bus's own.

Checked on what we send, since a bus hangs up on a client with a wrong name, and on what a hostile peer sends.
"""

import re
from typing import Final

from vmcraft.errors import InvalidName
from vmcraft.model.printable import quoted

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
MAX_NAME: Final = 255

_NAME_ELEMENT = "[A-Za-z_][A-Za-z0-9_]*+"
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_]++)++", re.ASCII).fullmatch
_INTERFACE = re.compile(rf"{_NAME_ELEMENT}(?:\.{_NAME_ELEMENT})++", re.ASCII).fullmatch
_MEMBER = re.compile(_NAME_ELEMENT, re.ASCII).fullmatch
_BUS_NAME = re.compile(
    r":[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)++|[A-Za-z_-][A-Za-z0-9_-]*+(?:\.[A-Za-z_-][A-Za-z0-9_-]*+)++", re.ASCII
).fullmatch


def is_path(text: str) -> bool:
    """Whether this is an object path."""
    return _PATH(text) is not None


def is_interface(text: str) -> bool:
    """Whether this is an interface name, or an error name, which has the same form."""
    return len(text) <= MAX_NAME and _INTERFACE(text) is not None


def is_member(text: str) -> bool:
    """Whether this is the name of a method, signal or property."""
    return len(text) <= MAX_NAME and _MEMBER(text) is not None


def is_bus_name(text: str) -> bool:
    """Whether this is a unique or a well-known bus name."""
    return len(text) <= MAX_NAME and _BUS_NAME(text) is not None


def check_names(destination: str, path: str, interface: str, member: str) -> None:
    """Refuse what would end our own connection, or change the meaning of a match rule.

    Raises:
        InvalidName: One of them is not of its form.
    """
    checks = ((is_bus_name, destination), (is_path, path), (is_interface, interface), (is_member, member))
    for check, name in checks:
        if not check(name):
            raise InvalidName(f"{quoted(name)} is no D-Bus {check.__name__.removeprefix('is_').replace('_', ' ')}")
