"""Chunks from a real Apache Kafka: every record once, in order, where the owner says.

Readers are whole Faust apps on ``tagstream-kafka://``, several of them in this process where
partitions change hands. What a group has applied is in one `Account`, as it would be in the
partitions' state.
"""

# Faust has no types.
# mypy: disallow-subclassing-any=false, disallow-untyped-decorators=false

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import confluent_kafka
import faust
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from faust.types import TP

import stream.kafka
from stream.assignor import NumberAssignor
from stream.chunks import BUFFER_BYTES, chunk_topic, events
from stream.errors import SourceRemade, SourceTrimmed
from stream.membership import Membership
from tests.broker.conftest import Kafka

pytestmark = pytest.mark.broker


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Nothing here may come of a fetch that has waited long enough."""
    monkeypatch.setattr(stream.kafka, "FETCH_WAIT_S", 3_600)


class Account:
    """What a group applied: the position in each partition, and the values up to it."""

    def __init__(self) -> None:
        self.applied: dict[TP, int] = {}
        self.values: dict[TP, list[bytes]] = {}
        self.chunks: list[Any] = []
        self._changed = asyncio.Event()

    def apply(self, chunk: Any) -> None:
        """Apply a chunk, which has to begin where the one before ended."""
        tp = TP(chunk.topic, chunk.partition)
        assert chunk.start == self.applied.get(tp, 0)
        self.chunks.append(chunk)
        self.applied[tp] = chunk.end
        self.values.setdefault(tp, []).extend(record.value for record in chunk.records)
        self.notify()

    def notify(self) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()


class Reader(faust.App):
    """A member of a group that applies chunks to the group's account.

    It releases what it is assigned, unless ``releases`` is False. ``numbers`` are its partitions;
    ``rebalances`` counts how often they were taken from it.
    """

    def __init__(
        self,
        kafka: Kafka,
        directory: Path,
        account: Account,
        *topics: str,
        name: str = "reader",
        instance: str | None = None,
        releases: bool = True,
    ) -> None:
        super().__init__(
            f"{topics[0]}-group",
            broker=f"tagstream-kafka://{kafka.bootstrap}",
            store="memory://",
            datadir=directory,
            web_enabled=False,
            topic_disable_leader=True,
            stream_wait_empty=False,
            canonical_url=f"http://{name}",
            consumer_group_instance_id=instance,
            broker_commit_interval=3_600.0,  # a test commits itself, or the end of its reader
            broker_heartbeat_interval=0.2,
            broker_session_timeout=6.0,
            TableManager=Membership,
            PartitionAssignor=NumberAssignor,
        )
        self.account = account
        self.releases = releases
        self.ownership = self
        self.numbers: set[int] = set()
        self.rebalances = 0
        self.buffer_bytes = BUFFER_BYTES
        for topic in topics:
            self.agent(chunk_topic(self, topic, 4), name=topic)(self.take)

    async def take(self, stream: Any) -> None:
        async for event in events(stream):
            self.account.apply(event.value)
            await self.before_ack(event.message.tp)
            event.ack()

    async def before_ack(self, tp: TP) -> None:
        """Nothing is in between here."""

    def assigned(self, numbers: set[int], generation: int) -> None:
        self.numbers = numbers
        if self.releases:
            self.add_future(self.release())
        self.account.notify()

    async def release(self) -> None:
        ours = self.consumer.assignment()
        await self.consumer.release({tp: self.account.applied.get(tp, 0) for tp in ours})

    async def revoked(self, numbers: set[int]) -> None:
        self.numbers = set()
        self.rebalances += 1

    async def caught_up(self, tp: TP) -> Any:
        """Wait until all that the broker has is read and applied; return the backlog then."""
        while True:
            backlog = (await self.consumer.backlog([tp])).get(tp)
            if backlog is None or backlog.position != backlog.end:
                continue
            if self.account.applied.get(tp, 0) >= backlog.fetched:
                return backlog


@pytest.fixture
def topic(kafka: Kafka, prefix: str) -> str:
    """A topic of four partitions."""
    return make_topic(kafka, f"{prefix}a", 4)


def make_topic(kafka: Kafka, name: str, partitions: int) -> str:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for made in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        made.result()
    return name


def produce(kafka: Kafka, topic: str, values: Iterable[bytes], partition: int = 0, **settings: Any):
    """Produce through librdkafka, and wait until the broker has all of it."""
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "enable.idempotence": True,  # or a retry may overtake what was sent before it
            **{key.replace("_", "."): value for key, value in settings.items()},
        }
    )
    for value in values:
        producer.produce(topic, value, b"key", partition)
    assert producer.flush(30) == 0


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(first, first + count)]


@contextlib.asynccontextmanager
async def transactions(kafka: Kafka, name: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=name)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_that_producers_use_is_read(kafka, topic, tmp_path, codec):
    values = [b"a value that compresses " * 20 + n for n in numbered(5_000)]
    produce(kafka, topic, values, compression_type=codec)
    account, tp = Account(), TP(topic, 0)
    async with Reader(kafka, tmp_path, account, topic):
        await account.until(lambda: account.applied.get(tp) == 5_000)
    assert account.values[tp] == values
    assert [record.key for record in account.chunks[0].records[:2]] == [b"key", b"key"]
    assert account.chunks[0].records[0].timestamp > 1_700_000_000_000


class SlowReader(Reader):
    """Acknowledges once the broker has answered a question, when the next fetch waits already."""

    async def before_ack(self, tp: TP) -> None:
        await self.consumer.earliest_offsets(tp)


async def test_what_has_been_fetched_already_flows_on_when_an_ack_makes_room(
    kafka, topic, tmp_path
):
    """Each chunk takes the whole share of its partition, while the others have nothing."""
    produce(kafka, topic, numbered(20_000))
    account, tp = Account(), TP(topic, 0)
    app = SlowReader(kafka, tmp_path, account, topic)
    app.buffer_bytes = 1 << 20
    async with app:
        await account.until(lambda: account.applied.get(tp) == 20_000)
    assert account.values[tp] == numbered(20_000)


async def test_aborted_records_and_markers_take_offsets_and_are_in_no_chunk(kafka, topic, tmp_path):
    """Offsets: 0-1 committed, 2 marker, 3-4 aborted, 5 marker, 6 plain, 7 committed, 8 marker."""
    account, tp = Account(), TP(topic, 0)
    async with (
        transactions(kafka, topic) as producer,
        Reader(kafka, tmp_path, account, topic) as app,
    ):
        for values, end in (
            ([b"a", b"b"], producer.commit_transaction),
            ([b"x", b"y"], producer.abort_transaction),
        ):
            await producer.begin_transaction()
            for value in values:
                await producer.send_and_wait(topic, value, partition=0)
            await end()
        assert await app.caught_up(tp) == (6, 6, 2)
        produce(kafka, topic, [b"c"])
        assert await app.caught_up(tp) == (7, 7, 7)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"d", partition=0)
        produce(kafka, topic, [b"e"])
        assert await app.caught_up(tp) == (7, 7, 7), "the end is where the open transaction begins"
        await producer.commit_transaction()
        assert await app.caught_up(tp) == (10, 10, 9)

    assert account.values[tp] == [b"a", b"b", b"c", b"d", b"e"]
    starts, ends = zip(*((chunk.start, chunk.end) for chunk in account.chunks), strict=True)
    assert (starts[0], starts[1:], ends[-1]) == (0, ends[:-1], 9)


async def test_no_record_is_lost_or_overtaken_while_partitions_change_hands(kafka, topic, tmp_path):
    """One worker, two, three, two others, one: while records arrive in all partitions."""
    account = Account()
    sent: dict[TP, list[bytes]] = {TP(topic, p): [] for p in range(4)}
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    stop = asyncio.Event()

    async def feed() -> None:
        await producer.start()
        n = 0
        while not stop.is_set():
            for tp, values in sent.items():
                value = b"%d" % n
                values.append(value)
                n += 1
                await producer.send_and_wait(topic, value, partition=tp.partition)
        await producer.stop()

    def reader(name: str) -> Reader:
        return Reader(kafka, tmp_path, account, topic, name=name)

    def shared(*readers: Reader) -> Callable[[], bool]:
        return lambda: (
            sorted(p for r in readers for p in r.numbers) == [0, 1, 2, 3]
            and all(r.numbers for r in readers)
        )

    feeding = asyncio.create_task(feed())
    async with contextlib.AsyncExitStack() as last:
        async with reader("a") as a:
            await account.until(shared(a))
            async with reader("b") as b:
                await account.until(shared(a, b))
                c = await last.enter_async_context(reader("c"))
                await account.until(shared(a, b, c))
            await account.until(shared(a, c))
        await account.until(shared(c))
        stop.set()
        await feeding
        await account.until(
            lambda: (
                {tp: len(values) for tp, values in account.values.items()}
                == {tp: len(values) for tp, values in sent.items()}
            )
        )
    assert account.values == sent


async def test_a_worker_without_partitions_waits_and_takes_over(kafka, prefix, tmp_path):
    topic, account = make_topic(kafka, f"{prefix}one", 1), Account()
    async with Reader(kafka, tmp_path, account, topic, name="a") as a:
        await account.until(lambda: a.numbers)
        async with Reader(kafka, tmp_path, account, topic, name="b") as b:
            await account.until(lambda: a.rebalances and a.numbers | b.numbers)
            assert (a.numbers, b.numbers) == ({0}, set())
            await a.stop()
            await account.until(lambda: b.numbers == {0})
            produce(kafka, topic, [b"a"])
            await account.until(lambda: account.values)


async def test_a_static_member_that_returns_disturbs_nobody(kafka, topic, tmp_path):
    account = Account()

    def reader(name: str) -> Reader:
        return Reader(kafka, tmp_path, account, topic, name=name, instance=name)

    async with reader("a") as a:
        async with reader("b") as b:
            await account.until(lambda: len(a.numbers) == len(b.numbers) == 2)
            had, rebalances = b.numbers, a.rebalances
        async with reader("b") as b:
            await account.until(lambda: b.numbers)
            assert (b.numbers, a.rebalances) == (had, rebalances)
            assert b.assignor.owners == a.assignor.owners
            produce(kafka, topic, [b"a"], min(b.numbers))
            await account.until(lambda: account.values)


async def test_all_sources_of_a_number_go_to_one_worker(kafka, topic, prefix, tmp_path):
    other, account = make_topic(kafka, f"{prefix}b", 4), Account()
    async with (
        Reader(kafka, tmp_path, account, topic, other, name="a") as a,
        Reader(kafka, tmp_path, account, topic, other, name="b") as b,
    ):
        await account.until(lambda: len(a.numbers) == len(b.numbers) == 2)
        for reader in (a, b):
            ours = {TP(t, p) for t in (topic, other) for p in reader.numbers}
            assert reader.consumer.assignment() == ours


async def test_sources_of_unequal_partition_counts_are_assigned_to_nobody(
    kafka, topic, prefix, tmp_path, caplog
):
    other, account = make_topic(kafka, f"{prefix}b", 2), Account()
    async with Reader(kafka, tmp_path, account, topic, other) as app:
        await account.until(lambda: app.assignor.problem)
        assert app.numbers == set()
    assert "must have equal partition counts" in caplog.text


async def test_what_is_not_released_needs_no_committed_offset_and_delivers_nothing(
    kafka, topic, tmp_path
):
    first, second = TP(topic, 0), TP(topic, 1)
    produce(kafka, topic, [b"a"], 0)
    produce(kafka, topic, [b"b"], 1)
    account = Account()
    async with Reader(kafka, tmp_path, account, topic, releases=False) as app:
        await account.until(lambda: app.numbers)
        assert await app.consumer.position(first) == 0
        assert await app.consumer.earliest_offsets(first) == {first: 0}
        assert await app.consumer.backlog([first]) == {}

        await app.consumer.release({first: 0})
        assert await app.caught_up(first) == (1, 1, 1)
        assert account.values == {first: [b"a"]}
        await app.consumer.release({second: 0})  # while a fetch waits for the first
        assert await app.caught_up(second) == (1, 1, 1)
        assert account.values == {first: [b"a"], second: [b"b"]}

        app.consumer.hold([second])
        await app.consumer.backlog([second])
        paused = app.consumer._thread._consumer.paused()
        assert paused == app.consumer.assignment() - {first}


async def test_what_stays_over_a_rebalance_is_held_until_it_is_released_again(
    kafka, topic, tmp_path
):
    account, tp = Account(), TP(topic, 0)
    async with Reader(kafka, tmp_path, account, topic, name="a") as a:
        produce(kafka, topic, [b"a"])
        await a.caught_up(tp)
        a.releases = False
        async with Reader(kafka, tmp_path, account, topic, name="b") as b:
            await account.until(lambda: len(a.numbers) == len(b.numbers) == 2)
            assert 0 in a.numbers
            assert await a.consumer.backlog([tp]) == {}
            await a.release()
            produce(kafka, topic, [b"b"])
            assert await a.caught_up(tp) == (2, 2, 2)
    assert account.values[tp] == [b"a", b"b"]


async def test_committed_is_what_was_acknowledged_and_does_not_matter_to_the_next_worker(
    kafka, topic, tmp_path
):
    tp = TP(topic, 0)
    produce(kafka, topic, numbered(10))
    for _ in range(2):
        async with Reader(kafka, tmp_path, Account(), topic) as app:
            await app.caught_up(tp)
        assert app.account.values[tp] == numbered(10)
    assert committed(kafka, topic) == 10


def committed(kafka: Kafka, topic: str) -> int:
    """The offset that the readers of a topic have committed in its partition 0."""
    client = confluent_kafka.Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": f"{topic}-group"}
    )
    try:
        (place,) = client.committed([confluent_kafka.TopicPartition(topic, 0)], timeout=30)
        return place.offset
    finally:
        client.close()


def delete_before(kafka: Kafka, topic: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    place = confluent_kafka.TopicPartition(topic, 0, offset)
    for deleted in admin.delete_records([place]).values():
        deleted.result()


@pytest.mark.parametrize(
    ("position", "error", "said"),
    [
        (2, SourceTrimmed, r"\[0\]: position 2 is outside \[6, 10\]: records were deleted"),
        (15, SourceRemade, r"\[0\]: position 15 is outside \[6, 10\]: the topic was deleted"),
    ],
)
async def test_a_position_outside_its_partition_stops_the_worker(
    kafka, topic, tmp_path, position, error, said
):
    produce(kafka, topic, numbered(10))
    delete_before(kafka, topic, 6)
    account = Account()
    account.applied[TP(topic, 0)] = position
    app = Reader(kafka, tmp_path, account, topic)
    await app.start()
    await app.wait_until_stopped()
    with pytest.raises(error, match=f"{topic}{said}"):
        raise app.crash_reason
    await app.stop()
    assert account.values == {}


async def test_the_earliest_position_that_there_is_will_do(kafka, topic, tmp_path):
    produce(kafka, topic, numbered(10))
    delete_before(kafka, topic, 6)
    account, tp = Account(), TP(topic, 0)
    account.applied[tp] = 6
    async with Reader(kafka, tmp_path, account, topic):
        await account.until(lambda: account.applied[tp] == 10)
    assert account.values[tp] == numbered(4, first=6)


async def test_neither_a_commit_nor_the_end_of_a_worker_waits_for_a_broker_that_sleeps(
    kafka, topic, tmp_path, monkeypatch
):
    monkeypatch.setattr(stream.kafka, "ANSWER_S", 0.05)
    produce(kafka, topic, [b"a"])
    account, tp = Account(), TP(topic, 0)
    app = Reader(kafka, tmp_path, account, topic)
    await app.start()
    await app.caught_up(tp)
    kafka.cluster.pause()
    try:
        for _ in range(2):
            assert not await app.consumer.commit()
        await app.stop()
        assert not app.consumer._thread._thread.is_alive()
    finally:
        kafka.cluster.resume()


async def test_a_commit_that_a_broker_answers_late_is_followed_by_the_next(
    kafka, topic, tmp_path, monkeypatch
):
    produce(kafka, topic, [b"a"])
    account, tp = Account(), TP(topic, 0)
    async with Reader(kafka, tmp_path, account, topic) as app:
        await app.caught_up(tp)
        kafka.cluster.pause()
        monkeypatch.setattr(stream.kafka, "ANSWER_S", 0.05)
        try:
            assert not await app.consumer.commit()
        finally:
            kafka.cluster.resume()
        monkeypatch.setattr(stream.kafka, "ANSWER_S", 30.0)
        assert await app.consumer.commit()
    assert committed(kafka, topic) == 1
