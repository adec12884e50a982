"""Booted guests for the tests: one of each release that is only asked, and a root of its own for each that changes."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import guest_roots
from guest_roots import GuestRoot
from vmcraft.transaction import Transaction


@pytest.fixture(params=guest_roots.SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """Each release in turn."""
    return str(request.param)


@pytest.fixture
async def guest(suite: str) -> AsyncIterator[Transaction]:
    """A booted guest that starts and stops things, or is only asked; nothing is committed."""
    async with Transaction.open(str(guest_roots.planted(suite)), readonly=True) as transaction:
        yield transaction


@pytest.fixture
def root(suite: str) -> Iterator[GuestRoot]:
    """A root of its own, of each release in turn."""
    made = guest_roots.copy(guest_roots.planted(suite))
    yield made
    guest_roots.remove(made)


@pytest.fixture
def new_root() -> Iterator[Callable[[], GuestRoot]]:
    """Makes roots of bookworm, removed at the end."""
    made: list[GuestRoot] = []

    def make() -> GuestRoot:
        made.append(guest_roots.copy(guest_roots.planted("bookworm")))
        return made[-1]

    yield make
    for one in made:
        guest_roots.remove(one)
