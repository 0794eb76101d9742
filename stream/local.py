"""The embedded broker as Faust and the partitions see it: driver ``local://`` and journal.

Promise: chunks, assignments, fences and commits as on Kafka, for the one worker that shares a
process with the broker; nothing else in the app knows which of the two it runs on. A record is
with its agent a fraction of a millisecond after it was appended.

Boundary: topics and records are ``stream/broker.py``'s business; how chunks are delivered and
acknowledged is ``stream/chunks.py``'s. Everything happens on the worker's event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from faust.transport import base
from faust.types import TP

from stream.broker import Fence, LocalBroker
from stream.chunks import CHUNK_RECORDS, Backlog, ChunkDelivery, Fetched, Start
from stream.errors import Fenced
from stream.journal import Said, SourceState
from stream.log import Record

FETCH_WAIT_S = 1.0
"""How long a fetch that finds nothing waits for records."""

MEMBER = "local"
"""The only member of its group, as its assignor knows it."""

JOURNAL_RECORDS = 10_000
JOURNAL_BYTES = 4 << 20
"""Most of a batch that recovery reads at once."""


@dataclass(slots=True)
class _Place:
    """Where a released partition is read."""

    position: int
    epoch: int
    fetched: int
    turn: int = 0


class Consumer(ChunkDelivery):
    """Faust's consumer of the embedded broker."""

    def __init__(self, transport: "Transport", *args: Any, **kwargs: Any) -> None:
        self.broker = transport.broker
        self._assigned: set[TP] = set()
        self._places: dict[TP, _Place] = {}
        self._turns = count(1)
        self._interrupted = False
        super().__init__(transport, *args, **kwargs)

    # Membership: a group of one

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Read these topics from now on; the rebalance follows, as its callbacks wait for this."""
        topics = set(topics)
        await super().subscribe(topics)
        self.add_future(self._rebalance(topics))

    async def _rebalance(self, topics: set[str]) -> None:
        """Do what a client does when its group rebalances, in the same order."""
        app, assignor = self.app, self.app.assignor
        app.on_rebalance_start()
        await self.on_partitions_revoked(set(self._assigned))
        self._places.clear()
        assigned = assignor.assign(self.broker, {MEMBER: assignor.metadata(topics)})[MEMBER]
        assignor.on_assignment(assigned)
        self._assigned = {TP(topic, p) for topic, numbers in assigned.assignment for p in numbers}
        app.consumer_generation_id += 1
        await self.on_partitions_assigned(set(self._assigned), app.consumer_generation_id)

    #: Nobody else can have the partitions of a group of one.
    is_member = True

    def assignment(self) -> set[TP]:
        return self._assigned

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        self.broker.commit_offsets(self.app.conf.id, offsets)
        return True

    # Chunks

    async def _start(self, starts: Mapping[TP, Start]) -> None:
        for tp, (position, epoch) in starts.items():
            if tp in self._assigned:
                self._places[tp] = _Place(position, epoch, fetched=position)
        self.broker.wake()  # there may be records at a position where a fetch saw none

    async def _fetch(self, tps: Collection[TP], limit: int) -> Mapping[TP, Fetched]:
        self._interrupted = False
        await asyncio.sleep(0)  # while there are records, this is where the loop gets its turn
        fetched = self._read(tps, limit)
        if not fetched and not self._interrupted:
            await self.broker.wait(FETCH_WAIT_S)
            fetched = self._read(tps, limit)
        return fetched

    def _read(self, tps: Collection[TP], limit: int) -> dict[TP, Fetched]:
        """Whole chunks as far as they go, of the partitions that have waited longest."""
        broker, fetched = self.broker, {}
        places = ((tp, self._places[tp]) for tp in tps if tp in self._places)
        ready = [(tp, place) for tp, place in places if place.position != broker.end(*tp)]
        for tp, place in sorted(ready, key=lambda one: one[1].turn):
            most = min(limit, CHUNK_RECORDS)
            if not most:
                break
            records, place.position = broker.fetch(tp.topic, tp.partition, place.position, most)
            place.turn = next(self._turns)
            if records:
                limit -= len(records)
                place.fetched = records[-1].offset + 1
                fetched[tp] = Fetched(place.epoch, cast(list[Any], records), broker.end(*tp))
        return fetched

    def _interrupt(self) -> None:
        self._interrupted = True
        self.broker.wake()

    async def backlog(self, tps: Iterable[TP]) -> dict[TP, Backlog]:
        places = ((tp, self._places[tp]) for tp in tps if tp in self._places)
        return {
            tp: Backlog(self.broker.end(*tp), place.position, place.fetched) for tp, place in places
        }

    # What else Faust's interface has

    async def create_topic(
        self, topic: str, partitions: int, replication: int, *, config: Any = None, **_: Any
    ) -> None:
        if self.app.conf.topic_allow_declare:
            self.broker.create_topic(topic, partitions, config)

    def topic_partitions(self, topic: str) -> int | None:
        return len(self.broker.partitions_for_topic(topic) or ()) or None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int:
        return self.broker.partition_for(topic, key) if partition is None else partition

    def highwater(self, tp: TP) -> int:
        return self.broker.end(*tp)

    async def highwaters(self, *tps: TP) -> Mapping[TP, int]:
        return {tp: self.broker.end(*tp) for tp in tps}

    async def earliest_offsets(self, *tps: TP) -> Mapping[TP, int]:
        return {tp: self.broker.start(*tp) for tp in tps}

    async def position(self, tp: TP) -> int | None:
        return self._places[tp].position if tp in self._places else None

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("records come in chunks, from where their owner releases them")

    _getmany = _seek = _to_message = seek_wait = _refuse


class Producer(base.Producer):
    """What Faust asks of a producer: nothing is produced through Faust.

    The last of Faust's services to stop, it lets go of the broker.
    """

    async def on_stop(self) -> None:
        await super().on_stop()
        self.transport.close()

    async def flush(self) -> None:
        """Nothing is ever pending."""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("outputs leave in their partition's journal")


class Transport(base.Transport):
    """The driver, found by Faust through the entry point ``local``."""

    Consumer = Consumer
    Producer = Producer

    driver_version = "local"

    _broker: LocalBroker | None = None

    @property
    def broker(self) -> LocalBroker:
        """The broker of the app's URL, from the first use until the app stops."""
        if self._broker is None:
            self._broker = LocalBroker.at(str(self.url[0]))
        return self._broker

    def close(self) -> None:
        """Let go of the broker."""
        if self._broker is not None:
            self._broker.release()
            self._broker = None


