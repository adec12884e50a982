"""Whether a caller gave a value of the Python type that a call takes; the one refusal that is a TypeError."""


def expect(value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless the value is of that type; a bool is no number here.

    Args:
        value: As the caller gave it.
        kind: One type, or several.
        what: What it stands for, as the beginning of the message.
    """
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return
    names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
    msg = f"{what} is a {names}, not {type(value).__name__}"
    raise TypeError(msg)
