"""Purchases: what is remembered of a buyer, every feature made of it, and the events it takes.

A day with an order or a refund is one entry in the columns of `tables/days.py`, from which all
windows are read.

Windows: whole local days, the clock's own included. Late events: applied to their own day,
features as of the clock. Money in fen inside, in yuan as a feature. Source: topic ``purchases``.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from msgspec import UNSET, Meta, UnsetType, field

from tables.churn import ChurnState, Mode, Predicted, Silence
from tables.days import DayCounts, DayTable, add
from tables.event import Erase
from tables.event import Event as AnyEvent
from tables.features import (
    FIRST_DAY,
    NO_DAY,
    Balance,
    Constants,
    DayOf,
    Features,
    Ratio,
    Since,
    Window,
)
from tables.rhythm import GENERIC, Model, Parameters, Rhythm
from tables.table import NEVER, Churn, Outputs, Rules

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


class Buyer(DayCounts):
    """A user in the domain purchases.

    ``run_day`` is the first day of the run of days with an order that ends at ``last_day``;
    ``pruned_run`` the run, first and last day, that the newest order day no longer kept ends.
    """

    orders: list[int] = field(default_factory=lambda: [0])
    amount_fen: list[int] = field(default_factory=lambda: [0])  # of orders
    refund_fen: list[int] = field(default_factory=lambda: [0])
    coupons: list[int] = field(default_factory=lambda: [0])  # orders with one
    active: list[int] = field(default_factory=lambda: [0])  # days with an order
    first_ms: int | None = None  # the earliest order
    first_day: int | None = None
    last_ms: int | None = None  # the latest order
    last_day: int | None = None
    run_day: int = FIRST_DAY
    pruned_run: tuple[int, int] | None = None
    registered_ms: int | None = None
    registered_day: int | None = None
    attributes: dict[str, tuple[int, Attribute]] = {}  # since when, what
    churn: ChurnState = field(default_factory=ChurnState)
    rhythm: Rhythm = field(default_factory=Rhythm)


features: Final = Features()
FEATURES: Final = features.readers


@dataclass(frozen=True, slots=True)
class Streak:
    """A run of days ends two midnights after its last day."""

    def next_turn(self, constants: Constants) -> DayOf:
        """It matters only to a run that is as long as some number a rule compares it with."""
        if constants is None:
            return partial(_run_breaks, 1)
        reached = [constant for constant in constants if constant >= 0]
        return partial(_run_breaks, min(reached, default=inf))

    def last_turn(self, user: Buyer, day: int) -> int:
        """Where it fell to 0."""
        return FIRST_DAY if user.last_day is None or user.last_day + 2 > day else user.last_day + 2


def _run_breaks(shortest: float, user: Buyer) -> int:
    last_day = user.last_day
    if last_day is None or last_day + 2 <= user.today or last_day - user.run_day + 1 < shortest:
        return NO_DAY
    return last_day + 2


def _days_since(user: Buyer, day: int | None) -> float:
    return inf if day is None else user.today - day


@features.add(Streak())
def purchase_streak_days(user: Buyer) -> int:
    """Consecutive local days with an order, ending today, or yesterday where today has none.

    Bounds: 0 or more, of any length. Unit: days. Late order: joins the days around it.
    Source: ``order``.
    """
    last_day = user.last_day
    return 0 if last_day is None or user.today > last_day + 1 else last_day - user.run_day + 1


@features.add(Window(30, "orders"))
def orders_30d(user: Buyer) -> int:
    """Orders in the last 30 local days. Source: ``order``. Late order: counted on its day."""
    return user.orders[-1] - user.orders[bisect_right(user.days, user.today - 30) - 1]


@features.add(Window(90, "orders"))
def orders_90d(user: Buyer) -> int:
    """Orders in the last 90 local days. Source: ``order``. Late order: counted on its day."""
    return user.orders[-1] - user.orders[bisect_right(user.days, user.today - 90) - 1]


@features.add(Window(365, "orders"))
def orders_365d(user: Buyer) -> int:
    """Orders in the last 365 local days. Source: ``order``. Late order: counted on its day."""
    return user.orders[-1] - user.orders[bisect_right(user.days, user.today - 365) - 1]


@features.add()
def orders_total(user: Buyer) -> int:
    """Orders ever. Source: ``order``. Late order: counted."""
    return user.orders[-1]


@features.add(Window(90, "orders"))
def repurchases_90d(user: Buyer) -> int:
    """Orders in the last 90 local days other than the earliest ever.

    Source: ``order``. Late order: counted on its day; may become the earliest.
    """
    orders = user.orders[-1] - user.orders[bisect_right(user.days, user.today - 90) - 1]
    first_day = user.first_day
    return orders if first_day is None or first_day <= user.today - 90 else orders - 1


@features.add(Balance(30, "amount_fen", "refund_fen", unit=100))
def spend_30d(user: Buyer) -> float:
    """Orders less refunds of the last 30 local days, in yuan, negative where refunds prevail.

    Source: ``order``, ``refund``. Late event: counted on its day.
    """
    before = bisect_right(user.days, user.today - 30) - 1
    bought, returned = user.amount_fen, user.refund_fen
    return (bought[-1] - bought[before] - returned[-1] + returned[before]) / 100


@features.add(Balance(90, "amount_fen", "refund_fen", unit=100))
def spend_90d(user: Buyer) -> float:
    """As ``spend_30d``, over 90 local days."""
    before = bisect_right(user.days, user.today - 90) - 1
    bought, returned = user.amount_fen, user.refund_fen
    return (bought[-1] - bought[before] - returned[-1] + returned[before]) / 100


@features.add(Balance(365, "amount_fen", "refund_fen", unit=100))
def spend_365d(user: Buyer) -> float:
    """As ``spend_30d``, over 365 local days."""
    before = bisect_right(user.days, user.today - 365) - 1
    bought, returned = user.amount_fen, user.refund_fen
    return (bought[-1] - bought[before] - returned[-1] + returned[before]) / 100


@features.add()
def spend_total(user: Buyer) -> float:
    """Orders less refunds ever, in yuan. Source: ``order``, ``refund``. Late event: counted."""
    return (user.amount_fen[-1] - user.refund_fen[-1]) / 100


@features.add(Ratio(90, "amount_fen", "orders"))
def avg_order_90d(user: Buyer) -> float:
    """Mean amount of the orders of the last 90 local days, in yuan; 0 where there are none.

    Refunds do not count. Source: ``order``. Late order: counted on its day.
    """
    before = bisect_right(user.days, user.today - 90) - 1
    orders = user.orders[-1] - user.orders[before]
    return (user.amount_fen[-1] - user.amount_fen[before]) / (100 * orders) if orders else 0


@features.add(Ratio(90, "coupons", "orders"))
def coupon_rate_90d(user: Buyer) -> float:
    """Share of the orders of the last 90 local days that had a coupon, 0 to 1; 0 where none.

    Source: ``order``. Late order: counted on its day.
    """
    before = bisect_right(user.days, user.today - 90) - 1
    orders = user.orders[-1] - user.orders[before]
    return (user.coupons[-1] - user.coupons[before]) / orders if orders else 0


@features.add(Window(90, "active"))
def active_days_90d(user: Buyer) -> int:
    """Days with an order among the last 90 local days. Source: ``order``. Late order: counted."""
    return user.active[-1] - user.active[bisect_right(user.days, user.today - 90) - 1]


@features.add(Since("last_day"))
def days_since_order(user: Buyer) -> float:
    """Local days since the latest order by event time; infinity before the first.

    Source: ``order``. Late order: matters only where it is the latest.
    """
    return _days_since(user, user.last_day)


@features.add(Since("first_day"))
def days_since_first_order(user: Buyer) -> float:
    """Local days since the earliest order by event time; infinity before the first.

    Source: ``order``. Late order: may become the earliest.
    """
    return _days_since(user, user.first_day)


@features.add(Since("registered_day"))
def days_since_registered(user: Buyer) -> float:
    """Local days since the earliest registration by event time; infinity before it.

    Source: ``registered``. Late event: may become the earliest.
    """
    return _days_since(user, user.registered_day)


@features.add()
def churn_state(user: Buyer) -> str:
    """``none``, ``warned`` or ``churned``: see ``tables/churn.py``. Source: ``order``."""
    return user.churn.state


def attribute(name: str) -> Callable[[Buyer], Attribute]:
    """The reader of a declared attribute: the value of the largest ``ts``, the later arrival
    among equals; None where unset or removed. Source: ``registered``, ``updated``.
    """

    def read(user: Buyer) -> Attribute:
        known = user.attributes.get(name)
        return known[1] if known else None

    read.__name__ = name
    return read


class Purchases(DayTable[Buyer]):
    """The logic of the domain purchases."""

    name = "purchases"
    features = features
    record = Buyer
    columns = ("orders", "amount_fen", "refund_fen", "coupons", "active")

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._declared = frozenset(rules.attributes)
        self._churn = self._mode(rules.churn)

    def take(self, user: Buyer, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply an event to the record."""
        registered_ms = user.registered_ms
        if registered_ms is not None and event.ts < registered_ms:
            out.figures.append(("inaccurate", "before_registration", 1))
        if isinstance(event, Order):
            self._order(user, event, day, out)
        elif isinstance(event, Refund):
            add(user.refund_fen, self.entry(user, day), event.amount_fen)
            self._doubt(user, out)
            if self._breaks_down:
                out.figures.append(("refunds", "", event.amount_fen))
        elif isinstance(event, Registered | Updated):
            self._profile(user, event, day, out)

    def instant_ms(self, user: Buyer) -> int:
        """The next churn deadline."""
        return self._churn.next_ms(user) if self._churn else NEVER

    def floor_ms(self, user: Buyer) -> int:
        """The next churn deadline or something before it, without predicting."""
        return self._churn.floor_ms(user) if self._churn else NEVER

    def strike(self, user: Buyer, due_ms: int, out: Outputs) -> bool:
        """Fire the churn deadlines at ``due_ms``."""
        records = self._churn.strike(user, due_ms) if self._churn else []
        out.warnings += records
        return bool(records)

    def forget(self, user: Buyer, out: Outputs) -> None:
        """Open warnings end unscored."""
        if self._churn is not None:
            out.ended += self._churn.erased(user)

    def adopt(self, user: Buyer) -> None:
        """Definitions without churn leave nobody warned; others may predict otherwise. Attributes
        that are declared no more are not kept.
        """
        if self._churn is None:
            user.churn = ChurnState(raised=user.churn.raised)
        user.churn.due_ms = None
        if not self._declared.issuperset(user.attributes):
            kept = {name: told for name, told in user.attributes.items() if name in self._declared}
            user.attributes = kept

    def _mode(self, churn: Churn | None) -> Mode | None:
        if churn is None:
            return None
        shared: dict[str, Any] = {
            "after_ms": churn.after_ms,
            "lead_ms": churn.lead_ms,
            "control": churn.control,
            "iso": self.calendar.iso,
            "describe": self._describe,
        }
        if churn.mode == Silence.name:
            return Silence(**shared)
        model = Model(
            GENERIC if churn.parameters is None else Parameters(**churn.parameters),
            horizon_ms=churn.lead_ms + churn.after_ms,
            probability=churn.probability,
        )
        return Predicted(model=model, **shared)

    def _order(self, user: Buyer, event: Order, day: int, out: Outputs) -> None:
        entry = self.entry(user, day)
        orders, amount_fen = user.orders, event.amount_fen
        is_first_of_day = orders[entry] == orders[entry - 1]
        if entry == len(orders) - 1:
            orders[entry] += 1
            user.amount_fen[entry] += amount_fen
            if event.coupon:
                user.coupons[entry] += 1
            if is_first_of_day:
                user.active[entry] += 1
        else:
            add(orders, entry, 1)
            add(user.amount_fen, entry, amount_fen)
            add(user.coupons, entry, 1 if event.coupon else 0)
            add(user.active, entry, int(is_first_of_day))
        if is_first_of_day:
            _join_run(user, entry, day)
        ts_ms, last_ms = event.ts, user.last_ms
        latest = last_ms is None or ts_ms > last_ms
        if latest:
            user.last_ms, user.last_day = ts_ms, day
        if user.first_ms is None or ts_ms < user.first_ms:
            user.first_ms, user.first_day = ts_ms, day
        begins = user.rhythm.hear(ts_ms)
        if self._churn:
            out.warnings += self._churn.order(user, ts_ms, latest=latest, begins=begins)
        if self._breaks_down:
            out.figures += (("orders", "", 1), ("spend", "", amount_fen))

    def _doubt(self, user: Buyer, out: Outputs) -> None:
        """Say what cannot be true of a refund that was applied."""
        if not user.orders[-1]:
            out.figures.append(("inaccurate", "refund_without_order", 1))
        elif user.refund_fen[-1] > user.amount_fen[-1]:
            out.figures.append(("inaccurate", "negative_spend", 1))

    def _profile(self, user: Buyer, event: Registered | Updated, day: int, out: Outputs) -> None:
        ts_ms = event.ts
        if isinstance(event, Registered):
            user.heard_day = NO_DAY  # it is news also on a day that was heard of
            if user.registered_ms is None or ts_ms < user.registered_ms:
                user.registered_ms, user.registered_day = ts_ms, day
        for name, value in (event.attributes or {}).items():
            if name in self._declared:
                known = user.attributes.get(name)
                if known is not None and ts_ms == known[0] and value != known[1]:
                    out.figures.append(("inconsistent", "attribute", 1))
                if known is None or ts_ms >= known[0]:
                    # A removal is kept too, or an older value that comes late would undo it.
                    user.attributes[name] = (ts_ms, value)

    def fold(self, user: Buyer, entries: int) -> None:
        """A run of days may reach back beyond those that are kept."""
        for entry in range(1, entries + 1):
            if user.orders[entry] > user.orders[entry - 1]:
                day, run = user.days[entry], user.pruned_run
                user.pruned_run = (run[0] if run and run[1] == day - 1 else day, day)

    def _describe(self, user: Buyer) -> dict[str, Any]:
        """What a churn warning says about the user."""
        iso = self.calendar.iso
        tags = zip(self._tags, user.values, strict=True)
        return {
            "tags": {tag.name: value for tag, value in tags if value not in (None, False)},
            "evidence": {
                "last_order_at": None if user.last_ms is None else iso(user.last_ms),
                "first_order_at": None if user.first_ms is None else iso(user.first_ms),
                "orders_total": orders_total(user),
                "spend_total": spend_total(user),
            },
        }


def _join_run(user: Buyer, entry: int, day: int) -> None:
    """A day got its first order: it may begin a run, lengthen the last one or fill a gap."""
    last_day = user.last_day
    if last_day is None or day > last_day + 1:
        user.run_day = day
    elif day == user.run_day - 1:
        days, orders = user.days, user.orders
        while entry > 1 and days[entry - 1] == day - 1 and orders[entry - 1] > orders[entry - 2]:
            entry -= 1
            day -= 1
        run = user.pruned_run
        user.run_day = run[0] if entry == 1 and run and run[1] == day - 1 else day
