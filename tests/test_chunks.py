"""Delivery in chunks, and beside each repair the defect of stock Faust that it repairs.

When a test named ``test_stock_faust_...`` fails after an upgrade, its repair can go.
"""

# Faust has no types.
# mypy: disallow-subclassing-any=false, disallow-untyped-decorators=false

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from faust.exceptions import ConsumerNotStarted, ImproperlyConfigured
from faust.sensors import Monitor
from faust.transport import base
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from stream import chunks, kafka
from stream.chunks import Chunk, chunk_topic, events
from tests.driver import ChunkConsumer, Row, StockConsumer, bare_consumer, memory_app, message

A0, A1 = TP("a", 0), TP("a", 1)


@pytest.fixture
async def stock(tmp_path):
    """Faust's own consumer, A0 assigned."""
    return bare_consumer(memory_app(tmp_path, StockConsumer), A0)


@pytest.fixture
async def ours(tmp_path):
    """Our consumer; A0 and A1 are assigned, A0 is released at 0."""
    consumer = bare_consumer(memory_app(tmp_path, ChunkConsumer), A0, A1)
    await consumer.on_partitions_assigned({A0, A1}, 0)
    await consumer.release({A0: 0})
    return consumer


def acknowledge(consumer: Any, *offsets: int) -> None:
    """Acknowledge records of A0 that Faust's own consumer delivered."""
    for offset in offsets:
        consumer.ack(message(A0, offset))


async def deliver(consumer: Any, tp: TP, *offsets: int) -> Any:
    """Append records, and deliver them in a chunk of their own; return its message."""
    consumer.logs.append(tp, *offsets)
    await consumer._deliver_next()
    return consumer.delivered[-1]


def take(message: Any) -> Chunk:
    """What a stream does when an agent asks for its next event."""
    message.tracked = True
    return message.value  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def draining(consumer: Any) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Run the fetcher's loop; yields a wait for the message that ends with an offset."""
    loop = asyncio.create_task(consumer._drain_messages(base.Fetcher(consumer.app)))

    async def until(offset: int) -> None:
        while offset not in [m.offset for m in consumer.delivered[-1:]]:
            if loop.done():
                loop.result()
            await asyncio.sleep(0)

    yield until
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop


