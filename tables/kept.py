"""Parts of what is kept that are msgpack, since they are seldom looked at or seldom there at all.

Never compiled: msgspec reads these annotations when the program starts.
"""

from typing import Any

from msgspec import Struct

from tables.calendar import NEVER


class TagState(Struct, array_like=True, gc=False):
    """A tag that changed at least once: its value, since when, and how many changes it had."""

    value: Any
    since_ms: int
    number: int


class Spilled(Struct, array_like=True, gc=False):
    """What a record says of its blocks of ids (`tables/dedup.py`), numbered 0 to ``blocks - 1``.

    ``ids`` counts what they hold, forgotten ids not yet removed included; ``newest_ms`` is the
    largest event time ever in them.
    """

    blocks: int
    ids: int
    newest_ms: int


class Warned(Struct, array_like=True, gc=False):
    """A raised warning. ``number`` counts a user's from 1; ``refuted``: it will not be right.

    ``probability`` is what a predicted one was raised with; that by silence has none.
    """

    number: int
    raised_ms: int
    churn_ms: int
    matures_ms: int
    refuted: bool = False
    scored: bool = False
    returned_ms: int | None = None
    returned_from: str | None = None
    probability: float | None = None


Row = tuple[int, int, int]


class Held(Struct, array_like=True, gc=False):
    """What a record keeps of one window of hours (`tables/hours.py`): ``total`` instants, of which
    ``head`` has the oldest.

    The others are in ``rows``, in order of time: of each its first instant, how many instants it
    holds, and its number. What lies in a row is not before its first, nor beyond the next row's;
    what is in ``head`` lies before the first row's. ``spent`` are rows to be dropped.
    """

    oldest_ms: int = NEVER  # the first time in ``head``
    head: bytes = b""
    total: int = 0
    rows: tuple[Row, ...] = ()
    spent: tuple[int, ...] = ()


class HeldTag(Struct, array_like=True, gc=False):
    """A tag that a user has: its value, and since when."""

    value: Any
    since_ms: int


class Profile(Struct, array_like=True, gc=False):
    """What is kept of a user over all domains. Times in epoch ms.

    ``tags`` are those set now, of all domains and made of tags. ``numbers`` counts the changes
    of each tag made of tags. ``domains`` are those with a record of the user. ``activity`` comes
    first, so that it has its place in a row.
    """

    activity: bytes
    user_id: str
    tags: dict[str, HeldTag] = {}
    numbers: dict[str, int] = {}
    domains: list[str] = []
    updated_ms: int = -NEVER  # of the last change; before all time until the first
    erased_ms: int = -NEVER  # the newest thing that is not to be known any more
    barred: bool = False  # nothing newer than what was erased is known: no tags made of tags
    forgotten: int = 0  # grows with every erasure before this profile, in whatever domain
