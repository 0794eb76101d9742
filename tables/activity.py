"""On which local days a user was active, and when he signed up: 16 bytes of his profile.

Counted from them, once whatever comes late or again: a user in a day, in a week from Monday, in a
month; somebody who signed up; one who was active exactly 1, 7 or 30 days after that.

Packed, since it is all that most events change of a profile: see ``Profiles.activated``.
"""

from calendar import monthrange
from datetime import date
from functools import lru_cache
from struct import Struct
from typing import Final

from tables.calendar import EPOCH_ORDINAL
from tables.outputs import Figure
from tables.record import FIRST_DAY, NO_DAY

RETAINED: Final = (1, 7, 30)
"""Days after signing up on which being active is counted."""

KEPT_DAYS: Final = 62
"""Local days that are known: what comes later than that is not counted as activity."""

_KNOWN: Final = (1 << KEPT_DAYS) - 1

# The last day of activity, the day of signing up (``NO_DAY``: not yet), and a bit for each of the
# days before the last active one, bit n for n days before.
_PACKED: Final = Struct(">iiQ")
BYTES: Final[int] = _PACKED.size
NOTHING: Final = _PACKED.pack(FIRST_DAY, NO_DAY, 0)


def registered(known: bytes, day: int, figures: list[Figure]) -> bytes:
    """The user signed up on a local day; only the first time counts."""
    last, signed_up, active = _PACKED.unpack(known)
    if signed_up != NO_DAY:
        return known
    figures.append(("registered", "", 1))
    for later in RETAINED:
        if active & _bits(last, day + later, 1):
            figures.append(("retained", str(later), 1))
    return _PACKED.pack(last, day, active)


def activated(known: bytes, day: int, figures: list[Figure]) -> bytes:
    """The user was active on a local day; what that adds is counted, once."""
    last, signed_up, active = _PACKED.unpack(known)
    passed = day - last
    if passed > 0:
        active = active << passed & _KNOWN if passed < KEPT_DAYS else 0
        last = day
    bit = _bits(last, day, 1)
    if not bit or active & bit:  # too old to know, or known
        return _PACKED.pack(last, signed_up, active) if passed > 0 else known
    figures.append(("active", "day", 1))
    for period, first, days in _periods(day):
        if not active & _bits(last, first, days):
            figures.append(("active", period, 1))
    if day - signed_up in RETAINED:
        figures.append(("retained", str(day - signed_up), 1))
    return _PACKED.pack(last, signed_up, active | bit)


def _bits(last: int, first: int, days: int) -> int:
    """Those bits that stand for ``days`` days from ``first`` on, where ``last`` is bit 0."""
    oldest = min(last - first, KEPT_DAYS - 1)
    newest = max(last - first - days + 1, 0)
    return (1 << oldest + 1) - (1 << newest) if oldest >= newest else 0


@lru_cache(maxsize=1_024)
def _periods(day: int) -> tuple[tuple[str, int, int], ...]:
    """The week and the month of a local day: name, first day, number of days."""
    on = date.fromordinal(day + EPOCH_ORDINAL)
    week = day - on.weekday()
    return ("week", week, 7), ("month", day - on.day + 1, monthrange(on.year, on.month)[1])
