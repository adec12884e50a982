"""The head of an ELF file: for which processor a program is, and which systemd it says that it is."""

import re
import struct

_MACHINES = {
    (3, "<"): "i386",
    (62, "<"): "x86_64",
    (40, "<"): "arm",
    (183, "<"): "aarch64",
    (21, "<"): "ppc64le",
    (21, ">"): "ppc64",
    (22, ">"): "s390x",
    (243, "<"): "riscv64",
    (258, "<"): "loongarch64",
}
_RUNS_ALSO = {"x86_64": {"i386"}, "aarch64": {"arm"}}
_ALIASES = {"i486": "i386", "i586": "i386", "i686": "i386", "armv7l": "arm", "armv8l": "arm"}
_SYSTEMD = re.compile(rb"\0systemd (\d{3})(?=[\0 .~-])")


def machine(head: bytes) -> str | None:
    """The processor that an ELF file is for, as uname(1) names it; None when this is no ELF file.

    Unknown processors answer `elf-NUMBER`. Needs the first 20 bytes; source: elf(5).
    """
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[5] not in (1, 2):
        return None
    order = "<" if head[5] == 1 else ">"
    number = struct.unpack_from(order + "H", head, 18)[0]
    return _MACHINES.get((number, order), f"elf-{number}")


def runs_on(program: str, host: str) -> bool:
    """Whether a host whose uname says `host` runs programs for `program`."""
    host = _ALIASES.get(host, host)
    return program == host or program in _RUNS_ALSO.get(host, ())


def systemd_version(program: bytes) -> int | None:
    """The version in the text that an old systemd's own binary carries; None when there is none."""
    match = _SYSTEMD.search(program)
    return int(match[1]) if match else None
