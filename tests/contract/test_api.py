"""The service calls of the public API, held to by all four classes that have them, and the twins held to each other.

The table below is the contract; the repository has no other copy of it.
"""

import ast
import dataclasses
import enum
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import guest_roots
from vmcraft import VMCraft
from vmcraft.errors import NotLaunched
from vmcraft.facade.blocking import BlockingSystemdManager, BlockingVMCraft
from vmcraft.facade.calls import AsyncVMCraft
from vmcraft.managers.services import SystemdManager
from vmcraft.model.changes import Change
from vmcraft.model.guest import Launched
from vmcraft.model.services import LogLine, UnitFileChange

pytestmark = pytest.mark.contract

PREFIX = "systemd_"
TYPES: dict[type, type] = {SystemdManager: BlockingSystemdManager, AsyncVMCraft: BlockingVMCraft}


class Kind(enum.Enum):
    """How a call answers."""

    CHANGE = "outcome, and what was read back; refusals are answered"
    BULK = "name as given to bool"
    QUERY = "the value; failures are raised"


@dataclass(frozen=True)
class Call:
    """One line of the API page.

    Attributes:
        signature: Name and parameters, without the facade's prefix.
        kind: How it answers.
        answers: What the facade's method is annotated with.
        keys: The keys that its dict, or each row of its list, has at least.
    """

    signature: str
    kind: Kind
    answers: object
    keys: str = ""

    @property
    def name(self) -> str:
        """The name alone."""
        return self.signature.partition("(")[0]

    @property
    def parameters(self) -> str:
        """What is in the parentheses."""
        return self.signature.partition("(")[2].removesuffix(")")


RUN = "job_result active sub result exec_main_code exec_main_status log"
LINKS = "requires wants after before requisite binds_to part_of upholds conflicts required_by wanted_by bound_by"
STATUS = """name description load active sub unit_file_state preset main_pid exec_main_code exec_main_status result
    restarts active_since memory_bytes cpu_seconds tasks fragment_path drop_ins triggered_by condition_result held_back
    log"""
CALLS = (
    Call("service_start(service)", Kind.CHANGE, dict[str, Any], RUN),
    Call("service_stop(service)", Kind.CHANGE, dict[str, Any], RUN),
    Call("service_restart(service)", Kind.CHANGE, dict[str, Any], RUN),
    Call("service_enable(service)", Kind.CHANGE, dict[str, Any], "changes unit_file_state held_back"),
    Call("service_disable(service)", Kind.CHANGE, dict[str, Any], "changes unit_file_state held_back"),
    Call("service_status(service)", Kind.QUERY, dict[str, Any], STATUS),
    Call("services_enable_multiple(services)", Kind.BULK, dict[str, bool]),
    Call("services_disable_multiple(services)", Kind.BULK, dict[str, bool]),
    Call("services_mask(services)", Kind.BULK, dict[str, bool]),
    Call(
        "list_services(state=None)",
        Kind.QUERY,
        list[dict[str, Any]],
        "name load active sub description unit_file_state held_back",
    ),
    Call("list_failed_services()", Kind.QUERY, list[str]),
    Call(
        "get_service_dependencies(service)",
        Kind.QUERY,
        dict[str, list[str]],
        f"{LINKS} triggers triggered_by missing",
    ),
    Call("daemon_reload()", Kind.CHANGE, dict[str, Any], "duration newly_failing"),
    Call("systemctl_preset(service)", Kind.CHANGE, dict[str, Any], "changes preset before unit_file_state held_back"),
    Call("is_systemd_available()", Kind.QUERY, bool),
)
GUEST_CALLS = (
    "add_drive_opts(path, format=None, readonly=False, output=None, output_format=None, key_file=None)",
    "launch(boot_limit=120, root=None)",
    "diff()",
    "commit()",
    "discard()",
)
OUTCOME_KEYS = {"attempted", "ok", "error", "outcome", "remedy"}

each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


def parameters_of(method: object) -> list[tuple[str, object]]:
    """Names and defaults, in order, without self; every one can be given by position and by name."""
    assert callable(method)
    found = []
    for one in list(inspect.signature(method).parameters.values())[1:]:
        assert one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        found.append((one.name, one.default))
    return found


