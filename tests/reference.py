"""A second, naive answer to what purchases should lead to, written from the contract alone.

Promise: given every event in the order in which its partition has it, and the definitions,
`Reference` says which changes, warnings and dead letters follow. It keeps all events of a user
for ever, computes every feature from all of them at every evaluation, and walks every local
midnight and every churn instant one by one. Nothing of `tables/` is used, and of `stream/`
only what the definitions say: the text of a condition is handed to Python's own `eval`.

    reference = Reference(rules, partitions=8)
    reference.run([(3, {"event_id": "e1", "user_id": "u1", "type": "order", ...}), ...])
    assert by_user(records_read_from_tag_changes) == by_user(reference.changes)

Two domains, partitions or users have no order between them, hence `by_user`. Out of its reach:
wall time, erasure, and all dead letters but ``too_late``.
"""

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

Record = dict[str, Any]

INDEPENDENT_OF_THIS = ("change_id", "warning_id", "emitted_at")
BEFORE_ALL = -(10**18)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def by_user(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Record]]:
    """Each user's records in order, without ids and the time of emission."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        bare = {key: value for key, value in record.items() if key not in INDEPENDENT_OF_THIS}
        grouped.setdefault(record["user_id"], []).append(bare)
    return grouped


def changes_of(
    rules: Any, events: Iterable[tuple[int, Record]], until_ms: int | None = None
) -> dict[str, list[Record]]:
    """All changes by user; ``events`` are (partition, event) in each partition's order."""
    return by_user(run(rules, events, until_ms).changes)


def warnings_of(
    rules: Any, events: Iterable[tuple[int, Record]], until_ms: int | None = None
) -> dict[str, list[Record]]:
    """All churn warnings by user, as `changes_of`."""
    return by_user(run(rules, events, until_ms).warnings)


def run(
    rules: Any, events: Iterable[tuple[int, Record]], until_ms: int | None = None
) -> "Reference":
    """A reference that has seen all of ``events``."""
    reference = Reference(rules)
    reference.run(events, until_ms)
    return reference


@dataclass
class Applied:
    """An event that counted, in the order of arrival."""

    kind: str
    ts: int
    day: date
    fen: int
    coupon: bool
    attributes: Record


@dataclass
class Warning:  # the contract's word
    """A raised warning, kept for ever."""

    number: int
    raised: int
    churn: int
    scored: bool = False
    returned: int | None = None
    returned_from: str | None = None


@dataclass
class Person:
    """Everything known of one user."""

    user_id: str
    clock: int = BEFORE_ALL
    newest: int = BEFORE_ALL
    applied: list[Applied] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    values: Record = field(default_factory=dict)
    change_counts: dict[str, int] = field(default_factory=dict)
    warnings: list[Warning] = field(default_factory=list)
    churn_state: str = "none"
    raised_for: set[int] = field(default_factory=set)
    churned_for: set[int] = field(default_factory=set)

    @property
    def orders(self) -> list[Applied]:
        """All orders."""
        return [event for event in self.applied if event.kind == "order"]


