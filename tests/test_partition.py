"""Partitions with everything real but Faust: journal, store, users in little memory, deadlines.

Whatever the chunks, the flushes, the evictions and the restarts (with the disk, without it, in
the middle of what has gathered): what is committed equals the naive reference.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.broker import LocalBroker
from stream.chunks import Chunk, Record
from stream.errors import Fenced, JournalLost, SourceTrimmed
from stream.journal import Said
from stream.rows import Rows
from stream.settings import Settings
from tables.purchases import ORDERS, Buyer
from tests.partition import (
    CHANGELOG,
    Unreliable,
    Worker,
    broker_with_topics,
    committed,
    produce,
)
from tests.reference import by_user, run
from tests.strategies import DAY_MS, Scene, scenes


async def live_through(scene: Scene, chance: Random, disk: Path) -> LocalBroker:
    """Apply a scene with random chunks, pauses, crashes and lost disks; to the end."""
    broker = broker_with_topics()
    produce(broker, [event for _, event in scene.stream])
    worker = Worker(broker, scene.rules, disk, allowance=chance.choice([1, 40_000, 1 << 24]))
    worker.chance, worker.failures = chance, chance.choice([0.0, 0.2])
    partition = await worker.open()
    fetched = partition.feeds["purchases"].place.offset
    end = broker.end("purchases", 0)
    while fetched < end:
        fetched = worker.offer(partition, fetched, chance.choice([1, 2, 5, 100]))
        action = chance.random()
        if action < 0.25:
            await partition.drain()
        elif action < 0.5:
            for _ in range(chance.randint(0, 5)):
                await asyncio.sleep(0)
        if worker.errors or action < 0.15 or 0.45 < action < 0.5:
            await partition.close()
            worker.errors.clear()
            if chance.random() < 0.4:
                shutil.rmtree(disk / "state")
            partition = await worker.open()
            fetched = partition.feeds["purchases"].place.offset
        elif action > 0.9 and fetched > 1:
            # Delivered again: what is applied already is passed over.
            fetched = worker.offer(partition, fetched - 1, 1)
    worker.failures = 0.0
    await partition.close()
    worker.errors.clear()
    partition = await worker.open()
    while partition.feeds["purchases"].place.offset < end:
        worker.offer(partition, partition.feeds["purchases"].place.offset, 100)
        await partition.drain()
    if scene.until_ms is not None:
        partition.advance(scene.until_ms)
    await partition.drain()
    await partition.close()
    assert worker.errors == []
    return broker


@settings(max_examples=40, deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_what_is_committed_equals_the_reference_whatever_happens(scene, chance):
    """Restarts, evictions, chunk borders and lost disks leave no trace in the outputs."""
    with tempfile.TemporaryDirectory() as folder:
        broker = asyncio.run(live_through(scene, chance, Path(folder)))
        with broker:
            reference = run(scene.rules, [(0, event) for _, event in scene.stream], scene.until_ms)
            changes = committed(broker, "tag-changes")
            warnings = committed(broker, "churn-warnings")
            assert by_user(changes) == by_user(reference.changes)
            assert by_user(warnings) == by_user(reference.warnings)
            assert len({change["change_id"] for change in changes}) == len(changes)
            assert len({(w["warning_id"], w["status"]) for w in warnings}) == len(warnings)


async def test_a_wave_of_deadlines_survives_transactions_that_fail(tmp_path):
    """What is due is found again on the same disk, however often the broker gives up."""
    chance = Random(5)
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(1_200)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 16)
        partition = await worker.open()
        worker.offer(partition, 0, 1_200)
        await partition.drain()
        raised: list[dict[str, Any]] = []
        for _ in range(200):
            worker.chance, worker.failures = chance, 0.4
            await partition.close()
            worker.errors.clear()
            partition = await worker.open()
            partition.advance(order(0)["ts"] + 27 * DAY_MS + 2_000)
            await partition.drain()
            raised = committed(broker, "churn-warnings")
            if not worker.errors:
                break
        await partition.close()
        assert len(raised) == 1_200
        assert len({warning["user_id"] for warning in raised}) == 1_200


async def test_silent_deadlines_stay_within_the_memory_allowed(tmp_path):
    """A midnight that changes no tag loads many users, and keeps few."""
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(2_000)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=200_000)
        partition = await worker.open()
        worker.offer(partition, 0, 2_000)
        await partition.drain()
        partition.advance(order(0)["ts"] + 9 * DAY_MS)
        await partition.drain()
        users = partition.feeds["purchases"].users
        assert len(users.rows) < 1_000
        await partition.close()


async def test_a_chunk_beyond_the_position_stops_the_partition(tmp_path):
    """Records that were never delivered are not skipped."""
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(4)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        partition = await worker.open()
        worker.offer(partition, 2, 1)
        await until(lambda: worker.errors)
        assert isinstance(worker.errors[0], SourceTrimmed)
        assert committed(broker, "tag-changes") == []
        await partition.close()


async def test_a_fenced_partition_writes_nothing_more(tmp_path):
    """Another owner opened the journal: what has gathered here never becomes visible."""
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(4)])
        worker = Worker(broker, shipped_rules(), tmp_path / "a", allowance=1 << 20)
        partition = await worker.open()
        other = Worker(broker, shipped_rules(), tmp_path / "b", allowance=1 << 20)
        successor = await other.open()
        worker.offer(partition, 0, 4)
        await until(lambda: worker.errors)
        assert isinstance(worker.errors[0], Fenced)
        assert committed(broker, "tag-changes") == []
        other.offer(successor, 0, 4)
        await successor.drain()
        assert committed(broker, "tag-changes") != []
        await partition.close()
        await successor.close()


@pytest.mark.parametrize("in_commit", [False, True])
async def test_a_transaction_that_is_given_up_is_counted_by_how_far_it_came(tmp_path, in_commit):
    """Before its commit, records did not reach the broker; in it, nobody knows."""

    class GivenUp(Unreliable):
        async def commit(self, rows: Mapping[str, Said]) -> int:
            lost = JournalLost("given up")
            lost.in_commit = in_commit
            raise lost

    with broker_with_topics() as broker:
        produce(broker, [order(0)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        partition = await worker.open()
        partition.journal = GivenUp(broker, changelog=CHANGELOG, partition=0)
        worker.offer(partition, 0, 1)
        await until(lambda: worker.errors)
        await partition.close()
        text = worker.metrics.text().decode()
        assert f"tagstream_produce_failures_total {float(not in_commit)}" in text
        assert f"tagstream_commit_failures_total {float(in_commit)}" in text


async def test_an_unexpected_error_stops_before_anything_of_the_flush_is_visible(tmp_path):
    """A bug in a table: no change, no position, no acknowledgement."""
    acked: list[int] = []
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(4)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        partition = await worker.open()
        feed = partition.feeds["purchases"]
        feed.users.rows.put(b"u2", b"no record")
        records: list[Record] = list(broker.read("purchases", 0, 0, max_records=4))
        chunk = Chunk("purchases", 0, 0, 4, records, 0)
        partition.offer("purchases", chunk, lambda: acked.append(1))
        await until(lambda: worker.errors)
        await partition.close()
        assert isinstance(worker.errors[0], IndexError)
        assert committed(broker, "tag-changes") == []
        assert broker.end(CHANGELOG, 0) == 0
        assert acked == []


async def test_a_partition_goes_on_while_what_others_wait_to_write_takes_all_the_room(tmp_path):
    """Their flush tells nobody but them."""
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(4)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 16)
        others = Rows(b"", lambda _: None, worker.pool)
        for number in range(100):
            others.put(b"%d" % number, bytes(200))
        assert others.is_crowded
        partition = await worker.open()
        worker.offer(partition, 0, 4)
        await partition.drain()
        assert partition.feeds["purchases"].committed_offset == 4
        await partition.close()


async def test_who_looks_a_user_up_has_a_copy(tmp_path):
    """Also of one who changed twice since the last transaction, and is kept decoded until then."""
    with broker_with_topics() as broker:
        produce(broker, [{**order(1), "event_id": f"e{n}"} for n in range(3)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        partition = await worker.open()
        fetched = worker.offer(partition, 0, 2)
        await asyncio.sleep(0)  # one turn
        users, profiles, key = partition.feeds["purchases"].users, partition.profiles, b"u1"
        assert users.is_waiting(key)
        seen, profile = users.peek(key), profiles.peek(key)
        assert isinstance(seen, Buyer)
        assert profile is not None
        assert (seen, profile) == (users.peek(key), profiles.peek(key))
        seen.clock_ms += 1
        profile.domains.clear()
        assert seen != users.peek(key)
        assert profile != profiles.peek(key)
        worker.offer(partition, fetched, 1)
        await partition.drain()
        written = users.peek(key)
        assert isinstance(written, Buyer)
        assert written.total(ORDERS) == 3
        await partition.close()


async def test_live_events_that_come_a_few_at_a_time_are_applied_together(tmp_path):
    """Or each handful would wait for some of the deadlines of a midnight."""
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(40)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        partition = await worker.open()
        fetched = 0
        while fetched < 40:
            fetched = worker.offer(partition, fetched, 2)
        await asyncio.sleep(0)  # one turn
        assert partition.feeds["purchases"].place.offset == 40
        await partition.close()


async def test_unusable_events_are_dead_lettered_and_the_rest_of_the_chunk_goes_on(tmp_path):
    """Each under its code, with the original; none stops the others."""
    with broker_with_topics() as broker:
        good = order(1)
        rows = [
            (b"u1", b"{"),
            (b"u1", orjson.dumps({**good, "type": "dance"})),
            (b"u1", orjson.dumps({**good, "amount": -1})),
            (b"u9", orjson.dumps(good)),
            (b"u1", orjson.dumps(good)),
            (b"u1", orjson.dumps({**good, "event_id": "old", "ts": good["ts"] - 8 * 86_400_000})),
            (b"u1", b"x" * 70_000),
        ]
        broker.produce_to("purchases", 0, rows)
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        partition = await worker.open()
        worker.offer(partition, 0, 100)
        await partition.drain()
        letters = committed(broker, "dead-letters")
        assert [(letter["offset"], letter["code"]) for letter in letters] == [
            (0, "malformed"),
            (1, "unknown_type"),
            (2, "invalid"),
            (3, "key_mismatch"),
            (5, "too_late"),
            (6, "too_large"),
        ]
        assert committed(broker, "tag-changes") != []
        await partition.close()


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
async def test_a_record_in_the_wrong_partition_is_dead_lettered(tmp_path, partitioner):
    """Its user belongs to another owner, by the partitioner that is set."""
    with broker_with_topics() as broker:
        produce(broker, [order(n) for n in range(40)])
        worker = Worker(broker, shipped_rules(), tmp_path, allowance=1 << 20)
        options = {"data_dir": str(tmp_path), "partitions": "4", "partitioner": partitioner}
        worker.settings = Settings.load({**options, "time": "events"}, {})
        partition = await worker.open()
        worker.offer(partition, 0, 100)
        await partition.drain()
        codes = {letter["code"] for letter in committed(broker, "dead-letters")}
        refused = len(committed(broker, "dead-letters"))
        assert codes == {"wrong_partition"}
        assert 0 < refused < 40
        await partition.close()


def order(number: int) -> dict[str, Any]:
    user = f"u{number}"
    ts = 1_750_000_000_000 + number
    return {"event_id": f"e{number}", "user_id": user, "type": "order", "ts": ts, "amount": 20}


def shipped_rules() -> Any:
    from tests.strategies import shipped

    return shipped()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
