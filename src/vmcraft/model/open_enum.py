"""Enums for words that a guest says: a word of a newer systemd is shown, not a crash."""

import enum
from typing import Self


class OpenStrEnum(enum.StrEnum):
    """A string enum that takes unknown words as pseudo-members.

    A pseudo-member compares and prints as its word and is not kept: a hostile guest that invents words without end
    must not make the enum grow.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = "UNKNOWN"
        member._value_ = value
        return member

    def __reduce_ex__(self, protocol: object) -> tuple[type[Self], tuple[str]]:
        # By value: enum would look a pseudo-member up by its name, which it does not have.
        return type(self), (str(self.value),)

    @property
    def known(self) -> bool:
        """Whether this systemd word was known when this version of VMCraft was written."""
        return self._name_ != "UNKNOWN"
