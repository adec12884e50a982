"""The fifteen calls as a benchmark asks them: what each is compared with, and what must be true before it is asked.

Knows names of planted units and words of systemctl; leaves the measuring to `warm` and `in_a_row`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarks.places import RESTARTED

from vmcraft.bus.interface import Method
from vmcraft.facade.calls import AsyncVMCraft
from vmcraft.managers.jobs import SETTLE_S
from vmcraft.transaction import Transaction

UNMASK = Method("UnmaskUnitFiles", takes="asb", gives="a(sss)")
PAIR = ("st-disabled", "st-vendor")
MASKED = ("st-vendor", "st-vendor-on")
QUERY, STATUS = 20.0, 3.0
"""How many times faster than un-booted a query shall be, and service_status, which runs a program in the guest."""


class Life:
    """A launched guest, with what is below the facade: a benchmark also undoes what no call of the facade undoes."""

    def __init__(self, transaction: Transaction, facade: AsyncVMCraft) -> None:
        self.transaction = transaction
        self.g = facade

    async def unmask(self) -> None:
        """Undo the masks; the fifteen calls have no unmask."""
        units = [f"{name}.service" for name in MASKED]
        await self.transaction.guest.manager.call(UNMASK, units, False)


Step = Callable[[Life], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call.

    Attributes:
        call: Its name.
        ask: Asks it.
        words: The same question for systemctl in an un-booted root.
        before: Makes that the call really changes something; not timed.
        words_before: The same un-booted.
        cheap: Whether it can be repeated often.
        factor: How many times faster than un-booted it shall be at least; None where no goal is set.
    """

    call: str
    ask: Step
    words: tuple[str, ...]
    before: Step | None = None
    words_before: tuple[str, ...] | None = None
    cheap: bool = True
    factor: float | None = field(default=None)


def settled(answer: object) -> float:
    """The settle time that is in an answer: a start or restart is watched that long when the unit runs."""
    return SETTLE_S if isinstance(answer, dict) and answer.get("sub") == "running" and "job_result" in answer else 0.0


async def _stop(life: Life) -> Any:
    return await life.g.systemd_service_stop(RESTARTED)


async def _start(life: Life) -> Any:
    return await life.g.systemd_service_start(RESTARTED)


async def _disable(life: Life) -> Any:
    return await life.g.systemd_service_disable("st-disabled")


async def _enable(life: Life) -> Any:
    return await life.g.systemd_service_enable("st-disabled")


async def _disable_pair(life: Life) -> Any:
    return await life.g.systemd_services_disable_multiple(PAIR)


async def _enable_pair(life: Life) -> Any:
    return await life.g.systemd_services_enable_multiple(PAIR)


async def _against_preset(life: Life) -> Any:
    await life.g.systemd_service_enable("st-vendor-off")
    await life.g.systemd_daemon_reload()


CASES = (
    Case(call="service_start", ask=_start, words=("start", RESTARTED), before=_stop, cheap=False),
    Case(call="service_stop", ask=_stop, words=("stop", RESTARTED), before=_start, cheap=False),
    Case(
        call="service_restart",
        ask=lambda life: life.g.systemd_service_restart(RESTARTED),
        words=("restart", RESTARTED),
        before=_start,
        cheap=False,
    ),
    Case(
        call="service_enable",
        ask=_enable,
        words=("enable", "st-disabled"),
        before=_disable,
        words_before=("disable", "st-disabled"),
    ),
    Case(
        call="service_disable",
        ask=_disable,
        words=("disable", "st-disabled"),
        before=_enable,
        words_before=("enable", "st-disabled"),
    ),
    Case(
        call="service_status",
        ask=lambda life: life.g.systemd_service_status("ssh"),
        words=("status", "ssh"),
        factor=STATUS,
    ),
    Case(
        call="services_enable_multiple (2)",
        ask=_enable_pair,
        words=("enable", *PAIR),
        before=_disable_pair,
        words_before=("disable", *PAIR),
    ),
    Case(
        call="services_disable_multiple (2)",
        ask=_disable_pair,
        words=("disable", *PAIR),
        before=_enable_pair,
        words_before=("enable", *PAIR),
    ),
    Case(
        call="services_mask (2)",
        ask=lambda life: life.g.systemd_services_mask(MASKED),
        words=("mask", *MASKED),
        before=lambda life: life.unmask(),
        words_before=("unmask", *MASKED),
    ),
    Case(
        call="list_services",
        ask=lambda life: life.g.systemd_list_services(),
        words=("list-units", "--type=service", "--all"),
        factor=QUERY,
    ),
    Case(
        call="list_failed_services",
        ask=lambda life: life.g.systemd_list_failed_services(),
        words=("--failed", "--type=service"),
        factor=QUERY,
    ),
    Case(
        call="get_service_dependencies",
        ask=lambda life: life.g.systemd_get_service_dependencies("ssh"),
        words=("list-dependencies", "ssh"),
        factor=QUERY,
    ),
    Case(call="daemon_reload", ask=lambda life: life.g.systemd_daemon_reload(), words=("daemon-reload",), cheap=False),
    Case(
        call="systemctl_preset",
        ask=lambda life: life.g.systemd_systemctl_preset("st-vendor-off"),
        words=("preset", "st-vendor-off"),
        before=_against_preset,
        words_before=("enable", "st-vendor-off"),
        cheap=False,
    ),
    Case(
        call="is_systemd_available",
        ask=lambda life: life.g.systemd_is_systemd_available(),
        words=("is-system-running",),
        factor=QUERY,
    ),
)


async def reset(life: Life) -> None:
    """After all fifteen in a row: as before them, so that the next row changes the same."""
    await life.unmask()
    await life.g.systemd_service_enable("st-vendor-off")
    await life.g.systemd_service_stop(RESTARTED)
    await life.g.systemd_daemon_reload()


RESET_WORDS: Sequence[tuple[str, ...]] = (("unmask", *MASKED), ("enable", "st-vendor-off"))
