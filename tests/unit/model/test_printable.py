"""Text from a guest: whatever it holds, it cannot steer a terminal, deceive a reader or fill a screen."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmcraft.model.printable import TEXT_LIMIT, printable, quoted

pytestmark = pytest.mark.unit

# Categories: control, surrogate, line and paragraph separator. And the property Bidi_Control of Unicode's PropList.txt.
STEERING = ("Cc", "Cs", "Zl", "Zp")
BIDI_CONTROL = [chr(0x061C), *map(chr, (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))]
# Text of every kind, lone surrogates too. A list of pieces, since text() would make one alphabet of these, in which the
# few dangerous characters hardly ever come.
TEXTS = st.lists(
    st.one_of(
        st.characters(exclude_categories=[]),
        st.characters(categories=["Cc", "Cs", "Zl", "Zp"]),
        st.sampled_from(BIDI_CONTROL),
    ),
    max_size=60,
).map("".join)


def steering(text: str, allowed: str) -> list[str]:
    """The characters of a text that should not be in it."""
    return [
        one for one in text if one not in allowed and (unicodedata.category(one) in STEERING or one in BIDI_CONTROL)
    ]


@given(TEXTS, st.integers(1, 80))
@example("a" * 80 + "\x1b", 80)
@example("\x1b" * 81, 80)
def test_nothing_in_it_steers_a_terminal_and_it_keeps_to_the_limit(text: str, limit: int) -> None:
    shown = printable(text, limit=limit)
    assert len(shown) <= limit
    assert steering(shown, "\t") == []
    assert "\n" not in shown
    shown.encode("utf-8")


@given(TEXTS, st.integers(1, 80))
def test_newlines_are_kept_where_they_are_wanted_and_nothing_else(text: str, limit: int) -> None:
    shown = printable(text, limit=limit, newlines=True)
    assert len(shown) <= limit
    assert steering(shown, "\t\n") == []
    assert "\r" not in shown


@given(TEXTS)
def test_it_is_cut_only_above_the_limit_and_characters_keep_their_places(text: str) -> None:
    shown = printable(text, limit=60)
    assert len(shown) == len(text)
    assert all(new in (old, "\N{REPLACEMENT CHARACTER}") for old, new in zip(text, shown, strict=True))
    assert printable(shown, limit=60) == shown


@pytest.mark.parametrize("character", BIDI_CONTROL, ids=ascii)
def test_no_character_that_turns_the_direction_of_writing_is_shown(character: str) -> None:
    assert printable(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_a_reader_sees_that_it_was_cut() -> None:
    assert printable("x" * 5000) == "x" * (TEXT_LIMIT - 1) + "…"
    assert printable("x" * TEXT_LIMIT) == "x" * TEXT_LIMIT
    assert printable("abcdef", limit=4) == "abc…"
    assert printable("abcd", limit=4) == "abcd"


@pytest.mark.parametrize("text", ["", "plain", "tab\tbed", "Ünïcödé ✓ 日本語", "👩‍💻", "שלום", "e\u0301"])
def test_ordinary_text_is_as_it_was(text: str) -> None:
    assert printable(text) == text


@given(TEXTS)
@example("x" * 10_000)
def test_quoted_text_is_short_and_on_one_line(text: str) -> None:
    shown = quoted(text)
    assert len(shown) <= 202
    assert (shown[0], shown[-1]) == ("“", "”")
    assert shown[1:-1] == printable(text, limit=200)
    assert not set(shown) & set("\n\r\x1b\u2028\u2029\x85")
