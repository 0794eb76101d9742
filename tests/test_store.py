"""What RocksDB says of itself, asked of a real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rocksdict import Rdict

from stream.store import Budget, Row, Store

ROWS_MOST = 100_000


@pytest.fixture
def budget() -> Budget:
    return Budget(64)


def rows(batch: int) -> Iterator[Row]:
    """Half a thousand rows that no other batch has."""
    for number in range(500):
        yield b"rp%d-%d" % (batch, number), b"\0" * 8 + b"x" * 400


def test_what_is_not_in_a_table_file_yet_is_in_memory_and_within_the_cache(
    budget: Budget, tmp_path: Path
) -> None:
    """Write buffers are charged to the block cache, so that one figure bounds both."""
    store = Store.open(tmp_path / "p0", budget)
    store.write(rows(0), (), 1)
    assert 500 * 400 < budget.memtable_bytes <= budget.block_cache_bytes < budget.budget_bytes // 4
    assert store.pending_compaction_bytes == 0
    assert store.stalled_seconds == 0
    store.close()


def test_writes_that_rocksdb_holds_up_show(budget: Budget, tmp_path: Path) -> None:
    """It slows writes down from two table files on that wait for compaction, here."""
    options = budget.options()
    options.set_write_buffer_size(64 << 10)
    options.set_level_zero_file_num_compaction_trigger(2)
    options.set_level_zero_slowdown_writes_trigger(2)
    store = Store(tmp_path / "p0", Rdict(str(tmp_path / "p0"), options))
    batch = 0
    while not store.stalled_seconds and batch * 500 < ROWS_MOST:
        store.write(rows(batch), (), batch)
        batch += 1
    assert store.stalled_seconds > 0
    store.close()