class LocalJournal:
    """A `stream.journal.Journal` on the embedded broker.

    ``changelog`` is the topic among those of ``commit`` whose position is returned.
    """

    produced_s = None  # a commit is one write

    def __init__(
        self, broker: LocalBroker, *, changelog: str, partition: int, group: str = "tagstream"
    ) -> None:
        self.changelog = changelog
        self.group = group
        self.partition = partition
        self._broker = broker
        self._fence: Fence | None = None

    async def open(self) -> None:
        if self._fence is None:
            self._broker.share()
        self._fence = self._broker.fence(self.changelog, self.partition)

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
        committed = self._broker.committed(self.group, *place)
        if not first < offset <= end:
            return SourceState(first, end, None, committed)
        record = self._broker.read(*place, offset - 1, max_records=1)[0]
        return SourceState(first, end, record, committed)

    async def commit(self, rows: Mapping[str, Said]) -> int:
        if self.changelog not in rows:
            raise ValueError(f"a commit without a row for {self.changelog}")
        firsts = self._broker.append_many(
            {(topic, self.partition): items[:] for topic, items in rows.items()}, fence=self._ours()
        )
        return firsts[self.changelog, self.partition] + len(rows[self.changelog])

    async def close(self) -> None:
        if self._fence is not None:
            self._fence = None
            self._broker.release()

    def _ours(self) -> Fence:
        if self._fence is None:
            raise Fenced(f"partition {self.partition}: the journal is not open")
        self._broker.require(self._fence)
        return self._fence
