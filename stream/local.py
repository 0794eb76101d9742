"""The embedded broker as Faust and the partitions see it: driver ``local://`` and journal.

Promise: the same chunks, rebalances, fences and transactions as on Kafka, for the one worker
that lives in the broker's process; nothing in the app knows which of the two it runs on.

Boundary: topics and records are ``stream/broker.py``'s; how chunks are delivered and committed
is ``stream/chunks.py``'s.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from stream.broker import Fence, LocalBroker
from stream.errors import Fenced
from stream.journal import SourceState
from stream.log import Record, Row

JOURNAL_RECORDS = 10_000
JOURNAL_BYTES = 4 << 20
"""Most of a batch that recovery reads at once."""


class LocalJournal:
    """A `stream.journal.Journal` on the embedded broker.

    ``changelog`` is the topic among those of ``commit`` whose position is returned.
    """

    def __init__(self, broker: LocalBroker, *, changelog: str, partition: int) -> None:
        self.changelog = changelog
        self.partition = partition
        self._broker = broker
        self._fence: Fence | None = None

    async def open(self) -> None:
        self._fence = self._broker.share().fence(self.changelog, self.partition)

    def _ours(self) -> Fence:
        if self._fence is None:
            raise Fenced(f"partition {self.partition}: the journal is not open")
        self._broker.require(self._fence)
        return self._fence

    async def bounds(self) -> tuple[int, int]:
        self._ours()
        place = self.changelog, self.partition
        return self._broker.start(*place), self._broker.end(*place)

    async def read(self, start: int, end: int) -> AsyncGenerator[tuple[list[Record], int], None]:
        while start < end:
            self._ours()
            records, start = self._broker.fetch(
                self.changelog, self.partition, start, JOURNAL_RECORDS, JOURNAL_BYTES, end=end
            )
            yield records, start
            await asyncio.sleep(0)

    async def source(self, topic: str, offset: int) -> SourceState:
        self._ours()
        place = topic, self.partition
        first, end = self._broker.start(*place), self._broker.end(*place)
        if not first < offset <= end:
            return SourceState(first, end, None)
        return SourceState(first, end, self._broker.read(*place, offset - 1, max_records=1)[0])

    async def commit(self, rows: Mapping[str, Sequence[Row]]) -> int:
        firsts = self._broker.append_many(
            {(topic, self.partition): items for topic, items in rows.items()}, fence=self._ours()
        )
        return firsts[self.changelog, self.partition] + len(rows[self.changelog])

    async def close(self) -> None:
        if self._fence is not None:
            self._fence = None
            self._broker.release()
