"""How our Kafka consumer is made, beside how stock Faust makes its own. No broker."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaConnectionError
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from stream import kafka
from stream.assignor import NumberAssignor
from stream.chunks import chunk_topic
from stream.membership import Membership

TP = TopicPartition("a", 0)


@pytest.fixture(params=[driver.Transport, kafka.Transport], ids=["stock", "ours"])
async def thread(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A consumer thread whose aiokafka consumer is made, and neither is started."""
    app = faust.App(
        "test",
        broker="kafka://127.0.0.1:1",
        store="memory://",
        web_enabled=False,
        table_standby_replicas=0,
        PartitionAssignor=NumberAssignor,
        TableManager=Membership,
    )
    for topic in ("a", "b"):
        app.agent(chunk_topic(app, topic, 32), name=topic)(_take)
    app.transport = request.param([URL("kafka://127.0.0.1:1")], app)
    thread = app.consumer._thread
    thread._consumer = thread._create_worker_consumer(app.transport)
    thread.crashed_with = []
    thread.crash = _note(thread.crashed_with)
    yield thread
    thread._consumer._closed = False
    await thread._consumer.stop()
    thread.thread_loop.close()


async def _take(stream: Any) -> None:
    async for _ in stream:
        pass


def _note(errors: list[BaseException]) -> Any:
    async def crash(error: BaseException) -> None:
        errors.append(error)

    return crash


def is_stock(thread: Any) -> bool:
    return not isinstance(thread, kafka.ConsumerThread)


async def test_stock_faust_reads_what_was_never_committed(thread):
    level = "read_uncommitted" if is_stock(thread) else "read_committed"
    assert thread._consumer._isolation_level == level


async def test_stock_faust_jumps_to_the_earliest_record_when_its_position_is_gone(thread):
    reset = "earliest" if is_stock(thread) else "none"
    assert thread._consumer._auto_offset_reset == reset


async def test_stock_faust_takes_another_assignor_without_tables(thread):
    (assignor,) = thread._consumer._partition_assignment_strategy
    wanted = RoundRobinPartitionAssignor if is_stock(thread) else thread.app.assignor
    assert assignor is wanted


async def test_stock_faust_leaves_for_ever_when_it_does_not_poll(thread):
    """A worker without partitions does not, and is dismissed after 1,000 s; ours after years."""
    assert (thread._consumer._max_poll_interval_ms <= 1_000_000) is is_stock(thread)


async def test_the_parts_of_all_partitions_fit_into_the_buffer_together(thread):
    """Stock Faust asks for a mebibyte of each, however many there are."""
    of_all = thread._consumer._max_partition_fetch_bytes * 64
    assert (of_all > (32 << 20)) is is_stock(thread)


async def test_stock_faust_crashes_on_a_commit_that_a_rebalance_has_overtaken(thread):
    assert not await thread._commit({TP: 5})
    assert len(thread.crashed_with) == is_stock(thread)


async def test_stock_faust_closes_its_consumer_in_a_loop_that_is_not_its_own(thread):
    """And then the thread, when it stops, takes it for closed: it never leaves the group."""
    thread.app.loop = asyncio.get_running_loop()
    thread._consumer._coordinator = SimpleNamespace(close=_nothing)
    thread.close()
    thread._consumer._coordinator = None
    assert thread._consumer._closed is is_stock(thread)


async def _nothing() -> None:
    pass


async def test_a_broker_that_does_not_answer_is_an_error_of_the_start_and_no_more(capfd, tmp_path):
    app = faust.App(
        "test",
        broker="tagstream-kafka://127.0.0.1:1",
        store="memory://",
        datadir=tmp_path,
        web_enabled=False,
        TableManager=Membership,
    )
    with pytest.raises(KafkaConnectionError):
        await app.start()
    await app.stop()
    assert capfd.readouterr().err == ""


async def test_nothing_is_produced_through_faust():
    app = faust.App("test", broker="kafka://127.0.0.1:1", web_enabled=False)
    producer = kafka.Transport([URL("kafka://127.0.0.1:1")], app).create_producer()
    await producer.flush()
    with pytest.raises(NotImplementedError):
        producer.send("a", b"k", b"v", 0, None, None)
