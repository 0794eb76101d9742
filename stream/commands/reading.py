"""What topics hold, read by commands: from Kafka read-committed, or from the embedded data.

To the end that was there when reading began. Nothing is committed, nothing is moved.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.broker import LocalBroker
from stream.commands.feeding import BrokerError, connected
from stream.errors import UsageError
from stream.settings import Settings

BATCH = 5_000


class Record(NamedTuple):
    """One record; ``timestamp`` is the broker's, epoch ms."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Reader(Protocol):
    """A broker, for reading."""

    async def total(self, name: str) -> int:
        """About how many records a topic holds: for a progress bar."""

    def read(self, name: str) -> AsyncIterator[Sequence[Record]]:
        """All records of a topic, in batches, each partition's in order."""


class KafkaReader:
    """Reads from a Kafka broker."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer) -> None:
        self._settings = settings
        self._consumer = consumer

    async def total(self, name: str) -> int:
        first, end = await self._bounds(name)
        return sum(end.values()) - sum(first.values())

    async def read(self, name: str) -> AsyncIterator[Sequence[Record]]:
        consumer = self._consumer
        first, end = await self._bounds(name)
        consumer.assign(list(end))
        for tp, offset in first.items():
            consumer.seek(tp, offset)
        unread = {tp for tp in end if first[tp] < end[tp]}
        while unread:
            found = await consumer.getmany(*unread, timeout_ms=200, max_records=BATCH)
            for tp, records in found.items():
                yield [
                    Record(tp.partition, record.offset, record.timestamp, record.key, record.value)
                    for record in records
                    if record.offset < end[tp]
                ]
            # A record's offset is not enough: markers of transactions take offsets too.
            unread = {tp for tp in unread if await consumer.position(tp) < end[tp]}

    async def _bounds(
        self, name: str
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        topic = self._settings.topic(name)
        tps = [TopicPartition(topic, number) for number in range(self._settings.partitions)]
        try:
            return (
                await self._consumer.beginning_offsets(tps),
                await self._consumer.end_offsets(tps),
            )
        except KafkaError as error:
            raise BrokerError(
                f"{topic} cannot be read: {error}; 'tagstream topics --check' says what is there"
            ) from error


class EmbeddedReader:
    """Reads the embedded broker's data."""

    def __init__(self, settings: Settings, broker: LocalBroker) -> None:
        self._settings = settings
        self._broker = broker

    async def total(self, name: str) -> int:
        topic, broker = self._settings.topic(name), self._broker
        return sum(
            broker.end(topic, number) - broker.start(topic, number)
            for number in range(self._partitions(topic))
        )

    async def read(self, name: str) -> AsyncIterator[Sequence[Record]]:
        topic, broker = self._settings.topic(name), self._broker
        for number in range(self._partitions(topic)):
            offset, end = broker.start(topic, number), broker.end(topic, number)
            while offset < end:
                found = list(broker.read(topic, number, offset, max_records=BATCH))
                if not found:
                    break
                yield [Record(number, r.offset, r.timestamp, r.key, r.value) for r in found]
                offset = found[-1].offset + 1

    def _partitions(self, topic: str) -> int:
        return len(self._broker.partitions_for_topic(topic) or ())


@contextlib.asynccontextmanager
async def reader(settings: Settings) -> AsyncIterator[Reader]:
    """A reader of the broker that the settings name.

    Raises:
        UsageError: the embedded data are not there, or a running worker has them.
        BrokerError: no broker answers.
    """
    if settings.embedded:
        with embedded(settings) as broker:
            yield EmbeddedReader(settings, broker)
        return
    consumer: Any = AIOKafkaConsumer(
        **settings.client_options(),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    async with connected(settings, consumer):
        yield KafkaReader(settings, consumer)


@contextlib.contextmanager
def embedded(settings: Settings) -> Iterator[LocalBroker]:
    """The embedded broker on its data, which must be there and nobody else's now."""
    if not settings.broker_dir.exists():
        raise UsageError(
            f"there are no embedded data in {settings.broker_dir}: TAGSTREAM_DATA_DIR (--data-dir)"
            " says where they are, TAGSTREAM_BROKER (--broker) where a Kafka is"
        )
    with LocalBroker.at(settings.faust_broker) as broker:
        yield broker
