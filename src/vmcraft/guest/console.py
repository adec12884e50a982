"""The last of what a guest, or nspawn for it, printed on its console: the only witness of a boot that failed early."""

import asyncio
import contextlib
import os
from collections.abc import Iterator

from vmcraft.model.printable import printable

KEPT_BYTES = 32 << 10
_READ_BYTES = 16 << 10


class Console:
    """Reads a pipe as it fills and keeps its end; a guest that prints without end costs no memory."""

    def __init__(self, read_end: int) -> None:
        self._fd = read_end
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(read_end, self._take)

    def _take(self) -> None:
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._loop.remove_reader(self._fd)
            return
        self._kept += chunk
        del self._kept[:-KEPT_BYTES]

    def last_lines(self, count: int = 8) -> str:
        """The last lines that are not empty, fit to be shown."""
        with contextlib.suppress(OSError):
            self._take()
        lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines() if line.strip()]
        return printable("\n".join(lines[-count:]), limit=2000, newlines=True)

    def close(self) -> None:
        """Stop reading and close the pipe."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


@contextlib.contextmanager
def console() -> Iterator[tuple[Console, int]]:
    """A console and the descriptor to write to it; the caller closes that one when it has handed it on."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    tail = Console(read_end)
    try:
        yield tail, write_end
    finally:
        tail.close()
