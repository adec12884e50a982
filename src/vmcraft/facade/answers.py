"""The one conversion from typed results and errors to plain answers: dicts, lists, strings, numbers."""

import dataclasses
import logging
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import msgspec

from vmcraft.errors import OutcomeUnknown, Refused
from vmcraft.model.outcome import Outcome
from vmcraft.model.services import BulkOutcome, NamedOutcome
from vmcraft.model.warnings import CallWarning

T = TypeVar("T")
_log = logging.getLogger("vmcraft")


def plain(value: object) -> Any:  # Any: what JSON has, as the caller's own annotation says.
    """The value as JSON has it: a dataclass's field names are the keys, times are ISO 8601 in UTC, tuples lists."""
    return msgspec.json.decode(encoded(value))


def encoded(value: object) -> bytes:
    """The value as JSON; a guest's path that is no UTF-8 has replacement characters, so that JSON can hold it."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value)))


def _encodable(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        case dict():
            return {key: _encodable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_encodable(inner) for inner in value]
        case _:
            return value


class Answers:
    """Makes the answers of one facade, and keeps what the last call has to say beside its own.

    Attributes:
        warnings: Each with `call`, `key` and `message`; replaced by the next call.
    """

    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    async def query(self, shape: type[T], asked: Awaitable[object]) -> T:
        """A question: its plain result, of that shape; what goes wrong is raised."""
        self.warnings = []
        return msgspec.convert(plain(await asked), shape)

    async def change(self, call: str, shape: type[Any], done: Awaitable[Any]) -> dict[str, Any]:
        """A change: its result with the outcome; what the guest or the arguments refuse is answered, not raised.

        Args:
            call: Its name, for the warnings.
            shape: The dataclass of its result: a refused change has the same keys, without values.
            done: The typed call.
        """
        self.warnings = []
        try:
            result = await done
        except (Refused, OutcomeUnknown) as error:
            known = plain(error.result) if error.result is not None else _without_values(shape)
            return {**known, **_outcome(error)}
        self.warnings = _warnings(call, getattr(result, "warnings", ()))
        return {**plain(result), **_outcome(None)}

    async def each(self, call: str, done: Awaitable[BulkOutcome]) -> dict[str, bool]:
        """A change of many: name as given to whether it is done; the reasons are warnings, and go to the log."""
        self.warnings = []
        outcome = await done
        for item in outcome.items:
            self.warnings += _warnings(call, [*_refusals(item), *item.warnings])
        for warning in self.warnings:
            _log.warning("%(call)s: %(key)s: %(message)s", warning)
        return {item.name: item.ok for item in outcome.items}


def _refusals(item: NamedOutcome) -> list[CallWarning]:
    if item.error is None:
        return []
    key, _, text = item.error.partition(": ")
    return [CallWarning(key=key, message=f"{text}; {item.remedy}" if item.remedy else text)]


def _warnings(call: str, warnings: Iterable[CallWarning]) -> list[dict[str, Any]]:
    return [{"call": call, "key": one.key, "message": one.message} for one in warnings]


def _without_values(shape: type[Any]) -> dict[str, Any]:
    return {field.name: [] if str(field.type).startswith("tuple") else None for field in dataclasses.fields(shape)}


def _outcome(error: Refused | OutcomeUnknown | None) -> dict[str, Any]:
    return {
        "attempted": error is None or error.attempted,
        "ok": error is None,
        "error": error.keyed if error else None,
        "outcome": str(error.outcome if error else Outcome.DONE),
        "remedy": (error.remedy or None) if error else None,
    }
