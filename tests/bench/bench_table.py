"""What one user costs: microseconds of CPU per apply, per deadline, per encode and decode.

By hand: ``python -m tests.bench.bench_table``. The shipped definitions with churn; one core;
the best of a few rounds, in CPU time, since other work on the machine only ever adds.
"""

from collections.abc import Callable, Iterable
from time import process_time
from typing import Any

from tables.purchases import Buyer, Order, Purchases
from tables.table import NEVER, Outputs
from tests.strategies import DAY_MS, HOUR_MS, MINUTE_MS, shipped

START_MS = 1_745_942_400_000
USERS = 100
ROUNDS = 7


def orders(hours_apart: float, count: int) -> list[Order]:
    """Orders of ``USERS`` users in turn, each user's the same time apart."""
    gap_ms = int(hours_apart * HOUR_MS)
    return [
        Order(
            event_id=f"{user:08}-{number:08}",
            user_id=f"user-{user:08}",
            ts=START_MS + number * gap_ms + user,
            amount_fen=1_000 + user,
            coupon=number % 3 == 0,
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

    def __init__(self, hours_apart: float, warm: int, count: int) -> None:
        self.table = Purchases(shipped())
        events = orders(hours_apart, warm + count)
        self.history, self.events = events[: warm * USERS], events[warm * USERS :]
        self.users: dict[str, Buyer] = {}

    def prepare(self) -> None:
        """Users with nothing but their history."""
        self.users = {event.user_id: self.table.new(event.user_id) for event in self.events}
        self.apply(self.history)

    def apply(self, events: Iterable[Order]) -> None:
        """As a partition does: its time follows a minute behind."""
        users, apply, out = self.users, self.table.apply, Outputs()
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
        users = list(self.users.values())
        deadline_us = per_item(len(users), lambda: [table.deadline_ms(user) for user in users])
        encoded = [table.encode(user) for user in users]
        encode_us = per_item(len(users) * 10, lambda: [table.encode(u) for u in users * 10])
        decode_us = per_item(len(users) * 10, lambda: [table.decode(raw) for raw in encoded * 10])
        fire_us = per_item(len(users), self.fire, self.prepare)
        print(
            f"{name:32}{apply_us:8.2f}{deadline_us:10.2f}{fire_us:8.2f}"
            f"{encode_us:8.2f}{decode_us:8.2f}{len(encoded[0]):8}"
        )


if __name__ == "__main__":
    print(
        f"{'us of CPU':32}{'apply':>8}{'deadline':>10}{'fire':>8}{'encode':>8}{'decode':>8}  bytes"
    )
    Bench(1, 24, 100).measure("an order an hour")
    Bench(5, 20, 100).measure("an order every five hours")
    Bench(24, 10, 100).measure("an order a day")
    Bench(24 * 30.4, 2, 8).measure("an order a month")
    Bench(24 * 60, 1, 2).measure("an order every two months")
