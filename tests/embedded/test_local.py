"""The driver and the journal on the embedded broker, in a real Faust app.

What chunks promise on every driver is tested in `tests/test_chunks.py`; here is what this one
adds: where records come from, who is told when, and that nothing waits for a timer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.types import TP

from stream import broker as broker_module
from stream import local
from stream.assignor import NumberAssignor
from stream.broker import LocalBroker
from stream.chunks import Backlog, Chunk, chunk_topic, events
from stream.errors import Fenced, SourceRemade, SourceTrimmed
from stream.local import LocalJournal
from stream.membership import Membership

PARTITIONS = 3
A = [TP("a", p) for p in range(PARTITIONS)]
B = [TP("b", p) for p in range(PARTITIONS)]
WAIT_S = 30.0


class Ownership:
    """Notes what it is told, and releases partitions where told to."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.calls: list[Any] = []
        self.positions: dict[TP, int] = {}
        self.released = asyncio.Event()

    def assigned(self, numbers: set[int], generation: int) -> None:
        self.calls.append(("assigned", numbers, generation))
        self.app.add_future(self.release())

    async def release(self) -> None:
        await self.app.consumer.release(self.positions)
        self.released.set()

    async def revoked(self, numbers: set[int]) -> None:
        self.calls.append(("revoked", numbers))


class Run:
    """A running app that reads topics ``a`` and ``b``, and what its agents were given."""

    def __init__(self, broker: LocalBroker, directory: Path) -> None:
        self.chunks: list[Chunk] = []
        self.acks = True
        self._came = asyncio.Event()
        self.app = faust.App(
            "test",
            broker=broker.url,
            store="memory://",
            datadir=directory / "faust",
            topic_disable_leader=True,
            topic_allow_declare=False,
            web_enabled=False,
            stream_wait_empty=False,
            TableManager=Membership,
            PartitionAssignor=NumberAssignor,
        )
        self.ownership = self.app.ownership = Ownership(self.app)
        for name in ("a", "b"):
            self.app.agent(chunk_topic(self.app, name, PARTITIONS), name=name)(self._read)

    async def _read(self, stream: Any) -> None:
        async for event in events(stream):
            self.chunks.append(event.value)
            if self.acks:
                event.ack()
            self._came.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds that can change only with a chunk."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._came.clear()
                await self._came.wait()

    def values(self, tp: TP) -> list[bytes | None]:
        return [
            record.value
            for chunk in self.chunks
            if (chunk.topic, chunk.partition) == tp
            for record in chunk.records
        ]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Whatever needs the fetch to time out takes longer than the tests wait.
    monkeypatch.setattr(local, "FETCH_WAIT_S", 10 * WAIT_S)
    with LocalBroker() as broker:
        for name in ("a", "b"):
            broker.create_topic(name, PARTITIONS)
        broker.create_topic("rows", PARTITIONS, {"cleanup.policy": "compact"})
        yield broker


@pytest.fixture
def start(broker: LocalBroker, tmp_path: Path) -> Any:
    """Starts an app, with its sources released at the given positions."""

    @contextlib.asynccontextmanager
    async def start(positions: dict[TP, int]) -> AsyncIterator[Run]:
        run = Run(broker, tmp_path)
        run.ownership.positions = positions
        await run.app.start()
        try:
            await asyncio.wait_for(run.ownership.released.wait(), WAIT_S)
            yield run
        finally:
            await run.app.stop()

    return start


def produce(broker: LocalBroker, tp: TP, *values: int) -> None:
    broker.produce_to(tp.topic, tp.partition, [(b"k", b"%d" % value) for value in values])


# The driver


async def test_chunks_come_from_where_each_partition_was_released(broker, start):
    """What was there before, and what comes later; nothing of a partition nobody released."""
    for tp in [*A, *B]:
        produce(broker, tp, 0, 1, 2)
    async with start({A[0]: 0, A[1]: 2, B[0]: 3}) as run:
        await run.until(lambda: len(run.chunks) == 2)
        for tp in [*A, *B]:
            produce(broker, tp, 3)
        await run.until(lambda: len(run.chunks) == 5)

    assert {tp: run.values(tp) for tp in [*A, *B] if run.values(tp)} == {
        A[0]: [b"0", b"1", b"2", b"3"],
        A[1]: [b"2", b"3"],
        B[0]: [b"3"],
    }
    spans = [(c.start, c.end) for c in run.chunks if (c.topic, c.partition) == A[0]]
    assert spans == [(0, 3), (3, 4)]


async def test_a_long_backlog_does_not_keep_others_waiting(broker, start):
    """Chunks of all partitions take turns."""
    broker.produce_to("a", 0, [(b"k", b"v")] * 60_000)
    for tp in (*A[1:], *B):
        produce(broker, tp, 0)
    async with start(dict.fromkeys([*A, *B], 0)) as run:
        await run.until(lambda: sum(len(chunk.records) for chunk in run.chunks) == 60_005)
    places = [i for i, c in enumerate(run.chunks) if (c.topic, c.partition) != A[0]]
    assert places[-1] < 10
    assert [c.end - c.start for c in run.chunks if c.topic == "a" and c.partition == 0] == (
        [2_000] * 30
    )


