"""The worker's place in its group: what Faust does about a rebalance, without its tables.

Promise: partitions are announced to ``app.ownership`` when they come, and it may finish with them
before they go; neither waits for a recovery, since the broker hears no heartbeat from a worker in
its rebalance callback. The app is ready as soon as its services run.

Boundary: who opens, closes and releases partitions is ``app.ownership``'s business. There are no
``faust.Table``s in this app: their recovery is slow, and unsound beside transactions.
"""

from typing import Any, Protocol

from faust.tables import TableManager
from faust.types import TP


class Ownership(Protocol):
    """What ``app.ownership`` has to offer."""

    def assigned(self, numbers: set[int], generation: int) -> None:
        """These partition numbers are ours now, and no others; open them in tasks of your own."""

    async def revoked(self, numbers: set[int]) -> None:
        """These were ours; finish and acknowledge what is under way, for they may go.

        Whoever gets them waits for this to return.
        """


class Membership(TableManager):
    """Faust setting ``TableManager``: no tables, and a rebalance that returns at once."""

    async def on_start(self) -> None:
        """Nothing to register, and nothing to wait for."""

    async def on_stop(self) -> None:
        await self.app._fetcher.stop()  # noqa: SLF001 (the app has no other name for it)

    async def wait_until_tables_registered(self) -> None:
        """There are none."""

    async def wait_until_recovery_completed(self) -> bool:
        """Nothing is recovered before the app is up; False means that it was not stopped."""
        return False

    def add(self, table: Any) -> Any:
        raise NotImplementedError("state is kept in partitions, not in faust.Table")

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Nothing to interrupt: there is no recovery."""

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Nothing to recover."""

    async def revoke(self, revoked: set[TP]) -> None:
        """Let the owner finish with partitions that are about to go; the consumer calls this."""
        if revoked:
            await self.app.ownership.revoked({tp.partition for tp in revoked})

    async def assign(self, assigned: set[TP], generation: int) -> None:
        """Let chunks flow again, and tell the owner what it has; the consumer calls this."""
        app = self.app
        if app.should_stop:
            return
        await app.on_rebalance_complete.send()
        app.flow_control.resume()  # empties the streams' buffers too
        app.consumer.resume_flow()
        await app._fetcher.maybe_start()  # noqa: SLF001
        self.on_actives_ready()
        self.on_standbys_ready()
        app.on_rebalance_end()
        app.ownership.assigned({tp.partition for tp in assigned}, generation)
