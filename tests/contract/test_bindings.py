"""Every binding in vmcraft.bus against what the real binaries of systemd 247, 252 and 257 print of themselves.

`--bus-introspect=INTERFACE` makes systemd and its daemons print an interface without a bus; they are run in their own
roots. The bindings are found by walking the package, so that a new one cannot be forgotten.
"""

import importlib
import inspect
import pkgutil
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from xml.etree import ElementTree

import pytest

import guest_roots
import vmcraft.bus
from vmcraft.bus.interface import Interface, Member, Method, Property, Signal
from vmcraft.host.nspawn import GuestUnit

pytestmark = pytest.mark.contract

SYSTEMD = "lib/systemd/systemd"
MACHINED = "lib/systemd/systemd-machined"
# The D-Bus specification, "Standard Interfaces"; systemd prints it too, which holds this table itself.
SPECIFIED: dict[str, dict[str, tuple[str, ...]]] = {
    "org.freedesktop.DBus.Properties": {
        "Get": ("method", "ss", "v"),
        "GetAll": ("method", "s", "a{sv}"),
        "Set": ("method", "ssv", ""),
        "PropertiesChanged": ("signal", "sa{sv}as"),
    },
    "org.freedesktop.DBus.Introspectable": {"Introspect": ("method", "", "s")},
    "org.freedesktop.DBus.Peer": {"Ping": ("method", "", ""), "GetMachineId": ("method", "", "s")},
}


@dataclass(frozen=True)
class Binary:
    """A program of one systemd release, in its root."""

    label: str
    root: str
    program: str


@cache
def systemds() -> tuple[Binary, ...]:
    """PID 1 of the three releases."""
    return tuple(Binary(suite, str(guest_roots.base(suite)), SYSTEMD) for suite in guest_roots.SUITES)


@cache
def machineds() -> tuple[Binary, ...]:
    """The host's own machined, and that of the newer host root."""
    return Binary("host", "/", MACHINED), Binary("host-trixie", str(guest_roots.base("host-trixie")), MACHINED)


def binaries_of(interface: str) -> tuple[Binary, ...]:
    """The programs that have an interface."""
    match interface.split(".")[:3]:
        case ["org", "freedesktop", "systemd1"]:
            return systemds()
        case ["org", "freedesktop", "machine1"]:
            return machineds()
        case _:
            msg = f"no real binary is known that prints {interface}: name one here"
            raise AssertionError(msg)


@cache
def run_in(root: str, *argv: str) -> str:
    """What a program of a root prints, run in that root."""
    return subprocess.run(["chroot", root, *argv], check=True, capture_output=True, text=True).stdout


def version(binary: Binary) -> int:
    """The release that a binary is of, in its own words (machined has the version of its root's systemd)."""
    first = run_in(binary.root, f"/{SYSTEMD}", "--version")
    match = re.match(r"systemd (\d+) ", first)
    assert match, first
    return int(match[1])


