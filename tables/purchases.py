"""Purchases: what is remembered of a buyer, and every feature made of it.

A day with an order or a refund is one entry of the record (`tables/record.py`), from which all
windows are read.

Windows: whole local days, the clock's own included. Late events: applied to their own day,
features as of the clock. Money in fen inside, in yuan as a feature. Source: topic ``purchases``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from librt.strings import BytesWriter
from msgspec import msgpack
from mypy_extensions import i64, mypyc_attr

from tables.churn import ChurnState, Customer, Mode, Predicted, Silence, Terms
from tables.days import DayTable, divided
from tables.events import Event as AnyEvent
from tables.events.purchases import Attribute, Event, Order, Refund, Registered, Updated
from tables.features import Balance, Constants, Features, Ratio, Since, Turn, Window
from tables.packing import Reader, put, put_optional, put_optional_instant, put_packed
from tables.record import FIRST_DAY, NO_DAY, DayCounts, Values
from tables.rhythm import GENERIC, Model, Parameters
from tables.table import NEVER, Churn, Outputs, Rules

__all__ = ["FEATURES", "Buyer", "Event", "Order", "Purchases", "attribute", "features"]

# The columns of an entry, all totals: orders, what they came to, what was paid back, orders with a
# coupon, and days with an order.
ORDERS: Final = 1
AMOUNT_FEN: Final = 2
REFUND_FEN: Final = 3
COUPONS: Final = 4
ACTIVE: Final = 5
COLUMNS: Final = 5

Attributes = dict[str, tuple[int, Attribute]]
"""Of each known attribute since when it is so, and what it is."""

_unpack_attributes: Callable[[bytes], Attributes] = msgpack.Decoder(Attributes).decode


@mypyc_attr(acyclic=True)
class Buyer(Customer):
    """A user in the domain purchases.

    ``first_ms`` is the earliest order, ``last_ms`` the latest, with their days; ``run_day`` the
    first day of the run of days with an order that ends at ``last_day``; ``pruned_run`` the run,
    first and last day, that the newest order day no longer kept ends.
    """

    def __init__(self, user_id: str, rules: int, values: Values) -> None:
        super().__init__(user_id, rules, values, COLUMNS)
        self.first_ms: int | None = None
        self.first_day: int | None = None
        self.last_day: int | None = None
        self.run_day: int = FIRST_DAY
        self.pruned_run: tuple[int, int] | None = None
        self.registered_ms: int | None = None
        self.registered_day: int | None = None
        self.attributes: Attributes = {}

    def write(self, to: BytesWriter) -> None:
        """Append the record as bytes."""
        super().write(to)
        put_optional_instant(to, self.first_ms)
        put_optional(to, self.first_day)
        put_optional(to, self.last_day)
        put(to, self.run_day)
        run = self.pruned_run
        put_optional(to, None if run is None else run[0])
        put_optional(to, None if run is None else run[1])
        put_optional_instant(to, self.registered_ms)
        put_optional(to, self.registered_day)
        put_packed(to, self.attributes)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        super().read(row)
        self.first_ms = row.optional_instant()
        self.first_day = row.optional()
        self.last_day = row.optional()
        self.run_day = row.number()
        first, last = row.optional(), row.optional()
        self.pruned_run = None if first is None or last is None else (first, last)
        self.registered_ms = row.optional_instant()
        self.registered_day = row.optional()
        attributes = row.bytes()
        self.attributes = _unpack_attributes(attributes) if attributes else {}


features: Final = Features()
FEATURES: Final = features.readers


@dataclass(frozen=True)
class Streak:
    """A run of days ends two midnights after its last day."""

    def next_turn(self, constants: Constants) -> Turn:
        """It matters only to a run that is as long as some number a rule compares it with."""
        if constants is None:
            return RunBreaks(1)
        reached = [constant for constant in constants if constant >= 0]
        return RunBreaks(min(reached, default=inf))

    def last_turn(self, user: Buyer, day: int) -> int:
        """Where it fell to 0."""
        return FIRST_DAY if user.last_day is None or user.last_day + 2 > day else user.last_day + 2


class RunBreaks(Turn):
    """A run of at least ``shortest`` days breaks."""

    def __init__(self, shortest: float) -> None:
        self.shortest = shortest

    def next_day(self, user: DayCounts) -> i64:
        """Two midnights after its last day."""
        assert isinstance(user, Buyer)
        last_day = user.last_day
        if last_day is None or last_day + 2 <= user.today:
            return NO_DAY
        return NO_DAY if last_day - user.run_day + 1 < self.shortest else last_day + 2


def _days_since(user: Buyer, day: int | None) -> int | float:
    if day is None:
        return inf
    return user.today - day


@features.add(Streak())
def purchase_streak_days(user: Buyer) -> int:
    """Consecutive local days with an order, ending today, or yesterday where today has none.

    Bounds: 0 or more, of any length. Unit: days. Late order: joins the days around it.
    Source: ``order``.
    """
    last_day = user.last_day
    return 0 if last_day is None or user.today > last_day + 1 else last_day - user.run_day + 1


@features.add(Window(30, ORDERS))
def orders_30d(user: Buyer) -> int:
    """Orders in the last 30 local days. Source: ``order``. Late order: counted on its day."""
    return user.over(30, ORDERS)


@features.add(Window(90, ORDERS))
def orders_90d(user: Buyer) -> int:
    """Orders in the last 90 local days. Source: ``order``. Late order: counted on its day."""
    return user.over(90, ORDERS)


@features.add(Window(365, ORDERS))
def orders_365d(user: Buyer) -> int:
    """Orders in the last 365 local days. Source: ``order``. Late order: counted on its day."""
    return user.over(365, ORDERS)


@features.add()
def orders_total(user: Buyer) -> int:
    """Orders ever. Source: ``order``. Late order: counted."""
    return user.total(ORDERS)


@features.add(Window(90, ORDERS))
def repurchases_90d(user: Buyer) -> int:
    """Orders in the last 90 local days other than the earliest ever.

    Source: ``order``. Late order: counted on its day; may become the earliest.
    """
    orders = user.over(90, ORDERS)
    first_day = user.first_day
    return orders if first_day is None or first_day <= user.today - 90 else orders - 1


@features.add(Balance(30, AMOUNT_FEN, REFUND_FEN, unit=100))
def spend_30d(user: Buyer) -> float:
    """Orders less refunds of the last 30 local days, in yuan, negative where refunds prevail.

    Source: ``order``, ``refund``. Late event: counted on its day.
    """
    return divided(user.over(30, AMOUNT_FEN) - user.over(30, REFUND_FEN), 100)


@features.add(Balance(90, AMOUNT_FEN, REFUND_FEN, unit=100))
def spend_90d(user: Buyer) -> float:
    """As ``spend_30d``, over 90 local days."""
    return divided(user.over(90, AMOUNT_FEN) - user.over(90, REFUND_FEN), 100)


@features.add(Balance(365, AMOUNT_FEN, REFUND_FEN, unit=100))
def spend_365d(user: Buyer) -> float:
    """As ``spend_30d``, over 365 local days."""
    return divided(user.over(365, AMOUNT_FEN) - user.over(365, REFUND_FEN), 100)


@features.add()
def spend_total(user: Buyer) -> float:
    """Orders less refunds ever, in yuan. Source: ``order``, ``refund``. Late event: counted."""
    return divided(user.total(AMOUNT_FEN) - user.total(REFUND_FEN), 100)


@features.add(Ratio(90, AMOUNT_FEN, ORDERS))
def avg_order_90d(user: Buyer) -> int | float:
    """Mean amount of the orders of the last 90 local days, in yuan; 0 where there are none.

    Refunds do not count. Source: ``order``. Late order: counted on its day.
    """
    orders = user.over(90, ORDERS)
    if not orders:
        return 0
    return divided(user.over(90, AMOUNT_FEN), 100 * orders)


@features.add(Ratio(90, COUPONS, ORDERS))
def coupon_rate_90d(user: Buyer) -> int | float:
    """Share of the orders of the last 90 local days that had a coupon, 0 to 1; 0 where none.

    Source: ``order``. Late order: counted on its day.
    """
    orders = user.over(90, ORDERS)
    if not orders:
        return 0
    return divided(user.over(90, COUPONS), orders)


@features.add(Window(90, ACTIVE))
def active_days_90d(user: Buyer) -> int:
    """Days with an order among the last 90 local days. Source: ``order``. Late order: counted."""
    return user.over(90, ACTIVE)


@features.add(Since("last_day"))
def days_since_order(user: Buyer) -> int | float:
    """Local days since the latest order by event time; infinity before the first.

    Source: ``order``. Late order: matters only where it is the latest.
    """
    return _days_since(user, user.last_day)


@features.add(Since("first_day"))
def days_since_first_order(user: Buyer) -> int | float:
    """Local days since the earliest order by event time; infinity before the first.

    Source: ``order``. Late order: may become the earliest.
    """
    return _days_since(user, user.first_day)


@features.add(Since("registered_day"))
def days_since_registered(user: Buyer) -> int | float:
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

    return read


class Purchases(DayTable[Buyer]):
    """The logic of the domain purchases."""

    name = "purchases"
    features = features

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._declared = frozenset(rules.attributes)
        self._churn = self._mode(rules.churn)

    def made(self, user_id: str, rules: int, values: Values) -> Buyer:
        """A record of which nothing is known but this."""
        return Buyer(user_id, rules, values)

    def take(self, user: Buyer, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply an event to the record."""
        registered_ms = user.registered_ms
        if registered_ms is not None and event.ts < registered_ms:
            out.figures.append(("inaccurate", "before_registration", 1))
        if isinstance(event, Order):
            self._order(user, event, day, out)
        elif isinstance(event, Refund):
            user.add(self.entry(user, day), REFUND_FEN, event.amount_fen)
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
        terms = Terms(
            churn.after_ms, churn.lead_ms, churn.control, self.calendar.iso, self._describe
        )
        if churn.mode == Silence.name:
            return Silence(terms)
        parameters = GENERIC if churn.parameters is None else Parameters(**churn.parameters)
        horizon_ms = churn.lead_ms + churn.after_ms
        model = Model(parameters, horizon_ms=horizon_ms, probability=churn.probability)
        return Predicted(terms, model)

    def _order(self, user: Buyer, event: Order, day: int, out: Outputs) -> None:
        entry, amount_fen = self.entry(user, day), event.amount_fen
        is_first_of_day = not user.on(entry, ORDERS)
        user.add(entry, ORDERS, 1)
        user.add(entry, AMOUNT_FEN, amount_fen)
        if event.coupon:
            user.add(entry, COUPONS, 1)
        if is_first_of_day:
            user.add(entry, ACTIVE, 1)
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
        if not user.total(ORDERS):
            out.figures.append(("inaccurate", "refund_without_order", 1))
        elif user.total(REFUND_FEN) > user.total(AMOUNT_FEN):
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

    def fold(self, user: Buyer, before: i64) -> None:
        """A run of days may reach back beyond those that are kept."""
        entry = user.width
        while entry <= before:
            if user.on(entry, ORDERS):
                day, run = int(user.cells[entry]), user.pruned_run
                user.pruned_run = (run[0] if run and run[1] == day - 1 else day, day)
            entry += user.width

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


def _join_run(user: Buyer, entry: i64, day: i64) -> None:
    """A day got its first order: it may begin a run, lengthen the last one or fill a gap."""
    last_day = user.last_day
    if last_day is None or day > last_day + 1:
        user.run_day = day
    elif day == user.run_day - 1:
        width = user.width
        while entry > width and user.cells[entry - width] == day - 1:
            if not user.on(entry - width, ORDERS):
                break
            entry -= width
            day -= 1
        run = user.pruned_run
        user.run_day = run[0] if entry == width and run and run[1] == day - 1 else day
