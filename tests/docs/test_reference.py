"""The reference names everything that there is: calls, keys of answers, error keys, exit codes; and nothing else."""

import dataclasses
import inspect
import re

import pytest

from docs import examples
from vmcraft import errors
from vmcraft.cli.exit_codes import MEANING
from vmcraft.errors import VMCraftError
from vmcraft.facade.blocking import BlockingVMCraft
from vmcraft.guest.quarantine import HELD_BACK
from vmcraft.model import changes, guest, services, units

pytestmark = pytest.mark.cli
REFERENCE = (examples.CHECKOUT / "docs/SYSTEMD_INTEGRATION.md").read_text(encoding="utf-8")
GUIDE = (examples.CHECKOUT / "docs/SYSTEMD_MIGRATION_GUIDE.md").read_text(encoding="utf-8")
CALLS = [name for name in vars(BlockingVMCraft) if name.startswith("systemd_")]


def section(heading: str) -> str:
    """The text of the section whose heading begins so, to the next heading of the same level."""
    begin = REFERENCE.index(f"\n{heading}")
    level = heading.partition(" ")[0]
    end = re.compile(rf"\n#{{2,{len(level)}}} ").search(REFERENCE, begin + 1)
    return REFERENCE[begin : end.start() if end else None]


@pytest.mark.parametrize("call", CALLS)
def test_every_call_has_a_section_with_its_signature(call: str) -> None:
    names = ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in inspect.signature(getattr(BlockingVMCraft, call)).parameters.values()
        if parameter.name != "self"
    )
    text = section(f"### `{call}({names})`")
    assert "**Asks**" in text or "The same for" in text
    assert "```python" in text


def test_no_other_call_has_one() -> None:
    assert set(re.findall(r"^### `(systemd_\w+)\(", REFERENCE, re.MULTILINE)) == set(CALLS)
    assert len(CALLS) == 15


@pytest.mark.parametrize(
    ("heading", "answer"),
    [
        ("### `systemd_service_start", services.ServiceRun),
        ("### `systemd_service_enable", services.Enablement),
        ("### `systemd_service_status", services.ServiceStatus),
        ("### `systemd_services_enable_multiple", services.NamedOutcome),
        ("### `systemd_list_services", services.ServiceRow),
        ("### `systemd_get_service_dependencies", units.Dependencies),
        ("### `systemd_daemon_reload", services.ManagerReloaded),
        ("### `launch", guest.Launched),
        ("### `launch", guest.Job),
        ("### `diff", changes.Change),
        ("### The block, and a commit", changes.Committed),
    ],
)
def test_every_key_of_an_answer_is_named(heading: str, answer: type) -> None:
    text = section(heading)
    fields = {field.name for field in dataclasses.fields(answer)}
    assert {name for name in fields if f"`{name}`" not in text} - {"name"} == set()


def test_error_table_has_every_key_with_its_class_and_no_other() -> None:
    there = {
        kind.key: kind.__name__
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, VMCraftError) and kind is not VMCraftError
    }
    told = dict(re.findall(r"^\| `([a-z_-]+)` \| (\w+) \|", section("## Error keys"), re.MULTILINE))
    assert told == there


def test_guide_helps_with_every_key_that_a_command_can_meet() -> None:
    bases = {"refused", "guest-error", "not-bootable", "image-error", "host-error"}
    programs = {"not-launched", "not-supported-by-guest", "bus-error", "program-failed"}
    there = {key for key, _ in re.findall(r"^\| `([a-z_-]+)` \| (\w+) \|", section("## Error keys"), re.MULTILINE)}
    told = GUIDE[GUIDE.index("## Troubleshooting") :]
    assert {key for key in there - bases - programs if f"`{key}`" not in told} == set()


def test_exit_codes_are_those_of_the_command() -> None:
    told = {
        int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", section("### Exit codes"), re.MULTILINE)
    }
    assert told.keys() == {int(code) for code in MEANING}
    for code, meaning in MEANING.items():
        assert told[int(code)].replace("`", "").startswith(meaning)


def test_units_that_are_held_back_are_named() -> None:
    assert set(re.findall(r"`([\w-]+\.(?:service|socket|mount))`", section("### held_back"))) == HELD_BACK
