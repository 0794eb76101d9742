"""Numbers and texts as bytes, one after the other: how a user's record is kept.

A record is read at every touch and written right after, whatever its history: so a number takes
as few bytes as it needs (seven bits in each, the sign in the lowest), and nothing is named.
Whoever reads asks for the same things in the same order as they were put.

Source: protocol buffers' base-128 varints, zigzag.
"""

from collections.abc import Callable
from typing import Any, Final

from librt.strings import BytesWriter, read_f64_le, read_i64_le, write_f64_le, write_i64_le
from msgspec import msgpack
from mypy_extensions import i64, mypyc_attr

MAX_NUMBER: Final = 2**62 - 1
"""No number may be larger, nor smaller than its negative."""

_MISSING: Final = -(2**63)

pack: Callable[[Any], bytes] = msgpack.Encoder().encode
"""The parts that are seldom looked at, or seldom there at all (`tables/kept.py`), as msgpack."""


def put(to: BytesWriter, number: i64) -> None:
    """Append a whole number up to ``MAX_NUMBER`` either way; OverflowError beyond."""
    if number > MAX_NUMBER or number < -MAX_NUMBER:
        raise OverflowError("a number that is too large to be kept")
    rest: i64 = (number << 1) ^ (number >> 63)
    while rest > 127:
        to.append((rest & 127) | 128)
        rest >>= 7
    to.append(rest)


def put_optional(to: BytesWriter, number: int | None) -> None:
    """Append a number that may be missing."""
    if number is None:
        to.append(0)
    else:
        to.append(1)
        put(to, number)


def put_instant(to: BytesWriter, ts_ms: i64) -> None:
    """Append an instant: a number that is as large for everybody, in as many bytes at once."""
    write_i64_le(to, ts_ms)


def put_optional_instant(to: BytesWriter, ts_ms: int | None) -> None:
    """Append an instant that may be missing."""
    write_i64_le(to, _MISSING if ts_ms is None else ts_ms)


def put_float(to: BytesWriter, number: float) -> None:
    """Append a floating-point number, exactly."""
    write_f64_le(to, number)


def put_bytes(to: BytesWriter, some: bytes) -> None:
    """Append bytes with their number before them."""
    put(to, len(some))
    to.write(some)


def put_text(to: BytesWriter, text: str) -> None:
    """Append a text."""
    put_bytes(to, text.encode())


def put_packed(to: BytesWriter, part: Any) -> None:
    """Append such a part; no bytes where there is nothing in it."""
    put_bytes(to, pack(part) if part else b"")


@mypyc_attr(acyclic=True)
class Reader:
    """Reads what was put, from ``at`` on. A row that is cut off raises IndexError.

    >>> to = BytesWriter()
    >>> put(to, -300), put_text(to, "u1"), put_optional(to, None)
    (None, None, None)
    >>> reader = Reader(to.getvalue())
    >>> reader.number(), reader.text(), reader.optional()
    (-300, 'u1', None)
    """

    def __init__(self, row: bytes, at: i64 = 0) -> None:
        self.row = row
        self.at: i64 = at

    def number(self) -> i64:
        """The next number."""
        row, at = self.row, self.at
        rest: i64 = 0
        shift: i64 = 0
        while True:
            byte: i64 = row[at]
            at += 1
            if byte < 128:
                break
            rest |= (byte & 127) << shift
            shift += 7
        rest |= byte << shift
        self.at = at
        return (rest >> 1) ^ -(rest & 1)

    def optional(self) -> int | None:
        """The next number that may be missing."""
        at = self.at
        self.at = at + 1
        if not self.row[at]:
            return None
        return self.number()

    def instant(self) -> i64:
        """The next instant."""
        at = self.at
        self.at = at + 8
        return read_i64_le(self.row, at)

    def optional_instant(self) -> int | None:
        """The next instant that may be missing."""
        ts_ms = self.instant()
        return None if ts_ms == _MISSING else ts_ms

    def float(self) -> float:
        """The next floating-point number."""
        at = self.at
        self.at = at + 8
        return read_f64_le(self.row, at)

    def bytes(self) -> bytes:
        """The next bytes."""
        size = self.number()
        at = self.at
        self.at = at + size
        if self.at > len(self.row):
            raise IndexError("a row that ends too soon")
        return self.row[at : self.at]

    def text(self) -> str:
        """The next text."""
        return self.bytes().decode()
