"""How an operation ended: the one closed set of words for it."""

import enum


class Outcome(enum.StrEnum):
    """What is known about an operation when its call is over."""

    DONE = "done"
    """It happened, and the effect was read back from the live manager."""
    REFUSED = "refused"
    """It is known not to have happened."""
    UNKNOWN = "unknown"
    """It was asked for, but the effect could not be read back."""
