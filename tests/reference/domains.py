"""Every feature of every domain, computed anew from all events that were ever applied."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from functools import cached_property
from typing import Any

from tests.reference.times import HOUR_MS

Record = dict[str, Any]

CHANNELS = ("app_push", "sms", "email", "wechat", "wechat_mini", "store", "phone")

#: Types of events by domain; an ``erase`` belongs to all.
DOMAINS = {
    "engagement": ("watch", "review", "favorite", "share", "view", "search", "cart"),
    "outreach": ("reach", "response", "unsubscribe", "subscribe"),
    "purchases": ("registered", "updated", "order", "refund"),
    "service": ("contact",),
}


def domain_of(kind: str) -> str:
    """The one domain whose type this is."""
    (name,) = (name for name, kinds in DOMAINS.items() if kind in kinds)
    return name


@dataclass(frozen=True)
class Applied:
    """An event that counted; ``event`` as it was sent, ``day`` its local date."""

    ts: int
    day: date
    event: Record

    @cached_property
    def kind(self) -> str:
        return str(self.event["type"])

    @cached_property
    def fen(self) -> int:
        return round(Fraction(str(self.event["amount"])) * 100)

    @cached_property
    def watched_ms(self) -> int:
        return round(Fraction(str(self.event["seconds"])) * 1000)


@dataclass(frozen=True)
class Past:
    """All that a domain knows of a user, in order of arrival, seen from local day ``today``.

    ``clock`` is the instant as of which to look, somewhere on that day.
    """

    applied: Sequence[Applied]
    clock: int
    today: date

    def of(self, *kinds: str) -> list[Applied]:
        """Events of these types."""
        return [each for each in self.applied if each.kind in kinds]

    def within(self, days: int, events: Sequence[Applied]) -> list[Applied]:
        """Those on the last so many local days, today included."""
        return [each for each in events if each.day > self.today - timedelta(days=days)]

    def in_month(self, events: Sequence[Applied]) -> list[Applied]:
        """Those of the local calendar month."""
        month = self.today.year, self.today.month
        return [each for each in events if (each.day.year, each.day.month) == month]

    def in_hours(self, hours: int, events: Sequence[Applied]) -> list[Applied]:
        """Those in (clock - hours, clock]."""
        return [each for each in events if self.clock - hours * HOUR_MS < each.ts <= self.clock]

    def days_since(self, which: Callable[..., date], events: Sequence[Applied]) -> float:
        """Local days since the first (``min``) or last (``max``) of them."""
        days = [each.day for each in events]
        return (self.today - which(days)).days if days else math.inf


def features(domain: str, past: Past) -> Record:
    """Every feature of a domain but attributes and what churn says."""
    return _OF[domain](past)


def instants_to_come(domain: str, past: Past) -> list[int]:
    """Instants after the clock, other than midnights, at which a feature may change by itself."""
    if domain != "outreach":
        return []
    ends = [
        each.ts + hours * HOUR_MS
        for hours, channel in ((3, "app_push"), (48, "sms"))
        for each in past.of("reach")
        if each.event["channel"] == channel
    ]
    return [end for end in ends if end > past.clock]


def attributes(past: Past, declared: Sequence[str]) -> Record:
    """The declared ones, each with the value of the largest ts, of equals the later arrival."""
    found: Record = {}
    for name in declared:
        told = [each for each in past.applied if name in each.event.get("attributes", {})]
        latest = _latest(told)
        found[name] = latest.event["attributes"][name] if latest else None
    return found


def _purchases(past: Past) -> Record:
    orders, refunds = past.of("order"), past.of("refund")

    def spend(days: int | None) -> float:
        bought = orders if days is None else past.within(days, orders)
        returned = refunds if days is None else past.within(days, refunds)
        return _ratio(sum(each.fen for each in bought) - sum(each.fen for each in returned), 100)

    days_with_order = {each.day for each in orders}
    end = past.today if past.today in days_with_order else past.today - timedelta(days=1)
    streak = 0
    while end - timedelta(days=streak) in days_with_order:
        streak += 1
    in_90 = past.within(90, orders)
    first = min(orders, key=lambda each: each.ts, default=None)
    return {
        "purchase_streak_days": streak,
        "orders_30d": len(past.within(30, orders)),
        "orders_90d": len(in_90),
        "orders_365d": len(past.within(365, orders)),
        "orders_total": len(orders),
        "repurchases_90d": len([each for each in in_90 if each is not first]),
        "spend_30d": spend(30),
        "spend_90d": spend(90),
        "spend_365d": spend(365),
        "spend_total": spend(None),
        "avg_order_90d": _ratio(sum(each.fen for each in in_90), 100 * len(in_90)),
        "coupon_rate_90d": _ratio(
            len([each for each in in_90 if each.event.get("coupon")]), len(in_90)
        ),
        "active_days_90d": len({each.day for each in in_90}),
        "days_since_order": past.days_since(max, orders),
        "days_since_first_order": past.days_since(min, orders),
        "days_since_registered": past.days_since(min, past.of("registered")),
    }


def _service(past: Past) -> Record:
    contacts = past.of("contact")

    def of_kind(kind: str) -> list[Applied]:
        return [each for each in contacts if each.event.get("kind", "other") == kind]

    return {
        "contacts_month": len(past.in_month(contacts)),
        "consults_month": len(past.in_month(of_kind("consult"))),
        "contacts_30d": len(past.within(30, contacts)),
        "complaints_30d": len(past.within(30, of_kind("complaint"))),
    }


def _engagement(past: Past) -> Record:
    found: Record = {}
    for days in (30, 90):
        window = Past(past.within(days, past.applied), past.clock, past.today)
        watches = window.of("watch")
        watched_ms = sum(each.watched_ms for each in watches)
        found |= {
            f"watches_{days}d": len(watches),
            f"watch_seconds_{days}d": _ratio(watched_ms, 1000),
            f"avg_watch_seconds_{days}d": _ratio(watched_ms, 1000 * len(watches)),
            f"favorites_{days}d": len(window.of("favorite")),
            f"reviews_{days}d": len(window.of("review")),
            f"shares_{days}d": len(window.of("share")),
            f"views_{days}d": len(window.of("view")),
            f"searches_{days}d": len(window.of("search")),
            f"carts_{days}d": len(window.of("cart")),
        }
    ratings = [
        Fraction(str(each.event["rating"]))
        for each in past.within(90, past.of("review"))
        if each.event.get("rating") is not None
    ]
    found["avg_rating_90d"] = float(sum(ratings) / len(ratings)) if ratings else 0
    for days in (7, 30, 90):
        active = {each.day for each in past.within(days, past.applied)}
        found[f"active_days_{days}d"] = len(active)
    found["days_since_active"] = past.days_since(max, past.applied)
    return found


def _outreach(past: Past) -> Record:
    reaches = past.of("reach")
    pushes = [each for each in reaches if each.event["channel"] == "app_push"]
    sms = [each for each in reaches if each.event["channel"] == "sms"]
    reached = len(past.within(30, reaches))
    responded = len(past.within(30, past.of("response")))
    unanswered = 0
    for each in past.applied:  # as they arrived
        if each.kind == "reach":
            unanswered += 1
        elif each.kind == "response":
            unanswered = 0
    found: Record = {
        "push_3h": len(past.in_hours(3, pushes)),
        "push_day": len(past.within(1, pushes)),
        "sms_48h": len(past.in_hours(48, sms)),
        "sms_month": len(past.in_month(sms)),
        "reaches_30d": reached,
        "responses_30d": responded,
        "response_rate_30d": _ratio(responded, reached),
        "unanswered": unanswered,
    }
    for channel in CHANNELS:
        said = past.of("unsubscribe", "subscribe")
        latest = _latest([each for each in said if each.event["channel"] == channel])
        found[f"opted_out_{channel}"] = latest is not None and latest.kind == "unsubscribe"
    return found


_OF: dict[str, Callable[[Past], Record]] = {
    "engagement": _engagement,
    "outreach": _outreach,
    "purchases": _purchases,
    "service": _service,
}


def _latest(events: Sequence[Applied]) -> Applied | None:
    # Of equal times the later arrival: max() would take the first.
    return max(reversed(events), key=lambda each: each.ts, default=None)


def _ratio(part: int, whole: int) -> float:
    """A quotient, rounded once; 0 where there is nothing to divide by."""
    return part / whole if whole else 0
