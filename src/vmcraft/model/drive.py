"""What a guest is booted from, and where its changes go."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One drive, in the words of `add_drive_opts`.

    Attributes:
        path: A root directory, or a disk image.
        format: Of an image; None for a directory.
        readonly: Nothing is ever written back.
        output: A new root that takes the changes instead of the source; None for the source.
        output_format: Of a new image.
        key_file: Holds the pass phrase of an encrypted image.
    """

    path: str
    format: str | None = None
    readonly: bool = False
    output: str | None = None
    output_format: str | None = None
    key_file: str | None = None
