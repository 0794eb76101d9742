"""RFC 3339 date-times as integer milliseconds of event time, and back to UTC text.

Grammar: RFC 3339 section 5.6, strictly: full date, ``T`` or ``t`` or one space, seconds, an
optional fraction of any length, and an offset (``Z`` or ``±hh:mm``), without which a time
means nothing here. A fraction is cut to whole milliseconds, never rounded up. A leap second
(``:60``) is not a time that can be counted in epoch milliseconds and is refused.
Bounds: 1970-01-01 ≤ ts < 9999-01-01, UTC, so that a local date always exists.
"""

import re
from datetime import UTC, datetime, timedelta

END_MS = 253_370_764_800_000  # 9999-01-01T00:00:00Z

_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
).fullmatch
_read = datetime.fromisoformat  # takes much more than RFC 3339, hence the pattern
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def parse(text: str) -> int:
    """Epoch milliseconds of an RFC 3339 date-time.

    Raises:
        ValueError: not of that form, no such date, or out of bounds; without the text.

    >>> parse("2025-04-30T00:00:00.0009+08:00")
    1745942400000
    """
    if _RFC3339(text) is None:
        raise ValueError("not an RFC 3339 time with offset")
    try:
        moment = _read(text.upper())
    except ValueError:
        raise ValueError("no such date or time of day") from None
    return check((moment - _EPOCH) // _MILLISECOND)


def check(ts_ms: int) -> int:
    """The same instant, if it lies within bounds.

    Raises:
        ValueError: it does not.
    """
    if not 0 <= ts_ms < END_MS:
        raise ValueError("not between 1970 and 9998")
    return ts_ms


def iso_utc(ts_ms: int) -> str:
    """``2025-04-29T16:00:00.000Z``: the way records say when they were made.

    >>> iso_utc(1745942400000)
    '2025-04-29T16:00:00.000Z'
    """
    moment = _EPOCH + ts_ms * _MILLISECOND
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ts_ms % 1000:03d}Z"
