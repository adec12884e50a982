"""Text from a guest, made fit to be shown: cut, and without control characters."""

_REPLACED = "\N{REPLACEMENT CHARACTER}"
_STEERING = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
# Bidirectional overrides could make a message read as another one; lone surrogates cannot be printed.
_DECEIVING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F, *range(0xD800, 0xE000))
_CONTROL = dict.fromkeys((*_STEERING, *_DECEIVING), _REPLACED)
_CONTROL[0x09] = "\t"
_KEEP_NEWLINES = _CONTROL | {0x0A: "\n"}

TEXT_LIMIT = 4096
"""Characters of one text from a guest that we keep; longer ones end in an ellipsis."""


def printable(text: str, *, limit: int = TEXT_LIMIT, newlines: bool = False) -> str:
    """The text without characters that could steer a terminal, cut to `limit` characters."""
    kept = text if len(text) <= limit else text[: limit - 1] + "…"
    return kept.translate(_KEEP_NEWLINES if newlines else _CONTROL)


def quoted(text: str) -> str:
    """Guest text inside one of our sentences: short, on one line, in quotation marks."""
    return f"“{printable(text, limit=200)}”"
