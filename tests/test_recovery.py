"""Opening a partition's state: every way in which disk, changelog and source can disagree.

Each test makes real state through a real partition on the embedded broker, breaks it, and
opens it again. What is rebuilt must equal what was there; what is refused must say why.
"""

import shutil
import time
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry

from stream import data, recovery
from stream.applying import Feed
from stream.broker import LocalBroker
from stream.chunks import Chunk
from stream.domains import discover
from stream.errors import LayoutChanged, SourceRemade, SourceTrimmed, StateError
from stream.events import Decoder, types_of
from stream.local import LocalJournal
from stream.metrics import Metrics
from stream.partition import Partition
from stream.position import LAYOUT, POSITION, Place
from stream.profiles import Profiles
from stream.rows import Pool
from stream.rules import load
from stream.settings import Settings
from stream.store import RECORD, Budget, Store
from stream.users import Users
from tables import profile

TOPICS = ("purchases", "tag-changes", "churn-warnings", "dead-letters", "user-tags")
CHANGELOG = "tagstream-state-changelog"
DAY_MS = 86_400_000
START_MS = 1_750_000_000_000


def settings_of(path: Path, **changes: str) -> Settings:
    options = {"data_dir": str(path), "partitions": "1", "time": "events", **changes}
    return Settings.load(options, {})


def broker_of(path: Path) -> LocalBroker:
    broker = LocalBroker(path / "broker")
    for topic in TOPICS:
        broker.create_topic(topic, 1)
    broker.create_topic(CHANGELOG, 1, {"cleanup.policy": "compact"})
    return broker


def orders(count: int, first: int = 0) -> list[tuple[bytes, bytes]]:
    return [
        (
            b"u%d" % (i % 7),
            orjson.dumps(
                {
                    "event_id": f"e{i}",
                    "user_id": f"u{i % 7}",
                    "type": "order",
                    "ts": START_MS + i * DAY_MS // 4,
                    "amount": 10 + i,
                }
            ),
        )
        for i in range(first, first + count)
    ]


class Bench:
    """One partition on a broker and a disk, opened and closed as a worker does."""

    def __init__(self, path: Path, **changes: str) -> None:
        self.disk = path / "state"
        self.settings = settings_of(path, **changes)
        self.rules = load(data.TAGS, discover())
        self.budget = Budget(16)
        self.read = 0

    def _count(self, records: int, _: int) -> None:
        self.read += records

    async def recover(self, broker: LocalBroker) -> tuple[LocalJournal, recovery.Recovered]:
        journal = LocalJournal(broker, changelog=CHANGELOG, partition=0)
        await journal.open()
        try:
            recovered = await recovery.recover(
                journal,
                self.disk,
                number=0,
                budget=self.budget,
                settings=self.settings,
                timezone=self.rules.timezone,
                tombstones_ms=7 * 86_400_000,
                progress=self._count,
            )
        except BaseException:
            await journal.close()
            raise
        return journal, recovered

    async def apply_all(self, broker: LocalBroker) -> None:
        """Apply everything in the source, commit it, and close."""
        journal, recovered = await self.recover(broker)
        partition = self.partition(journal, recovered)
        partition.start()
        place = partition.feeds["purchases"].place
        end = broker.end("purchases", 0)
        while place.offset < end:
            records = broker.read("purchases", 0, place.offset, max_records=5)
            chunk = Chunk("purchases", 0, place.offset, records[-1].offset + 1, list(records), 0)
            partition.offer("purchases", chunk, lambda: None)
            await partition.drain()
        await partition.close()

    def partition(self, journal: LocalJournal, recovered: recovery.Recovered) -> Partition:
        domain = discover()["purchases"]
        table = domain.table(self.rules)
        feed = Feed(
            "purchases",
            "purchases",
            domain.code,
            table,
            Decoder(domain.events),
            Users(domain.code, table, recovered.store, Pool(1 << 20)),
        )

        def failed(error: BaseException) -> None:
            raise error

        return Partition(
            0,
            feeds=[feed],
            profiles=Profiles(profile.Profiles(self.rules), recovered.store, Pool(1 << 20)),
            store=recovered.store,
            journal=journal,
            position=recovered.position,
            settings=self.settings,
            allowed_delay_ms=self.rules.allowed_delay_ms,
            metrics=Metrics(
                CollectorRegistry(), types={"purchases": types_of(domain.events)}, partitions=1
            ),
            failed=failed,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )

    async def state(self, broker: LocalBroker) -> dict[bytes, bytes]:
        """Every user's record as recovered."""
        journal, recovered = await self.recover(broker)
        rows = dict(recovered.store.scan(RECORD))
        recovered.store.close()
        await journal.close()
        return rows

    async def check_source(self, broker: LocalBroker) -> None:
        journal, recovered = await self.recover(broker)
        try:
            place = recovered.position.places["purchases"]
            await recovery.check_source(journal, "purchases", 0, place)
        finally:
            recovered.store.close()
            await journal.close()