def written(parameters: str) -> list[tuple[str, object]]:
    """The same of a parameter list as the table has it."""
    arguments = typing.cast("ast.FunctionDef", ast.parse(f"def call({parameters}): ...").body[0]).args
    missing = len(arguments.args) - len(arguments.defaults)
    defaults = [inspect.Parameter.empty] * missing + [ast.literal_eval(one) for one in arguments.defaults]
    return [(one.arg, default) for one, default in zip(arguments.args, defaults, strict=True)]


def public(of: type) -> list[str]:
    """The public names that a class defines itself, in order."""
    return [name for name in vars(of) if not name.startswith("_")]


def typed_result(call: Call) -> Any:  # Any: the dataclass, to whatever depth it is wrapped.
    """The dataclass that the typed manager's method answers, or answers a tuple of."""
    result = typing.get_type_hints(getattr(SystemdManager, call.name))["return"]
    return typing.get_args(result)[0] if typing.get_origin(result) is tuple else result


# --- names, parameters, answers


@each_call
def test_call_has_the_pages_name_and_parameters_in_all_four_classes(call: Call) -> None:
    for of, name in (
        (SystemdManager, call.name),
        (BlockingSystemdManager, call.name),
        (AsyncVMCraft, PREFIX + call.name),
        (BlockingVMCraft, PREFIX + call.name),
    ):
        assert parameters_of(vars(of)[name]) == written(call.parameters), of.__name__


@each_call
def test_facade_and_manager_take_the_same_types(call: Call) -> None:
    facade = typing.get_type_hints(getattr(AsyncVMCraft, PREFIX + call.name))
    manager = typing.get_type_hints(getattr(SystemdManager, call.name))
    assert {**facade, "return": None} == {**manager, "return": None}
    assert set(facade) == {name for name, _ in written(call.parameters)} | {"return"}


@each_call
def test_facade_answers_what_the_page_says(call: Call) -> None:
    for of in (AsyncVMCraft, BlockingVMCraft):
        assert typing.get_type_hints(getattr(of, PREFIX + call.name))["return"] == call.answers


@pytest.mark.parametrize("call", [one for one in CALLS if one.keys], ids=lambda call: call.name)
def test_answer_has_every_key_of_the_page_and_none_that_hides_the_outcome(call: Call) -> None:
    keys = {one.name for one in dataclasses.fields(typed_result(call))}
    assert keys >= set(call.keys.split())
    if call.kind is Kind.CHANGE:
        assert not keys & OUTCOME_KEYS


def test_the_typed_manager_has_these_calls_and_no_others() -> None:
    assert set(public(SystemdManager)) == {call.name for call in CALLS}
    assert len(CALLS) == 15


def test_the_facade_has_them_in_the_order_of_the_page() -> None:
    named = [PREFIX + call.name for call in CALLS]
    assert [name for name in public(AsyncVMCraft) if name in named] == named


@pytest.mark.parametrize("line", GUEST_CALLS, ids=lambda line: line.partition("(")[0])
def test_what_opens_and_ends_a_guest_is_as_on_the_page(line: str) -> None:
    name, _, parameters = line.partition("(")
    for of in (AsyncVMCraft, BlockingVMCraft):
        assert parameters_of(vars(of)[name]) == written(parameters.removesuffix(")")), of.__name__


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (Launched, "state ready_s finished_s machine systemd_version failed hanging"),
        (Change, "path change call args before after"),
        (UnitFileChange, "type path source"),
        (LogLine, "timestamp priority message"),
    ],
    ids=["launch", "diff", "changes", "log"],
)
def test_values_inside_of_answers_have_the_pages_keys(value: Any, keys: str) -> None:
    assert {one.name for one in dataclasses.fields(value)} >= set(keys.split())


# --- the twins


@pytest.mark.parametrize(("inner", "twin"), TYPES.items(), ids=lambda of: of.__name__)
def test_blocking_twin_has_every_public_member(inner: type, twin: type) -> None:
    assert public(twin) == public(inner)
    for name in public(inner):
        ours, theirs = vars(inner)[name], vars(twin)[name]
        assert type(ours) is type(theirs), name
        if isinstance(ours, property):
            answered = typing.get_type_hints(ours.fget)["return"]
            assert typing.get_type_hints(theirs.fget)["return"] == TYPES.get(answered, answered), name
        else:
            assert inspect.iscoroutinefunction(ours), name
            assert not inspect.iscoroutinefunction(theirs), name
            assert inspect.signature(theirs) == inspect.signature(ours), name


