"""Every example of the documents runs, on real guests, and prints what the document shows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import example_guests, examples
from docs.examples import Section

pytestmark = pytest.mark.cli
SECTIONS = examples.sections()


@pytest.fixture
def place(section: Section) -> Iterator[Path]:
    """The directory that /srv/guests stands for, with guests of this section's own."""
    made = example_guests.place(section.guests())
    yield made
    example_guests.remove(made)


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_examples_run_and_print_what_is_shown(section: Section, place: Path) -> None:
    assert examples.run(section, place) == []


@pytest.mark.parametrize("document", examples.DOCUMENTS)
def test_document_has_examples(document: str) -> None:
    blocks = [block for section in SECTIONS if section.document == document for block in section.blocks]
    text = (examples.CHECKOUT / document).read_text(encoding="utf-8")
    assert len(blocks) == text.count("\n```python\n") + text.count("\n```console\n") > 0
