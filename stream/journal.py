"""The journal of a partition: its fenced, transactional writer and the reader of its changelog.

Everything that a flush of partition p says (outputs of all topics, changed rows,
source positions) leaves in one transaction under one fixed transactional id, so that
opening p fences whoever had it before. The changelog is read back read-committed and up
to the consumer's *position*: transaction markers and aborted records take offsets too,
so the last record's offset is not the end.

This file: the protocol, and its implementation on Apache Kafka.
`stream/local.py` implements it on the embedded broker.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder

from stream.batches import MAX_BATCH_BYTES, OVERHEAD, Records, encode, seal
from stream.errors import Fenced, JournalLost

Row = tuple[bytes | None, bytes | None]  # key, value; a value of None is a tombstone
Said = Sequence[Row] | Records

#: A transaction outlives a broker's restart, not a dead one. An owner that died leaves its own
#: open for no longer than it takes the next owner to fence it.
TRANSACTION_TIMEOUT_MS = 60_000
REQUEST_TIMEOUT_MS = 45_000
CLOSE_TIMEOUT_S = 5.0
FETCH_BYTES = 8 << 20


class ChangelogRecord(Protocol):
    """What is read back: Kafka's consumer records and the embedded broker's alike."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a source topic holds in our partition: ``first`` and read-committed ``end`` offset.

    ``record`` is the one before the position asked for, None where it is gone. ``committed`` is
    what the consumer group last said it had done, which is for people to look at: a witness.
    """

    first: int
    end: int
    record: Any | None
    committed: int | None = None


class Journal(Protocol):
    """One owner's access to the outputs and the changelog of one partition.

    Raises (all methods but ``close``):
        Fenced: another owner has opened the partition since.
        JournalLost: the broker gave up; nothing of the commit in progress is visible.
    """

    @property
    def produced_s(self) -> float | None:
        """Seconds of the last commit until the broker had all records; None where that is all."""

    async def open(self) -> None:
        """Fence every earlier owner and end what it left open."""

    async def bounds(self) -> tuple[int, int]:
        """First offset available in the changelog, and its read-committed end."""

    def read(self, start: int, end: int) -> AsyncGenerator[tuple[list[Any], int], None]:
        """Batches of records from ``start`` on, each with the position after it, until ``end``."""

    async def source(self, topic: str, offset: int) -> SourceState:
        """Look at a source topic around the position ``offset``."""

    async def commit(self, rows: Mapping[str, Said]) -> int:
        """Append rows by topic, all or none; return the offset after our last changelog row."""

    async def close(self) -> None:
        """Let go. Never raises; what was not committed never becomes visible."""


class KafkaJournal:
    """A `Journal` on Apache Kafka: one transactional producer per partition.

    ``client`` holds aiokafka's connection options (servers, security); ``changelog`` is the
    topic among those of ``commit`` whose position is returned.
    """

    def __init__(
        self, client: Mapping[str, Any], *, group: str, changelog: str, partition: int
    ) -> None:
        self.client = dict(client)
        self.changelog = changelog
        self.partition = partition
        self.transactional_id = f"{group}-{partition}"
        self._group = group
        self._producer: AIOKafkaProducer | None = None
        self.produced_s: float | None = None

    async def open(self) -> None:
        producer = AIOKafkaProducer(
            **self.client,
            transactional_id=self.transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=4 << 20,
        )
        try:
            await producer.start()
        except BaseException:
            await _quietly(producer.stop())
            raise
        self._producer = producer

    async def bounds(self) -> tuple[int, int]:
        tp = TopicPartition(self.changelog, self.partition)
        async with self._reader(tp) as reader:
            first = await reader.beginning_offsets([tp])
            last = await reader.end_offsets([tp])
            return first[tp], last[tp]

    async def read(self, start: int, end: int) -> AsyncGenerator[tuple[list[Any], int], None]:
        if start >= end:
            return
        tp = TopicPartition(self.changelog, self.partition)
        async with self._reader(tp) as reader:
            reader.seek(tp, start)
            position = start
            while position < end:
                batches = await reader.getmany(tp, timeout_ms=200)
                position = await reader.position(tp)
                if records := batches.get(tp):
                    yield records, position
            # The end may lie behind markers only: nothing more to hand over.

    async def source(self, topic: str, offset: int) -> SourceState:
        tp = TopicPartition(topic, self.partition)
        async with self._reader(tp, group_id=self._group) as reader:
            first = (await reader.beginning_offsets([tp]))[tp]
            end = (await reader.end_offsets([tp]))[tp]
            committed = await reader.committed(tp)
            if not first < offset <= end:
                return SourceState(first, end, None, committed)
            reader.seek(tp, offset - 1)
            while await reader.position(tp) < offset:
                for record in (await reader.getmany(tp, timeout_ms=200)).get(tp, ()):
                    found = record if record.offset < offset else None
                    return SourceState(first, end, found, committed)
            return SourceState(first, end, None, committed)

    @contextlib.asynccontextmanager
    async def _reader(
        self, tp: TopicPartition, group_id: str | None = None
    ) -> AsyncIterator[AIOKafkaConsumer]:
        reader = AIOKafkaConsumer(
            **self.client,
            group_id=group_id,  # to ask for its offsets, never to join it
            isolation_level="read_committed",
            enable_auto_commit=False,
            # A changelog that was cut below our position must be an error, not a silent jump.
            auto_offset_reset="none",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_bytes=FETCH_BYTES,
            fetch_max_wait_ms=100,
        )
        try:
            await reader.start()
            reader.assign([tp])
            yield reader
        finally:
            await _quietly(reader.stop())

    async def commit(self, rows: Mapping[str, Said]) -> int:
        producer = self._producer
        if producer is None:
            raise JournalLost(f"partition {self.partition}: the journal is not open")
        began, committing = time.perf_counter(), False
        try:
            await producer.begin_transaction()
            sent: list[asyncio.Future[Any]] = []
            changelog_last, changelog_rows = None, 0
            for topic, items in rows.items():
                encoded = items.batches() if isinstance(items, Records) else encode(items)
                for records, count in encoded:
                    if count == 1 and len(records) > MAX_BATCH_BYTES:
                        raise ValueError(f"a row of {len(records)} bytes is too large for {topic}")
                    batch = _Batch(records, count)
                    future = await producer.send_batch(batch, topic, partition=self.partition)
                    sent.append(future)
                    if topic == self.changelog:
                        changelog_last, changelog_rows = future, count
            for future in sent:
                await future
            self.produced_s, committing = time.perf_counter() - began, True
            await producer.commit_transaction()
        except ProducerFenced as error:
            raise Fenced(f"partition {self.partition} was opened by another worker") from error
        except (KafkaError, TimeoutError) as error:
            lost = JournalLost(
                f"partition {self.partition}: the broker gave up a transaction"
                f" ({type(error).__name__}); restart the worker: it goes on where the last"
                " committed one ended"
            )
            lost.in_commit = committing
            raise lost from error
        if changelog_last is None:
            raise ValueError(f"a commit without a row for {self.changelog}")
        return int(changelog_last.result().offset) + changelog_rows

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await _quietly(producer.stop())


class _Batch(BatchBuilder):
    """Records that are encoded already, as aiokafka's producer takes batches."""

    def __init__(self, records: bytes, count: int) -> None:
        self._records = records
        self._count = count
        self._sealed: bytes | None = None

    def append(self, **_: Any) -> None:
        """Nothing: it is full."""

    def close(self) -> None:
        """Nothing: it was never open."""

    def closed(self) -> bool:
        return True

    def size(self) -> int:
        return OVERHEAD + len(self._records) if self._sealed is None else len(self._sealed)

    def record_count(self) -> int:
        return self._count

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        """Once, when it is on its way; sent again it is the same."""
        self._sealed = seal(
            *(self._records, self._count, time.time_ns() // 1_000_000),
            producer=producer_id,
            epoch=producer_epoch,
            sequence=base_sequence,
        )
        self._records = b""

    def _build(self) -> bytes:
        assert self._sealed is not None
        return self._sealed


async def _quietly(stopping: Any) -> None:
    """Wait for a client to stop, for a while: what it could not say by then was not committed."""
    with contextlib.suppress(KafkaError, TimeoutError, OSError):
        await asyncio.wait_for(stopping, CLOSE_TIMEOUT_S)
