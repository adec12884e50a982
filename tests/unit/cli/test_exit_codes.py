"""What an exit status says: each error and each outcome has the one that --help promises."""

import pytest

from vmcraft import errors
from vmcraft.cli import exit_codes
from vmcraft.cli.exit_codes import ExitCode, of_error, of_outcome
from vmcraft.cli.main import parser
from vmcraft.errors import GuestError, HostError, ImageError, OutcomeUnknown, Refused, VMCraftError
from vmcraft.model.outcome import Outcome

pytestmark = pytest.mark.unit

EXPECTED: dict[type[VMCraftError], ExitCode] = {
    Refused: ExitCode.REFUSED,
    OutcomeUnknown: ExitCode.UNKNOWN,
    GuestError: ExitCode.GUEST,
    ImageError: ExitCode.GUEST,
    HostError: ExitCode.HOST,
}
CLASSES = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, VMCraftError) and one is not VMCraftError
]


def made(kind: type[VMCraftError]) -> VMCraftError:
    """An error of that class, whatever its constructor takes."""
    error = kind.__new__(kind)
    VMCraftError.__init__(error, "text")
    return error


def test_numbers_are_part_of_the_promise() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "REFUSED": 1,
        "USAGE": 2,
        "NOT_CONFIRMED": 3,
        "GUEST": 4,
        "HOST": 5,
        "UNKNOWN": 6,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_error_has_the_status_of_its_branch(kind: type[VMCraftError]) -> None:
    [expected] = [code for above, code in EXPECTED.items() if issubclass(kind, above)]
    assert of_error(made(kind)) is expected


def test_outcome_has_its_status() -> None:
    assert {outcome: of_outcome(outcome) for outcome in Outcome} == {
        Outcome.DONE: ExitCode.OK,
        Outcome.REFUSED: ExitCode.REFUSED,
        Outcome.UNKNOWN: ExitCode.UNKNOWN,
    }


def test_every_status_is_told_in_the_table_and_in_the_help() -> None:
    assert list(exit_codes.MEANING) == list(ExitCode)
    assert len(set(exit_codes.MEANING.values())) == len(ExitCode)
    lines = exit_codes.table().splitlines()[1:]
    assert [int(line.split()[0]) for line in lines] == [code.value for code in ExitCode]
    shown = parser().format_help()
    assert exit_codes.table() in shown


def test_wrong_command_line_ends_with_the_status_for_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["no-such-command"])
    assert caught.value.code == ExitCode.USAGE
    assert "no-such-command" in capsys.readouterr().err
