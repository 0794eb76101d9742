"""The log store against plain lists, and with its files damaged."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stream import log as module
from stream.errors import StateError
from stream.log import LogStore, Record

NUMBERS = (0, 1, 1 << 40)
ROWS = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c", None]), st.none() | st.binary(max_size=12)),
    max_size=9,
)


class Lists(RuleBasedStateMachine):
    """A store and, for each partition, the list of records that it should hold.

    Blocks are small and compaction has room for two keys, so that few steps meet every edge.
    """

    @initialize()
    def begin(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "BLOCK_RECORDS", 4)
        self.patch.setattr(module, "BLOCK_BYTES", 60)
        self.patch.setattr(module, "COMPACT_KEYS", 2)
        self.directory = tempfile.TemporaryDirectory()
        self.open()
        self.records: dict[int, list[Record]] = {number: [] for number in NUMBERS}
        self.starts = dict.fromkeys(NUMBERS, 0)
        self.ends = dict.fromkeys(NUMBERS, 0)
        self.now = 0

    def open(self) -> None:
        self.store = LogStore(Path(self.directory.name))
        self.logs = {number: self.store.log(number) for number in NUMBERS}

    def teardown(self):
        self.store.close()
        self.directory.cleanup()
        self.patch.undo()

    @rule(rows=st.dictionaries(st.sampled_from(NUMBERS), ROWS))
    def append(self, rows):
        self.now += 1
        self.store.append({self.logs[n]: items for n, items in rows.items()}, self.now)
        for number, items in rows.items():
            for key, value in items:
                record = Record(self.ends[number], self.now, key, value)
                self.records[number].append(record)
                self.ends[number] += 1

    @rule(number=st.sampled_from(NUMBERS), age=st.integers(0, 6))
    def compact(self, number, age):
        if self.logs[number].cleaned == self.ends[number]:
            return
        horizon = self.now - age
        self.store.compact(self.logs[number], tombstones_ms=horizon, stopped=lambda: False)
        newest = {record.key: record for record in self.records[number]}
        self.records[number] = [
            record
            for record in self.records[number]
            if newest[record.key] is record
            and (record.value is not None or record.timestamp >= horizon)
        ]

    @rule(number=st.sampled_from(NUMBERS), below=st.integers(0, 40), before=st.integers(0, 10))
    def trim(self, number, below, before):
        """Whole blocks go, never a record that is still wanted, and never the last block."""
        log = self.logs[number]
        self.store.trim(log, below=below, before_ms=before)
        kept = [record for record in self.records[number] if record.offset >= log.start]
        gone = self.records[number][: len(self.records[number]) - len(kept)]
        assert all(record.offset < below or record.timestamp < before for record in gone)
        assert self.starts[number] <= log.start < max(1, log.end)
        self.records[number], self.starts[number] = kept, log.start

    @rule()
    def reopen(self):
        self.store.close()
        self.open()

    @rule(data=st.data(), number=st.sampled_from(NUMBERS))
    def read(self, data, number):
        """Any range, in steps of any size, gives the same records."""
        log = self.logs[number]
        offset = data.draw(st.integers(log.start, log.end))
        end = data.draw(st.integers(offset, log.end))
        most = data.draw(st.integers(1, 12))
        room = data.draw(st.integers(1, 80))
        expected = [r for r in self.records[number] if offset <= r.offset < end]
        found = []
        while offset < end:
            records, position = self.store.read(log, offset, end, max_records=most, max_bytes=room)
            assert offset < position <= end
            assert records or position == end
            assert len(records) <= most
            size = sum(len(record.key or b"") + len(record.value or b"") for record in records)
            assert size <= room or len(records) == 1
            found += records
            offset = position
        assert found == expected

    @invariant()
    def edges(self):
        for number, log in getattr(self, "logs", {}).items():
            assert (log.start, log.end) == (self.starts[number], self.ends[number])


Lists.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_the_store_holds_what_lists_hold = Lists.TestCase


def test_a_range_outside_the_log_is_an_error(tmp_path):
    """Neither what was trimmed nor what is yet to come reads as nothing."""
    store = LogStore(tmp_path)
    log = store.log(0)
    for _ in range(3):
        store.append({log: [(b"k", b"v")] * 2})
    store.trim(log, below=4, before_ms=0)
    assert (log.start, log.end) == (4, 6)
    for offset, end in ((3, 6), (4, 7), (7, 7)):
        with pytest.raises(IndexError, match=rf"\[{offset}, {end}\) is not in \[4, 6\)"):
            store.read(log, offset, end, max_records=1, max_bytes=1)
    store.close()


def test_an_append_of_large_rows_is_cut_into_blocks(tmp_path):
    """A block holds a chunk's worth, so that reading one record does not decode a flush."""
    store = LogStore(tmp_path)
    log = store.log(0)
    rows = [(b"k", bytes(400_000)) for _ in range(9)]
    store.append({log: rows})

    sizes = [len(block) for _, block in store._walk(log, 0, log.end)]
    assert len(sizes) > 4
    assert max(sizes) <= module.BLOCK_BYTES
    records, position = store.read(log, 0, 9, max_records=100, max_bytes=1 << 30)
    assert ([(r.key, r.value) for r in records], position) == (rows, 9)
    store.close()


