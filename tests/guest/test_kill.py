"""kill -9 of the agent at any moment: systemd ends its guest, the sweep removes the rest, the root is whole."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import guest_roots
import leaks
from guest_roots import GuestRoot
from vmcraft.bus.interface import Signal
from vmcraft.changes.recover import recover
from vmcraft.host.host_bus import host_bus
from vmcraft.host.overlay import STATE_DIR
from vmcraft.host.sweep import sweep
from vmcraft.transaction import Transaction

pytestmark = pytest.mark.guest
CHILD = str(Path(__file__).with_name("agent_child.py"))
WANTS = "etc/systemd/system/multi-user.target.wants"
AFTER = {f"{WANTS}/st-disabled.service", f"{WANTS}/st-enabled.service"}
LEASE_LIMIT_S = 30
UNIT_REMOVED = Signal("UnitRemoved", "so")


async def killed_after(root: str, seconds: float, mode: str) -> str:
    """Run the agent and kill it; answers what it had said until then."""
    process = await asyncio.create_subprocess_exec(sys.executable, CHILD, root, mode, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    with anyio.move_on_after(seconds):
        await process.wait()
    if process.returncode is None:
        process.kill()
    said = await process.stdout.read()
    await process.wait()
    return said.decode()


async def guests_end_by_themselves() -> None:
    """systemd ends the guests of a dead agent: no sweep is needed for that."""
    ended = anyio.Event()
    async with host_bus() as host, host.systemd.on(UNIT_REMOVED, lambda *_unit: ended.set()):
        with anyio.fail_after(LEASE_LIMIT_S):
            while await host.systemd.list_units_by_patterns([], ["vmcraft-guest-*", "vmcraft-lease-*"]):
                await ended.wait()
                ended = anyio.Event()


async def test_agent_killed_at_twenty_moments_leaves_nothing_after_the_sweep(
    new_root: Callable[[], GuestRoot],
) -> None:
    root = new_root()
    began = time.monotonic()
    assert "ended" in await killed_after(root.path, 60, "readonly")
    whole = time.monotonic() - began
    for number in range(20):
        await killed_after(root.path, whole * (number + 0.5) / 20, "readonly")
        await guests_end_by_themselves()
        async with host_bus() as host:
            await sweep(host)
        assert leaks.found() == [], f"killed after {number + 0.5}/20 of a run"
    assert root.changed_paths() == set()


async def test_next_start_removes_what_a_killed_agent_left(new_root: Callable[[], GuestRoot]) -> None:
    root = new_root()
    process = await asyncio.create_subprocess_exec(
        sys.executable, CHILD, root.path, "readonly", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"booted\n"
    process.kill()
    await process.wait()
    async with Transaction.open(str(guest_roots.base("bookworm")), readonly=True):
        pass
    assert leaks.found() == []


async def test_agent_killed_while_it_commits_leaves_the_root_before_or_after(
    new_root: Callable[[], GuestRoot],
) -> None:
    """The moments of the commit itself are tried one system call at a time in tests/changes."""
    whole = 0.0
    for number in range(8):
        root = new_root()
        began = time.monotonic()
        await killed_after(root.path, 60 if not whole else whole * (0.6 + number * 0.05), "commit")
        whole = whole or time.monotonic() - began
        await guests_end_by_themselves()
        recover(STATE_DIR)
        async with host_bus() as host:
            await sweep(host)
        assert root.changed_paths() in (set(), AFTER)
        assert leaks.found() == []


async def test_sweep_leaves_the_guests_of_the_living_alone(new_root: Callable[[], GuestRoot]) -> None:
    async with Transaction.open(new_root().path, readonly=True) as transaction:
        async with host_bus() as host:
            swept = await sweep(host)
        assert swept.guests == ()
        assert swept.kept == (transaction.guest.machine,)
        assert (await transaction.services.service_status("cron")).active == "active"