async def test_a_partition_released_anew_comes_again_at_once(broker, start):
    """Also while the fetch waits for records, having found none where it was before."""
    produce(broker, A[0], 0, 1, 2)
    async with start({A[0]: 0}) as run:
        await run.until(lambda: len(run.chunks) == 1)
        await run.app.consumer.release({A[0]: 1})
        await run.until(lambda: len(run.chunks) == 2)
        run.app.consumer.hold([A[0]])
        produce(broker, A[0], 3)
        await run.app.consumer.release({A[0]: 3})
        await run.until(lambda: len(run.chunks) == 3)
    assert [(c.start, c.end) for c in run.chunks] == [(0, 3), (1, 3), (3, 4)]


async def test_a_held_partition_delivers_nothing_and_has_no_say_in_the_rest(broker, start):
    """What comes to it meanwhile comes once it is released."""
    async with start({A[0]: 0, A[1]: 0}) as run:
        run.app.consumer.hold([A[0]])
        produce(broker, A[0], 0)
        produce(broker, A[1], 0)
        await run.until(lambda: len(run.chunks) == 1)
        assert run.values(A[1]) == [b"0"]
        await run.app.consumer.release({A[0]: 0})
        await run.until(lambda: len(run.chunks) == 2)
    assert run.values(A[0]) == [b"0"]


async def test_a_backlog_tells_what_is_released_from_what_is_read(broker, start):
    """Caught up is who has applied all up to `fetched`, where the position is the end."""
    produce(broker, A[0], 0, 1, 2)
    async with start({A[0]: 1, A[1]: 0}) as run:
        await run.until(lambda: len(run.chunks) == 1)
        backlog = await run.app.consumer.backlog([*A])
        assert backlog == {A[0]: Backlog(3, 3, 3), A[1]: Backlog(0, 0, 0)}
        produce(broker, A[0], 3)
        assert await run.app.consumer.backlog([A[0]]) == {A[0]: Backlog(4, 3, 3)}


async def test_offsets_are_committed_as_far_as_chunks_are_acknowledged(broker, start):
    """For people's tools: the positions that count are the owner's."""
    produce(broker, A[0], 0, 1)
    async with start({A[0]: 0, A[1]: 0}) as run:
        await run.until(lambda: len(run.chunks) == 1)
        await run.app.consumer.commit()
        assert broker.committed("test", "a", 0) == 2
        run.acks = False
        produce(broker, A[0], 2)
        produce(broker, A[1], 0)
        await run.until(lambda: len(run.chunks) == 3)
        await run.app.consumer.commit()
    assert broker.committed("test", "a", 0) == 2
    assert broker.committed("test", "a", 1) is None


async def test_a_rebalance_revokes_and_assigns_as_a_group_does(broker, start):
    """All are held from the revocation on, until their owner releases them again."""
    produce(broker, A[0], 0)
    async with start({A[0]: 0}) as run:
        await run.until(lambda: len(run.chunks) == 1)
        run.ownership.positions = {A[1]: 0}
        await run.app.consumer.subscribe({"a", "b"})
        produce(broker, A[0], 1)
        produce(broker, A[1], 0)
        await run.until(lambda: len(run.chunks) == 2)
        assert await run.app.consumer.backlog(A) == {A[1]: Backlog(1, 1, 1)}
    numbers = set(range(PARTITIONS))
    assert run.ownership.calls == [
        ("assigned", numbers, 1),
        ("revoked", numbers),
        ("assigned", numbers, 2),
    ]
    assert broker.committed("test", "a", 0) == 1
    assert [(c.partition, c.start) for c in run.chunks] == [(0, 0), (1, 0)]


@pytest.mark.parametrize(("position", "error"), [(1, SourceTrimmed), (4, SourceRemade)])
async def test_a_position_outside_the_source_stops_the_app(broker, start, position, error):
    """It is never taken for another one."""
    for value in (0, 1, 2):
        produce(broker, A[0], value)
    broker._store.trim(broker._log("a", 0), below=2, before_ms=0)
    async with start({A[0]: position}) as run:
        async with asyncio.timeout(WAIT_S):
            await run.app._crashed.wait()
        assert isinstance(run.app.crash_reason, error)
        assert "offset" in str(run.app.crash_reason)
    assert run.chunks == []


async def test_the_app_lets_go_of_the_broker_when_it_stops(tmp_path):
    """Another process may have the directory then, or the same one again."""
    with LocalBroker(tmp_path / "log") as broker:
        for name in ("a", "b"):
            broker.create_topic(name, PARTITIONS)
        run = Run(broker, tmp_path)
        await run.app.start()
        assert run.app.transport.broker is broker
        await run.app.stop()
    with LocalBroker(tmp_path / "log") as broker:
        assert set(broker.topics) == {"a", "b"}


# The journal


