"""os-release as its readers read it, and whatever a hostile root puts there."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcraft.codec import os_release

pytestmark = pytest.mark.unit

DEBIAN = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
ID=debian
HOME_URL="https://www.debian.org/"
"""


def test_a_real_file_is_read() -> None:
    assert os_release.parse(DEBIAN) == {
        "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)",
        "NAME": "Debian GNU/Linux",
        "VERSION_ID": "12",
        "ID": "debian",
        "HOME_URL": "https://www.debian.org/",
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X=plain", "plain"),
        ("X='single quotes'", "single quotes"),
        ('X="a \\"b\\" \\$c \\\\d"', 'a "b" $c \\d'),
        ("X=a\\ b", "a b"),
        ("X=", ""),
        ('X=""', ""),
        ('X="a#b"', "a#b"),
        ("X=a=b", "a=b"),
        ('  X="indented"  ', "indented"),
        ('X="ü"', "ü"),
        ("X=1\nX=2", "2"),
        ('X="with carriage return"\r', "with carriage return"),
    ],
)
def test_value_is_unquoted_as_a_shell_does(line: str, value: str) -> None:
    assert os_release.parse(line) == {"X": value}


@pytest.mark.parametrize("line", ["", "# X=1", "X", "=x", "A B=1", "a-b=1", "export X=1", 'X="open', "X='open", "X=\\"])
def test_line_that_is_no_assignment_is_passed_over_and_its_neighbours_are_read(line: str) -> None:
    assert os_release.parse(f"A=1\n{line}\nB=2\n") == {"A": "1", "B": "2"}


def test_value_cannot_steer_a_terminal_and_is_cut() -> None:
    read = os_release.parse('A="\x1b]0;title\x07\x9b31m"\nB=' + "x" * 100_000)
    assert read["A"].isprintable()
    assert len(read["B"]) == 256


@given(st.text(max_size=400))
def test_any_text_has_an_answer_of_printable_values(text: str) -> None:
    for key, value in os_release.parse(text).items():
        assert key.isidentifier()
        assert len(value) <= 256
        assert not [one for one in value if unicodedata.category(one) in ("Cc", "Cs") and one != "\t"]
