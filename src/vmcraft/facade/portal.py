"""The event loop in a thread of its own, for programs that block."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import ParamSpec, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from vmcraft.errors import NotLaunched

P = ParamSpec("P")
T = TypeVar("T")


class Portal:
    """Runs coroutines of the loop's thread from another one; made by `portal`."""

    def __init__(self, inner: BlockingPortal) -> None:
        self.inner = inner

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the loop and wait for it; an interrupt of this thread cancels it there."""

        async def run() -> T:
            return await function(*args, **kwargs)

        try:
            future = self.inner.start_task_soon(run)
        except RuntimeError as error:
            raise NotLaunched("this guest was closed", remedy="open another VMCraft") from error
        try:
            return future.result()
        except BaseException:
            # Ctrl-C lands in this thread: without this the call would run on while the block is being closed.
            future.cancel()
            raise


@contextlib.contextmanager
def portal() -> Iterator[Portal]:
    """A loop in a thread, for as long as the block lasts."""
    with start_blocking_portal(backend="asyncio") as inner:
        yield Portal(inner)
