"""A fresh agent for `memory`: opens one guest, then more, and prints its own memory after each step as JSON.

usage: python memory_child.py async|blocking ROOT GUESTS
"""

import contextlib
import gc
import json
import sys

import anyio

from vmcraft import VMCraft


def memory() -> dict[str, int]:
    """Bytes of this process: resident, and its share of them."""
    gc.collect()
    with open("/proc/self/smaps_rollup", encoding="ascii") as table:
        lines = [line.split() for line in table]
    return {words[0][:-1].lower(): int(words[1]) << 10 for words in lines if words[0] in ("Rss:", "Pss:")}


async def through_async(root: str, guests: int) -> list[dict[str, int]]:
    """Memory before the first guest, and after each."""
    found = [memory()]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(guests):
            g = await stack.enter_async_context(VMCraft())
            await g.add_drive_opts(root, readonly=True)
            await g.launch()
            await g.systemd_list_services()
            await g.systemd_service_status("ssh")
            found.append(memory())
    return found


def through_blocking(root: str, guests: int) -> list[dict[str, int]]:
    """The same with the blocking facade."""
    found = [memory()]
    with contextlib.ExitStack() as stack:
        for _ in range(guests):
            g = stack.enter_context(VMCraft())
            g.add_drive_opts(root, readonly=True)
            g.launch()
            g.systemd_list_services()
            g.systemd_service_status("ssh")
            found.append(memory())
    return found


def main(facade: str, root: str, guests: int) -> None:
    """Print one list."""
    found = anyio.run(through_async, root, guests) if facade == "async" else through_blocking(root, guests)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
