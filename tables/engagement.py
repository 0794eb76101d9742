"""Engagement: what a user watches, reviews, shares, views, searches for and puts into the cart.

Windows: whole local days, the clock's own included. Late events: counted on their own day.
Watching in milliseconds inside, in seconds as a feature. Source: topic ``engagement``.

However much a user does, his record holds one entry a day, and an event touches the last one.
"""

from fractions import Fraction
from math import inf
from typing import Final

from librt.strings import BytesWriter
from msgspec import UnsetType
from mypy_extensions import mypyc_attr

from tables.days import DayTable, divided, ratio_of, sum_of
from tables.events import Event as AnyEvent
from tables.events.engagement import (
    Cart,
    Event,
    Favorite,
    Review,
    Search,
    Share,
    View,
    Watch,
)
from tables.features import Features, Ratio, Since, Window
from tables.packing import Reader, put_optional
from tables.record import DayCounts, Values
from tables.table import Outputs

__all__ = ["Engagement", "Event", "Visitor", "features"]

# The columns of an entry: days with any event, events by type, and what they came to. Ratings are
# summed in steps of 1e-8, and what is left in steps of 1e-16.
ACTIVE: Final = 1
WATCHES: Final = 2
WATCHED_MS: Final = 3
FAVORITES: Final = 4
REVIEWS: Final = 5
SHARES: Final = 6
VIEWS: Final = 7
SEARCHES: Final = 8
CARTS: Final = 9
RATED: Final = 10
RATING: Final = 11
RATING_REST: Final = 12
COLUMNS: Final = 12

_COARSE: Final = 10**8
_FINE: Final = 10**16


def _decimals(rating: float) -> tuple[int, int]:
    """A rating as written, in steps of 1e-8, and what is left in steps of 1e-16: exact, and 62
    bits hold the sums.
    """
    coarse = round(rating * _COARSE)
    if coarse / _COARSE == rating:
        return coarse, 0
    return divmod(round(Fraction(str(rating)) * _FINE), _FINE // _COARSE)


@mypyc_attr(acyclic=True)
class Visitor(DayCounts):
    """A user in the domain engagement; ``last_day`` is the local day of the latest event."""

    def __init__(self, user_id: str, rules: int, values: Values) -> None:
        super().__init__(user_id, rules, values, COLUMNS)
        self.last_day: int | None = None

    def write(self, to: BytesWriter) -> None:
        """Append the record as bytes."""
        super().write(to)
        put_optional(to, self.last_day)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        super().read(row)
        self.last_day = row.optional()


features: Final = Features()

_COUNTED: Final = {
    "watches": WATCHES,
    "favorites": FAVORITES,
    "reviews": REVIEWS,
    "shares": SHARES,
    "views": VIEWS,
    "searches": SEARCHES,
    "carts": CARTS,
}

# Sums over 30 and over 90 local days. Source: the event of the same name.
for _days in (30, 90):
    for _counted, _column in _COUNTED.items():
        features.add(Window(_days, _column), f"{_counted}_{_days}d")(sum_of(_days, _column))
    features.add(Window(_days, WATCHED_MS, unit=1000), f"watch_seconds_{_days}d")(
        sum_of(_days, WATCHED_MS, unit=1000)
    )
    features.add(Ratio(_days, WATCHED_MS, WATCHES), f"avg_watch_seconds_{_days}d")(
        ratio_of(_days, WATCHED_MS, WATCHES, unit=1000)
    )

# Local days with any event of the topic.
for _days in (7, 30, 90):
    features.add(Window(_days, ACTIVE), f"active_days_{_days}d")(sum_of(_days, ACTIVE))


@features.add(Ratio(90, RATING, RATED))
def avg_rating_90d(user: Visitor) -> int | float:
    """Mean rating of the rated reviews of the last 90 local days; 0 where there are none.

    The exact mean of the ratings as written, rounded once. Source: ``review``. Late review:
    counted on its day.
    """
    rated: int = user.over(90, RATED)
    if not rated:
        return 0
    coarse: int = user.over(90, RATING)
    rest: int = user.over(90, RATING_REST)
    return divided(coarse * (_FINE // _COARSE) + rest, _FINE * rated)


@features.add(Since("last_day"))
def days_since_active(user: Visitor) -> int | float:
    """Local days since the latest event of the topic; infinity before the first.

    Late event: matters only where it is the latest.
    """
    if user.last_day is None:
        return inf
    return user.today - user.last_day


_COLUMNS: Final[dict[type[AnyEvent], int]] = {
    Watch: WATCHES,
    Review: REVIEWS,
    Favorite: FAVORITES,
    Share: SHARES,
    View: VIEWS,
    Search: SEARCHES,
    Cart: CARTS,
}


class Engagement(DayTable[Visitor]):
    """The logic of the domain engagement."""

    name = "engagement"
    features = features

    def made(self, user_id: str, rules: int, values: Values) -> Visitor:
        """A record of which nothing is known but this."""
        return Visitor(user_id, rules, values)

    def take(self, user: Visitor, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply an event to the record."""
        entry = self.entry(user, day)
        if not user.on(entry, ACTIVE):
            user.add(entry, ACTIVE, 1)
            if user.last_day is None or day > user.last_day:
                user.last_day = day
        user.add(entry, _COLUMNS[type(event)], 1)
        if isinstance(event, Watch):
            user.add(entry, WATCHED_MS, event.watched_ms)
        elif isinstance(event, Review) and not isinstance(event.rating, UnsetType):
            coarse, rest = _decimals(event.rating)
            user.add(entry, RATED, 1)
            user.add(entry, RATING, coarse)
            if rest:
                user.add(entry, RATING_REST, rest)
