"""The embedded broker: one contract on a directory and for a temporary one, and kill -9."""

import asyncio
import multiprocessing
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from stream import broker as module
from stream.broker import LocalBroker
from stream.errors import (
    Fenced,
    JournalLost,
    SettingError,
    SourceRemade,
    SourceTrimmed,
    StateError,
    TopicError,
    UsageError,
)
from stream.log import Row
from stream.partitioner import partition_for

COMPACT = {"cleanup.policy": "compact"}
WAIT_S = 30.0

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(params=["directory", "temporary"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., LocalBroker]:
    """Makes brokers of either kind."""
    return lambda **options: LocalBroker(
        tmp_path / "log" if request.param == "directory" else None, **options
    )


@pytest.fixture
def broker(make: Callable[..., LocalBroker]) -> Iterator[LocalBroker]:
    with make() as broker:
        broker.create_topic("events", 4)
        broker.create_topic("rows", 4, COMPACT)
        yield broker


def values(broker: LocalBroker, topic: str, partition: int) -> list[bytes | None]:
    """All that can be read, in steps of two records."""
    found, offset = [], broker.start(topic, partition)
    while offset < broker.end(topic, partition):
        records, offset = broker.fetch(topic, partition, offset, max_records=2)
        found += [record.value for record in records]
    return found


def upkeep(broker: LocalBroker) -> None:
    """Wait until the broker has seen to compaction and retention once more."""
    done, clean = threading.Event(), broker._clean

    def cleaned() -> None:
        clean()
        done.set()

    broker._clean = cleaned  # type: ignore[method-assign]
    broker._due.set()
    assert done.wait(WAIT_S)
    broker._clean = clean  # type: ignore[method-assign]


# Topics


def test_a_topic_keeps_its_partition_count(broker):
    """More partitions would give users other owners; asking again for as many is no error."""
    broker.create_topic("events", 4)
    with pytest.raises(TopicError, match="events on local://.* has 4 partitions, not 8: set TAG"):
        broker.create_topic("events", 8)
    assert broker.partitions_for_topic("events") == {0, 1, 2, 3}
    assert broker.partitions_for_topic("nothing") is None


def test_settings_are_kafkas_and_replaced_only_by_others(broker):
    """`create_topic` without settings, as at every start, leaves those that an operator gave."""
    broker.create_topic("events", 4, {"retention.ms": "60000"})
    broker.create_topic("events", 4)
    assert broker.topics["events"].retention_ms == 60_000
    assert broker.topics["rows"].policy == "compact"
    for wrong in ({"cleanup.policy": "shred"}, {"retention": 5}):
        with pytest.raises(TopicError, match="^topic events: "):
            broker.create_topic("events", 4, wrong)


def test_what_is_not_there_is_named(broker):
    """An append that names one such topic appends nothing."""
    with pytest.raises(TopicError, match=r"there is no nothing\[0\] on local://"):
        broker.append_many({("events", 0): [(b"k", b"v")], ("nothing", 0): [(b"k", b"v")]})
    with pytest.raises(TopicError, match=r"there is no events\[4\]"):
        broker.produce_to("events", 4, [])
    with pytest.raises(TopicError, match="there is no nothing"):
        broker.produce("nothing", [(b"k", b"v")])
    assert broker.end("events", 0) == 0


def test_everything_survives_a_restart(tmp_path):
    """Topics, settings, records, committed offsets; offsets go on where they ended."""
    with LocalBroker(tmp_path) as broker:
        broker.create_topic("events", 2, {"retention.ms": 60_000})
        broker.create_topic("rows", 1, COMPACT)
        broker.produce_to("events", 1, [(b"a", b"1"), (None, None)], timestamp=7)
        broker.commit_offsets("group", {("events", 1): 2})
        topics, records = broker.topics, broker.read("events", 1, 0)
    with LocalBroker(tmp_path) as broker:
        assert (broker.topics, broker.read("events", 1, 0)) == (topics, records)
        assert [(r.offset, r.timestamp, r.key, r.value) for r in records] == [
            (0, 7, b"a", b"1"),
            (1, 7, None, None),
        ]
        assert broker.committed("group", "events", 1) == 2
        assert broker.committed("group", "events", 0) is None
        assert broker.produce_to("events", 1, [(b"b", b"2")]) == 2
        broker.create_topic("more", 1)
        assert broker.end("more", 0) == 0


# Records


def test_an_append_reports_the_first_offset_of_each_partition(broker):
    """Positions follow from it, without asking again."""
    broker.produce_to("events", 0, [(b"k", b"0")])
    firsts = broker.append_many(
        {("events", 0): [(b"k", b"1"), (b"k", b"2")], ("rows", 3): [(b"k", b"v")], ("rows", 1): []}
    )
    assert firsts == {("events", 0): 1, ("rows", 3): 0, ("rows", 1): 0}
    assert values(broker, "events", 0) == [b"0", b"1", b"2"]
    assert broker.end("rows", 1) == 0


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_records_go_where_the_partitioner_puts_their_keys(make, partitioner):
    """Ownership of users follows from it; records without a key take turns."""
    with make(partitioner=partitioner) as broker:
        broker.create_topic("events", 4)
        rows: list[Row] = [(b"user-%d" % i, b"") for i in range(200)]
        broker.produce("events", rows, timestamp=5)
        found = {r.key: p for p in range(4) for r in broker.read("events", p, 0)}
        assert found == {key: partition_for(key or b"", 4, partitioner) for key, _ in rows}

        ends = [broker.end("events", p) for p in range(4)]
        broker.produce("events", [(None, b"")] * 8)
        assert [broker.end("events", p) - ends[p] for p in range(4)] == [2, 2, 2, 2]


def test_a_position_outside_the_log_is_an_error_with_the_remedy(broker):
    """Reading on somewhere else would lose records, or repeat them, in silence."""
    for value in (b"0", b"1", b"2"):
        broker.produce_to("events", 0, [(b"k", value)])
    broker._store.trim(broker._log("events", 0), below=2, before_ms=0)
    assert broker.start("events", 0) == 2
    assert broker.read("events", 0, 3) == []
    with pytest.raises(SourceTrimmed, match=r"^events\[0\]: offset 1 is not within 2 to 3: rec"):
        broker.read("events", 0, 1)
    with pytest.raises(SourceRemade, match=r"^events\[0\]: offset 4 is not within 2 to 3: the log"):
        broker.read("events", 0, 4)


# Upkeep


def test_compacted_topics_keep_the_newest_of_each_key_and_every_offset(broker, monkeypatch):
    """In the background, once half is to be gained; a fresh tombstone stays for a while."""
    monkeypatch.setattr(module, "COMPACT_RECORDS", 100)
    for i in range(20):
        rows = [(b"%d" % n, b"%d" % i) for n in range(1_000)]
        broker.append_many({("rows", 0): rows, ("events", 0): rows})
    broker.produce_to("rows", 0, [(b"7", None)])
    upkeep(broker)

    assert broker.end("rows", 0) == 20_001
    records = [r for o in range(0, 20_001, 500) for r in broker.read("rows", 0, o, 500)]
    newest = {record.key: record.value for record in records}
    assert newest == {b"%d" % n: b"19" for n in range(1_000)} | {b"7": None}
    assert 1_000 <= len(values(broker, "rows", 0)) <= 2_000
    assert len(values(broker, "events", 0)) == 20_000


def test_old_tombstones_go_with_what_they_deleted(broker):
    """A forgotten user's key must not stay for ever."""
    rows: list[Row] = [(b"gone", b"v"), (b"stays", b"v"), (b"gone", None)]
    broker.produce_to("rows", 0, rows * module.COMPACT_RECORDS, timestamp=1)
    upkeep(broker)
    assert [r.key for r in broker.read("rows", 0, 0)] == [b"stays"]
    assert broker.end("rows", 0) == 3 * module.COMPACT_RECORDS


def test_retention_deletes_what_is_older_but_never_moves_the_end(broker):
    """By the records' own times, a run of records at a time; the last run stays."""
    broker.create_topic("events", 4, {"retention.ms": 3_600_000})
    for _ in range(3):
        broker.produce_to("events", 0, [(b"k", b"old")] * 5, timestamp=1)
        broker.produce_to("events", 1, [(b"k", b"old")] * 5, timestamp=1)
    broker.produce_to("events", 1, [(b"k", b"new")])
    upkeep(broker)
    assert (broker.start("events", 0), broker.end("events", 0)) == (10, 15)
    assert (broker.start("events", 1), broker.end("events", 1)) == (15, 16)
    assert values(broker, "events", 1) == [b"new"]


def test_applied_records_are_freed_only_if_asked_for(make):
    """Replaying a large file need not keep a copy of it; else a source is as long as it is."""
    for free, start in ((False, 0), (True, 200)):
        with make(free=free) as broker:
            topic = f"events-{free}"
            broker.create_topic(topic, 1)
            for _ in range(3):
                broker.produce_to(topic, 0, [(b"k", b"v")] * 100)
            broker.commit_offsets("slow", {(topic, 0): 250})
            broker.commit_offsets("fast", {(topic, 0): 300})
            upkeep(broker)
            assert (broker.start(topic, 0), broker.end(topic, 0)) == (start, 300)


def test_a_failure_of_the_upkeep_is_what_the_next_append_raises(broker, monkeypatch):
    """It runs in a thread of its own, where nobody would hear of it."""

    def fail() -> None:
        raise StateError("the log is damaged")

    monkeypatch.setattr(broker, "_clean", fail)
    broker._due.set()
    broker._upkeep.join(WAIT_S)
    with pytest.raises(StateError, match="the log is damaged"):
        broker.produce_to("events", 0, [(b"k", b"v")])


# Owners and readers


def test_only_the_last_who_fenced_a_partition_may_write_to_it(broker):
    """The others learn it at their next append, of which nothing is kept."""
    first = broker.fence("rows", 0)
    beside = broker.fence("rows", 1)
    broker.append_many({("rows", 0): [(b"k", b"1")]}, fence=first)
    second = broker.fence("rows", 0)
    with pytest.raises(Fenced, match="^partition 0 was opened by another owner"):
        broker.append_many(
            {("rows", 0): [(b"k", b"2")], ("events", 0): [(b"k", b"2")]}, fence=first
        )
    broker.append_many({("rows", 0): [(b"k", b"3")]}, fence=second)
    broker.append_many({("rows", 1): [(b"k", b"4")]}, fence=beside)
    assert values(broker, "rows", 0) == [b"1", b"3"]
    assert values(broker, "events", 0) == []


async def test_a_wait_ends_with_an_append_a_wake_or_its_time(broker):
    """Nothing polls, so an idle process uses no time."""
    for end in (lambda: broker.produce_to("events", 0, [(b"k", b"v")]), broker.wake):
        waiting = asyncio.ensure_future(broker.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        end()
        await asyncio.wait_for(waiting, WAIT_S)
    await broker.wait(timeout=0)
    assert not broker._waiting


@pytest.mark.parametrize(("since", "first"), [("start", 0), ("end", 10)])
async def test_a_subscriber_gets_every_record_once_in_order(broker, since, first):
    """Also those that come while it is busy with others."""
    broker.produce("events", [(b"k", b"%d" % i) for i in range(10)])
    subscription = broker.subscribe(["events", "rows"], since)
    broker.produce("events", [(b"k", b"10")])
    more = iter(range(11, 200))
    found: dict[tuple[str, int], list[int]] = {}
    async for topic, partition, records in subscription:
        found.setdefault((topic, partition), []).extend(int(r.value) for r in records)
        for i in more:
            broker.produce("events" if i % 3 else "rows", [(b"%d" % (i % 7), b"%d" % i)])
            if i % 5 == 0:
                break
            await asyncio.sleep(0)
        if sum(map(len, found.values())) == 200 - first:
            break
    assert sorted(sum(found.values(), [])) == list(range(first, 200))
    assert all(run == sorted(run) for run in found.values())


async def test_a_subscriber_passes_over_what_was_deleted(broker):
    """It is for people: a page that shows what comes must not stop for what went."""
    subscription = broker.subscribe(["events"], "start")
    for i in range(3):
        broker.produce_to("events", 0, [(b"k", b"%d" % i)])
    broker._store.trim(broker._log("events", 0), below=2, before_ms=0)
    assert [[r.value for r in records] for _, _, records in subscription.poll()] == [[b"2"]]


# Directories and URLs


def test_a_directory_belongs_to_one_broker(tmp_path):
    """Two would write over each other. The error says who has it, and what to do."""
    with LocalBroker(tmp_path) as first:
        with pytest.raises(UsageError, match=f"^{tmp_path} is in use by process \\d+: .* set ano"):
            LocalBroker(tmp_path)
        first.create_topic("events", 1)
    with LocalBroker(tmp_path) as second:
        assert list(second.topics) == ["events"]


def test_a_directory_that_cannot_be_read_is_not_left_locked(tmp_path):
    """Whoever repairs it must not have to look for a process to stop."""
    with LocalBroker(tmp_path):
        pass
    current = tmp_path / "rocksdb" / "CURRENT"
    right = current.read_bytes()
    current.write_bytes(b"nonsense")
    with pytest.raises(StateError, match="restore the directory from a copy"):
        LocalBroker(tmp_path)
    current.write_bytes(right)
    with LocalBroker(tmp_path):
        pass


def test_a_temporary_broker_leaves_nothing_behind():
    """Its directory goes with it."""
    with LocalBroker() as broker:
        path = broker.path
        assert path.exists()
    assert not path.exists()


def test_a_running_broker_is_found_by_its_url_and_closed_by_the_last_who_has_it(tmp_path):
    """The app, its partitions and whoever feeds them share one."""
    awkward = tmp_path / "with space+plus%25ümlaut"
    for made in (LocalBroker(awkward), LocalBroker(), LocalBroker(name="named")):
        made.create_topic("events", 1)
        found = LocalBroker.at(made.url)
        assert found is made
        made.release()
        found.produce_to("events", 0, [(b"k", b"v")])
        found.release()
        assert made.url not in LocalBroker._running
    assert awkward.exists()
    with LocalBroker.at(f"local://{tmp_path}/by-url?sync=commit&free=applied") as broker:
        assert broker.path == tmp_path / "by-url"
        broker.create_topic("events", 1)
        broker.produce_to("events", 0, [(b"k", b"v")])


@pytest.mark.parametrize(
    "url",
    [
        "kafka://host:9092",
        "local://",
        "local://relative/path",
        "local:///d?sync=always",
        "local:///d?fsync=commit",
        "local:///d?partitioner=md5",
        "local:///d?memory_mb=0",
    ],
)
def test_a_url_that_is_none_is_refused(url):
    """A name that is half a path would be a temporary broker: all would be lost at the end."""
    with pytest.raises(SettingError, match=f"^{url.replace('?', '.')}: ".replace("/", "/")):
        LocalBroker.at(url)


# Kills and full disks

PARTITIONS = 3
ROUNDS = 8


def change(number: int) -> dict[tuple[str, int], list[Row]]:
    """The rows of commit ``number``: some in every topic and partition."""
    rows: list[Row] = [
        (b"%d" % (number * 7 % 40 + n), b"%d" % number) for n in range(number % 5 + 1)
    ]
    return {(topic, p): rows for topic in ("changes", "rows") for p in range(PARTITIONS)}


def commit_for_ever(path: Path, told: Connection) -> None:
    """Make commits, and tell of each once it is made; compaction hardly ever rests."""
    module.COMPACT_RECORDS = 20
    broker = LocalBroker(path)
    for number in count(broker.committed("writer", "changes", 0) or 0):
        broker.append_many(change(number))
        told.send(number)
        if number % 10 == 0:
            broker.commit_offsets("writer", {("changes", 0): number + 1})


def test_kill_9_at_any_instant_leaves_whole_commits_only(tmp_path):
    """Every commit that was told of is there, in all topics; at most one more; none in part.

    What compaction was doing at that instant changes nothing of what the newest rows are.
    """
    with LocalBroker(tmp_path) as broker:
        broker.create_topic("changes", PARTITIONS)
        broker.create_topic("rows", PARTITIONS, COMPACT)
    chance = random.Random(9)
    made: list[int] = []
    told_ever, sweeps = -1, 0
    for _ in range(ROUNDS):
        hear, tell = spawn.Pipe(duplex=False)
        writer = spawn.Process(target=commit_for_ever, args=(tmp_path, tell))
        writer.start()
        tell.close()
        for _ in range(chance.randrange(1, 400)):
            told_ever = hear.recv()
        writer.kill()
        writer.join()
        with hear:
            while hear.poll():
                try:
                    told_ever = hear.recv()
                except EOFError:
                    break
        assert writer.exitcode == -signal.SIGKILL

        with LocalBroker(tmp_path) as broker:
            made = check_whole(broker, told_ever)
            sweeps += broker._log("rows", 0).kept > 0
            broker.commit_offsets("writer", {("changes", 0): len(made)})
    assert len(made) > ROUNDS
    assert sweeps


def check_whole(broker: LocalBroker, told: int) -> list[int]:
    """Compare what is there with the commits that it must come from; return those."""
    last = int(broker.read("changes", 0, broker.end("changes", 0) - 1)[0].value or b"")
    assert told <= last <= told + 1
    expected = [row for number in range(last + 1) for row in change(number)["changes", 0]]
    for p in range(PARTITIONS):
        assert values(broker, "changes", p) == [value for _, value in expected]
        assert broker.end("rows", p) == len(expected)
        records, position = broker.fetch("rows", p, 0, 1 << 30, 1 << 30)
        assert position == len(expected)
        assert all((r.key, r.value) == expected[r.offset] for r in records)
        assert {r.key: r.value for r in records} == dict(expected)
    return list(range(last + 1))


def fill_the_disk(path: Path, told: Connection) -> None:
    """Append until no file may grow any more, and tell of what was appended and raised."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    broker = LocalBroker(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    error: Any = None
    appended = 0
    while error is None:
        try:
            broker.append_many({("changes", p): [(b"k", bytes(1_000))] for p in range(2)})
            appended += 1
        except JournalLost as raised:
            error = raised
    told.send((appended, broker.end("changes", 0), str(error)))


def test_a_full_disk_loses_the_append_that_met_it_and_no_other(tmp_path):
    """It is an error with the remedy, and nothing of that append is there afterwards."""
    with LocalBroker(tmp_path) as broker:
        broker.create_topic("changes", 2)
    hear, tell = spawn.Pipe(duplex=False)
    writer = spawn.Process(target=fill_the_disk, args=(tmp_path, tell))
    writer.start()
    appended, end, error = hear.recv()
    writer.kill()
    writer.join()
    assert appended == end > 10
    assert "a write failed and nothing of it is kept" in error
    assert "make room" in error
    with LocalBroker(tmp_path) as broker:
        assert [broker.end("changes", p) for p in range(2)] == [appended, appended]
        broker.append_many({("changes", p): [(b"k", b"v")] for p in range(2)})
