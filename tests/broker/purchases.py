"""Random purchases for tests: what shops send, with everything that is hard about it.

Mostly in order of time; some late, some too late, some at a boundary, some repeated, some
unusable. About 13 minutes of event time per event: 110 events are a day. `everything.unusable` says
what the service has to answer to each on its own.
"""

import itertools
import json
import random
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

ZONE = "America/New_York"  # the clocks go back on 2 November 2025, two weeks after START_MS
START_MS = int(datetime(2025, 10, 19, tzinfo=UTC).timestamp() * 1000)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
STEP_MS = DAY_MS / 110

#: Definitions under which these events change tags often, by events and by time.
TAGS = f"""\
version: 1
timezone: {ZONE}
max_lateness: 3d
allowed_delay: 1h
attributes: [region]
churn: {{mode: silence, after: 5d, lead: 2d, control: 0.3}}
tags:
  - {{name: regular, title: R, domain: purchases, when: purchase_streak_days >= 2}}
  - name: back_again
    title: B
    domain: purchases
    when: repurchases_90d > 2 and region != 'west'
  - {{name: slipping, title: S, domain: purchases, when: churn_state != 'none'}}
  - {{name: asleep, title: A, domain: purchases, when: days_since_order >= 3}}
  - {{name: bargains, title: C, domain: purchases, when: coupon_rate_90d > 0.5, control: 0.2}}
  - name: value
    title: V
    domain: purchases
    cases:
      high: spend_30d > 900
      some: spend_30d >= 300 or avg_order_90d > 120
      none: spend_30d < 300
"""

Sent = tuple[str, bytes]  # record key, record value


def purchases(seed: int, *, users: int = 250, start: int = 0) -> Iterator[Sent]:
    """Events of ``users`` users without end, the few first of them much busier than the rest.

    ``start`` counts the events before the first one: time and ids go on from there.
    """
    rng = random.Random(f"{seed} {start}")
    recent: deque[Sent] = deque(maxlen=300)
    number = start
    while True:
        number += 1
        luck = rng.random()
        if luck < 0.03 and recent:
            yield rng.choice(recent)  # delivered again
            continue
        user = f"user-{int(users * rng.random() ** 1.5)}"
        now_ms = START_MS + int(number * STEP_MS)
        ts_ms = now_ms
        if luck < 0.08:
            ts_ms -= int(rng.expovariate(1 / DAY_MS))  # late; past three days too late
        elif luck < 0.10:
            ts_ms = midnight_ms(now_ms)
        event = {
            "event_id": f"{seed}-{number}",
            "user_id": user,
            "ts": rfc3339(ts_ms) if luck > 0.98 else ts_ms,
            **purchase(rng),
        }
        value = json.dumps(event).encode()
        if luck > 0.995:
            value = value[: rng.randrange(len(value))]  # unusable
        sent = (user, value)
        recent.append(sent)
        yield sent


def orders_now(users: int) -> Iterator[Sent]:
    """Orders of this very moment, of all users in turn, without end."""
    for number in itertools.count():
        user = f"user-{number % users}"
        event = {"event_id": f"now-{number}", "user_id": user, "type": "order", "amount": 1}
        yield user, json.dumps({**event, "ts": time.time_ns() // 1_000_000}).encode()


def is_farewell(key: bytes | None) -> bool:
    """Whether a record is of one of the last users."""
    return key is not None and key.startswith(b"last-")


def purchase(rng: random.Random) -> dict[str, object]:
    """What happened."""
    luck = rng.random()
    if luck < 0.05:
        return {"type": "registered", "attributes": {"region": rng.choice(["east", "west"])}}
    if luck < 0.10:
        return {"type": "updated", "attributes": {"region": rng.choice(["east", "west", None])}}
    amount = rng.randrange(100, 30_000) / 100
    if luck < 0.20:
        return {"type": "refund", "amount": amount}
    if luck < 0.21:
        return {"type": "order", "amount": -amount}  # unusable
    return {"type": "order", "amount": amount, "coupon": rng.random() < 0.5}


def midnight_ms(ts_ms: int) -> int:
    """The beginning of the local day."""
    local = datetime.fromtimestamp(ts_ms / 1000, ZoneInfo(ZONE))
    return int(local.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


def rfc3339(ts_ms: int) -> str:
    """The other form of a time."""
    return datetime.fromtimestamp(ts_ms / 1000, ZoneInfo(ZONE)).isoformat(timespec="milliseconds")
