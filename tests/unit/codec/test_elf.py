"""The head of an ELF file: every processor of the table in both byte orders, and what is no ELF file."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcraft.codec import elf

pytestmark = pytest.mark.unit


def head(number: int, *, big: bool = False) -> bytes:
    """The first 20 bytes of a program; source: elf(5)."""
    identification = b"\x7fELF" + bytes([2, 2 if big else 1, 1]) + bytes(9)
    return identification + struct.pack(">HH" if big else "<HH", 3, number)


@pytest.mark.parametrize(
    ("number", "big", "name"),
    [
        (3, False, "i386"),
        (62, False, "x86_64"),
        (40, False, "arm"),
        (183, False, "aarch64"),
        (21, False, "ppc64le"),
        (21, True, "ppc64"),
        (22, True, "s390x"),
        (243, False, "riscv64"),
        (258, False, "loongarch64"),
        (8, True, "elf-8"),
        (0xFFFF, False, "elf-65535"),
        (62, True, "elf-62"),  # no such processor: a swapped header must not pass for the host's own kind
        (183, True, "elf-183"),
    ],
)
def test_machine_is_named_as_uname_does(number: int, big: bool, name: str) -> None:
    assert elf.machine(head(number, big=big)) == name
    assert elf.machine(head(number, big=big) + b"rest of the program") == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        head(62)[:19],
        b"#!/bin/sh\nexec /lib/systemd/systemd\n",
        b"MZ" + head(62)[2:],
        b"\x7fELF\x02\x00" + head(62)[6:],
        b"\x7fELF\x02\x03" + head(62)[6:],
    ],
)
def test_what_is_no_elf_file_has_no_machine(content: bytes) -> None:
    assert elf.machine(content) is None


def test_this_pythons_own_program_is_for_this_machine() -> None:
    with open("/proc/self/exe", "rb") as program:
        machine = elf.machine(program.read(20))
    assert machine is not None
    assert elf.runs_on(machine, os.uname().machine)


@given(st.binary(max_size=64))
def test_any_bytes_have_an_answer(content: bytes) -> None:
    machine = elf.machine(content)
    assert (machine is not None) == (len(content) >= 20 and content[:4] == b"\x7fELF" and content[5] in (1, 2))


@pytest.mark.parametrize(
    ("program", "host", "runs"),
    [
        ("x86_64", "x86_64", True),
        ("i386", "x86_64", True),
        ("x86_64", "i686", False),
        ("i386", "i686", True),
        ("i386", "i386", True),
        ("aarch64", "aarch64", True),
        ("arm", "aarch64", True),
        ("aarch64", "armv7l", False),
        ("arm", "armv7l", True),
        ("x86_64", "aarch64", False),
        ("aarch64", "x86_64", False),
        ("ppc64", "ppc64", True),
        ("ppc64le", "ppc64le", True),
        ("ppc64", "ppc64le", False),
        ("ppc64le", "ppc64", False),  # the kernel reads e_machine in its own byte order: ENOEXEC
        ("s390x", "x86_64", False),
        ("elf-8", "x86_64", False),
    ],
)
def test_which_programs_a_host_runs(program: str, host: str, runs: bool) -> None:
    assert elf.runs_on(program, host) is runs


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (b"...\0systemd 219\0...", 219),
        (b"\0systemd 239 (239-82.el8)\0", 239),
        (b"\0systemd 252.39-1~deb12u2\0", 252),
        (b"\0systemd 245-4ubuntu3\0", 245),
        (b"\0systemd 255~rc1\0", 255),
        (b"\0systemd 2190\0", None),
        (b"\0systemd 19\0", None),
        (b"a systemd 219\0", None),
        (b"\0systemd 219", None),
        (b"\0systemd running in system mode\0", None),
        (b"", None),
    ],
)
def test_version_is_the_one_in_the_programs_own_text(content: bytes, version: int | None) -> None:
    assert elf.systemd_version(content) == version
