"""Words that a guest says: those of a newer systemd are shown, and a guest that invents them makes nothing grow."""

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmcraft.model
from vmcraft.model.guest import SystemState
from vmcraft.model.open_enum import OpenStrEnum
from vmcraft.model.services import ActiveState, JobResult, LoadState, UnitFileState
from vmcraft.model.units import UnitFileRow

pytestmark = pytest.mark.unit


def enums() -> list[type[OpenStrEnum]]:
    """Every open enum of the model."""
    found = []
    for module in pkgutil.iter_modules(vmcraft.model.__path__, "vmcraft.model."):
        loaded = importlib.import_module(module.name)
        found += [
            one
            for _, one in inspect.getmembers(loaded, inspect.isclass)
            if issubclass(one, OpenStrEnum) and one is not OpenStrEnum and one.__module__ == module.name
        ]
    return found


each_enum = pytest.mark.parametrize("of", enums(), ids=lambda of: of.__name__)


def test_all_open_enums_are_looked_at() -> None:
    assert {LoadState, ActiveState, UnitFileState, JobResult, SystemState} <= set(enums())


@each_enum
def test_known_word_is_its_member(of: type[OpenStrEnum]) -> None:
    for member in of:
        assert of(member.value) is member
        assert member.known
        assert str(member) == member.value == member
        assert member.name == member.value.replace("-", "_").upper()


@each_enum
@given(word=st.text())
def test_any_word_is_taken_and_prints_as_itself(of: type[OpenStrEnum], word: str) -> None:
    before = list(of)
    member = of(word)
    assert isinstance(member, of)
    assert (str(member), member.value, f"{member}") == (word, word, word)
    assert member == word
    assert hash(member) == hash(word)
    assert member.known == (word in [one.value for one in before])
    assert list(of) == before
    assert of(member) == member


@each_enum
def test_words_that_were_invented_are_not_kept(of: type[OpenStrEnum]) -> None:
    count = len(of.__members__), len(of._value2member_map_)
    for number in range(1000):
        of(f"invented-{number}")
    assert (len(of.__members__), len(of._value2member_map_)) == count
    assert of("invented-1") is not of("invented-1")
    assert {of("invented-1"), of("invented-1")} == {"invented-1"}


@each_enum
@pytest.mark.parametrize("word", ["", "UNKNOWN", "unknown", "ENABLED", "a b", "\x1b[31m"])
def test_odd_words_are_not_taken_for_known_ones(of: type[OpenStrEnum], word: str) -> None:
    assert not of(word).known
    assert all(of(word) != member for member in of)


@each_enum
@pytest.mark.parametrize("value", [None, 1, b"active", ["active"]], ids=repr)
def test_what_is_no_word_is_refused(of: type[OpenStrEnum], value: object) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        of(value)  # type: ignore[arg-type]


@each_enum
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_new_word_can_be_copied(of: type[OpenStrEnum], copied: Callable[[OpenStrEnum], OpenStrEnum]) -> None:
    """dataclasses.asdict() of a result copies too; a newer systemd's word must not make it crash."""
    member = copied(of("from-the-future"))
    assert (type(member), member, member.known) == (of, "from-the-future", False)
    known = next(iter(of))
    assert copied(known) is known


@each_enum
def test_new_word_becomes_json(of: type[OpenStrEnum]) -> None:
    assert msgspec.json.encode({"state": of("from-the-future")}) == b'{"state":"from-the-future"}'


def test_result_with_a_new_word_becomes_a_dict() -> None:
    row = UnitFileRow(path="/x.service", state=UnitFileState("from-the-future"))
    assert dataclasses.asdict(row) == {"path": "/x.service", "state": "from-the-future"}


def test_questions_about_a_new_word_have_an_answer() -> None:
    assert not SystemState("from-the-future").booting
    assert not UnitFileState("from-the-future").masked
    assert {state for state in SystemState if state.booting} == {SystemState.INITIALIZING, SystemState.STARTING}
    assert {state for state in UnitFileState if state.masked} == {UnitFileState.MASKED, UnitFileState.MASKED_RUNTIME}