@cache
def interfaces(binary: Binary, interface: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """The interfaces on an object that has this one; each member as its kind and its signatures."""
    printed = run_in(binary.root, f"/{binary.program}", f"--bus-introspect={interface}")
    return {
        node.attrib["name"]: {member.attrib["name"]: shape(member) for member in node if member.tag != "annotation"}
        for node in ElementTree.fromstring(printed).findall("interface")
    }


def shape(node: ElementTree.Element) -> tuple[str, ...]:
    """Kind and signatures of one member."""
    arguments = [(one.attrib.get("direction", "in"), one.attrib["type"]) for one in node.findall("arg")]
    match node.tag:
        case "method":
            takes = "".join(kind for direction, kind in arguments if direction == "in")
            return "method", takes, "".join(kind for direction, kind in arguments if direction == "out")
        case "signal":
            return "signal", "".join(kind for _, kind in arguments)
        case "property":
            return "property", node.attrib["type"]
        case _:
            raise AssertionError(node.tag)


def claimed(member: Member) -> tuple[str, ...]:
    """The same of one of our constants."""
    match member:
        case Method():
            return "method", member.takes, member.gives
        case Signal():
            return "signal", member.carries
        case Property():
            return "property", member.type


def bindings() -> list[type[Interface]]:
    """Every Interface class that a module of the package defines."""
    found = []
    for module in pkgutil.walk_packages(vmcraft.bus.__path__, "vmcraft.bus."):
        loaded = importlib.import_module(module.name)
        found += [
            one
            for _, one in inspect.getmembers(loaded, inspect.isclass)
            if issubclass(one, Interface) and one is not Interface and one.__module__ == module.name
        ]
    return sorted(found, key=lambda one: (one.__module__, one.__name__))


def label(one: object) -> str:
    """A binding's name in the report."""
    return f"{one.__module__.rpartition('.')[2]}.{one.__name__}" if inspect.isclass(one) else str(one)


BINDINGS = bindings()
REAL = [one for one in BINDINGS if one.name not in SPECIFIED]


def test_the_walk_finds_the_bindings_and_each_names_its_interface() -> None:
    assert {"systemd1.Manager", "systemd1.Unit", "systemd1.Service", "machine1.Manager", "machine1.Machine"} <= {
        label(one) for one in BINDINGS
    }
    for one in BINDINGS:
        assert one.members(), label(one)
        assert re.fullmatch(r"org(\.[A-Za-z][A-Za-z0-9_]*)+", one.name), one.name
    names = [one.name for one in BINDINGS]
    assert len(names) == len(set(names)), "two bindings of one interface"


def test_the_roots_are_the_releases_that_we_mean() -> None:
    assert [version(one) for one in systemds()] == [247, 252, 257]
    assert version(machineds()[1]) == 257
    for one in machineds():
        assert "org.freedesktop.machine1.Manager" in run_in(one.root, f"/{MACHINED}", "--bus-introspect=list")


@pytest.mark.parametrize("binding", REAL, ids=label)
def test_binding_is_what_every_release_prints(binding: type[Interface]) -> None:
    wrong = []
    for binary in binaries_of(binding.name):
        real = interfaces(binary, binding.name)[binding.name]
        for constant, member in binding.members().items():
            there = real.get(member.member)
            since = getattr(member, "since", None)
            if there is None and since is not None and version(binary) < since:
                continue
            if there != claimed(member):
                wrong.append(f"{binary.label}: {constant} is {claimed(member)}, systemd {version(binary)} has {there}")
    assert not wrong


@pytest.mark.parametrize("binding", BINDINGS, ids=label)
def test_no_member_is_written_twice(binding: type[Interface]) -> None:
    members = [(type(member), member.member) for member in binding.members().values()]
    assert len(members) == len(set(members))


@pytest.mark.parametrize("binding", [one for one in BINDINGS if one.name in SPECIFIED], ids=label)
def test_standard_interface_is_what_the_specification_says(binding: type[Interface]) -> None:
    ours = {member.member: claimed(member) for member in binding.members().values()}
    assert ours.items() <= SPECIFIED[binding.name].items()


@pytest.mark.parametrize("interface", SPECIFIED)
def test_systemd_has_the_standard_interfaces_as_the_specification_says(interface: str) -> None:
    for binary in (*systemds(), *machineds()):
        of = "org.freedesktop.machine1.Manager" if binary.program == MACHINED else "org.freedesktop.systemd1.Manager"
        assert interfaces(binary, of)[interface] == SPECIFIED[interface], binary.label


def test_settings_of_a_guests_unit_have_the_types_of_the_hosts_properties() -> None:
    """A setting of another type is refused by the host's manager, and then no guest boots."""
    guest = GuestUnit(machine="vmcraft-x", directory="/d", source="/s", base=1 << 16)
    rows = [*guest.settings(console=0), *guest.lease_settings(held_open=0)]
    # These two kinds have no property of the same name and type: a descriptor is handed over, and a command is shown
    # with its run times.
    checked = {
        name: kind
        for name, kind, _ in rows
        if not name.endswith("FileDescriptor") and name not in ("ExecStart", "ExecStartEx")
    }
    assert len(checked) > 15
    for binary in systemds()[1:]:
        properties: dict[str, str] = {}
        for interface in ("org.freedesktop.systemd1.Unit", "org.freedesktop.systemd1.Service"):
            members = interfaces(binary, interface)[interface]
            properties |= {name: of[1] for name, of in members.items() if of[0] == "property"}
        assert {name: properties.get(name) for name in checked} == checked, binary.label