# Chunks


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40))
def test_runs_hold_every_record_once_within_the_bounds(sizes):
    """Runs join to the input; none is over a bound that it could have met, none is short."""
    rows: list[Any] = [Row(i, value=bytes(size)) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_RECORDS", 7)
        patch.setattr(chunks, "CHUNK_BYTES", 100)
        runs = list(chunks._runs(rows))

    assert [row for run, _ in runs for row in run] == rows
    for i, (run, size) in enumerate(runs):
        assert size == sum(_size(row) for row in run)
        assert len(run) == 1 or (len(run) <= 7 and size <= 100)
        if run is not runs[-1][0]:
            assert len(run) == 7 or size + _size(runs[i + 1][0][0]) > 100


def _size(row: Any) -> int:
    return len(row.key) + len(row.value)


async def test_chunks_join_from_where_the_partition_was_released(ours):
    """Offsets that hold no record (markers, aborted records) lie within the positions."""
    await ours.release({A0: 3})
    await deliver(ours, A0, 1, 2, 5, 6)
    await deliver(ours, A0, 9)
    first, second = (m.value for m in ours.delivered)
    assert (first.start, [r.offset for r in first.records], first.end) == (3, [5, 6], 7)
    assert (second.start, [r.offset for r in second.records], second.end) == (7, [9], 10)


async def test_size_counts_keys_and_values_and_nulls_as_nothing(ours):
    ours.logs.rows[A0] = [Row(0, key=b"ab", value=b"cde"), Row(1, key=None, value=None)]
    await ours._deliver_next()
    assert ours.delivered[0].value.size == 5


async def test_a_consumer_of_chunks_subscribes_to_nothing_else(ours):
    with pytest.raises(ImproperlyConfigured, match="not declared with chunk_topic: b"):
        await ours.subscribe(["b"])


# Waiting and room


def test_stock_faust_drops_the_bound_of_a_topic(tmp_path):
    """So every stream buffers 4,096 events, here chunks, whatever their size."""
    assert memory_app(tmp_path, StockConsumer).topic("a", maxsize=4).maxsize is None


async def test_stock_faust_sleeps_a_second_when_every_buffer_is_full(stock):
    """With chunks that is the normal state of a busy worker."""
    stock._set_active_tps({A0})
    stock.on_buffer_full(A0)
    await stock._wait_next_records(timeout=1.0)
    assert stock.slept == [1]


async def test_a_full_buffer_waits_for_room_and_does_not_sleep(ours):
    ours.buffer_bytes = 1
    first = await deliver(ours, A0, 0)
    waiting = asyncio.create_task(ours._deliver_next())
    await asyncio.sleep(0)
    assert not waiting.done()
    ours.ack(first)
    await waiting
    assert ours.slept == []


async def test_each_partition_has_its_share_of_the_buffer_and_all_have_the_whole(ours):
    await ours.release({A1: 0})
    ours.buffer_bytes = 40_000
    first = await deliver(ours, A0, *range(100))
    assert ours._wanted() == {A1}, "100 records cost more than half"
    second = await deliver(ours, A1, *range(30))
    assert ours._wanted() == set(), "all is used"
    ours.ack(second)
    assert ours._wanted() == set(), "less than half is free"
    ours.ack(first)
    assert ours._wanted() == {A0, A1}


async def test_as_much_of_the_buffer_as_the_busiest_has_is_left_for_another(ours):
    await ours.release({A1: 0})
    ours.buffer_bytes = 90_000
    await deliver(ours, A0, *range(100))
    assert ours._wanted() == {A0, A1}, "it has a third"
    await deliver(ours, A0, *range(100, 150))
    assert ours._wanted() == {A1}, "it has half"


async def test_a_chunk_that_was_dropped_leaves_its_room_to_others_before_it_is_acknowledged(ours):
    ours.buffer_bytes = 40_000
    message = await deliver(ours, A0, *range(130))
    assert ours._wanted() == set()
    first, rest = message.value.split(100)
    first.drop()
    assert ours._wanted() == set(), "the rest of it is still there"
    rest.drop()
    assert ours._wanted() == {A0}
    assert message.value.records == []
    ours.ack(message)
    assert ours._buffered == 0
    assert (await deliver(ours, A0, 130)).value.start == 130


async def test_a_chunk_that_is_dropped_when_it_was_withdrawn_already_counts_no_more(ours):
    message = await deliver(ours, A0, *range(10))
    await ours.release({A0: 0})
    message.value.drop()
    assert ours._buffered == 0


async def test_faust_pausing_by_the_number_of_events_changes_nothing(ours):
    ours.on_buffer_full(A0)
    ours.on_buffer_drop(A1)
    assert ours._wanted() == {A0}


async def test_room_for_a_partition_ends_a_fetch_that_leaves_it_out(ours):
    await ours.release({A1: 0})
    ours.buffer_bytes = 40_000
    first = await deliver(ours, A0, *range(100))
    waiting = asyncio.create_task(ours._deliver_next())  # for A1 alone
    await asyncio.sleep(0)
    ours.ack(first)
    await waiting
    assert (await deliver(ours, A0, 100)).value.start == 100


# Sensors and checks


class ExactMonitor(Monitor):
    """Like Faust's PrometheusMonitor: an end offset has to be a number."""

    def track_tp_end_offset(self, tp: TP, offset: int) -> None:
        super().track_tp_end_offset(tp, int(offset))


async def test_stock_faust_dies_of_an_end_that_is_not_known_yet(stock):
    stock.app.monitor = ExactMonitor()
    stock._set_active_tps({A0})
    stock.logs.append(A0, 0)
    with pytest.raises(TypeError):
        async with draining(stock) as until:
            await until(0)


async def test_an_end_that_is_not_known_yet_is_not_reported(ours):
    ours.app.monitor = ExactMonitor()
    assert (await deliver(ours, A0, 0)).value.end == 1
    assert ours.app.monitor.tp_end_offsets == {}


@pytest.mark.parametrize("transport", [driver.Transport, kafka.Transport])
async def test_stock_faust_checks_the_path_of_events_before_there_is_one(tmp_path, transport):
    """Its check runs in a task of its own; what that raises stops the worker."""
    app = memory_app(tmp_path, ChunkConsumer)
    app.transport = transport([URL("kafka://127.0.0.1")], app)
    consumer = bare_consumer(app)
    consumer.assignment = lambda: {A0}
    if transport is driver.Transport:
        with pytest.raises(ConsumerNotStarted):
            await consumer.verify_all_partitions_active()
    else:
        await consumer.verify_all_partitions_active()
    consumer._thread.thread_loop.close()


# Commits


async def test_stock_faust_commits_past_a_record_that_is_not_acknowledged(stock):
    """10 is in flight, 11 is acknowledged: it commits 12."""
    stock._committed_offset[A0] = 10
    acknowledge(stock, 11)
    assert stock._new_offset(A0) == 12


async def test_stock_faust_commits_past_the_record_after_a_gap(stock):
    """8, which follows 5, is in flight; 5 and 9 are acknowledged: it commits 10."""
    stock._committed_offset[A0] = 5
    await stock._add_gap(A0, 6, 8)  # its own call when 8 follows 5
    acknowledge(stock, 5, 9)
    assert stock._new_offset(A0) == 10


async def test_a_commit_never_passes_a_chunk_that_is_not_acknowledged(ours):
    first, second, third = [await deliver(ours, A0, offset) for offset in (4, 5, 8)]
    committed = []
    for acked in (third, first, second):
        ours.ack(acked)
        await ours.commit()
        committed.append(dict(ours.logs.committed))
    assert committed == [{}, {A0: 5}, {A0: 9}]


async def test_stock_faust_takes_a_refused_commit_for_done(stock):
    acknowledge(stock, 0)
    stock.logs.refuses_commits = True
    await stock.commit()
    stock.logs.refuses_commits = False
    await stock.commit()
    assert stock.logs.committed == {}


async def test_a_refused_commit_is_made_again(ours):
    ours.ack(await deliver(ours, A0, 0))
    ours.logs.refuses_commits = True
    assert not await ours.commit()
    ours.logs.refuses_commits = False
    assert await ours.commit()
    assert ours.logs.committed == {A0: 1}


async def test_a_partition_that_is_not_ours_any_more_is_not_committed(ours):
    ours.ack(await deliver(ours, A0, 0))
    ours.assigned = {A1}
    assert not await ours.commit()
    assert ours.logs.committed == {}


# Rebalances


async def test_stock_faust_forgets_acks_when_partitions_are_revoked(stock):
    """They are gone before anything commits them, and the records come again."""
    acknowledge(stock, 0)
    await stock.on_partitions_revoked({A0})
    await stock.commit()
    assert stock.logs.committed == {}


async def test_revocation_lets_the_owner_finish_then_commits_then_lets_go(ours):
    taken = await deliver(ours, A0, 0)
    take(taken)

    async def finish(numbers: set[int]) -> None:
        assert numbers == {0, 1}
        assert ours._wanted() == set()
        ours.ack(taken)

    ours.app.ownership.revoked = finish
    await ours.on_partitions_revoked({A0, A1})
    assert ours.logs.committed == {A0: 1}
    assert ours._buffered == 0


async def test_revocation_commits_what_was_acknowledged_while_a_commit_ran(ours):
    """To wait for that commit is not enough: it may have begun too early."""
    first, second = await deliver(ours, A0, 0), await deliver(ours, A0, 1)
    take(first), take(second)
    sent, answered = asyncio.Event(), asyncio.Event()
    commit = ours._commit

    async def slow(offsets: Mapping[TP, int]) -> bool:
        sent.set()
        await answered.wait()
        return await commit(offsets)  # type: ignore[no-any-return]

    ours._commit = slow
    ours.ack(first)
    running = asyncio.create_task(ours.commit())
    await sent.wait()
    ours.ack(second)
    revoking = asyncio.create_task(ours.on_partitions_revoked({A0, A1}))
    await asyncio.sleep(0)
    answered.set()
    await asyncio.gather(running, revoking)
    assert ours.logs.committed == {A0: 2}


async def test_an_error_of_the_owner_in_a_rebalance_stops_the_worker(ours):
    """The client that runs the rebalance would log it and go on."""

    async def fail(numbers: set[int]) -> None:
        raise ArithmeticError

    ours.app.ownership.revoked = fail
    with pytest.raises(ArithmeticError):
        await ours.on_partitions_revoked({A0})
    assert isinstance(ours.crash_reason, ArithmeticError)


async def test_stock_faust_opens_partitions_and_seeks_them_on_its_own(stock):
    stock.logs.committed[A0] = 5
    stock.pause_partitions({A0})
    stock.resume_partitions({A0})
    await stock.perform_seek()
    assert stock._get_active_partitions() == {A0}
    assert stock.positions == {A0: 5}


async def test_only_release_opens_a_partition_and_moves_it(ours):
    ours.logs.committed = {A0: 5, A1: 5}
    ours.resume_partitions({A0, A1})
    await ours.perform_seek()
    assert await ours.seek_to_committed() == {A0: 0}
    assert ours._wanted() == {A0}
    assert ours.positions == {A0: 0, A1: 0}

    await ours.release({A1: 7, TP("a", 2): 0})
    assert await ours.seek_to_committed() == {A0: 0, A1: 7}
    assert ours._wanted() == {A0, A1}


async def test_stock_faust_drops_records_below_those_it_has_read(stock):
    """Sought back to 0 it delivers 3 again, and 0, 1 and 2 never."""
    stock._set_active_tps({A0})
    async with draining(stock) as until:
        stock.logs.append(A0, 0, 1, 2, 3)
        await until(3)
        await stock._seek(A0, 0)
        stock.logs.append(A0, 4)
        await until(4)
    assert [m.offset for m in stock.delivered] == [0, 1, 2, 3, 3, 4]


async def test_a_release_at_an_earlier_position_delivers_from_there(ours):
    async with draining(ours) as until:
        ours.logs.append(A0, 0, 1, 2, 3)
        await until(3)
        await ours.release({A0: 1})
        ours.logs.append(A0, 4)
        await until(4)
    again = [r.offset for m in ours.delivered[1:] for r in m.value.records]
    assert (ours.delivered[1].value.start, again) == (1, [1, 2, 3, 4])


async def test_what_stays_with_us_over_a_rebalance_is_released_where_it_was(ours):
    await deliver(ours, A0, 0)
    await ours.rebalance({A0})
    assert ours._wanted() == set()
    await ours.release({A0: 1})
    assert (await deliver(ours, A0, 1)).value.start == 1


async def test_a_release_that_a_rebalance_overtakes_opens_nothing(ours):
    releasing = asyncio.create_task(ours.release({A0: 5}))
    await asyncio.sleep(0)
    await ours.rebalance({A0})
    await releasing
    assert ours._wanted() == set()


async def test_a_release_during_revocation_opens_nothing(ours):
    opened = []

    async def finish(numbers: set[int]) -> None:
        await ours.release({A0: 0})
        opened.append(ours._wanted())

    ours.app.ownership.revoked = finish
    await ours.on_partitions_revoked({A0})
    assert opened == [set()]


async def test_a_release_at_an_earlier_position_commits_from_there(ours):
    """The group's lag is what its owner has to do, also where it has to do it again."""
    ours.ack(await deliver(ours, A0, 0, 1, 2))
    await ours.commit()
    await ours.release({A0: 0})
    ours.logs.rows[A0] = [Row(0)]
    await ours._deliver_next()
    ours.ack(ours.delivered[-1])
    await ours.commit()
    assert ours.logs.committed == {A0: 1}


async def test_a_release_ends_a_fetch_that_waits_beyond_its_position(ours):
    await deliver(ours, A0, 0)
    waiting = asyncio.create_task(ours._deliver_next())
    await asyncio.sleep(0)
    await ours.release({A0: 0})
    await waiting
    assert [m.value.start for m in ours.delivered] == [0, 0]


# Hold


async def test_records_fetched_before_a_hold_are_not_delivered_after_it(ours):
    ours.logs.append(A0, 0, 1)
    delivering = asyncio.create_task(ours._deliver_next())
    await asyncio.sleep(0)
    assert ours.positions[A0] == 2, "fetched, and on their way"
    ours.hold([A0])
    await delivering
    assert ours.delivered == []

    await ours.release({A0: 0})
    await ours._deliver_next()
    assert ours.delivered[0].value.start == 0


async def test_hold_withdraws_the_chunks_that_no_agent_has_taken(ours):
    """A stream skips events whose generation is not the group's; those taken still count."""
    taken, waiting = await deliver(ours, A0, 0), await deliver(ours, A0, 1)
    take(taken)
    ours.hold([A0])
    generation = ours.app.consumer_generation_id
    assert (taken.generation_id == generation, waiting.generation_id == generation) == (True, False)

    ours.ack(waiting)
    ours.ack(taken)
    await ours.commit()
    assert ours.logs.committed == {A0: 1}


async def test_acks_from_before_a_release_count_for_nothing(ours):
    old = await deliver(ours, A0, 0, 1)
    take(old)
    ours.track_message(old)
    await ours.release({A0: 0})
    assert not ours.unacked, "Faust waits for these when it stops"
    await ours._deliver_next()
    ours.ack(old)
    await ours.commit()
    assert ours.logs.committed == {}


@given(
    st.lists(
        st.sampled_from(
            ["append", "deliver", "take", "ack", "ack-last", "hold", "release", "commit"]
        ),
        max_size=60,
    )
)
def test_in_any_order_of_events_chunks_join_and_commits_follow_the_acks(tmp_path_factory, actions):
    """Against a naive account of what the owner of a partition took, applied and acknowledged."""

    async def run() -> None:
        app = memory_app(tmp_path_factory.getbasetemp(), ChunkConsumer)
        consumer = bare_consumer(app, A0)
        await consumer.on_partitions_assigned({A0}, 0)
        appended = applied = 0
        taken: list[Any] = []  # in order, since the last release
        for action in actions:
            if action == "append":
                consumer.logs.append(A0, appended, appended + 1)
                appended += 3  # a marker follows
            elif action == "deliver":
                if consumer._wanted() and consumer.logs.read(A0, consumer.positions[A0], 1):
                    await consumer._deliver_next()
            elif action == "take" and consumer.delivered:
                message = consumer.delivered.pop(0)
                if message.generation_id == app.consumer_generation_id:
                    chunk = take(message)
                    assert chunk.start == applied
                    applied = chunk.end
                    taken.append(message)
            elif action.startswith("ack"):
                if left := [m for m in taken if not m.acked]:
                    consumer.ack(left[-1 if action == "ack-last" else 0])
            elif action == "hold":
                consumer.hold([A0])
            elif action == "release":
                await consumer.release({A0: applied})
                taken.clear()
            elif action == "commit":
                await consumer.commit()
                settled = [m.value.end for i, m in enumerate(taken) if _acked(taken[: i + 1])]
                if settled:
                    assert consumer.logs.committed == {A0: settled[-1]}
        assert [m.value.end for m in consumer._sources[A0].under_way if m.tracked] == [
            m.value.end for i, m in enumerate(taken) if not _acked(taken[: i + 1])
        ]

    asyncio.run(run())


def _acked(messages: list[Any]) -> bool:
    return all(m.acked for m in messages)


# With streams and agents


async def until_committed(app: Any, position: int) -> None:
    """Commit until A0 is committed up to there."""
    while app.transport.logs.committed.get(A0) != position:
        await asyncio.sleep(0)
        await app.consumer.commit()


async def test_stock_faust_acknowledges_what_its_agent_failed_on(tmp_path):
    """In a plain loop over the stream."""
    app = memory_app(tmp_path, ChunkConsumer)

    @app.agent(chunk_topic(app, "a", 1))
    async def failing(stream: Any) -> None:
        async for _ in stream:
            raise ArithmeticError

    app.ownership.applied = {A0: 0}
    async with app:
        app.transport.logs.append(A0, 0)
        await until_committed(app, 1)


async def test_an_event_is_acknowledged_by_its_agent_alone(tmp_path):
    app = memory_app(tmp_path, ChunkConsumer)
    seen: asyncio.Queue[Any] = asyncio.Queue()

    @app.agent(chunk_topic(app, "a", 1))
    async def careful(stream: Any) -> None:
        async for event in events(stream):
            await seen.put(event)

    app.ownership.applied = {A0: 0}
    async with app:
        app.transport.logs.append(A0, 0)
        first = await seen.get()
        app.transport.logs.append(A0, 1)
        await seen.get()
        await app.consumer.commit()
        assert app.transport.logs.committed == {}
        first.ack()
        await until_committed(app, 1)


async def test_stock_faust_loses_what_it_delivers_before_its_recovery_ends(tmp_path):
    """With tables its fetcher runs by then: 1 is delivered, and then the streams are emptied."""
    app = memory_app(tmp_path, StockConsumer)
    seen: asyncio.Queue[int] = asyncio.Queue()
    recovered = asyncio.Event()

    @app.agent(app.topic("a"))
    async def slow(stream: Any) -> None:
        async for event in stream.events():
            await seen.put(event.message.offset)
            await recovered.wait()

    async with app:
        logs, consumer = app.transport.logs, app.consumer
        logs.append(A0, 0)
        assert await seen.get() == 0
        consumer.pause_partitions({A0})
        logs.committed[A0] = 1
        logs.append(A0, 1)
        seek = consumer.seek_to_committed

        async def seek_and_hear_of_it_later() -> Mapping[TP, int]:
            answer = await seek()
            while consumer._read_offset[A0] != 1:
                await asyncio.sleep(0)
            return answer  # type: ignore[no-any-return]

        consumer.seek_to_committed = seek_and_hear_of_it_later
        await app.tables.recovery.on_recovery_completed(app.consumer_generation_id)
        recovered.set()
        logs.append(A0, 2)
        assert await seen.get() == 2


async def test_no_record_is_lost_or_overtaken_over_many_rebalances(tmp_path):
    """Chunks under way at a rebalance are either taken before it or delivered again after it."""
    app = memory_app(tmp_path, ChunkConsumer)
    applied: list[int] = []

    @app.agent(chunk_topic(app, "a", 1))
    async def apply(stream: Any) -> None:
        async for event in events(stream):
            assert event.value.start == app.ownership.applied[A0]
            app.ownership.applied[A0] = event.value.end
            applied.extend(record.offset for record in event.value.records)
            await asyncio.sleep(0)
            event.ack()

    app.ownership.applied = {A0: 0}
    async with app:
        for round in range(30):
            for offset in range(round * 10, round * 10 + 10):
                app.transport.logs.append(A0, offset)
                await asyncio.sleep(0)
            if round % 3:
                await app.consumer.rebalance({A0})
        await until_committed(app, 300)
        assert applied == list(range(300))


def test_a_chunk_is_split_where_the_rest_begins():
    """Offsets without a record between the two go with the first."""
    records: list[chunks.Record] = [Row(offset, 0, b"k", b"v") for offset in (3, 4, 7)]
    first, rest = Chunk("a", 0, 2, 9, records, 6, 50).split(2)
    assert (first.start, first.end, first.records) == (2, 7, records[:2])
    assert (rest.start, rest.end, rest.records) == (7, 9, records[2:])
    assert (first.behind, rest.behind) == (2, 50)
