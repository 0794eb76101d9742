"""One partition's RocksDB: a cache of its changelog that survives restarts.

Keys, by their first byte:

    r + domain code + user id            a user's record   value: deadline (8 bytes) + record
    b + domain code + number + user id   a block of ids    (as `tables/dedup.py` asks for them)
    u + user id                          a user's profile: tags of all domains
    e + domain code + keyed hash         an erasure        value: its time (8 bytes)
    m + name                             a row about the partition itself (positions, layout)
    d + domain code + deadline + user id the deadline index, no value
    x + name                             about this disk, not in the changelog

Rows under r, b, u, e and m are the changelog's, byte for byte but for the deadline in front of a
record, which may have moved on. The index is derived from it and written in the same WriteBatch;
an entry is a hint, so one that is early costs a look-up and nothing else. ``x applied`` is the
changelog position up to which all rows are true.

This file knows bytes and RocksDB. It knows no user, no feature, no Kafka.
"""

import contextlib
import fcntl
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from stream.errors import StateError
from tables.calendar import NEVER

RECORD, BLOCK, META, INDEX, DISK = b"r", b"b", b"m", b"d", b"x"
PROFILE, ERASURE = b"u", b"e"
_APPLIED, _USED = DISK + b"applied", DISK + b"used"
DEADLINE_BYTES = 8
_STALL = re.compile(r"^Cumulative stall: (\d+):(\d+):([\d.]+) H:M:S", re.MULTILINE)

Row = tuple[bytes, bytes | None]
#: An index entry to write: (key, whether it is put or deleted).
IndexChange = tuple[bytes, bool]


def record_key(code: bytes, user: bytes) -> bytes:
    """Key of a user's record."""
    return RECORD + code + user


def erasure_mark(code: bytes, user_id: str, secret: bytes) -> bytes:
    """Key of the row that says when a user was erased; it names nobody without ``secret``."""
    return ERASURE + code + blake2b(user_id.encode(), key=secret, digest_size=16).digest()


def index_key(code: bytes, deadline_ms: int, user: bytes) -> bytes:
    """Key of an index entry. Big-endian, so that RocksDB's byte order is time order."""
    return INDEX + code + deadline_ms.to_bytes(DEADLINE_BYTES, "big") + user


def deadline_in(entry: bytes) -> int:
    """The deadline in a key of the index."""
    return int.from_bytes(entry[2 : 2 + DEADLINE_BYTES], "big")


def deadline_of(value: bytes) -> int:
    """The deadline in front of a user's record."""
    return int.from_bytes(value[:DEADLINE_BYTES], "big")


class Budget:
    """The memory that all partitions of a process share: RocksDB's part of it.

    Half of ``TAGSTREAM_MEMORY_MB`` is for users in memory, a quarter for RocksDB's block cache
    with its write buffers charged to it, a sixteenth for chunks and the rest for what waits to be
    written.
    """

    def __init__(self, memory_mb: int) -> None:
        total = self.budget_bytes = memory_mb << 20
        self.users_bytes = total // 2
        self.buffer_bytes = total // 16
        rocksdb = total // 4
        self.cache = Cache(rocksdb)
        self.write_buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            rocksdb // 2, False, self.cache
        )

    @property
    def block_cache_bytes(self) -> int:
        """The block cache now, write buffers included."""
        return self.cache.get_usage()

    @property
    def memtable_bytes(self) -> int:
        """The write buffers now."""
        return self.write_buffers.get_usage()

    def options(self) -> Options:
        """RocksDB options of one partition within the budget."""
        table = BlockBasedOptions()
        table.set_block_cache(self.cache)
        # Most look-ups of a new user find nothing: ten bits a key spare the read.
        table.set_bloom_filter(10, False)
        # Index and filters are in the cache too, in small blocks: whole ones of a hundred thousand
        # keys would drive each other out, and each look-up would read and check one again.
        table.set_cache_index_and_filter_blocks(True)
        table.set_index_type(BlockBasedIndexType.two_level_index_search())
        table.set_partition_filters(True)
        table.set_metadata_block_size(4 << 10)
        table.set_pin_top_level_index_and_filter(True)
        table.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(table)
        options.set_write_buffer_manager(self.write_buffers)
        options.set_write_buffer_size(8 << 20)
        options.set_max_write_buffer_number(3)
        # What has just been written is compacted soon, and read until then.
        fresh, older = DBCompressionType.none(), DBCompressionType.lz4()
        options.set_compression_type(older)
        options.set_compression_per_level([fresh, *([older] * 6)])
        options.set_max_background_jobs(2)
        options.set_max_open_files(128)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1 << 20)
        return options


