"""On which local days a user was active, and when he signed up: 16 bytes of his profile.

Counted from them, once whatever comes late or again: a user in a day, in a week from Monday, in a
month; somebody who signed up; one who was active exactly 1, 7 or 30 days after that.

Packed, since it is all that most events change of a profile: see ``Profiles.activated``.
"""

from calendar import monthrange
from datetime import date
from functools import lru_cache
from typing import Final

from librt.strings import (
    BytesWriter,
    read_i32_be,
    read_i64_be,
    write_i32_be,
    write_i64_be,
)
from mypy_extensions import i32, i64

from tables.calendar import EPOCH_ORDINAL
from tables.outputs import Figure
from tables.record import FIRST_DAY, NO_DAY

RETAINED: Final = (1, 7, 30)
"""Days after signing up on which being active is counted."""

KEPT_DAYS: Final = 62
"""Local days that are known: what comes later than that is not counted as activity."""

_KNOWN: Final = 2**62 - 1

# The last day of activity, the day of signing up (``NO_DAY``: not yet), and a bit for each of the
# days before the last active one, bit n for n days before.
BYTES: Final = 16


def _packed(last: i64, signed_up: i64, active: i64) -> bytes:
    to = BytesWriter()
    write_i32_be(to, i32(last))
    write_i32_be(to, i32(signed_up))
    write_i64_be(to, active)
    return to.getvalue()


NOTHING: Final = _packed(FIRST_DAY, NO_DAY, 0)


def registered(known: bytes, day: int, figures: list[Figure]) -> bytes:
    """The user signed up on a local day; only the first time counts."""
    if read_i32_be(known, 4) != NO_DAY:
        return known
    last, active = i64(read_i32_be(known, 0)), read_i64_be(known, 8)
    figures.append(("registered", "", 1))
    for later in RETAINED:
        if active & _bits(last, day + later, 1):
            figures.append(("retained", str(later), 1))
    return _packed(last, day, active)


def activated(known: bytes, day: i64, figures: list[Figure]) -> bytes:
    """The user was active on a local day; what that adds is counted, once."""
    last, signed_up = i64(read_i32_be(known, 0)), i64(read_i32_be(known, 4))
    active = read_i64_be(known, 8)
    passed = day - last
    if passed > 0:
        active = (active << passed) & _KNOWN if passed < KEPT_DAYS else 0
        last = day
    bit = _bits(last, day, 1)
    if not bit or active & bit:  # too old to know, or known
        return _packed(last, signed_up, active) if passed > 0 else known
    figures.append(("active", "day", 1))
    for period, first, days in _periods(day):
        if not active & _bits(last, first, days):
            figures.append(("active", period, 1))
    for later in RETAINED:
        if day - signed_up == later:
            figures.append(("retained", str(later), 1))
    return _packed(last, signed_up, active | bit)


def _bits(last: i64, first: i64, days: i64) -> i64:
    """Those bits that stand for ``days`` days from ``first`` on, where ``last`` is bit 0."""
    oldest = last - first
    newest = oldest - days + 1
    if oldest > KEPT_DAYS - 1:
        oldest = KEPT_DAYS - 1
    if newest < 0:
        newest = 0
    if oldest < newest:
        return 0
    # (Compiled, a literal that is shifted has 32 bits.)
    return _KNOWN >> (KEPT_DAYS - 1 - oldest) >> newest << newest


@lru_cache(maxsize=1_024)
def _periods(day: int) -> tuple[tuple[str, int, int], ...]:
    """The week and the month of a local day: name, first day, number of days."""
    on = date.fromordinal(day + EPOCH_ORDINAL)
    week = day - on.weekday()
    return ("week", week, 7), ("month", day - on.day + 1, monthrange(on.year, on.month)[1])
