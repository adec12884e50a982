"""The one conversion: values of the model become plain JSON with their field names as keys, errors answers."""

import asyncio
import dataclasses
import datetime
import enum
import importlib
import inspect
import json
import logging
import pkgutil
import types
import typing
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmcraft.model
from vmcraft.errors import (
    BusError,
    ConnectionLost,
    GuestGone,
    InvalidName,
    JobFailed,
    NoSuchUnit,
    NotLaunched,
    NotPrivileged,
    VMCraftError,
)
from vmcraft.facade.answers import Answers, plain
from vmcraft.model.changes import Change, ChangeKind
from vmcraft.model.guest import Launched
from vmcraft.model.outcome import Outcome
from vmcraft.model.services import (
    ActiveState,
    BulkOutcome,
    JobResult,
    LogLine,
    NamedOutcome,
    ServiceRun,
    UnitFileState,
)

pytestmark = pytest.mark.unit

NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, 500_000, tzinfo=datetime.UTC)
RUN = ServiceRun(
    unit="x.service",
    job_result=JobResult.FAILED,
    active=ActiveState.FAILED,
    sub="failed",
    result="exit-code",
    exec_main_code=1,
    exec_main_status=3,
    log=(LogLine(timestamp=NOON, priority=3, message="I cannot go on"),),
)
BASIC: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
    datetime.datetime: st.datetimes(timezones=st.just(datetime.UTC)),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, as the annotations of the model write types."""
    if kind in BASIC:
        return BASIC[kind]
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {field.name: values_of(hints[field.name]) for field in dataclasses.fields(kind)}
        return st.builds(typing.cast("type[object]", kind), **fields)
    inner = [values_of(one) for one in typing.get_args(kind) if one is not Ellipsis]
    match typing.get_origin(kind):
        case types.UnionType:
            return st.one_of(inner)
        case origin if origin is tuple:
            return st.lists(inner[0], max_size=3).map(tuple) if ... in typing.get_args(kind) else st.tuples(*inner)
        case origin if origin is Mapping:
            return st.dictionaries(*inner, max_size=3)
        case _:
            raise AssertionError(kind)


def dataclasses_of_the_model() -> list[type[object]]:
    """Every dataclass that a module of the model defines."""
    found: list[type[object]] = []
    for module in pkgutil.iter_modules(vmcraft.model.__path__, "vmcraft.model."):
        loaded = importlib.import_module(module.name)
        found += [
            one
            for _, one in inspect.getmembers(loaded, dataclasses.is_dataclass)
            if inspect.isclass(one) and one.__module__ == module.name
        ]
    return found


def assert_plain(value: object) -> None:
    """The value is what JSON has and nothing that only looks like it."""
    match value:
        case dict():
            assert type(value) is dict
            for key, inner in value.items():
                assert type(key) is str
                assert_plain(inner)
        case list():
            assert type(value) is list
            for inner in value:
                assert_plain(inner)
        case _:
            assert type(value) in (str, int, float, bool, type(None)), value


# --- plain


def test_every_value_that_calls_answer_is_looked_at() -> None:
    assert {ServiceRun, Launched, Change, BulkOutcome} <= set(dataclasses_of_the_model())


@pytest.mark.parametrize("kind", dataclasses_of_the_model(), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_dataclass_becomes_plain_json_with_its_field_names_as_keys(kind: type[object], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    answer = plain(value)
    assert_plain(answer)
    assert list(answer) == [field.name for field in dataclasses.fields(typing.cast("Any", kind))]
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    for name, given_value in ((name, getattr(value, name)) for name in answer):
        match given_value:
            case tuple():
                assert len(answer[name]) == len(given_value)
            case datetime.datetime():
                assert datetime.datetime.fromisoformat(answer[name]) == given_value
            case str() | int() | float() | None:
                assert answer[name] == given_value


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (NOON, "2026-01-02T12:00:00.500000Z"),
        ((1, (2, ())), [1, [2, []]]),
        (Outcome.DONE, "done"),
        (UnitFileState("from-the-future"), "from-the-future"),
        (b"\x00\xff", "AP8="),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (0.1, 0.1),
        (True, True),
        (None, None),
        ('ü\n"\\\x1b\u2028', 'ü\n"\\\x1b\u2028'),
        ({"a": (1,)}, {"a": [1]}),
    ],
    ids=repr,
)
def test_single_values(value: object, answer: object) -> None:
    result = plain(value)
    assert result == answer
    assert type(result) is type(answer)


def test_change_with_a_name_that_is_not_utf8_can_be_answered() -> None:
    """Paths and symlink targets of a guest are bytes; Change has the odd ones as surrogate escapes."""
    change = Change(
        path="/etc/\udcff", change=ChangeKind.REMOVED, call="x", args=(), before="../\udcfe.service", after=None
    )
    answer = plain((change,))
    assert_plain(answer)
    json.dumps(answer).encode()
    assert answer[0]["path"].startswith("/etc/")


# --- answers


async def gives(value: object) -> object:
    """A typed call that is done."""
    return value


async def fails(error: BaseException) -> Any:
    """A typed call that raises."""
    raise error


async def test_change_that_is_done_has_its_result_and_the_outcome() -> None:
    answer = await Answers().change("service_start", ServiceRun, gives(RUN))
    assert_plain(answer)
    assert (
        answer.items()
        >= {
            "attempted": True,
            "ok": True,
            "error": None,
            "outcome": "done",
            "remedy": None,
            "job_result": "failed",
            "log": [{"timestamp": "2026-01-02T12:00:00.500000Z", "priority": 3, "message": "I cannot go on"}],
        }.items()
    )


@pytest.mark.parametrize(
    ("error", "attempted", "outcome", "text"),
    [
        (InvalidName("no name", remedy="give one"), False, "refused", "invalid-name: no name"),
        (NoSuchUnit("x.service"), True, "refused", "no-such-unit: x.service is not known to the guest"),
        (ConnectionLost("gone"), True, "unknown", "connection-lost: gone"),
        (BusError("a.b.C", "why", member="M.m"), True, "refused", "bus-error: M.m answered a.b.C: “why”"),
    ],
    ids=lambda value: getattr(value, "key", None),
)
async def test_change_that_is_refused_or_unknown_is_answered(
    error: VMCraftError, attempted: bool, outcome: str, text: str
) -> None:
    answer = await Answers().change("service_start", ServiceRun, fails(error))
    assert_plain(answer)
    values: dict[str, object] = {
        field.name: [] if field.name == "log" else None for field in dataclasses.fields(ServiceRun)
    }
    assert answer == values | {
        "attempted": attempted,
        "ok": False,
        "error": text,
        "outcome": outcome,
        "remedy": error.remedy or None,
    }


async def test_failed_job_has_what_is_known_of_it_beside_the_error() -> None:
    answer = await Answers().change("service_start", ServiceRun, fails(JobFailed("x.service is failed", result=RUN)))
    assert_plain(answer)
    assert (answer["ok"], answer["error"]) == (False, "job-failed: x.service is failed")
    assert (answer["result"], answer["exec_main_status"]) == ("exit-code", 3)
    assert answer["log"][0]["message"] == "I cannot go on"


@pytest.mark.parametrize(
    "error",
    [TypeError("x"), NotLaunched("x"), GuestGone("x"), NotPrivileged("x"), asyncio.CancelledError(), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
async def test_all_else_is_raised_by_every_kind_of_call(error: BaseException) -> None:
    answers = Answers()
    calls: list[Coroutine[Any, Any, object]] = [
        answers.change("service_start", ServiceRun, fails(error)),
        answers.query(str, fails(error)),
        answers.each("x", fails(error)),
    ]
    for call in calls:
        with pytest.raises(type(error)) as caught:
            await call
        assert caught.value is error


@pytest.mark.parametrize("error", [NoSuchUnit("x.service"), ConnectionLost("gone")], ids=lambda error: error.key)
async def test_query_that_fails_raises_and_never_answers_something_empty(error: VMCraftError) -> None:
    with pytest.raises(type(error)) as caught:
        await Answers().query(list[str], fails(error))
    assert caught.value is error


async def test_query_answers_its_plain_value() -> None:
    answers = Answers()
    assert await answers.query(list[str], gives(("a", "b"))) == ["a", "b"]
    assert await answers.query(bool, gives(True)) is True
    answer = await answers.query(dict[str, Any], gives(RUN))
    assert_plain(answer)
    assert answer["active"] == "failed"


async def test_bulk_answers_names_as_given_and_tells_the_reasons_beside(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers()
    outcome = BulkOutcome(
        items=(
            NamedOutcome(name="good", outcome=Outcome.DONE),
            NamedOutcome(name="bad", outcome=Outcome.REFUSED, error="no-such-unit: bad.service: is not known"),
            NamedOutcome(name="lost", outcome=Outcome.UNKNOWN, error="connection-lost: gone"),
        )
    )
    with caplog.at_level(logging.WARNING, logger="vmcraft"):
        answer = await answers.each("services_mask", gives_bulk(outcome))
    assert_plain(answer)
    assert list(answer.items()) == [("good", True), ("bad", False), ("lost", False)]
    assert answers.warnings == [
        {"call": "services_mask", "key": "no-such-unit", "message": "bad.service: is not known"},
        {"call": "services_mask", "key": "connection-lost", "message": "gone"},
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "services_mask: no-such-unit: bad.service: is not known",
        "services_mask: connection-lost: gone",
    ]


async def gives_bulk(outcome: BulkOutcome) -> BulkOutcome:
    """A typed bulk call that is over."""
    return outcome


async def test_warnings_are_those_of_the_last_call_also_when_it_fails() -> None:
    refused = BulkOutcome(items=(NamedOutcome(name="x", outcome=Outcome.REFUSED, error="refused: no"),))
    answers = Answers()
    calls: list[Coroutine[Any, Any, object]] = [
        answers.change("service_start", ServiceRun, gives(RUN)),
        answers.query(bool, gives(True)),
        answers.each("x", gives_bulk(BulkOutcome())),
        answers.each("x", fails(GuestGone("x"))),
        answers.query(bool, fails(GuestGone("x"))),
    ]
    for call in calls:
        await answers.each("before", gives_bulk(refused))
        assert len(answers.warnings) == 1
        try:
            await call
        except GuestGone:
            pass
        assert answers.warnings == []