class Reference:
    """The naive answer under ``rules`` (a `stream.rules.Rules`), one event at a time."""

    def __init__(self, rules: Any, partitions: int = 1) -> None:
        self.rules = rules
        self.zone = ZoneInfo(rules.timezone)
        self.tags = [tag for tag in rules.tags if tag.domain == "purchases"]
        self.people: dict[tuple[int, str], Person] = {}
        self.newest: dict[int, int] = dict.fromkeys(range(partitions), BEFORE_ALL)
        self.changes: list[Record] = []
        self.warnings: list[Record] = []
        self.dead: list[Record] = []

    def run(
        self, events: Iterable[tuple[int, Record]], until_ms: int | None = None
    ) -> tuple[list[Record], list[Record], list[Record]]:
        """Apply all events, then let time pass: changes, warnings and dead letters."""
        for partition, event in events:
            self.apply(partition, event)
        self.finish(until_ms)
        return self.changes, self.warnings, self.dead

    def time(self, partition: int) -> int:
        """How far the partition's time has come."""
        return self.newest.get(partition, BEFORE_ALL) - int(self.rules.allowed_delay_ms)

    def apply(self, partition: int, event: Record) -> str:
        """One event; what became of it."""
        ts = instant(event["ts"])
        user_id = event["user_id"]
        person = self.people.setdefault((partition, user_id), Person(user_id))
        horizon = person.newest - self.rules.max_lateness_ms
        if ts <= horizon:
            self.dead.append(
                {"code": "too_late", "user_id": user_id, "event_id": event["event_id"]}
            )
            return "too_late"
        if event["event_id"] in person.seen and person.seen[event["event_id"]] > horizon:
            return "duplicate"
        self.pass_time(person, max(ts, self.time(partition)))
        outcome = "late" if ts < person.clock else "applied"
        person.seen[event["event_id"]] = ts
        person.newest = max(person.newest, ts)
        person.clock = max(person.clock, ts)
        self.newest[partition] = max(self.newest.get(partition, BEFORE_ALL), ts)
        person.applied.append(
            Applied(
                event["type"],
                ts,
                self.day(ts),
                round(Fraction(str(event.get("amount", 0))) * 100),
                event.get("coupon", False),
                event.get("attributes", {}),
            )
        )
        if event["type"] == "order":
            self.welcome_back(person)
        self.evaluate(person, {"kind": "event", "event_id": event["event_id"]})
        return outcome

    def finish(self, until_ms: int | None = None) -> None:
        """After the last event: everything that its time, or ``until_ms``, makes due."""
        for (partition, _), person in self.people.items():
            reached = self.time(partition)
            self.pass_time(person, reached if until_ms is None else max(reached, until_ms))

    # -- time

    def day(self, ts: int) -> date:
        """The local date of an instant."""
        return local_date(self.zone, ts)

    def pass_time(self, person: Person, reached: int) -> None:
        """Fire the person's deadlines up to ``reached``, in order."""
        if not person.applied:
            return
        walked = person.clock  # midnights up to here are behind us
        features = self.features(person)
        while True:
            midnight = first_instant(self.zone, self.day(walked) + timedelta(days=1))
            due = min([midnight, *self.churn_instants(person)])
            if due > reached:
                return
            walked = max(walked, due)
            struck = self.churn_at(person, due)
            before, features = features, self.features(person, walked)
            if features == before and not struck:
                continue  # nothing changes by itself here
            person.clock = walked
            self.evaluate(person, {"kind": "time"})

    # -- features

    def features(self, person: Person, clock: int | None = None) -> Record:
        """Every feature, as of the person's clock or a later one."""
        today = self.day(person.clock if clock is None else clock)
        orders = person.orders

        def within(days: int, events: list[Applied]) -> list[Applied]:
            return [event for event in events if event.day > today - timedelta(days=days)]

        def yuan(events: list[Applied]) -> float:
            return float(Fraction(sum(event.fen for event in events), 100))

        def spend(events: list[Applied]) -> float:
            bought = sum(event.fen for event in events if event.kind == "order")
            returned = sum(event.fen for event in events if event.kind == "refund")
            return float(Fraction(bought - returned, 100))

        def days_since(days: list[date], which: Any) -> float:
            return (today - which(days)).days if days else math.inf

        days_with_order = {order.day for order in orders}
        streak_end = today if today in days_with_order else today - timedelta(days=1)
        streak = 0
        while streak_end - timedelta(days=streak) in days_with_order:
            streak += 1
        in_90 = within(90, orders)
        first = min(orders, key=lambda order: order.ts, default=None)
        features: Record = {
            "purchase_streak_days": streak,
            "orders_30d": len(within(30, orders)),
            "orders_90d": len(in_90),
            "orders_365d": len(within(365, orders)),
            "orders_total": len(orders),
            "repurchases_90d": len([order for order in in_90 if order is not first]),
            "spend_30d": spend(within(30, person.applied)),
            "spend_90d": spend(within(90, person.applied)),
            "spend_365d": spend(within(365, person.applied)),
            "spend_total": spend(person.applied),
            "avg_order_90d": float(Fraction(sum(order.fen for order in in_90), 100 * len(in_90)))
            if in_90
            else 0,
            "coupon_rate_90d": len([order for order in in_90 if order.coupon]) / len(in_90)
            if in_90
            else 0,
            "active_days_90d": len({order.day for order in in_90}),
            "days_since_order": days_since([order.day for order in orders], max),
            "days_since_first_order": days_since([order.day for order in orders], min),
            "days_since_registered": days_since(
                [event.day for event in person.applied if event.kind == "registered"], min
            ),
            "churn_state": person.churn_state,
        }
        for name in self.rules.attributes:
            told = [event for event in person.applied if name in event.attributes]
            # Of equal times the later arrival: max() would take the first.
            latest = max(reversed(told), key=lambda event: event.ts, default=None)
            features[name] = latest.attributes[name] if latest else None
        return features

    # -- tags

    def evaluate(self, person: Person, cause: Record) -> None:
        """All tags as of the clock, and a change for each that differs."""
        features = self.features(person)
        for tag in self.tags:
            unset = False if tag.kind == "when" else None
            value = next(
                (value for value, condition in tag.cases if holds(condition.text, features)), unset
            )
            previous = person.values.get(tag.name, unset)
            if value == previous:
                continue
            person.values[tag.name] = value
            change = {
                "user_id": person.user_id,
                "domain": "purchases",
                "tag": tag.name,
                "value": value,
                "previous": previous,
                "effective_at": self.iso(person.clock),
                "cause": cause,
                "features": {
                    name: None if features[name] == math.inf else features[name]
                    for name in dict.fromkeys(
                        name for _, condition in tag.cases for name in names_in(condition.text)
                    )
                },
                "rules_version": self.rules.version,
            }
            if drawn(tag.name, person.user_id) < (tag.control or 0):
                change["control"] = True
            self.changes.append(change)

    def iso(self, ts: int) -> str:
        """Local time with milliseconds."""
        return local(self.zone, ts).isoformat(timespec="milliseconds")

    # -- churn

    def churn_instants(self, person: Person) -> list[int]:
        """Every churn deadline to come, or missed."""
        churn, orders = self.rules.churn, person.orders
        if churn is None or not orders:
            return []
        last = max(order.ts for order in orders)
        instants = [warning.churn for warning in person.warnings if not warning.scored]
        if last not in person.raised_for:
            instants.append(last + churn.after_ms - churn.lead_ms)
        elif last not in person.churned_for:
            instants.append(last + churn.after_ms)
        return instants

    def churn_at(self, person: Person, due: int) -> bool:
        """What churn has to say at this very instant: raised, churned, scored."""
        if due not in self.churn_instants(person):
            return False
        # What a record says is as of this instant, its tags those from before it.
        person.clock = max(person.clock, due)
        churn = self.rules.churn
        last = max(order.ts for order in person.orders)
        if last not in person.raised_for and due == last + churn.after_ms - churn.lead_ms:
            person.raised_for.add(last)
            person.churn_state = "warned"
            warning = Warning(len(person.warnings) + 1, due, last + churn.after_ms)
            person.warnings.append(warning)
            self.warn("raised", person, warning, due)
        if last in person.raised_for - person.churned_for and due == last + churn.after_ms:
            person.churned_for.add(last)
            person.churn_state = "churned"
            self.warn("churned", person, person.warnings[-1], due)
        for warning in person.warnings:
            if not warning.scored and warning.churn == due:
                warning.scored = True
                self.warn("scored", person, warning, due)
        return True

    def welcome_back(self, person: Person) -> None:
        """An order was applied: the first after a raised warning is the user's return."""
        if person.warnings and person.warnings[-1].returned is None:
            warning = person.warnings[-1]
            warning.returned = person.clock
            warning.returned_from = person.churn_state
            self.warn("returned", person, warning, person.clock)
        person.churn_state = "none"

    def warn(self, status: str, person: Person, warning: Warning, at: int) -> None:
        """A record of a warning."""
        orders = person.orders
        right = None
        if status == "scored":
            right = not any(warning.raised < order.ts < warning.churn for order in orders)
        self.warnings.append(
            {
                "status": status,
                "user_id": person.user_id,
                "at": self.iso(at),
                "raised_at": self.iso(warning.raised),
                "churn_at": self.iso(warning.churn),
                "matures_at": self.iso(warning.churn),
                "mode": "silence",
                "probability": None,
                "level": "red",
                "control": drawn("churn", person.user_id) < self.rules.churn.control,
                "tags": {
                    tag.name: person.values[tag.name]
                    for tag in self.tags
                    if person.values.get(tag.name) not in (None, False)
                },
                "evidence": {
                    "last_order_at": self.iso(max(order.ts for order in orders)),
                    "first_order_at": self.iso(min(order.ts for order in orders)),
                    "orders_total": len(orders),
                    "spend_total": self.features(person)["spend_total"],
                },
                "returned_at": None if warning.returned is None else self.iso(warning.returned),
                "returned_from": warning.returned_from,
                "right": right,
            }
        )


