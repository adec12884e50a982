"""Every example of the documents runs, on real guests, and prints what the document shows."""

import concurrent.futures
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from docs import example_guests, examples
from docs.examples import Section

pytestmark = pytest.mark.cli
SECTIONS = examples.sections()
AT_ONCE = 3
"""A boot waits more than it works, and sections share nothing."""

Runs = dict[Section, Future[list[str]]]


def on_guests_of_its_own(section: Section) -> list[str]:
    """Run a section's blocks; answers what is not as the document says."""
    place = example_guests.place(section.guests())
    try:
        return examples.run(section, place)
    finally:
        example_guests.remove(place)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """The runs of all sections whose tests were selected; the tests only wait for them."""
    chosen = [item.callspec.params.get("section") for item in request.session.items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {one: pool.submit(on_guests_of_its_own, one) for one in SECTIONS if one in chosen and not one.host_wide}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_examples_run_and_print_what_is_shown(section: Section, runs: Runs) -> None:
    if section in runs:
        assert runs[section].result() == []
    else:
        concurrent.futures.wait(runs.values())
        assert on_guests_of_its_own(section) == []


@pytest.mark.parametrize("document", examples.DOCUMENTS)
def test_document_has_examples_and_all_of_them_are_found(document: str) -> None:
    blocks = [block for section in SECTIONS if section.document == document for block in section.blocks]
    text = (examples.CHECKOUT / document).read_text(encoding="utf-8")
    assert len(blocks) == text.count("\n```python\n") + text.count("\n```console\n") > 0