class Store:
    """The rows of one partition on disk.

    Raises:
        StateError: the database cannot be opened or is corrupt (from ``open``).
    """

    def __init__(self, path: Path, database: Rdict) -> None:
        self.path = path
        self._db = database
        self.get = database.get  # bytes -> bytes | None: the hot path
        self._no_wal = WriteOptions()
        # (A property; the stub says it is a method.)
        self._no_wal.disable_wal = True  # type: ignore[method-assign, assignment]

    @classmethod
    def open(cls, path: Path, budget: Budget) -> "Store":
        """Open or create the database in ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = Rdict(str(path), budget.options())
        except Exception as error:  # rocksdict has no class for a RocksDB status
            said = " ".join(str(error).split())  # RocksDB breaks lines
            raise StateError(
                f"{path}: RocksDB cannot open it: {said}. Make room or repair its rights; or move"
                " it away: it is rebuilt from the changelog"
            ) from error
        return cls(path, database)

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Open a database that nobody writes to, for reading alone.

        Raises:
            StateError: it cannot be opened, or somebody has it open.
        """
        try:
            with (path / "LOCK").open("rb+") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"{path}: a process has it open: stop the worker, or read a copy that was made"
                " while it was stopped"
            ) from error
        except OSError:
            pass  # no lock that we may have; what is wrong with it, RocksDB says
        try:
            database = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())
        except Exception as error:  # rocksdict has no class for a RocksDB status
            said = " ".join(str(error).split())
            raise StateError(f"{path}: RocksDB cannot read it: {said}") from error
        return cls(path, database)

    @staticmethod
    def destroy(path: Path) -> None:
        """Remove a closed database from the disk, and its mark."""
        shutil.rmtree(path, ignore_errors=True)
        _mark(path).unlink(missing_ok=True)

    @staticmethod
    def condemn(path: Path) -> None:
        """Mark a database as corrupt: it is destroyed before it is opened again."""
        _mark(path).touch()

    @staticmethod
    def is_condemned(path: Path) -> bool:
        """Whether a database was found corrupt."""
        return _mark(path).exists()

    def close(self) -> None:
        """Flush and release the lock. The store must not be used afterwards."""
        with contextlib.suppress(Exception):  # on a full disk, say: the changelog has it
            self._db.flush()
        self._db.close()

    # -- where this disk is

    @property
    def applied(self) -> int | None:
        """Changelog position up to which the rows here are true; None on an empty disk."""
        raw = self._db.get(_APPLIED)
        return None if raw is None else int(raw)

    @property
    def used_ms(self) -> int | None:
        """Wall-clock time of the last write; None on an empty disk."""
        raw = self._db.get(_USED)
        return None if raw is None else int(raw)

    @property
    def sst_bytes(self) -> int:
        """Bytes of the live table files and of what is not yet in one."""
        value = self._db.property_int_value
        return int(value("rocksdb.live-sst-files-size") or 0) + int(
            value("rocksdb.cur-size-all-mem-tables") or 0
        )

    @property
    def pending_compaction_bytes(self) -> int:
        """Bytes that compaction has still to rewrite, as RocksDB estimates them."""
        return int(self._db.property_int_value("rocksdb.estimate-pending-compaction-bytes") or 0)

    @property
    def stalled_seconds(self) -> float:
        """How long writes were held up since the database was opened.

        RocksDB has it as text only, unless it is to keep statistics, which slow down every read.
        """
        found = _STALL.search(self._db.property_value("rocksdb.dbstats") or "")
        if found is None:
            return 0.0
        hours, minutes, seconds = found.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    # -- rows

    def write(self, rows: Iterable[Row], index: Iterable[IndexChange], applied: int) -> None:
        """Rows of a committed transaction, their index entries and our place: one WriteBatch."""
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in rows:
            if value is None:
                delete(key)
            else:
                put(key, value)
        self._finish(batch, index, applied)
        self._write(batch)

    def move(self, rows: Iterable[Row], index: Iterable[IndexChange]) -> None:
        """Index entries, and the deadlines in front of rows: these are this disk's alone."""
        batch = WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
        for key, kept in index:
            if kept:
                batch.put(key, b"")
            else:
                batch.delete(key)
        self._write(batch)

    def _write(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch, write_opt=self._no_wal)
        except Exception as error:  # rocksdict has no class for a RocksDB status
            raise StateError(
                f"{self.path}: RocksDB cannot write: {error}. Free or add disk space and restart"
                " the worker: nothing is lost, the changelog has everything"
            ) from error

    def _finish(self, batch: WriteBatch, index: Iterable[IndexChange], applied: int) -> None:
        for key, kept in index:
            if kept:
                batch.put(key, b"")
            else:
                batch.delete(key)
        batch.put(_APPLIED, b"%d" % applied)
        batch.put(_USED, b"%d" % int(time.time() * 1000))

    # -- recovery

    def restore(self, rows: dict[bytes, bytes | None], applied: int) -> None:
        """Changelog rows on top of what is here, with the index kept true."""
        index: list[IndexChange] = []
        for key, value in rows.items():
            if key[:1] != RECORD:
                continue
            old = self.get(key)
            if old is not None and (deadline := deadline_of(old)) < NEVER:
                index.append((index_key(key[1:2], deadline, key[2:]), False))
            if value is not None and (deadline := deadline_of(value)) < NEVER:
                index.append((index_key(key[1:2], deadline, key[2:]), True))
        self.write(rows.items(), index, applied)

    def restore_rows(self, rows: dict[bytes, bytes | None]) -> None:
        """Changelog rows into a new database: no index, no place; `rebuild` ends it."""
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in rows.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        self._db.write(batch, write_opt=self._no_wal)

    def rebuild(self, applied: int) -> None:
        """Derive the whole index, then make everything durable and say where we are."""
        batch = WriteBatch(raw_mode=True)
        for key, value in self.scan(RECORD):
            if (deadline := deadline_of(value)) < NEVER:
                batch.put(index_key(key[1:2], deadline, key[2:]), b"")
                if batch.len() >= 10_000:
                    self._db.write(batch, write_opt=self._no_wal)
                    batch = WriteBatch(raw_mode=True)
        self._finish(batch, (), applied)
        self._db.write(batch, write_opt=self._no_wal)
        self._db.flush()

    # -- reading

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All rows whose key begins with ``prefix``, in byte order."""
        for iterator in self._from(prefix, _after(prefix)):
            yield iterator.key(), iterator.value()

    def page(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` rows from the key ``start`` on whose keys begin with ``prefix``."""
        found = islice(self._from(start, _after(prefix)), limit)
        return [(iterator.key(), iterator.value()) for iterator in found]

    def due(self, code: bytes, start: bytes, until_ms: int, limit: int) -> list[bytes]:
        """Up to ``limit`` index keys from ``start`` on with deadline <= ``until_ms``, in order."""
        end = index_key(code, until_ms + 1, b"")
        return [iterator.key() for iterator in islice(self._from(start, end), limit)]

    def first_due(self, code: bytes, start: bytes) -> int:
        """The earliest deadline in the index from the key ``start`` on, or NEVER."""
        found = self.due(code, start, NEVER, 1)
        return deadline_in(found[0]) if found else NEVER

    def count_deadlines(self, code: bytes) -> int:
        """Entries in the index of a domain: a scan of keys, some 0.4 us each."""
        start, end = index_key(code, 0, b""), index_key(code, NEVER, b"")
        return sum(1 for _ in self._from(start, end))

    def any_erased(self, code: bytes) -> bool:
        """Whether any user was ever erased in a domain."""
        return next(self._from(ERASURE + code, ERASURE + _after(code)), None) is not None

    @property
    def has_erasures(self) -> bool:
        """Whether any user was ever erased in any domain."""
        return next(self._from(ERASURE, _after(ERASURE)), None) is not None

    @property
    def is_empty(self) -> bool:
        """Whether there is no row at all."""
        return next(self._from(b"\0", b"\xff"), None) is None

    def _from(self, start: bytes, end: bytes) -> Iterator[RdictIter]:
        """An iterator at each key from ``start`` to before ``end``.

        Raises:
            Exception: the disk is corrupt; plain iteration would end without a word.
        """
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        iterator = self._db.iter(read_opt=options)
        iterator.seek(start)
        while iterator.valid():
            yield iterator
            iterator.next()
        iterator.status()


def _after(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix`` (whose last byte is below 255)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".corrupt")