def instant(ts: int | str) -> int:
    """Epoch milliseconds of either form of a time."""
    if isinstance(ts, int):
        return ts
    return (datetime.fromisoformat(ts) - EPOCH) // timedelta(milliseconds=1)


def local(zone: ZoneInfo, ts: int) -> datetime:
    """An instant in local time."""
    return (EPOCH + timedelta(milliseconds=ts)).astimezone(zone)


@cache
def local_date(zone: ZoneInfo, ts: int) -> date:
    """The local date of an instant."""
    return local(zone, ts).date()


@cache
def first_instant(zone: ZoneInfo, day: date) -> int:
    """The first millisecond of a local date, by bisection."""
    midnight = (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH) // timedelta(
        milliseconds=1
    )
    before, after = midnight - 2 * 86_400_000, midnight + 2 * 86_400_000
    while after - before > 1:
        middle = (before + after) // 2
        if local(zone, middle).date() >= day:
            after = middle
        else:
            before = middle
    return after


@cache
def names_in(text: str) -> list[str]:
    """The features a condition reads, in the order written."""
    names = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    return list(dict.fromkeys(node.id for node in names))


def holds(text: str, features: Record) -> bool:
    """Whether a condition holds; not where it reaches what has no answer."""
    try:
        return bool(eval(compiled(text), {"__builtins__": {}}, features))
    except (ZeroDivisionError, TypeError):
        return False


@cache
def compiled(text: str) -> Any:
    """A condition, ready for `eval`."""
    return compile(text, "<condition>", "eval")


def drawn(purpose: str, user_id: str) -> float:
    """A user's number in [0, 1) for a control group."""
    digest = blake2b(f"{purpose}:{user_id}".encode(), digest_size=8).digest()
    return float(Fraction(int.from_bytes(digest, "big"), 2**64))
