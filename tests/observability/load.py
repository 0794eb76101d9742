"""Events that leave no metric at nothing: every domain that there is, every type, and mistakes.

A hundred days of a small shop, then live ones. Random, and the same for the same ``chance``.
"""

from collections.abc import Callable, Collection, Iterator
from random import Random
from typing import Any

DAY_MS = 86_400_000
USERS = 120
CHANNELS = ("app_push", "sms", "email", "wechat", "wechat_mini", "store", "phone")

Event = dict[str, Any]
Fields = Callable[[Random], Event]


def _amount(chance: Random) -> Event:
    return {"amount": round(chance.lognormvariate(6.5, 1.5), 2)}


def _channel(chance: Random) -> Event:
    return {"channel": chance.choice(CHANNELS)}


def _nothing(_: Random) -> Event:
    return {}


#: By domain and type: how often, and which fields of its own an event has.
EVENTS: dict[str, dict[str, tuple[int, Fields]]] = {
    "purchases": {
        "order": (30, lambda c: _amount(c) | ({"coupon": True} if c.random() < 0.4 else {})),
        "refund": (2, _amount),
        "updated": (1, lambda c: {"attributes": {"region": c.choice("ab")}}),
    },
    "service": {
        "contact": (8, lambda c: {"kind": c.choice(("consult", "complaint")), **_channel(c)}),
    },
    "engagement": {
        "watch": (10, lambda c: {"seconds": c.randrange(1, 2_000)}),
        "review": (3, lambda c: {"rating": c.randint(1, 5)} if c.random() < 0.7 else {}),
        **dict.fromkeys(("favorite", "share", "view", "search", "cart"), (4, _nothing)),
    },
    "outreach": {
        "reach": (20, _channel),
        "response": (4, _channel),
        "unsubscribe": (1, _channel),
        "subscribe": (1, _channel),
    },
}


class Shop:
    """What its users do, among the domains that are asked for."""

    def __init__(self, domains: Collection[str], chance: Random) -> None:
        self.chance = chance
        self._number = 0
        self._kinds = [
            (kind, fields, weight)
            for domain, kinds in EVENTS.items()
            if domain in domains
            for kind, (weight, fields) in kinds.items()
        ]

    def event(self, ts_ms: int, user: int, kind: str | None = None) -> Event:
        """Something that a user does."""
        self._number += 1
        fields: Fields = _nothing
        if kind is None:
            weights = [weight for *_, weight in self._kinds]
            kind, fields, _ = self.chance.choices(self._kinds, weights)[0]
        named = {"event_id": f"e{self._number}", "user_id": f"u{user}", "type": kind}
        return {**named, "ts": ts_ms, **fields(self.chance)}

    def history(self, until_ms: int, days: int = 100, events: int = 4_000) -> Iterator[Event]:
        """In order of time but for one in fifty; some come again; most users fall silent once."""
        chance, past = self.chance, days * DAY_MS
        start_ms = until_ms - past
        times = sorted(chance.randrange(start_ms, until_ms) for _ in range(events))
        joins = {user: start_ms + user * past // (2 * USERS) for user in range(USERS)}
        leaves = {user: joins[user] + chance.randrange(past) for user in range(USERS)}
        known: set[int] = set()
        for ts_ms in times:
            user = chance.randrange(USERS)
            if not joins[user] <= ts_ms < leaves[user]:
                continue
            if user not in known and chance.random() < 0.9:
                yield self.event(ts_ms - 1, user, "registered")
            known.add(user)
            late_ms = chance.randrange(3 * DAY_MS) if chance.random() < 0.02 else 0
            event = self.event(ts_ms - late_ms, user)
            yield event
            if chance.random() < 0.02:
                yield event

    def now(self, now_ms: int, events: int) -> list[Event]:
        """What happens at this moment, new users among others."""
        users = [self.chance.randrange(2 * USERS) for _ in range(events)]
        return [self.event(now_ms, user) for user in users]
