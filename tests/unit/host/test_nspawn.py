"""The argument vector and the settings of a guest's unit: no shell, nothing expanded, every wall in place."""

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcraft.host import nspawn
from vmcraft.host.nspawn import GuestUnit

pytestmark = pytest.mark.unit

MACHINE = "vmcraft-a1"
DIRECTORY = "/var/lib/vmcraft/guests/vmcraft-a1"
MAPPED = GuestUnit(machine=MACHINE, directory=DIRECTORY, source="/srv/web 1", base=65536)
UNMAPPED = GuestUnit(machine=MACHINE, directory=DIRECTORY, source="/srv/web 1", base=None)
BOTH = pytest.mark.parametrize("guest", [MAPPED, UNMAPPED], ids=["private users", "no private users"])


def options(guest: GuestUnit) -> list[str]:
    """What nspawn itself is given: behind the program that stages the root and its own arguments."""
    command = guest.command()
    return command[command.index(nspawn.NSPAWN) + 1 :]


def settings(guest: GuestUnit) -> dict[str, tuple[str, object]]:
    """The unit's settings by name; none is given twice."""
    rows = guest.settings(console=0)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (kind, value) for name, kind, value in rows}


@BOTH
def test_command_is_an_isolated_python_with_our_stage_and_no_shell(guest: GuestUnit) -> None:
    command = guest.command()
    assert command[:4] == [sys.executable, "-I", "-S", nspawn.STAGE]
    assert os.path.isfile(nspawn.STAGE)
    assert command[4:6] == [guest.directory, guest.source]
    assert command[7] == nspawn.NSPAWN
    assert not {"sh", "bash", "dash", "env"} & {os.path.basename(word) for word in command}
    assert "-c" not in command


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_path_of_the_root_is_one_argument_whatever_it_holds(name: str) -> None:
    guest = GuestUnit(machine="vmcraft-a1", directory="/d", source=f"/{name}", base=None)
    command = guest.command()
    assert command[5] == f"/{name}"
    assert len(command) == len(UNMAPPED.command())


@pytest.mark.parametrize("source", ["/srv/$HOME", "/srv/${PATH}x", "/srv/$$", "/srv/cost$", "/srv/100%", "/srv/%n"])
def test_path_of_the_root_reaches_the_program_as_it_is(source: str) -> None:
    """systemd expands $ in ExecStart= also when it comes over D-Bus; another directory would be booted."""
    guest = GuestUnit(machine="vmcraft-a1", directory="/d", source=source, base=None)
    given_ = settings(guest)
    if "ExecStartEx" in given_:
        kind, rows = given_["ExecStartEx"]
        assert kind == "a(sasas)"
        assert isinstance(rows, list)
        [[_, command, flags]] = rows
        assert "no-env-expand" in flags
        assert command == guest.command()
    else:
        kind, rows = given_["ExecStart"]
        assert kind == "a(sasb)"
        assert isinstance(rows, list)
        [[_, command, ignore_failure]] = rows
        assert ignore_failure is False
        assert command == [word.replace("$", "$$") for word in guest.command()]


@BOTH
@pytest.mark.parametrize(
    "option",
    [
        "--boot",
        "--quiet",
        "--keep-unit",
        "--machine=vmcraft-a1",
        "--settings=no",  # a .nspawn file beside the root could ask for anything
        "--link-journal=no",
        "--notify-ready=yes",
        "--private-network",
        "--console=read-only",
        "--resolv-conf=off",
        "--timezone=off",
        "--bind-ro=/var/lib/vmcraft/guests/vmcraft-a1/hold:/run/host/vmcraft",
        "--setenv=SYSTEMD_UNIT_PATH=/run/host/vmcraft:",
        "--directory=/var/lib/vmcraft/guests/vmcraft-a1/root",
    ],
)
def test_option_is_given_once(guest: GuestUnit, option: str) -> None:
    given_ = options(guest)
    assert given_.count(option) == 1
    assert [word.partition("=")[0] for word in given_].count(option.partition("=")[0]) == 1


@BOTH
def test_no_option_opens_the_host_to_the_guest(guest: GuestUnit) -> None:
    names = {word.partition("=")[0] for word in options(guest)}
    assert not names & {
        *("--bind", "--capability", "--ambient-capability", "--network-interface", "--network-veth", "--port"),
        *("--bind-user", "--property", "--system-call-filter", "--ephemeral", "--volatile", "--image", "--overlay"),
        *("--network-bridge", "--network-macvlan", "--network-namespace-path", "--inaccessible", "--as-pid2"),
    }
    assert [word for word in options(guest) if guest.source in word] == []


def test_private_users_are_the_ones_that_were_chosen() -> None:
    assert "--private-users=65536:65536" in options(MAPPED)
    assert "--private-users-ownership=off" in options(MAPPED)
    assert not [word for word in options(UNMAPPED) if word.startswith("--private-users")]
    assert (MAPPED.command()[6], UNMAPPED.command()[6]) == ("65536", "-")


@BOTH
def test_words_for_the_guests_own_manager_come_last(guest: GuestUnit) -> None:
    given_ = options(guest)
    words = [word for word in given_ if not word.startswith("--")]
    assert words == ["fstab=no", "systemd.firstboot=no"]
    assert given_[-2:] == words


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", ("s", "notify")),
        ("NotifyAccess", ("s", "all")),
        ("BindsTo", ("as", ["vmcraft-lease-vmcraft-a1.service"])),
        ("After", ("as", ["vmcraft-lease-vmcraft-a1.service"])),
        ("KillMode", ("s", "mixed")),
        ("Delegate", ("b", True)),
        ("PrivateMounts", ("b", True)),
        ("Slice", ("s", "machine.slice")),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TimeoutStopUSec", ("t", 10_000_000)),
        ("RuntimeMaxUSec", ("t", 24 * 3600 * 1_000_000)),
        ("MemoryMax", ("t", 4 << 30)),
        ("TasksMax", ("t", 8192)),
        ("LimitNPROC", ("t", 8192)),
        ("LimitFSIZE", ("t", 16 << 30)),
        ("LimitCORE", ("t", 0)),
        ("SuccessExitStatus", ("(aiai)", [[133], []])),
    ],
)
def test_wall_around_the_guest_is_set(guest: GuestUnit, name: str, value: tuple[str, object]) -> None:
    assert settings(guest)[name] == value


@BOTH
def test_guest_reaches_no_hypervisor_and_no_other_family(guest: GuestUnit) -> None:
    kind, value = settings(guest)["RestrictAddressFamilies"]
    assert kind == "(bas)"
    assert isinstance(value, list)
    allowed, families = value
    assert allowed is True
    assert set(families) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"}


def test_units_are_named_after_the_machine() -> None:
    assert MAPPED.unit == "vmcraft-guest-vmcraft-a1.service"
    assert MAPPED.lease == "vmcraft-lease-vmcraft-a1.service"


def test_descriptors_are_where_the_caller_put_them() -> None:
    rows = {name: value for name, _, value in MAPPED.settings(console=3)}
    assert (rows["StandardOutputFileDescriptor"], rows["StandardErrorFileDescriptor"]) == (3, 3)
    lease = {name: value for name, _, value in MAPPED.lease_settings(held_open=7)}
    assert lease["StandardInputFileDescriptor"] == 7
    assert lease["ExecStart"] == [["/bin/cat", ["/bin/cat"], False]]
