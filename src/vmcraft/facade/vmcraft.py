"""VMCraft: the door. `async with` opens the async facade, `with` the same calls blocking."""

import contextlib
from types import TracebackType

from vmcraft.facade.blocking import BlockingVMCraft
from vmcraft.facade.calls import AsyncVMCraft
from vmcraft.facade.portal import portal
from vmcraft.transaction import Transaction


class VMCraft:
    """Opens one guest.

    Example:
        with VMCraft() as g:
            g.add_drive_opts("/srv/guests/web1")
            g.launch()
            g.systemd_services_disable_multiple(["vmtoolsd", "vgauthd"])

    Args:
        private_users: Boot the guest in a user namespace of its own. Turn it off only where the root's file system
            cannot take id-mapped mounts: the guest's root is then the host's.
    """

    def __init__(self, *, private_users: bool = True) -> None:
        self._private_users = private_users
        self._entered: AsyncVMCraft | None = None
        self._stack: contextlib.ExitStack | None = None

    def _facade(self) -> AsyncVMCraft:
        if self._entered is not None or self._stack is not None:
            msg = "this VMCraft is open already; make another one for another guest"
            raise RuntimeError(msg)
        return AsyncVMCraft(Transaction(private_users=self._private_users))

    async def __aenter__(self) -> AsyncVMCraft:
        self._entered = await self._facade().__aenter__()
        return self._entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            await entered.__aexit__(kind, error, trace)

    def __enter__(self) -> BlockingVMCraft:
        with contextlib.ExitStack() as stack:
            through = stack.enter_context(portal())
            inner = stack.enter_context(through.inner.wrap_async_context_manager(self._facade()))
            self._stack = stack.pop_all()
        return BlockingVMCraft(inner, through)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(kind, error, trace)
