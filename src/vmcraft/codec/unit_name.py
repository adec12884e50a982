"""Unit names: complete, validate, template and instance, and how they become D-Bus object paths.

Knows the rules of systemd.unit(5), not whether a unit exists.
"""

import re

from vmcraft.errors import InvalidName
from vmcraft.model.expect import expect
from vmcraft.model.printable import quoted

UNIT_TYPES = frozenset(
    {"service", "socket", "target", "device", "mount", "automount", "swap", "timer", "path", "slice", "scope"}
)
NAME_LIMIT = 255
"""Bytes of a unit name, with its suffix; UNIT_NAME_MAX."""

_VALID = re.compile(r"[A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\@-]*)?\.([a-z]+)")
_UNSAFE = re.compile(rb"[^A-Za-z0-9]")


def complete(name: str, suffix: str) -> str:
    """The full name of a unit: `suffix` (with its dot) is added where no unit type is named.

    Raises:
        TypeError: The name is not a string.
        InvalidName: No unit can have this name.

    Source: systemd.unit(5), "Description"; unit_name_is_valid() decides alike.
    """
    expect(name, str, "a unit name")
    _, dot, kind = name.rpartition(".")
    full = name if dot and kind in UNIT_TYPES else name + suffix
    if "/" in name:
        raise InvalidName(
            f"{quoted(name)} is a path, not a unit name", remedy="give the unit's name, as in sshd.service"
        )
    if not _VALID.fullmatch(full) or ".." in full or full.startswith("."):
        raise InvalidName(
            f"{quoted(name)} is not a unit name",
            remedy="letters, digits and : - _ . \\ are allowed, and one @ before an instance",
        )
    if len(full) > NAME_LIMIT:
        raise InvalidName(f"{quoted(name)} is longer than {NAME_LIMIT} bytes")
    return full


def is_valid(name: str) -> bool:
    """Whether a full name, as a guest reports it, is one that systemd itself would take."""
    match = _VALID.fullmatch(name)
    return match is not None and match[1] in UNIT_TYPES and len(name) <= NAME_LIMIT


def kind(unit: str) -> str:
    """The type of a full unit name: `service`, `timer`..."""
    return unit.rpartition(".")[2]


def is_template(unit: str) -> bool:
    """Whether the full name is a template's, which runs only with an instance (`x@.service`)."""
    before_type = unit.rpartition(".")[0]
    return before_type.endswith("@") and before_type.count("@") == 1


def template_of(unit: str) -> str | None:
    """The template of an instance (`getty@tty1.service` -> `getty@.service`); None for other names."""
    prefix, at, _ = unit.partition("@")
    if not at or is_template(unit):
        return None
    return f"{prefix}@.{kind(unit)}"


def concrete(name: str, suffix: str = ".service") -> str:
    """The full name of a unit that can run or be asked about: a template needs an instance."""
    unit = complete(name, suffix)
    if is_template(unit):
        before, _, after = unit.partition("@")
        raise InvalidName(f"{unit} is a template", remedy=f"name an instance: {before}@INSTANCE{after}")
    return unit


def object_path(unit: str) -> str:
    """The D-Bus object path of a unit; source: sd_bus_path_encode(3)."""
    raw = unit.encode()
    escaped = _UNSAFE.sub(lambda match: b"_%02x" % match[0][0], raw)
    if raw[:1].isdigit():
        escaped = b"_%02x" % raw[0] + escaped[1:]
    return "/org/freedesktop/systemd1/unit/" + escaped.decode("ascii")
