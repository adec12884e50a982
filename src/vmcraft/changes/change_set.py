"""The change set of one booted guest, opened when the first change needs it, and only then.

Opening takes a child process (the reverse id mapping of the upper directory), which a guest that is only asked
questions need not pay for.
"""

import contextlib
from collections.abc import AsyncIterator

import anyio

from vmcraft.changes.pending import PendingChanges
from vmcraft.changes.upper import Layers
from vmcraft.host import idmap
from vmcraft.host.root_dir import RootDir


class ChangeSet:
    """Made by `change_set`."""

    def __init__(self, source: str, upper: str, base: int | None, stack: contextlib.ExitStack) -> None:
        self._source = source
        self._upper = upper
        self._base = base
        self._stack = stack
        self._lock = anyio.Lock()
        self._pending: PendingChanges | None = None

    async def is_empty(self) -> bool:
        """Whether nothing was declared that a commit would write, or refuse."""
        pending = self._pending
        return pending is None or not await anyio.to_thread.run_sync(bool, pending)

    async def pending(self) -> PendingChanges:
        """The pending changes, with the layers that they are read from."""
        async with self._lock:
            if self._pending is None:
                self._pending = await anyio.to_thread.run_sync(self._open)
            return self._pending

    def _open(self) -> PendingChanges:
        lower = self._stack.enter_context(RootDir.open(self._source))
        if self._base is None:
            upper = self._stack.enter_context(RootDir.open(self._upper))
        else:
            upper = self._stack.enter_context(RootDir.from_fd(idmap.reverse_mapped(self._upper, self._base)))
        return PendingChanges(Layers(lower, upper))


@contextlib.asynccontextmanager
async def change_set(source: str, upper: str, base: int | None) -> AsyncIterator[ChangeSet]:
    """The change set of a guest, closed when the block ends.

    Args:
        source: The root on the host that the guest was booted from.
        upper: The overlay's upper directory.
        base: First id of the guest's user namespace; None when it has none.
    """
    with contextlib.ExitStack() as stack:
        yield ChangeSet(source, upper, base, stack)
