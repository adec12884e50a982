"""The page itself: the machine, the goals, the sections."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.figures import Section, goals_table, markdown, table_text


def machine() -> tuple[str, ...]:
    """What the figures depend on, without any name of this machine."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    systemd = subprocess.run(["systemctl", "--version"], check=True, capture_output=True, text=True).stdout
    return (
        f"- kernel: {platform.system()} {platform.release()} ({platform.machine()})",
        f"- processor: {cpu[1] if cpu else 'unknown'}, {os.cpu_count()} cores",
        f"- memory: {memory:.0f} GiB",
        f"- host: {systemd.splitlines()[0]}, Python {platform.python_version()}",
    )


def page(sections: Sequence[Section], *, command: str, load: float, took: float) -> str:
    """The whole of docs/performance.md."""
    now = datetime.datetime.now(datetime.UTC)
    goals = [goal for section in sections for goal in section.goals]
    missed = sum(not goal.passed for goal in goals)
    about = (
        f"Written by `{command}` on {now:%Y-%m-%d} in one run of {took / 60:.0f} minutes; do not edit. Figures are "
        "medians (least-most) in milliseconds unless another unit is named; n is the number of repetitions. The two "
        f"sides of each ratio were measured in turns. The load average at the start was {load:.2f}."
    )
    head = (
        "# Performance",
        about,
        "\n".join(machine()),
        "## Goals",
        f"{len(goals) - missed} of {len(goals)} are met.",
        table_text(goals_table(goals)),
    )
    return "\n\n".join((*head, *(markdown(section) for section in sections))) + "\n"
