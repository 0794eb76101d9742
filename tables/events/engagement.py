"""Engagement: the events that arrive. Seconds on the wire, milliseconds once decoded."""

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import UNSET, Meta, UnsetType, field

from tables.events import Erase
from tables.events import Event as AnyEvent

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
