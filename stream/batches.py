"""Kafka's record batches (message format 2), made of many rows in one go.

What a flush says was encoded long before, and has left the processor's caches: what is left to do
for a row is to touch it once. A builder that is asked record by record, keeps the time and the
place of each, and grows as it goes costs twice as much.

    batch  = base offset, length, leader epoch, format | CRC | attributes, last offset delta,
             two times, producer id, epoch and sequence, number of records | records
    record = length, attributes, time delta, offset delta, key, value, number of headers

All records of a batch have its time, and none has headers. The CRC covers what follows it. The
producer's identity is known last, when a batch is on its way: so `encode` makes records of rows,
and `seal` a batch of records.

Boundary: bytes only. How batches are sent is `stream/journal.py`'s.
"""

import struct
from collections.abc import Iterable
from typing import Final

from google_crc32c import extend, value

Row = tuple[bytes | None, bytes | None]  # key, value

FORMAT: Final = 2
TRANSACTIONAL: Final = 0x10
_HEAD: Final = struct.Struct(">qiibI")
_COVERED: Final = struct.Struct(">hiqqqhii")
OVERHEAD: Final = _HEAD.size + _COVERED.size
"""Bytes of a batch beside its records."""

_NULL: Final = b"\x01"  # the length -1
_PLAIN: Final = b"\0\0"  # attributes, and as old as the batch


def _varint(number: int) -> bytes:
    """A number that is not negative, as records have them: zigzag, seven bits a byte."""
    encoded = bytearray()
    rest = number << 1
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


_VARINTS: Final = [_varint(number) for number in range(1 << 14)]


def encode(rows: Iterable[Row], most: int) -> list[tuple[bytes, int]]:
    """Rows as the records of as few batches as can be, with the number of records in each.

    No batch is larger than ``most`` bytes, unless one row alone is.

    >>> encode([(b"k", b"v"), (b"k", None)], 1_000_000)
    [(b'\\x10\\x00\\x00\\x00\\x02k\\x02v\\x00\\x0e\\x00\\x00\\x02\\x02k\\x01\\x00', 2)]
    """
    varints, few = _VARINTS, len(_VARINTS)
    batches: list[tuple[bytes, int]] = []
    parts: list[bytes] = []
    room = most - OVERHEAD
    size = count = 0
    for key, content in rows:
        if key is None:
            named = _NULL
        else:
            length = len(key)
            named = (varints[length] if length < few else _varint(length)) + key
        length = 0
        said = _NULL
        if content is not None:
            length = len(content)
            said = varints[length] if length < few else _varint(length)
        delta = varints[count] if count < few else _varint(count)
        length += len(_PLAIN) + len(delta) + len(named) + len(said) + 1
        framed = varints[length] if length < few else _varint(length)
        if size + length + len(framed) > room and count > 0:
            batches.append((b"".join(parts), count))
            parts = []
            # Counting from 0 again, a record is at most shorter by some bytes than was said.
            size = count = 0
            length -= len(delta) - 1
            delta = varints[0]
            framed = varints[length] if length < few else _varint(length)
        parts.append(framed + _PLAIN + delta + named + said)
        if content is not None:
            parts.append(content)
        parts.append(b"\0")
        size += length + len(framed)
        count += 1
    if count > 0:
        batches.append((b"".join(parts), count))
    return batches


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