@pytest.fixture
async def journal(broker: LocalBroker) -> AsyncIterator[LocalJournal]:
    journal = LocalJournal(broker, changelog="rows", partition=1)
    await journal.open()
    yield journal
    await journal.close()


async def all_of(journal: LocalJournal, start: int, end: int) -> list[tuple[int, bytes | None]]:
    found, positions = [], [start]
    async for records, position in journal.read(start, end):
        found += [(record.offset, record.value) for record in records]
        positions.append(position)
    assert positions[-1] == end
    return found


async def test_a_commit_is_read_back_from_its_own_partition(broker, journal):
    """It returns the position after its changelog rows, whichever topics it also wrote to."""
    assert await journal.bounds() == (0, 0)
    assert await journal.commit({"a": [(b"k", b"out")], "rows": [(b"k", b"1"), (b"l", b"2")]}) == 2
    assert await journal.commit({"rows": [(b"k", None)]}) == 3
    assert await journal.bounds() == (0, 3)
    assert await all_of(journal, 0, 3) == [(0, b"1"), (1, b"2"), (2, None)]
    assert await all_of(journal, 1, 2) == [(1, b"2")]
    assert await all_of(journal, 3, 3) == []
    assert [broker.end("a", p) for p in range(PARTITIONS)] == [0, 1, 0]


async def test_a_commit_without_a_changelog_row_is_refused(broker, journal):
    """Its outputs would be of no state; and it would have no position to return."""
    with pytest.raises(ValueError, match="without a row for rows"):
        await journal.commit({"a": [(b"k", b"out")]})
    assert broker.end("a", 1) == 0


async def test_a_changelog_is_read_to_its_end_in_bounded_batches(broker, journal, monkeypatch):
    """Also where compaction has taken the last records before the end that was asked for."""
    monkeypatch.setattr(local, "JOURNAL_RECORDS", 7)
    monkeypatch.setattr(broker_module, "COMPACT_RECORDS", 1)
    for i in range(100):
        await journal.commit({"rows": [(b"%d" % (i % 10), b"%d" % i)]})
    broker._store.compact(broker._log("rows", 1), tombstones_ms=0, stopped=lambda: False)
    await journal.commit({"rows": [(b"%d" % i, b"new") for i in range(5)]})

    sizes = [len(records) async for records, _ in journal.read(0, 105)]
    assert max(sizes) <= 7
    expected = [(i, b"%d" % i) for i in range(90, 100)] + [(i, b"new") for i in range(100, 105)]
    assert await all_of(journal, 0, 105) == expected
    assert await all_of(journal, 0, 50) == []
    assert await all_of(journal, 95, 102) == expected[5:12]


async def test_opening_a_partition_fences_its_earlier_owner(broker, journal):
    """Whatever it does next, it learns that; nothing of its commit is there."""
    await journal.commit({"rows": [(b"k", b"1")]})
    reading = journal.read(0, 1)
    later = LocalJournal(broker, changelog="rows", partition=1)
    await later.open()
    other = LocalJournal(broker, changelog="rows", partition=2)
    await other.open()
    for attempt in (
        journal.commit({"rows": [(b"k", b"2")], "a": [(b"k", b"2")]}),
        journal.bounds(),
        journal.source("a", 0),
        anext(reading),
    ):
        with pytest.raises(Fenced, match="partition 1"):
            await attempt
    assert await later.commit({"rows": [(b"k", b"3")]}) == 2
    assert await all_of(later, 0, 2) == [(0, b"1"), (1, b"3")]
    assert broker.end("a", 1) == 0
    for opened in (later, other):
        await opened.close()
        with pytest.raises(Fenced, match="not open"):
            await opened.commit({"rows": [(b"k", b"4")]})


async def test_a_source_is_described_around_a_position(broker, journal):
    """Its bounds, and the last record before the position, if it is still there."""
    for value in (0, 1, 2):
        produce(broker, A[1], value)

    async def seen(offset: int) -> tuple[int, int, bytes | None]:
        state = await journal.source("a", offset)
        return state.first, state.end, state.record and state.record.value

    assert [await seen(offset) for offset in range(5)] == [
        (0, 3, None),
        (0, 3, b"0"),
        (0, 3, b"1"),
        (0, 3, b"2"),
        (0, 3, None),
    ]
    broker._store.trim(broker._log("a", 1), below=2, before_ms=0)
    assert [await seen(offset) for offset in (1, 2, 3)] == [
        (2, 3, None),
        (2, 3, None),
        (2, 3, b"2"),
    ]


async def test_an_open_journal_keeps_the_broker_open(tmp_path):
    """A partition that closes after the app has stopped can still commit what it has."""
    broker = LocalBroker(tmp_path)
    broker.create_topic("rows", 1)
    journal = LocalJournal(broker, changelog="rows", partition=0)
    await journal.open()
    broker.release()
    assert await journal.commit({"rows": [(b"k", b"v")]}) == 1
    await journal.close()
    await journal.close()
    with LocalBroker(tmp_path) as broker:
        assert broker.end("rows", 0) == 1
