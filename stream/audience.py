"""Who has a tag, in pages: partition after partition, each in the order of its users' keys.

A *cursor* says where the next page begins, and of which audience. Going through all pages gives
everybody who had the tag all the while exactly once; one who gains or loses it meanwhile may be
among them or not. No snapshot is held for it.

A page is bounded in users and in profiles looked at, so it may be short, even empty, with more
to come: only a missing cursor is the end.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

import msgspec

from stream.metrics import value_label
from stream.partition import Partition

PAGE: Final = 100
MOST: Final = 1_000
SLICE = 500  # profiles looked at in one go: a millisecond or two
LOOKED_AT = 50_000  # profiles looked at for one page, in one partition


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """Where a page begins: in ``partition``, after the user whose key is ``after``."""

    tag: str
    value: str | None
    partition: int
    after: bytes

    def text(self) -> str:
        """As it stands in an answer."""
        return base64.urlsafe_b64encode(_encode(self)).decode().rstrip("=")


class UnknownCursorError(ValueError):
    """No cursor of ours, or of another audience."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Cursor).decode


def cursor_of(text: str, *, tag: str, value: str | None, partitions: int) -> Cursor:
    """The cursor that ``text`` is; the beginning where it is empty.

    Raises:
        UnknownCursorError: it is none of this audience.

    >>> cursor_of(Cursor("loyal", None, 3, b"u1").text(), tag="loyal", value=None, partitions=8)
    Cursor(tag='loyal', value=None, partition=3, after=b'u1')
    """
    if not text:
        return Cursor(tag, value, 0, b"")
    try:
        cursor = _decode(
            base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        )
    except (binascii.Error, ValueError) as error:  # msgspec's errors are ValueErrors
        raise UnknownCursorError from error
    if (cursor.tag, cursor.value) != (tag, value) or not 0 <= cursor.partition < partitions:
        raise UnknownCursorError
    return cursor


async def holders(
    partition: Partition, cursor: Cursor, limit: int, *, still_ours: Callable[[], bool]
) -> tuple[list[tuple[str, Any]], bytes | None] | None:
    """Up to ``limit`` users of a partition with what they hold, and after whom to go on.

    None to go on from: that was all. None at all: the partition left us meanwhile. The event loop
    gets its turn after every slice.
    """
    tag, value, after = cursor.tag, cursor.value, cursor.after
    found: list[tuple[str, Any]] = []
    for _ in range(0, LOOKED_AT, SLICE):
        if not still_ours():
            return None
        profiles, last = partition.profiles.some(after, SLICE, mentioning=tag.encode())
        for key, profile in profiles:
            held = profile.tags.get(tag)
            if held is not None and value in (None, value_label(held.value)):
                found.append((profile.user_id, held))
                if len(found) == limit:
                    return found, key
        if last is None:
            return found, None
        after = last
        await asyncio.sleep(0)
    return found, after
