"""An agent that the tests kill: boots a root, calls, commits, and waits. Arguments: root, whether to commit."""

import asyncio
import sys

from vmcraft.transaction import Transaction


async def main(root: str, commits: bool) -> None:
    """Say on standard output how far it came."""
    async with Transaction.open(root, readonly=not commits) as transaction:
        print("booted", flush=True)
        await transaction.services.service_enable("st-disabled")
        await transaction.services.service_disable("st-enabled")
        print("called", flush=True)
    print("ended", flush=True)


asyncio.run(main(sys.argv[1], sys.argv[2] == "commit"))
