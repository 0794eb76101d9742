"""Purchases: the events that arrive. Money in yuan on the wire, in integer fen once decoded."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import UNSET, Meta, UnsetType, field

from tables.events import Erase
from tables.events import Event as AnyEvent

MAX_YUAN: Final = 1e9

# A larger whole number could be read, but not kept: MessagePack has 64 bits.
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Attribute = str | Whole | float | None

if TYPE_CHECKING:
    Fen = int
else:
    Fen = Annotated[float, Meta(ge=0, le=MAX_YUAN)]  # yuan on the wire, until ``check``


class _Profiled(AnyEvent):
    attributes: dict[str, Attribute] | UnsetType = UNSET


class Registered(_Profiled, tag="registered"):
    """The user signed up; may carry attributes."""

    is_registration: ClassVar[bool] = True


class Updated(_Profiled, tag="updated"):
    """The user's attributes changed."""


class _Paid(AnyEvent):
    amount_fen: Fen = field(name="amount")

    def check(self) -> None:
        """Turn the amount into fen; ValueError where it is no whole number of them."""
        self.amount_fen = fen(self.amount_fen)


class Order(_Paid, tag="order"):
    """The user bought something."""

    coupon: bool | UnsetType = UNSET


class Refund(_Paid, tag="refund"):
    """The user got money back. Counts on its own day, not on the order's."""


Event = Registered | Updated | Order | Refund | Erase


def fen(yuan: float) -> int:
    """Yuan as integer fen.

    Raises:
        ValueError: more than 2 decimals, or not between 0 and ``MAX_YUAN``.

    >>> fen(0.29)
    29
    """
    if not 0 <= yuan <= MAX_YUAN:
        raise ValueError("amount: out of range")
    amount_fen = round(yuan * 100)
    if amount_fen / 100 != yuan:
        raise ValueError("amount: more than 2 decimals")
    return amount_fen
