"""Partition logs: the records of many partitions, ordered and durable, in one RocksDB.

Promise: an append to any number of partitions is one RocksDB write, so that after a kill -9 at
any instant all of it is there or none. Offsets are given out without gaps and never change;
compaction and trimming take records away, not offsets, and never move the end. What is damaged
is refused with an error and never read.

Boundary: partitions are numbers here. Their topics, when to compact and what to trim, locks and
event loops are ``stream/broker.py``'s business. Appends and reads come from one thread,
``compact`` and ``trim`` may run beside them in one other.

Layout; integers are big-endian, so that RocksDB's byte order is offset order::

    "r" partition (8) offset (8) -> msgpack [[offset, timestamp, key, value], ...]    a block
    "s" partition (8)            -> msgpack [start, cleaned, kept]
    "v"                          -> the version of this layout
    anything else                -> the broker's own entries

A block stands under the last offset that it covers, which it keeps when compaction takes its
records: seeking an offset finds its block, and the last block tells where the log ends.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from stream.errors import JournalLost, StateError

Row = tuple[bytes | None, bytes | None]  # key, value; a value of None is a tombstone

LAYOUT = b"1"

BLOCK_RECORDS = 2_000
BLOCK_BYTES = 1 << 20
"""Most of a block: a chunk's worth, so that reading a chunk decodes two blocks at most."""

COMPACT_KEYS = 100_000
"""Distinct keys that one pass of a compaction holds in memory: about 20 MB."""


