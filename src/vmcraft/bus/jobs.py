"""Jobs of a manager, awaited: the result can come before the reply that names the job.

JobRemoved is often dispatched before the task that waits for StartUnit's reply runs again, so results are kept from
before the call on, and only while somebody waits.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable

import anyio

from vmcraft.bus.systemd1 import Manager
from vmcraft.errors import ConnectionLost, JobTimedOut, VMCraftError
from vmcraft.model.printable import printable
from vmcraft.model.services import JobResult

_KEPT = 4096
"""Results that are kept while somebody waits; a guest that ends more jobs at once is answered with a time-out."""
_CANCEL_LIMIT_S = 5.0


class Jobs:
    """Waits for the jobs of one manager; made by `watching`."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        # Requests whose reply, with the job's path, has not come; and how many wait for each path.
        self._asking = 0
        self._waiters: dict[str, int] = {}
        self._results: dict[str, JobResult] = {}
        self._changed = anyio.Event()

    def removed(self, _number: int, path: str, _unit: str, result: str) -> None:
        """JobRemoved, as the connection hands it over."""
        if path in self._waiters or (self._asking and len(self._results) < _KEPT):
            self._results[path] = JobResult(printable(result, limit=64))
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def run(self, request: Awaitable[str], *, what: str, limit: float, cancel: bool = True) -> JobResult:
        """Ask for a job and wait until it is over.

        Args:
            request: The call that makes the job and answers its object path.
            what: For the error: the verb and the unit.
            limit: Seconds; may be infinite.
            cancel: Whether the job is cancelled at the limit, and when we are.

        Raises:
            JobTimedOut: It was still running at the limit.
            ConnectionLost: The connection ended; how the job ended is not known.
        """
        path = ""
        try:
            with anyio.fail_after(limit):
                path = await self._asked(request)
                return await self._result(path, what)
        except TimeoutError:
            if cancel:
                await self._cancel(path)
            raise JobTimedOut(f"{what} was still running after {limit:g} s") from None
        except anyio.get_cancelled_exc_class():
            if cancel:
                await self._cancel(path)
            raise
        finally:
            self._leave(path)

    async def _asked(self, request: Awaitable[str]) -> str:
        """The job's path; not cut short, since a job whose path nobody learned could not be cancelled."""
        self._asking += 1
        try:
            with anyio.CancelScope(shield=True):
                path = await request
            self._waiters[path] = self._waiters.get(path, 0) + 1
        finally:
            self._asking -= 1
        return path

    async def _result(self, path: str, what: str) -> JobResult:
        connection = self._manager.connection
        generation = connection.generation
        while path not in self._results:
            changed = self._changed
            if connection.lost or connection.generation != generation:
                raise ConnectionLost(f"{what}: the connection to the manager ended while its job ran")
            await changed.wait()
        return self._results[path]

    def _leave(self, path: str) -> None:
        """One waiter less; what nobody waits for, or could still learn that it waits for, is forgotten."""
        if path:
            self._waiters[path] -= 1
            if not self._waiters[path]:
                del self._waiters[path]
        if not self._asking:
            self._results = {path: result for path, result in self._results.items() if path in self._waiters}

    async def _cancel(self, path: str) -> None:
        # systemd merges equal jobs: others may wait for this one too.
        if self._waiters.get(path, 0) > 1:
            return
        number = path.rpartition("/")[2]
        if not number.isascii() or not number.isdigit():
            return
        with anyio.move_on_after(_CANCEL_LIMIT_S, shield=True), contextlib.suppress(VMCraftError):
            await self._manager.cancel_job(int(number))

    def connection_lost(self) -> None:
        """The connection ended: every waiter looks at it."""
        self._wake()


@contextlib.asynccontextmanager
async def watching(manager: Manager) -> AsyncIterator[Jobs]:
    """Waits for the manager's jobs; the manager must be subscribed to on this connection."""
    jobs = Jobs(manager)
    async with manager.on(Manager.JOB_REMOVED, jobs.removed):
        with manager.connection.on_lost(jobs.connection_lost):
            yield jobs
