"""Engagement: what a user watches, reviews, shares, views, searches for and puts into the cart.

Windows: whole local days, the clock's own included. Late events: counted on their own day.
Watching in milliseconds inside, in seconds as a feature. Source: topic ``engagement``.

However much a user does, his record holds one entry a day, and an event touches the last one.
"""

from collections.abc import Callable
from fractions import Fraction
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import UNSET, Meta, UnsetType, field

from tables.days import DayCounts, DayTable, add, before, ratio_of, sum_of
from tables.event import Erase
from tables.event import Event as AnyEvent
from tables.features import Features, Ratio, Since, Window
from tables.table import Outputs

MAX_SECONDS: Final = 1e9

if TYPE_CHECKING:
    Milliseconds = int
else:
    Milliseconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]  # seconds until ``check``


class Watch(AnyEvent, tag="watch"):
    """The user watched something for so long."""

    watched_ms: Milliseconds = field(name="seconds")

    def check(self) -> None:
        """Turn seconds into milliseconds."""
        self.watched_ms = milliseconds(self.watched_ms)


class Review(AnyEvent, tag="review"):
    """The user reviewed something, and may have rated it."""

    rating: Annotated[float, Meta(ge=1, le=5)] | UnsetType = UNSET


class Favorite(AnyEvent, tag="favorite"):
    """The user marked something as a favourite."""


class Share(AnyEvent, tag="share"):
    """The user shared something."""


class View(AnyEvent, tag="view"):
    """The user looked at something."""


class Search(AnyEvent, tag="search"):
    """The user searched."""


class Cart(AnyEvent, tag="cart"):
    """The user put something into the cart."""


Event = Watch | Review | Favorite | Share | View | Search | Cart | Erase


def milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds, the nearest; of two the even one.

    As written in decimals, where a binary fraction may lie to the other side of a half.

    >>> milliseconds(1.0005), milliseconds(1.0015), milliseconds(4.3)
    (1000, 1002, 4300)
    """
    ms = seconds * 1000
    nearest = round(ms)
    return nearest if abs(ms - nearest) < 0.499 else round(Fraction(str(seconds)) * 1000)


_COARSE: Final = 10**8
_FINE: Final = 10**16


def _decimals(rating: float) -> tuple[int, int]:
    """A rating as written, in steps of 1e-8, and what is left in steps of 1e-16: exact, and 64
    bits hold the sums.
    """
    coarse = round(rating * _COARSE)
    if coarse / _COARSE == rating:
        return coarse, 0
    return divmod(round(Fraction(str(rating)) * _FINE), _FINE // _COARSE)


class Visitor(DayCounts):
    """A user in the domain engagement."""

    active: list[int] = field(default_factory=lambda: [0])  # days with any event
    watches: list[int] = field(default_factory=lambda: [0])
    watched_ms: list[int] = field(default_factory=lambda: [0])
    favorites: list[int] = field(default_factory=lambda: [0])
    reviews: list[int] = field(default_factory=lambda: [0])
    shares: list[int] = field(default_factory=lambda: [0])
    views: list[int] = field(default_factory=lambda: [0])
    searches: list[int] = field(default_factory=lambda: [0])
    carts: list[int] = field(default_factory=lambda: [0])
    rated: list[int] = field(default_factory=lambda: [0])  # reviews with a rating
    rating: list[int] = field(default_factory=lambda: [0])  # sum of ratings, steps of 1e-8
    rating_rest: list[int] = field(default_factory=lambda: [0])  # and the rest, of 1e-16
    last_day: int | None = None


features: Final = Features()

# Sums over 30 and over 90 local days. Source: the event of the same name.
for _days in (30, 90):
    for _counted in ("watches", "favorites", "reviews", "shares", "views", "searches", "carts"):
        features.add(Window(_days, _counted))(sum_of(f"{_counted}_{_days}d", _days, _counted))
    features.add(Window(_days, "watched_ms", unit=1000))(
        sum_of(f"watch_seconds_{_days}d", _days, "watched_ms", unit=1000)
    )
    features.add(Ratio(_days, "watched_ms", "watches"))(
        ratio_of(f"avg_watch_seconds_{_days}d", _days, "watched_ms", "watches", unit=1000)
    )

# Local days with any event of the topic.
for _days in (7, 30, 90):
    features.add(Window(_days, "active"))(sum_of(f"active_days_{_days}d", _days, "active"))


@features.add(Ratio(90, "rating", "rated"))
def avg_rating_90d(user: Visitor) -> float:
    """Mean rating of the rated reviews of the last 90 local days; 0 where there are none.

    The exact mean of the ratings as written, rounded once. Source: ``review``. Late review:
    counted on its day.
    """
    entry = before(user, 90)
    rated = user.rated[-1] - user.rated[entry]
    if not rated:
        return 0
    coarse = user.rating[-1] - user.rating[entry]
    rest = user.rating_rest[-1] - user.rating_rest[entry]
    return (coarse * (_FINE // _COARSE) + rest) / (_FINE * rated)


@features.add(Since("last_day"))
def days_since_active(user: Visitor) -> float:
    """Local days since the latest event of the topic; infinity before the first.

    Late event: matters only where it is the latest.
    """
    return inf if user.last_day is None else user.today - user.last_day


_COLUMNS: Final[dict[type[AnyEvent], Callable[[Any], list[int]]]] = {
    Watch: attrgetter("watches"),
    Review: attrgetter("reviews"),
    Favorite: attrgetter("favorites"),
    Share: attrgetter("shares"),
    View: attrgetter("views"),
    Search: attrgetter("searches"),
    Cart: attrgetter("carts"),
}


class Engagement(DayTable[Visitor]):
    """The logic of the domain engagement."""

    name = "engagement"
    features = features
    record = Visitor
    columns = (
        *("active", "watches", "watched_ms", "favorites", "reviews", "shares", "views"),
        *("searches", "carts", "rated", "rating", "rating_rest"),
    )

    def take(self, user: Visitor, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply an event to the record."""
        entry = self.entry(user, day)
        if user.active[entry] == user.active[entry - 1]:
            add(user.active, entry, 1)
            if user.last_day is None or day > user.last_day:
                user.last_day = day
        add(_COLUMNS[type(event)](user), entry, 1)
        if isinstance(event, Watch):
            add(user.watched_ms, entry, event.watched_ms)
        elif isinstance(event, Review) and not isinstance(event.rating, UnsetType):
            coarse, rest = _decimals(event.rating)
            add(user.rated, entry, 1)
            add(user.rating, entry, coarse)
            if rest:
                add(user.rating_rest, entry, rest)
