"""What one user costs: microseconds of CPU per apply, per deadline, per encode and decode.

By hand: ``python -m tests.bench.bench_table``. The shipped definitions with churn; one core;
the best of a few rounds, in CPU time, since other work on the machine only ever adds. Changes
are those of tags, per event: each costs about ten microseconds of its own.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

from stream import data, rules
from stream.domains import discover
from tables.events.engagement import Favorite, Review, View, Watch
from tables.events.outreach import Reach, Response
from tables.events.purchases import Order
from tables.events.service import Contact
from tables.table import NEVER, Outputs
from tests.strategies import DAY_MS, HOUR_MS, MINUTE_MS

START_MS = 1_745_942_400_000
USERS = 100
ROUNDS = 7

# What issues are made of, in the domains that the shipped definitions leave out.
TAGS = """
  - {name: content, domain: engagement, when: avg_watch_seconds_90d > 300 and favorites_90d > 10}
  - {name: social, domain: engagement, when: reviews_90d > 3 and shares_90d > 5}
  - name: activity
    domain: engagement
    cases:
      core: active_days_30d >= 20
      active: active_days_30d >= 4
      potential: days_since_active <= 30
      asleep: days_since_active > 30
  - name: push_blocked
    domain: outreach
    when: push_3h >= 1 or push_day >= 7 or opted_out_app_push
  - {name: sms_blocked, domain: outreach, when: sms_48h >= 1 or sms_month >= 8 or opted_out_sms}
  - {name: fatigue, domain: outreach, when: unanswered >= 3}
  - {name: answers, domain: outreach, when: response_rate_30d > 0.8}
  - {name: needs_service, domain: service, when: contacts_month > 2}
"""


def definitions() -> rules.Rules:
    """The shipped ones, and some for domains that they leave out."""
    text = Path(data.TAGS).read_text()
    shipped = rules.parse(text, "tags.yaml", discover())
    if not any(tag.domain == "outreach" for tag in shipped.tags):
        shipped = rules.parse(text + TAGS, "tags.yaml", discover())
    return shipped


Make = Callable[..., Any]


def order(number: int, **shared: Any) -> Order:
    """An order, every third with a coupon."""
    return Order(amount_fen=1_000 + number % 100, coupon=number % 3 == 0, **shared)


def visit(number: int, **shared: Any) -> Any:
    """Mostly views; now and then something watched, marked or rated."""
    match number % 6:
        case 0 | 1:
            return Watch(watched_ms=1_000 * number, **shared)
        case 2:
            return Favorite(**shared)
        case 3:
            return Review(rating=1 + number % 9 / 2, **shared)
    return View(**shared)


def outreach(number: int, **shared: Any) -> Any:
    """A push, an SMS and a response in turn."""
    if number % 3 == 2:
        return Response(channel="app_push", **shared)
    return Reach(channel="sms" if number % 3 else "app_push", **shared)


def contact(number: int, **shared: Any) -> Contact:
    """A consultation."""
    return Contact(kind="consult", **shared)


def events(make: Make, hours_apart: float, count: int) -> list[Any]:
    """Events of ``USERS`` users in turn, each user's the same time apart."""
    gap_ms = int(hours_apart * HOUR_MS)
    return [
        make(
            number,
            event_id=f"{user:08}-{number:08}",
            user_id=f"user-{user:08}",
            ts=START_MS + number * gap_ms + user,
        )
        for number in range(count)
        for user in range(USERS)
    ]


def per_item(
    items: int, run: Callable[[], Any], prepare: Callable[[], Any] = lambda: None
) -> float:
    """Microseconds of CPU per item, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        prepare()
        start = process_time()
        run()
        best = min(best, process_time() - start)
    return best / items * 1e6


class Bench:
    """Users of one rhythm."""

    def __init__(self, domain: str, make: Make, hours_apart: float, warm: int, count: int) -> None:
        self.table = discover()[domain].table(definitions())
        made = events(make, hours_apart, warm + count)
        self.history, self.events = made[: warm * USERS], made[warm * USERS :]
        self.users: dict[str, Any] = {}
        self.changes: list[Any] = []  # of the events applied last

    def prepare(self) -> None:
        """Users with nothing but their history."""
        self.users = {event.user_id: self.table.new(event.user_id) for event in self.events}
        self.apply(self.history)

    def apply(self, events: Iterable[Any]) -> None:
        """As a partition does: its time follows a minute behind."""
        users, apply, out = self.users, self.table.apply, Outputs()
        self.changes = out.changes
        time_ms = -NEVER
        for event in events:
            apply(users[event.user_id], event, time_ms, out)
            time_ms = event.ts - MINUTE_MS

    def fire(self) -> None:
        """Let a day pass over everybody."""
        fire, out = self.table.fire, Outputs()
        time_ms = self.events[0].ts + DAY_MS
        for user in self.users.values():
            fire(user, time_ms, out)

    def measure(self, name: str) -> None:
        """One line."""
        table = self.table
        apply_us = per_item(len(self.events), lambda: self.apply(self.events), self.prepare)
        changes = len(self.changes) / len(self.events)
        users = list(self.users.values())
        deadline_us = per_item(len(users), lambda: [table.deadline_ms(user) for user in users])
        encoded = [table.encode(user) for user in users]
        encode_us = per_item(len(users) * 10, lambda: [table.encode(u) for u in users * 10])
        decode_us = per_item(len(users) * 10, lambda: [table.decode(raw) for raw in encoded * 10])
        fire_us = per_item(len(users), self.fire, self.prepare)
        print(
            f"{name:32}{apply_us:8.2f}{changes:9.2f}{deadline_us:10.2f}{fire_us:8.2f}"
            f"{encode_us:8.2f}{decode_us:8.2f}{len(encoded[0]):8}"
        )


if __name__ == "__main__":
    titles = f"{'us of CPU':32}{'apply':>8}{'changes':>9}{'deadline':>10}{'fire':>8}"
    print(f"{titles}{'encode':>8}{'decode':>8}  bytes")
    for domain, make, what in (
        ("purchases", order, "an order"),
        ("engagement", visit, "a visit"),
        ("outreach", outreach, "a reach"),
        ("service", contact, "a contact"),
    ):
        bench = partial(Bench, domain, make)
        bench(0.01, 1_000, 200).measure(f"{what} every 36 seconds")
        bench(1, 24, 100).measure(f"{what} an hour")
        bench(5, 20, 100).measure(f"{what} every five hours")
        bench(24, 10, 100).measure(f"{what} a day")
        bench(24 * 30.4, 2, 8).measure(f"{what} a month")
        bench(24 * 60, 1, 2).measure(f"{what} every two months")