@pytest.mark.parametrize("of", [*TYPES, *TYPES.values()], ids=lambda of: of.__name__)
def test_everything_public_has_a_docstring_that_says_what_it_does(of: type) -> None:
    assert inspect.getdoc(of)
    for name in public(of):
        text = inspect.getdoc(vars(of)[name]) or ""
        assert re.match(r"[A-Z].{10,}", text), name


@pytest.mark.parametrize(("inner", "twin"), TYPES.items(), ids=lambda of: of.__name__)
def test_the_twins_docstrings_are_the_originals(inner: type, twin: type) -> None:
    assert {name: vars(twin)[name].__doc__ for name in public(twin)} == {
        name: vars(inner)[name].__doc__ for name in public(inner)
    }


def test_facade_method_is_one_statement() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(AsyncVMCraft)))
    methods = [
        node
        for node in typing.cast("ast.ClassDef", tree.body[0]).body
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    assert {node.name for node in methods} == set(public(AsyncVMCraft))
    assert [node.name for node in methods if len(node.body) != 2] == []


# --- the generator


def checked(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """`gen-blocking --check`, by some interpreter, in some checkout."""
    return subprocess.run([*command, "--check"], cwd=directory, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the generator reads and writes, copied."""
    shutil.copytree(guest_roots.CHECKOUT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/gen-blocking"):
        shutil.copy(guest_roots.CHECKOUT / name, tmp_path / name)
    return tmp_path


def test_the_blocking_twin_is_current() -> None:
    ran = checked([sys.executable, "scripts/gen-blocking"], guest_roots.CHECKOUT)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_check_runs_as_a_program_as_well() -> None:
    """As scripts/test starts it: whatever `python3` is first in PATH, the checkout's own ruff is used."""
    ran = checked(["scripts/gen-blocking"], guest_roots.CHECKOUT)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("path", ["facade/blocking.py", "facade/calls.py", "managers/services.py"])
def test_a_twin_that_is_not_current_is_found_and_written_anew(checkout: Path, path: str) -> None:
    module = checkout / "src/vmcraft" / path
    text = module.read_text()
    changed = re.sub(r"(def \w*service_start\(\s*self, service: str)", r"\1, dry: bool = False", text)
    assert changed != text
    module.write_text(changed)
    command = [sys.executable, "scripts/gen-blocking"]
    stale = checked(command, checkout)
    assert stale.returncode == 1
    assert "not current" in stale.stderr
    subprocess.run(command, cwd=checkout, check=True)
    assert checked(command, checkout).returncode == 0
    blocking = (checkout / "src/vmcraft/facade/blocking.py").read_text()
    assert ("dry: bool = False" in blocking) == (path != "facade/blocking.py")


# --- the door


def test_with_gives_the_blocking_facade() -> None:
    with VMCraft() as g:
        assert type(g) is BlockingVMCraft
        assert g.warnings == []
        with pytest.raises(NotLaunched):
            g.services  # noqa: B018 - reading it is what is refused


async def test_async_with_gives_the_async_facade() -> None:
    async with VMCraft() as g:
        assert type(g) is AsyncVMCraft
        assert g.warnings == []
        with pytest.raises(NotLaunched):
            g.services  # noqa: B018 - reading it is what is refused


@each_call
def test_every_call_before_launch_is_raised_as_not_launched(call: Call) -> None:
    given = [["cron"] if name == "services" else "cron" for name, _ in written(call.parameters)]
    with VMCraft() as g:
        with pytest.raises(NotLaunched) as caught:
            getattr(g, PREFIX + call.name)(*given)
        assert caught.value.key == "not-launched"
        assert caught.value.remedy


@pytest.mark.parametrize("name", ["launch", "diff", "commit", "discard"])
def test_what_ends_a_guest_needs_one(name: str) -> None:
    with VMCraft() as g, pytest.raises(NotLaunched):
        getattr(g, name)()