def test_compaction_merges_what_is_left_of_many_blocks(tmp_path):
    """A changelog is written in small flushes; read back, it must not be as many small blocks."""
    store = LogStore(tmp_path)
    log = store.log(0)
    for i in range(1_000):
        store.append({log: [(b"%d" % (i % 100), b"v")]})
    store.compact(log, tombstones_ms=0, stopped=lambda: False)

    assert len(list(store._walk(log, 0, log.end))) == 1
    assert (log.end, log.cleaned, log.kept) == (1_000, 1_000, 100)
    store.close()


def test_compaction_makes_no_block_larger_than_an_append_does(tmp_path):
    """However large the rows are that it merges."""
    store = LogStore(tmp_path)
    log = store.log(0)
    for i in range(300):
        store.append({log: [(b"%d" % (i % 150), bytes(20_000))]})
    store.compact(log, tombstones_ms=0, stopped=lambda: False)

    sizes = [len(block) for _, block in store._walk(log, 0, log.end)]
    assert sum(sizes) > 150 * 20_000
    assert module.BLOCK_BYTES // 2 < max(sizes) <= module.BLOCK_BYTES
    store.close()


def blob_bytes(store: LogStore) -> int:
    return store._db.property_int_value("rocksdb.total-blob-file-size") or 0


def test_deleted_blocks_free_the_disk(tmp_path):
    """Trimming and compaction would be pointless if their files stayed."""

    store = LogStore(tmp_path, memory=4 << 20)
    trimmed, compacted = store.log(0), store.log(1)
    noise = bytes(range(256)) * 4
    for i in range(40):
        rows = [(b"%d" % (n % 50), noise + b"%d" % (n * i)) for n in range(1_000)]
        store.append({trimmed: rows, compacted: rows})
    before = blob_bytes(store)
    store.trim(trimmed, below=trimmed.end, before_ms=0)
    store.compact(compacted, tombstones_ms=0, stopped=lambda: False)

    assert blob_bytes(store) < before / 4
    store.close()


@pytest.fixture
def killed(tmp_path):
    """A store as a kill -9 leaves it: 30 appends to two logs, flushed to a table, 30 more."""
    store = LogStore(tmp_path / "live")
    logs = store.log(0), store.log(1)
    for i in range(60):
        store.append(
            {log: [(b"k%d" % n, b"%d" % i + bytes(100)) for n in range(20)] for log in logs}
        )
        if i == 29:
            store._db.flush()
    shutil.copytree(tmp_path / "live", tmp_path / "copy")
    store.close()
    return tmp_path / "copy"


def contents(store: LogStore) -> list[list[bytes | None]]:
    found = []
    for number in (0, 1):
        log = store.log(number)
        records, position = store.read(log, 0, log.end, max_records=9_999, max_bytes=1 << 30)
        assert position == log.end == len(records)
        found.append([record.value for record in records])
    return found


def newest(directory: Path, pattern: str) -> Path:
    return max(directory.glob(pattern))


@pytest.mark.parametrize("cut", [1, 100, 2_000])
def test_a_torn_tail_is_one_append_less_in_all_logs(killed, cut):
    """A kill in mid-write tears the last append, of which nobody had been told."""
    wal = newest(killed, "*.log")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size - cut)

    store = LogStore(killed)
    first, second = contents(store)
    assert first == second == [b"%d" % i + bytes(100) for i in range(59) for _ in range(20)]
    log = store.log(0)
    store.append({log: [(b"k", b"again")]})
    assert log.end == 59 * 20 + 1
    store.close()


def flip(file: Path) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [(pattern, flip) for pattern in ("*.log", "*.blob", "*.sst", "MANIFEST-*", "CURRENT")]
    + [(pattern, Path.unlink) for pattern in ("*.blob", "*.sst", "MANIFEST-*", "CURRENT")],
)
def test_damage_is_an_error_with_the_remedy_and_never_read(killed, pattern, harm):
    """One bit of any file, or a whole one: no record is wrong, and none missing in silence."""
    harm(newest(killed, pattern))
    with pytest.raises(StateError, match=rf"^{killed}: .*restore the directory .* or delete it"):
        contents(LogStore(killed))


def test_another_layout_is_refused(tmp_path):
    """A later version's directory must not be read as this one's, nor written to."""
    store = LogStore(tmp_path)
    store.put({b"v": b"2"})
    store.close()
    with pytest.raises(StateError, match="in layout 2 where this one has 1: go on with that vers"):
        LogStore(tmp_path)