class Record(msgspec.Struct, array_like=True, gc=False):
    """One record; ``timestamp`` in ms, when it was appended unless the writer said otherwise."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(slots=True, eq=False)
class Log:
    """One partition. ``[start, end)`` are the offsets it covers, not all of which hold a record.

    Below ``cleaned`` every key is there once, in ``kept`` records.
    """

    number: int
    start: int = 0
    end: int = 0
    cleaned: int = 0
    kept: int = 0

    @property
    def prefix(self) -> bytes:
        return b"r" + self.number.to_bytes(8, "big")

    def key(self, offset: int) -> bytes:
        return self.prefix + offset.to_bytes(8, "big")

    @property
    def state_key(self) -> bytes:
        return b"s" + self.number.to_bytes(8, "big")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Record]).decode
_decode_state = msgspec.msgpack.Decoder(tuple[int, int, int]).decode


class LogStore:
    """The logs under ``path``, a directory that is made if it is missing.

    ``memory`` bounds RocksDB's buffers and cache, in bytes. With ``sync`` a write has reached
    the disk when it returns (power loss); without, the system's page cache (kill -9).

    Raises (all methods):
        StateError: what is stored is damaged.
        JournalLost: a write failed; nothing of it is kept.
    """

    def __init__(self, path: Path, *, sync: bool = False, memory: int = 48 << 20) -> None:
        self.path = path
        self._options = WriteOptions()
        self._options.sync = sync
        with self._reading():
            self._db = Rdict(str(path), _options(memory))
            layout = self._db.get(b"v")
        if layout is None:
            self.put({b"v": LAYOUT})
        elif layout != LAYOUT:
            self.close()
            raise StateError(
                f"{path}: written by another version of tagstream, in layout"
                f" {layout.decode()} where this one has {LAYOUT.decode()}: go on with that version"
            )

    def close(self) -> None:
        self._db.close()

    # Records

    def log(self, number: int) -> Log:
        """Open the log of partition ``number``, below 2**64; it is empty if nobody wrote to it."""
        log = Log(number)
        with self._reading():
            if state := self._db.get(log.state_key):
                log.start, log.cleaned, log.kept = _decode_state(state)
            newest = self._db.iter()
            newest.seek_for_prev(log.key(2**64 - 1))
            if newest.valid() and newest.key().startswith(log.prefix):
                log.end = _last(newest.key()) + 1
            newest.status()
        return log

    def append(self, rows: Mapping[Log, Sequence[Row]], timestamp: int | None = None) -> None:
        """Append to all of these logs or to none. ``timestamp`` in ms, by default now."""
        if timestamp is None:
            timestamp = time.time_ns() // 1_000_000
        batch = WriteBatch(raw_mode=True)
        for log, items in rows.items():
            records = [
                Record(offset, timestamp, key, value)
                for offset, (key, value) in enumerate(items, log.end)
            ]
            for first in range(0, len(records), BLOCK_RECORDS):
                for last, block in _blocks(records[first : first + BLOCK_RECORDS]):
                    batch.put(log.key(last), block)
        self._write(batch)
        for log, items in rows.items():
            log.end += len(items)

    def read(
        self, log: Log, offset: int, end: int, *, max_records: int, max_bytes: int
    ) -> tuple[list[Record], int]:
        """Records from ``offset`` on, below ``end``, and the position after them.

        The position passes what compaction took away, so that it reaches ``end``; it is
        ``offset`` only if that is ``end``. At least one record, whatever its size, unless there
        is none up to ``end``.

        Raises:
            IndexError: the range is not within ``[log.start, log.end]``.
        """
        records: list[Record] = []
        room = max_bytes
        with self._reading():
            blocks = self._db.iter()
            # Looked at after the iterator has its snapshot: a trim beside us moves the start
            # before it takes blocks away.
            if not log.start <= offset <= end <= log.end:
                raise IndexError(f"[{offset}, {end}) is not in [{log.start}, {log.end})")
            if offset < end:
                blocks.seek(log.key(offset))
            while offset < end:
                last, block = self._block(log, blocks)
                found = _decode(block)
                if last >= end or (found and found[0].offset < offset):
                    found = [record for record in found if offset <= record.offset < end]
                if found and (len(records) + len(found) > max_records or len(block) > room):
                    records += _within(found, max_records - len(records), room, records == [])
                    return records, records[-1].offset + 1
                records += found
                room -= len(block)
                offset = min(last + 1, end)
                if offset == end or len(records) == max_records or room <= 0:
                    break
                blocks.next()
        return records, offset

    def _block(self, log: Log, blocks: Any) -> tuple[int, bytes]:
        """The block of ``log`` that an iterator stands on, and the last offset it covers."""
        if not blocks.valid():
            blocks.status()
        elif (key := blocks.key()).startswith(log.prefix):
            return _last(key), blocks.value()
        raise StateError(self._damage("records are missing"))

    # Taking records away

    def trim(self, log: Log, *, below: int, before_ms: int) -> None:
        """Delete the first blocks, as long as each ends below an offset or before an instant.

        The last block stays: it tells where the log ends.
        """
        batch, start, end = WriteBatch(raw_mode=True), log.start, log.end
        for last, block in self._walk(log, start, end):
            if last == end - 1:
                break
            if last >= below:
                newest = max((record.timestamp for record in _decode(block)), default=0)
                if newest >= before_ms:
                    break
            batch.delete(log.key(last))
            start = last + 1
        if start > log.start:
            log.start = start
            batch.put(log.state_key, _encode((start, log.cleaned, log.kept)))
            self._write(batch)
            self._reclaim(log)

    def compact(self, log: Log, *, tombstones_ms: int, stopped: Callable[[], bool]) -> None:
        """Keep the newest record of each key, tombstones only if not older than ``tombstones_ms``.

        All records without a key count as of one. Ends early, leaving a whole log, once
        ``stopped``; a kill leaves one too.
        """
        end = log.end
        while log.cleaned < end and not stopped():
            newest: dict[bytes | None, int] = {}
            upto = log.cleaned
            for last, block in self._walk(log, upto, end):
                newest.update([(record.key, record.offset) for record in _decode(block)])
                upto = last + 1
                if len(newest) >= COMPACT_KEYS:
                    break
            self._sweep(log, upto, newest, tombstones_ms, stopped)
        self._reclaim(log)

    def _sweep(
        self,
        log: Log,
        upto: int,
        newest: Mapping[bytes | None, int],
        tombstones_ms: int,
        stopped: Callable[[], bool],
    ) -> None:
        """Take what ``newest`` outdates from the blocks below ``upto``, and merge what is left."""
        left: list[Record] = []  # of the blocks in ``merged``, which are still stored
        merged: list[int] = []
        size = kept = 0  # size: about that of ``left``, encoded

        def put() -> None:
            batch = WriteBatch(raw_mode=True)
            for last in merged[:-1]:
                batch.delete(log.key(last))
            batch.put(log.key(merged[-1]), _encode(left))
            self._write(batch)
            left.clear()
            merged.clear()

        for last, block in self._walk(log, log.start, upto):
            if stopped():
                return
            records = _decode(block)
            # In this order no tombstone goes before what it deletes.
            keep = [
                record
                for record in records
                if newest.get(record.key, record.offset) == record.offset
                and (record.value is not None or record.timestamp >= tombstones_ms)
            ]
            kept += len(keep)
            share = len(block) * len(keep) // (len(records) or 1)
            if merged and (size + share > BLOCK_BYTES or len(left) + len(keep) > BLOCK_RECORDS):
                put()
                size = 0
            if not merged and len(keep) == len(records) and len(records) > BLOCK_RECORDS // 2:
                continue  # as it was
            left += keep
            merged.append(last)
            size += share
        if merged:
            put()
        log.cleaned, log.kept = upto, kept
        batch = WriteBatch(raw_mode=True)
        batch.put(log.state_key, _encode((log.start, upto, kept)))
        self._write(batch)

    def _walk(self, log: Log, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The blocks that cover ``[start, end)``, each with its last offset."""
        with self._reading():
            blocks = self._db.iter()
            if start < end:
                blocks.seek(log.key(start))
            while start < end:
                last, block = self._block(log, blocks)
                yield last, block
                start = last + 1
                if start < end:
                    blocks.next()

    def _reclaim(self, log: Log) -> None:
        """Free the disk of what was deleted, which RocksDB does in its own time otherwise."""
        with self._reading():
            self._db.compact_range(log.key(0), log.key(2**64 - 1))

    # The broker's own entries

    def entries(self, prefix: bytes) -> dict[bytes, bytes]:
        """All entries whose keys begin with ``prefix``, without it."""
        found = {}
        with self._reading():
            entries = self._db.iter()
            entries.seek(prefix)
            while entries.valid() and (key := entries.key()).startswith(prefix):
                found[key[len(prefix) :]] = entries.value()
                entries.next()
            entries.status()
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries, all or none."""
        batch = WriteBatch(raw_mode=True)
        for key, value in entries.items():
            batch.put(key, value)
        self._write(batch)

    # Errors: rocksdict raises plain Exceptions, told apart by what was being done.

    def _write(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch, self._options)
        except Exception as error:
            raise JournalLost(
                f"{self.path}: a write failed and nothing of it is kept ({_one_line(error)}):"
                " make room or mend the disk, then start again"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, msgspec.DecodeError):
                raise
            raise StateError(self._damage(_one_line(error))) from error

    def _damage(self, what: str) -> str:
        return (
            f"{self.path}: the embedded broker cannot read its log ({what}): restore the directory"
            " from a copy, or delete it and feed the events again"
        )


def _options(memory: int) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(memory // 4)
    options.set_max_write_buffer_number(3)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    # Blocks are written once, beside the tree that orders them, and never rewritten by it.
    options.set_enable_blob_files(True)
    options.set_min_blob_size(1 << 10)
    options.set_blob_file_size(32 << 20)
    options.set_blob_compression_type(DBCompressionType.lz4())
    options.set_enable_blob_gc(True)
    options.set_blob_gc_age_cutoff(1.0)
    options.set_blob_gc_force_threshold(0.5)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(memory // 4))
    options.set_block_based_table_factory(table)
    # A kill tears the last write at most, which nobody was told of. Any other damage is an error.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    return options


def _blocks(records: list[Record]) -> Iterator[tuple[int, bytes]]:
    """Encode records as one block, or as several where one would be too large."""
    block = _encode(records)
    if len(block) <= BLOCK_BYTES or len(records) == 1:
        yield records[-1].offset, block
    else:
        half = len(records) // 2
        yield from _blocks(records[:half])
        yield from _blocks(records[half:])


def _within(records: list[Record], most: int, room: int, one: bool) -> list[Record]:  # noqa: FBT001
    """The first ``most`` of records, as far as ``room`` bytes last, if need be only ``one``."""
    for n, record in enumerate(records[:most]):
        room -= len(record.key or b"") + len(record.value or b"")
        if room < 0 and n >= one:
            return records[:n]
    return records[:most]


def _last(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
