"""What a call has to say beside its answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWarning:
    """One remark: a stable key, and a sentence with what to do."""

    key: str
    message: str