@pytest.fixture
async def bench(tmp_path: Path):
    """A partition with a year of orders behind it."""
    bench = Bench(tmp_path)
    with broker_of(tmp_path) as broker:
        broker.produce_to("purchases", 0, orders(60))
        await bench.apply_all(broker)
        yield bench, broker


async def test_a_disk_that_is_up_to_date_is_used_as_it_is(bench):
    """Nothing is read but what verifies it."""
    bench, broker = bench
    before = await bench.state(broker)
    bench.read = 0
    assert await bench.state(broker) == before
    assert len(before) == 7
    assert bench.read == 0


async def test_an_empty_disk_is_rebuilt_with_its_deadlines(bench):
    """State and deadline index come back from the changelog alone."""
    bench, broker = bench
    before = await bench.state(broker)
    store = Store.open(bench.disk, bench.budget)
    due = store.due(b"p", b"dp", 2**62, 1_000)
    store.close()
    shutil.rmtree(bench.disk)
    assert await bench.state(broker) == before
    store = Store.open(bench.disk, bench.budget)
    assert store.due(b"p", b"dp", 2**62, 1_000) == due
    assert due
    store.close()


async def test_a_disk_that_is_behind_catches_up(bench, tmp_path):
    """A copy of an earlier disk reads just what it lacks."""
    bench, broker = bench
    shutil.copytree(bench.disk, tmp_path / "earlier")
    broker.produce_to("purchases", 0, orders(40, first=60))
    await bench.apply_all(broker)
    after = await bench.state(broker)
    shutil.rmtree(bench.disk)
    shutil.copytree(tmp_path / "earlier", bench.disk)
    bench.read = 0
    assert await bench.state(broker) == after
    assert 0 < bench.read < broker.end(CHANGELOG, 0)


async def test_a_corrupt_disk_is_rebuilt_and_said(bench, caplog):
    """RocksDB's own check finds it; the changelog has everything."""
    bench, broker = bench
    before = await bench.state(broker)
    current = bench.disk / "CURRENT"
    current.write_text("nonsense\n")
    assert await bench.state(broker) == before
    assert "rebuilding" in caplog.text


async def test_a_disk_found_corrupt_while_it_was_read_is_rebuilt(bench, caplog):
    """RocksDB opens a damaged table file, and says so only when it reads it."""
    bench, broker = bench
    before = await bench.state(broker)
    for table in bench.disk.glob("*.sst"):
        damaged = bytearray(table.read_bytes())
        damaged[: len(damaged) // 2] = bytes(len(damaged) // 2)
        table.write_bytes(damaged)
    store = Store.open(bench.disk, bench.budget)
    corrupt = False
    try:
        list(store.scan(RECORD))
    except Exception as error:  # noqa: BLE001 - rocksdict has no class for a RocksDB status
        corrupt = recovery.is_corruption(error)
    assert corrupt
    store.close()
    Store.condemn(bench.disk)
    assert await bench.state(broker) == before
    assert "was found corrupt" in caplog.text
    assert not Store.is_condemned(bench.disk)


async def test_what_a_rebuild_that_was_cut_off_left_behind_does_not_stay(bench):
    """It may hold users who have been erased since."""
    bench, broker = bench
    before = await bench.state(broker)
    shutil.rmtree(bench.disk)
    store = Store.open(bench.disk, bench.budget)
    store.restore_rows({RECORD + b"pghost": bytes(8)})
    store.close()
    assert await bench.state(broker) == before


async def test_a_disk_unused_for_too_long_is_rebuilt(bench, caplog, monkeypatch):
    """Deletions that it missed may be compacted away by now."""
    bench, broker = bench
    before = await bench.state(broker)
    later = time.time() + 6 * 86_400
    monkeypatch.setattr("time.time", lambda: later)
    assert await bench.state(broker) == before
    assert "too long ago" in caplog.text


async def test_a_disk_of_another_changelog_is_rebuilt(bench, tmp_path, caplog):
    """The changelog is the truth, the disk only a cache: of this changelog, not of any."""
    bench, broker = bench
    before = await bench.state(broker)
    other = Bench(tmp_path / "other")
    with broker_of(tmp_path / "other") as elsewhere:
        elsewhere.produce_to("purchases", 0, orders(30))
        await other.apply_all(elsewhere)
    shutil.rmtree(bench.disk)
    shutil.copytree(other.disk, bench.disk)
    assert await bench.state(broker) == before
    assert "rebuilding" in caplog.text


async def test_a_disk_ahead_of_a_changelog_that_was_cut_is_rebuilt(bench, tmp_path, caplog):
    """The changelog lost its tail: what it still says is true, the disk's surplus is not."""
    bench, broker = bench
    short = Bench(tmp_path / "short")
    with broker_of(tmp_path / "short") as cut:
        records = broker.read(CHANGELOG, 0, 0, max_records=10_000)
        first_flush = next(i for i, r in enumerate(records) if r.key == POSITION) + 1
        cut.produce_to(CHANGELOG, 0, [(r.key, r.value) for r in records[:first_flush]])
        expected = {r.key: r.value for r in records[:first_flush] if r.key[:1] == RECORD}
        shutil.copytree(bench.disk, short.disk)
        assert await short.state(cut) == expected
    assert "the changelog ends at" in caplog.text


async def test_an_empty_changelog_under_a_full_disk_is_refused(bench, tmp_path):
    """To rebuild from nothing would lose the state and repeat every output."""
    bench, _ = bench
    with (
        broker_of(tmp_path / "new") as new,
        pytest.raises(StateError, match="deleted or made anew"),
    ):
        await bench.recover(new)


async def test_a_changelog_that_is_not_ours_is_refused(tmp_path):
    """Records without a position row belong to somebody else."""
    bench = Bench(tmp_path)
    with broker_of(tmp_path) as broker:
        broker.produce_to(CHANGELOG, 0, [(b"k", b"v")])
        with pytest.raises(StateError, match="not our changelog"):
            await bench.recover(broker)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"partitions": "2"}, "TAGSTREAM_PARTITIONS"),
        ({"partitioner": "crc32"}, "TAGSTREAM_PARTITIONER"),
    ],
)
async def test_another_layout_is_refused_with_the_setting_to_restore(
    bench, tmp_path, changes, remedy
):
    """Partitions are never added to live topics, nor keys moved between them."""
    _, broker = bench
    changed = Bench(tmp_path, **changes)
    with pytest.raises(LayoutChanged, match=remedy):
        await changed.recover(broker)


