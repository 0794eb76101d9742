"""A Faust driver whose records are in memory: under Faust's own consumer, and under ours.

What a test finds wrong with `StockConsumer` and right with `ChunkConsumer` is the consumer's doing,
for both read the same `Logs` through the same `MemoryDriver`.
"""

# Faust has no types.
# mypy: disallow-subclassing-any=false

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from faust.tables import TableManager
from faust.transport import base, producer
from faust.transport import consumer as stock
from faust.types import TP, ConsumerMessage
from mode import Service
from yarl import URL

from stream.chunks import Backlog, ChunkDelivery, Fetched, Start
from stream.membership import Membership


@dataclass(slots=True)
class Row:
    """One record; satisfies `stream.chunks.Record`."""

    offset: int
    timestamp: int = 0
    key: bytes | None = b"k"
    value: bytes | None = b"v"


class Logs:
    """What consumers read, and what they committed."""

    def __init__(self) -> None:
        self.rows: dict[TP, list[Row]] = {}
        self.committed: dict[TP, int] = {}
        self.refuses_commits = False
        self.changed = asyncio.Event()

    def append(self, tp: TP, *offsets: int) -> None:
        self.rows.setdefault(tp, []).extend(map(Row, offsets))
        self.changed.set()

    def read(self, tp: TP, position: int, limit: int) -> list[Row]:
        return [row for row in self.rows.get(tp, []) if row.offset >= position][:limit]


class MemoryDriver(stock.Consumer):
    """What Faust asks of every consumer, over `Logs`.

    ``slept`` has the seconds that the consumer would have slept; here it does not.
    """

    def __init__(self, transport: Any, *args: Any, **kwargs: Any) -> None:
        self.logs: Logs = transport.logs
        self.positions: dict[TP, int] = {}
        self.assigned: set[TP] = set()
        self.slept: list[float] = []
        super().__init__(transport, *args, **kwargs)

    async def sleep(self, n: Any) -> None:
        self.slept.append(n)
        await asyncio.sleep(0)

    async def subscribe(self, topics: Iterable[str]) -> None:
        self.add_future(self.rebalance({TP(topic, 0) for topic in topics}))

    async def rebalance(self, assigned: set[TP]) -> None:
        """What a client does when its group rebalances."""
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(self.assigned)
        self.assigned = assigned
        self.app.consumer_generation_id += 1
        await self.on_partitions_assigned(assigned, self.app.consumer_generation_id)

    def assignment(self) -> set[TP]:
        return self.assigned

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if self.logs.refuses_commits:
            return False
        self.logs.committed.update(offsets)
        return True

    def highwater(self, tp: TP) -> Any:
        return None  # as of a partition that no fetch has answered for

    async def seek_to_committed(self) -> Mapping[TP, int]:
        for tp in self.assigned:
            self.positions[tp] = self.logs.committed.get(tp, 0)
        return {tp: self.logs.committed[tp] for tp in self.assigned & self.logs.committed.keys()}

    async def _seek(self, partition: TP, offset: int) -> None:
        self.positions[partition] = offset

    async def _getmany(
        self, active_partitions: set[TP] | None, timeout: float
    ) -> Mapping[TP, list[Row]]:
        await asyncio.sleep(0)
        found = {tp: self.logs.read(tp, self.positions[tp], 100) for tp in active_partitions or ()}
        for tp, rows in found.items():
            if rows:
                self.positions[tp] = rows[-1].offset + 1
        return {tp: rows for tp, rows in found.items() if rows}

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return message(tp, record.offset, self.app.consumer_generation_id)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def _not_asked(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    create_topic = earliest_offsets = highwaters = position = seek_wait = _not_asked
    key_partition = topic_partitions = _not_asked


class StockConsumer(MemoryDriver):
    """Faust's consumer as it is."""


class ChunkConsumer(ChunkDelivery, MemoryDriver):
    """Ours: its four hooks, over the same logs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.epochs: dict[TP, int] = {}
        self.interrupted = asyncio.Event()
        super().__init__(*args, **kwargs)

    async def _start(self, starts: Mapping[TP, Start]) -> None:
        await asyncio.sleep(0)
        for tp, (position, epoch) in starts.items():
            self.positions[tp], self.epochs[tp] = position, epoch

    async def _fetch(self, tps: Collection[TP], limit: int) -> Mapping[TP, Fetched]:
        self.interrupted.clear()
        while True:
            self.logs.changed.clear()
            fetched = {}
            for tp in tps:
                if rows := self.logs.read(tp, self.positions[tp], limit):
                    self.positions[tp] = rows[-1].offset + 1
                    fetched[tp] = Fetched(self.epochs[tp], list(rows), None)
            if fetched or self.interrupted.is_set():
                await asyncio.sleep(0)  # the way back, from another thread or a broker
                return fetched
            waits = [asyncio.create_task(e.wait()) for e in (self.logs.changed, self.interrupted)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def _interrupt(self) -> None:
        self.interrupted.set()

    async def backlog(self, tps: Iterable[TP]) -> dict[TP, Backlog]:
        raise NotImplementedError


class IdleProducer(producer.Producer):
    """Faust flushes its producer before it commits."""

    async def flush(self) -> None:
        pass


class IdleFetcher(Service):
    """Leaves it to a test to deliver."""


class Ownership:
    """Releases every partition at once, where ``applied`` says; a test fills that in.

    ``calls`` are what it was told. A partition that ``applied`` does not have stays held.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.applied: dict[TP, int] = {}
        self.calls: list[tuple[Any, ...]] = []

    def assigned(self, numbers: set[int], generation: int) -> None:
        self.calls.append(("assigned", numbers, generation))
        self.app.add_future(self.app.consumer.release(dict(self.applied)))

    async def revoked(self, numbers: set[int]) -> None:
        self.calls.append(("revoked", numbers))


def message(tp: TP, offset: int, generation: int = 0) -> ConsumerMessage:
    """A message of one record, as Faust delivers them."""
    return ConsumerMessage(
        tp.topic,
        tp.partition,
        offset,
        0.0,
        0,
        None,
        b"k",
        b"v",
        None,
        tp=tp,
        generation_id=generation,
    )


def memory_app(directory: Path, consumer: Any, **settings: Any) -> Any:
    """An app that reads ``app.transport.logs`` through this class of consumer."""
    ours = issubclass(consumer, ChunkDelivery)
    app = faust.App(
        "test",
        broker="memory://",
        store="memory://",
        datadir=directory,
        web_enabled=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        TableManager=Membership if ours else TableManager,
        value_serializer="raw",
        **settings,
    )

    class Transport(base.Transport):
        Consumer = consumer
        Producer = IdleProducer
        logs = Logs()

    app.transport = Transport([URL("memory://")], app)
    app.ownership = Ownership(app)
    return app


def bare_consumer(app: Any, *tps: TP) -> Any:
    """The app's consumer with these partitions assigned, and no app around it that runs.

    ``consumer.delivered`` are the messages that would go to the streams.
    """
    delivered: list[Any] = []

    async def deliver(message: Any) -> None:
        delivered.append(message)

    async def nothing(*_: Any) -> None:
        pass

    consumer = app.transport.create_consumer(
        deliver, on_partitions_revoked=nothing, on_partitions_assigned=nothing
    )
    app._consumer = consumer
    app._fetcher = IdleFetcher()
    app.topics.acking_topics.update(tp.topic for tp in tps)
    consumer.assigned = set(tps)
    consumer.positions = dict.fromkeys(tps, 0)
    consumer.delivered = delivered
    return consumer
