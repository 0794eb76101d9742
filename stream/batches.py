"""Kafka's record batches (message format 2), made of many rows.

    batch  = base offset, length, leader epoch, format | CRC | attributes, last offset delta,
             two times, producer id, epoch and sequence, number of records | records
    record = length, attributes, time delta, offset delta, key, value, number of headers

All records of a batch have its time, and none has headers. The CRC covers what follows it. The
producer's identity is known last, when a batch is on its way: so `Records` are made of rows, and
by `seal` a batch of records.

What is said is encoded as it is said, while the processor has it at hand: kept as objects, it would
be fetched from memory again for every step of a flush, and take up more of it.

Boundary: bytes only. How batches are sent is `stream/journal.py`'s.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from google_crc32c import extend, value
from librt.strings import BytesWriter
from mypy_extensions import i64, mypyc_attr

from tables.packing import Reader, put, put_bytes

Row = tuple[bytes | None, bytes | None]  # key, value

FORMAT: Final = 2
TRANSACTIONAL: Final = 0x10
_HEAD: Final = struct.Struct(">qiibI")
_COVERED: Final = struct.Struct(">hiqqqhii")
OVERHEAD: Final = _HEAD.size + _COVERED.size
"""Bytes of a batch beside its records."""
MAX_BATCH_BYTES: Final = 900_000
"""Below Kafka's default max.message.bytes of 1 MiB."""


@mypyc_attr(acyclic=True)
class Records:
    """Rows as the records of as few batches as can be, to be read as a sequence of rows.

    No batch is larger than ``most`` bytes, unless one row alone is.

    >>> records = Records()
    >>> records.add(b"k", b"v")
    >>> records.add(b"k", None)
    >>> records.batches()
    [(b'\\x10\\x00\\x00\\x00\\x02k\\x02v\\x00\\x0e\\x00\\x00\\x02\\x02k\\x01\\x00', 2)]
    >>> records[-1:]
    [(b'k', None)]
    """

    def __init__(self, most: int = MAX_BATCH_BYTES) -> None:
        self._room: i64 = most - OVERHEAD
        self._full: list[tuple[bytes, int]] = []
        self._before: i64 = 0  # rows in those
        self._full_bytes: i64 = 0
        self._to = BytesWriter()
        self._count: i64 = 0

    def add(self, key: bytes | None, content: bytes | None) -> None:
        """One row more; without a content it is a tombstone."""
        size: i64 = 3  # attributes, as old as the batch, no headers
        size += 1 if key is None else _size(len(key)) + len(key)
        size += 1 if content is None else _size(len(content)) + len(content)
        length: i64 = size + _size(self._count)
        if self._count > 0 and len(self._to) + _size(length) + length > self._room:
            self._full.append((self._to.getvalue(), self._count))
            self._full_bytes += len(self._to)
            self._before += self._count
            self._to = BytesWriter()
            self._count = 0
            length = size + 1
        to = self._to
        put(to, length)
        to.append(0)
        to.append(0)
        put(to, self._count)
        if key is None:
            put(to, -1)
        else:
            put_bytes(to, key)
        if content is None:
            put(to, -1)
        else:
            put_bytes(to, content)
        to.append(0)
        self._count += 1

    def batches(self) -> list[tuple[bytes, int]]:
        """The records of each batch, and how many they are."""
        if self._count == 0:
            return self._full
        return [*self._full, (self._to.getvalue(), self._count)]

    @property
    def size(self) -> int:
        """Bytes of all records so far."""
        return self._full_bytes + len(self._to)

    def __len__(self) -> int:
        return self._before + self._count

    def __getitem__(self, part: slice) -> list[Row]:
        first, end, step = part.indices(len(self))
        rows: list[Row] = []
        number = 0
        for records, count in self.batches():
            reader = Reader(records)
            for _ in range(count):
                size = reader.number()
                after = reader.at + size
                if first <= number < end:
                    reader.at += 2
                    reader.number()
                    rows.append((_bytes(reader), _bytes(reader)))
                reader.at = after
                number += 1
        return rows[::step]

    def __iter__(self) -> Iterator[Row]:
        return iter(self[:])


def _size(number: i64) -> i64:
    """How many bytes it takes to put a number that is not negative."""
    size: i64 = 1
    while number > 63:
        number >>= 7
        size += 1
    return size


def _bytes(reader: Reader) -> bytes | None:
    at = reader.at
    if reader.number() < 0:
        return None
    reader.at = at
    return reader.bytes()


def encode(rows: Iterable[Row], most: int = MAX_BATCH_BYTES) -> list[tuple[bytes, int]]:
    """Rows as the records of as few batches as can be, with the number of records in each."""
    records = Records(most)
    for key, content in rows:
        records.add(key, content)
    return records.batches()


def seal(
    records: bytes, count: int, time_ms: int, *, producer: int, epoch: int, sequence: int
) -> bytes:
    """The batch of some records that a transactional producer sends at a time."""
    covered = _COVERED.pack(
        *(TRANSACTIONAL, count - 1, time_ms, time_ms),
        *(producer, epoch, sequence, count),
    )
    crc = extend(value(covered), records)
    # The length is what follows it: 12 bytes of the two before.
    head = _HEAD.pack(0, OVERHEAD - 12 + len(records), -1, FORMAT, crc)
    return b"".join((head, covered, records))