async def test_state_of_a_build_that_wrote_rows_otherwise_is_refused(bench, monkeypatch):
    """Its rows would be read as something else."""
    bench, broker = bench
    monkeypatch.setattr("stream.recovery.LAYOUT", LAYOUT + 1)
    with pytest.raises(LayoutChanged, match="another version of the program"):
        await bench.recover(broker)


async def test_a_source_as_it_was_is_accepted(bench):
    """The record before the position is the one that was applied."""
    bench, broker = bench
    await bench.check_source(broker)


async def test_a_source_made_anew_is_refused(bench, tmp_path):
    """Shorter than the position: it cannot be the same topic."""
    bench, broker = bench
    with broker_of(tmp_path / "anew") as anew:
        copy_changelog(broker, anew)
        anew.produce_to("purchases", 0, orders(5))
        with pytest.raises(SourceRemade, match="made anew, or cut"):
            await bench.check_source(anew)


async def test_a_source_filled_again_past_the_position_is_refused(bench, tmp_path):
    """Long enough, but the record before the position is another one."""
    bench, broker = bench
    with broker_of(tmp_path / "again") as again:
        copy_changelog(broker, again)
        again.produce_to("purchases", 0, orders(100, first=1_000))
        with pytest.raises(SourceRemade, match="not the one that was applied"):
            await bench.check_source(again)


async def test_a_lost_changelog_without_a_disk_is_refused(bench, tmp_path):
    """The group's committed offset is all that is left to say that there was a state."""
    bench, _ = bench
    shutil.rmtree(bench.disk)
    with broker_of(tmp_path / "new") as new:
        new.produce_to("purchases", 0, orders(60))
        new.commit_offsets("tagstream", {("purchases", 0): 60})
        journal, recovered = await bench.recover(new)
        with pytest.raises(StateError, match="60 records were applied once"):
            await recovery.check_source(journal, "purchases", 0, Place())
        recovered.store.close()
        await journal.close()


class Trimmed(LocalJournal):
    """A journal whose source has lost its oldest records."""

    async def source(self, topic: str, offset: int):
        state = await super().source(topic, offset)
        return type(state)(first=offset + 3, end=state.end + 10, record=None)


async def test_a_source_trimmed_past_the_position_is_refused(bench):
    """Events that nobody applied are gone: no remedy brings the state back."""
    bench, broker = bench
    journal, recovered = await bench.recover(broker)
    place = recovered.position.places["purchases"]
    trimmed = Trimmed(broker, changelog=CHANGELOG, partition=0)
    await trimmed.open()
    with pytest.raises(SourceTrimmed, match="raise the topic's retention"):
        await recovery.check_source(trimmed, "purchases", 0, place)
    await trimmed.close()
    recovered.store.close()
    await journal.close()


def copy_changelog(source: LocalBroker, target: LocalBroker) -> None:
    records = source.read(CHANGELOG, 0, 0, max_records=10_000)
    target.produce_to(CHANGELOG, 0, [(r.key, r.value) for r in records])
