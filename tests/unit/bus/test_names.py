"""Names: the right ones pass, and nothing that would end our own connection does."""

from typing import Any

import pytest

from vmcraft.bus.names import is_bus_name, is_interface, is_member, is_path

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (is_path, ["/", "/a", "/a_1/B"], ["", "a", "/a/", "//", "/a-b", "/a\n", "/é", "/a b"]),
        (is_interface, ["a.b", "org.x_1.Y"], ["a", "a.", ".a", "a.1", "a-b.c", "a.b\n", "a." + "b" * 254]),
        (is_member, ["Get", "_1"], ["", "1a", "a.b", "a-b", "a\n", "a" * 256]),
        (
            is_bus_name,
            [":1.5", "a.b", "org.a-b.c"],
            ["", ":", ":1", "a", "a.1", "a.b\n", "a'.b", "a." + "b" * 254],
        ),
    ],
)
def test_names(check: Any, good: list[str], bad: list[str]) -> None:
    assert all(check(name) for name in good)
    assert not any(check(name) for name in bad)
