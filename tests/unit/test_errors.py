"""The one tree of errors: as it is drawn, as its keys are promised, and what an error can be asked."""

import re

import pytest

from vmcraft import errors
from vmcraft.errors import (
    BusError,
    ConnectionLost,
    GuestError,
    HostError,
    ImageError,
    InvalidName,
    JobFailed,
    NoSuchUnit,
    OutcomeUnknown,
    ReadBackDiffers,
    Refused,
    VMCraftError,
    first_error,
)
from vmcraft.model.outcome import Outcome

pytestmark = pytest.mark.unit

# The API page's table of error keys, as far as this version has the calls that raise them: key, class, class above it.
PROMISED = [
    ("invalid-name", "InvalidName", Refused),
    ("invalid-value", "InvalidValue", Refused),
    ("no-such-unit", "NoSuchUnit", Refused),
    ("no-such-file", "NoSuchFile", Refused),
    ("not-enableable", "NotEnableable", Refused),
    ("unit-masked", "UnitMasked", JobFailed),
    ("bad-setting", "BadSetting", JobFailed),
    ("condition-not-met", "ConditionNotMet", JobFailed),
    ("job-failed", "JobFailed", Refused),
    ("dependency-failed", "DependencyFailed", JobFailed),
    ("exists", "Exists", Refused),
    ("not-ours", "NotOurs", Refused),
    ("conflict", "Conflict", Refused),
    ("not-supported-by-guest", "NotSupportedByGuest", Refused),
    ("reply-timed-out", "ReplyTimedOut", OutcomeUnknown),
    ("connection-lost", "ConnectionLost", OutcomeUnknown),
    ("read-back-differs", "ReadBackDiffers", OutcomeUnknown),
    ("reply-malformed", "ReplyMalformed", OutcomeUnknown),
    ("systemd_not_available", "NoInit", GuestError),
    ("wrong-architecture", "WrongArchitecture", GuestError),
    ("boot-hung", "BootHung", GuestError),
    ("boot-failed", "BootFailed", GuestError),
    ("guest-gone", "GuestGone", GuestError),
    ("not-launched", "NotLaunched", GuestError),
    ("missing-program", "MissingProgram", HostError),
    ("not-privileged", "NotPrivileged", HostError),
    ("no-systemd-host", "NoSystemd", HostError),
    ("no-space", "NoSpace", HostError),
    ("commit-interrupted", "CommitInterrupted", HostError),
]


def tree() -> dict[str, type[VMCraftError]]:
    """Every class of the tree that the module defines."""
    return {name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, VMCraftError)}


def drawn() -> dict[str, str]:
    """The tree of the module's docstring: each class's name to the name of the one above it."""
    above = {"VMCraftError": "Exception"}
    picture = (errors.__doc__ or "").partition("VMCraftError\n")[2].partition("\n\n")[0]
    top = "VMCraftError"
    for line in picture.splitlines():
        # Names, with those below one in parentheses behind it; two spaces, and words for the reader.
        words, _, note = line.lstrip("│├└─ ").partition("  ")
        nested = line.startswith(("│   ", "    "))
        for names, inner in re.findall(r"([\w ]+)(?:\(([\w ]+)\))?", words):
            above |= dict.fromkeys(names.split(), top if nested else "VMCraftError")
            above |= dict.fromkeys(inner.split(), names.split()[-1])
        if not nested:
            top = words.split()[0]
            if stated := re.search(r"\(below (\w+)\)", note):
                above[top] = stated[1]
    return above


def test_the_tree_is_as_it_is_drawn() -> None:
    assert drawn() == {name: one.__bases__[0].__name__ for name, one in tree().items()}
    assert all(len(one.__bases__) == 1 for one in tree().values())


def test_every_class_has_a_key_of_its_own_and_a_docstring() -> None:
    keys = {name: vars(one).get("key") for name, one in tree().items()}
    assert [name for name, key in keys.items() if not key] == []
    assert len(set(keys.values())) == len(keys)
    for key in keys.values():
        assert re.fullmatch(r"[a-z]+([-_][a-z]+)*", str(key))
    assert all(one.__doc__ for one in tree().values())


@pytest.mark.parametrize(("key", "name", "above"), PROMISED, ids=[key for key, _, _ in PROMISED])
def test_promised_key_has_its_class(key: str, name: str, above: type[VMCraftError]) -> None:
    assert tree()[name].key == key
    assert issubclass(tree()[name], above)


@pytest.mark.parametrize("name", tree())
def test_outcome_follows_from_the_class(name: str) -> None:
    one = tree()[name]
    if issubclass(one, Refused):
        assert one.outcome is Outcome.REFUSED
    if issubclass(one, OutcomeUnknown):
        assert one.outcome is Outcome.UNKNOWN
        assert one.attempted
    assert one.outcome is not Outcome.DONE
    assert issubclass(one, Refused | OutcomeUnknown | GuestError | ImageError | HostError) == (one is not VMCraftError)


def test_what_was_refused_before_the_guest_was_asked_says_so() -> None:
    unasked = {name for name, one in tree().items() if not one.attempted}
    assert unasked == {"InvalidName", "InvalidValue", "NotSupportedByGuest"}


def test_error_carries_key_sentence_remedy_and_result() -> None:
    error = JobFailed("it broke", remedy="mend it", result={"log": 1})
    assert (error.text, str(error)) == ("it broke", "it broke")
    assert error.keyed == "job-failed: it broke"
    assert (error.remedy, error.result) == ("mend it", {"log": 1})
    plain = InvalidName("no")
    assert (plain.remedy, plain.result) == ("", None)


def test_text_from_a_guest_cannot_steer_a_terminal_through_an_error() -> None:
    steering = "\x1b[2J\r\n" + "x" * 10_000
    for error in (
        NoSuchUnit(steering),
        BusError(steering, steering, member="Manager.LoadUnit"),
        ReadBackDiffers(steering, wanted="enabled", found=steering),
        JobFailed(steering),
    ):
        assert not set(error.keyed) & set("\x1b\r")
        assert len(error.text) <= 4096


def test_bus_error_keeps_the_name_and_the_words_apart() -> None:
    error = BusError("org.freedesktop.systemd1.NoSuchUnit", "Unit x not loaded.", member="Manager.GetUnit")
    assert (error.name, error.said) == ("org.freedesktop.systemd1.NoSuchUnit", "Unit x not loaded.")
    assert error.text == "Manager.GetUnit answered org.freedesktop.systemd1.NoSuchUnit: “Unit x not loaded.”"


def test_no_such_unit_names_the_unit() -> None:
    error = NoSuchUnit("vmtoolsd.service")
    assert error.keyed == "no-such-unit: vmtoolsd.service is not known to the guest"
    assert error.unit == "vmtoolsd.service"


# --- first_error


def test_single_error_comes_out_of_its_groups_with_its_cause() -> None:
    cause = OSError("why")
    inner = ConnectionLost("gone")
    inner.__cause__ = cause
    with pytest.raises(ConnectionLost) as caught, first_error():
        raise BaseExceptionGroup("outer", [ExceptionGroup("inner", [inner])])
    assert caught.value is inner
    assert caught.value.__cause__ is cause


def test_first_of_several_errors_comes_out() -> None:
    with pytest.raises(JobFailed), first_error():
        raise ExceptionGroup("both", [JobFailed("first"), ConnectionLost("second")])


def test_error_that_is_no_group_is_left_alone() -> None:
    with pytest.raises(KeyError), first_error():
        raise KeyError("x")
    with first_error():
        pass
