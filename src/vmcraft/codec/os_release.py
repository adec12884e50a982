"""os-release(5): what a root says that it is."""

import re
import shlex

from vmcraft.model.printable import printable

# shlex knows the shell's quotes, but inside them only \\ and \" of its escapes.
_DOLLAR = re.compile(r"(?<!\\)\\([$`])")


def parse(text: str) -> dict[str, str]:
    """The assignments of an os-release file; lines that are none are passed over, as its readers do."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or not key.isidentifier():
            continue
        try:
            words = shlex.split(_DOLLAR.sub(r"\1", value), comments=False, posix=True)
        except ValueError:
            continue
        values[key] = printable(" ".join(words), limit=256)
    return values
