"""A hostile guest rewrites what a call declared: it does not reach the source."""

import pytest

from guest_roots import GuestRoot
from vmcraft.errors import Conflict
from vmcraft.guest.programs import run_in_guest
from vmcraft.transaction import Transaction

pytestmark = pytest.mark.guest
LINK = "/etc/systemd/system/multi-user.target.wants/st-disabled.service"


@pytest.mark.parametrize(
    "deed",
    [
        f"ln -sfn /etc/shadow {LINK}",
        f"rm {LINK}; echo evil > {LINK}; chmod 4755 {LINK}",
        f"rm {LINK}",
        f"rm {LINK}; mkdir {LINK}",
        f"rm {LINK}; mkfifo {LINK}",
        "cd /etc/systemd/system && mv multi-user.target.wants w && ln -s /etc multi-user.target.wants",
    ],
)
async def test_what_the_guest_changes_after_the_call_is_refused_at_the_commit(root: GuestRoot, deed: str) -> None:
    with pytest.raises(Conflict):  # noqa: PT012 - the end of the block commits, and must raise as well
        async with Transaction.open(root.path) as transaction:
            await transaction.services.service_enable("st-disabled")
            await run_in_guest(transaction.guest, ["/bin/sh", "-c", deed])
            with pytest.raises(Conflict):
                await transaction.commit()
    assert root.changed_paths() == set()


async def test_what_the_guest_changes_beside_it_is_not_committed(root: GuestRoot) -> None:
    async with Transaction.open(root.path) as transaction:
        await transaction.services.service_enable("st-disabled")
        deed = "ln -s /bin/sh /etc/systemd/system/multi-user.target.wants/evil.service; echo x >> /etc/passwd"
        await run_in_guest(transaction.guest, ["/bin/sh", "-c", deed])
    assert root.changed_paths() == {LINK[1:]}
