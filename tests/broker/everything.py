"""Random events of all domains for tests: what shops send, with everything that is hard about it.

Mostly in order of time; some late, some too late, some at a boundary, some repeated, some
unusable, and now and then somebody is forgotten in all domains. About 13 minutes of event time
per event: 110 events are a day. `unusable` says what the service has to answer to each on its own.
"""

import json
import random
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.broker.purchases import (
    DAY_MS,
    START_MS,
    STEP_MS,
    TAGS,
    is_farewell,
    midnight_ms,
    purchase,
    rfc3339,
)

__all__ = ["EVERY_TAG", "To", "everything", "farewells", "is_farewell", "unusable"]

#: Definitions under which these events change tags often, by events and by time.
EVERY_TAG = (
    TAGS
    + """\
  - {name: asking, title: A, domain: service, when: contacts_month > 2}
  - {name: asked, title: A, domain: service, when: contacts_30d > 0}
  - name: patience
    title: P
    domain: service
    cases:
      lost: complaints_30d > 1
      thin: complaints_30d == 1 or 1 < consults_month <= 3
  - {name: watching, title: W, domain: engagement, when: avg_watch_seconds_30d > 150}
  - {name: awake, title: A, domain: engagement, when: days_since_active < 2}
  - {name: fond, title: F, domain: engagement, when: favorites_90d + shares_90d >= 2}
  - {name: pleased, title: P, domain: engagement, when: avg_rating_90d >= 3.5, control: 0.2}
  - {name: reached, title: R, domain: outreach, when: reaches_30d > 0}
  - name: push_blocked
    title: P
    domain: outreach
    when: push_3h >= 1 or push_day >= 2 or opted_out_app_push
  - {name: sms_blocked, title: S, domain: outreach, when: sms_48h >= 1 or sms_month >= 3}
  - {name: tired, title: T, domain: outreach, when: unanswered >= 3}
  - {name: let_alone, title: L, domain: profile, when: tired or push_blocked and sms_blocked}
  - name: group
    title: G
    domain: profile
    cases:
      core: value in ['high', 'some'] and awake
      lost: asleep and not awake
      rest: not let_alone
  - {name: odd, title: O, domain: profile, when: group == 'lost' and patience == None}
"""
)

KINDS = {"purchases": 40, "service": 12, "engagement": 28, "outreach": 20}
CHANNELS = ["app_push", "app_push", "sms", "sms", "email", "store"]


class To(NamedTuple):
    """An event on its way to a domain's topic."""

    key: str
    value: bytes
    domain: str


def everything(seed: int, *, users: int = 250, start: int = 0) -> Iterator[To]:
    """Events of ``users`` users without end, the few first of them much busier than the rest.

    ``start`` counts the events before the first one: time and ids go on from there.
    """
    rng = random.Random(f"{seed} {start}")
    recent: deque[To] = deque(maxlen=300)
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
        event: dict[str, Any] = {
            "event_id": f"{seed}-{number}",
            "user_id": user,
            "ts": rfc3339(ts_ms) if luck > 0.98 else ts_ms,
        }
        if rng.random() < 0.01:
            value = json.dumps(event | {"type": "erase"}).encode()
            forgotten = [To(user, value, domain) for domain in KINDS]
            rng.shuffle(forgotten)
            yield from forgotten
            recent.append(forgotten[0])
            continue
        (domain,) = rng.choices(list(KINDS), list(KINDS.values()))
        value = json.dumps(event | _what(domain, rng)).encode()
        if luck > 0.995:
            value = value[: rng.randrange(len(value))]  # unusable
        sent = To(user, value, domain)
        recent.append(sent)
        yield sent


def unusable(value: bytes | None) -> str | None:
    """The code of the dead letter that an event of ours has to become; None: it is usable."""
    try:
        event = json.loads(value or b"")
    except ValueError:
        return "malformed"
    wrong = event.get("amount", 0) < 0 or event.get("rating", 1) > 5
    return "invalid" if wrong or event.get("channel") == "pigeon" else None


def farewells(ts_ms: int) -> list[To]:
    """Events of users of their own in all domains, enough for some in every partition.

    Sent last: once their changes are out, so is everything that came before them.
    """
    last: dict[str, dict[str, object]] = {
        "purchases": {"type": "order", "amount": 1},
        "service": {"type": "contact"},
        "engagement": {"type": "view"},
        "outreach": {"type": "reach", "channel": "phone"},
    }
    return [
        To(
            f"last-{number}",
            json.dumps(
                what | {"event_id": f"farewell-{number}", "user_id": f"last-{number}", "ts": ts_ms}
            ).encode(),
            domain,
        )
        for number in range(100)
        for domain, what in last.items()
    ]


def _what(domain: str, rng: random.Random) -> dict[str, object]:
    luck = rng.random()
    if domain == "purchases":
        return purchase(rng)
    if domain == "service":
        return {"type": "contact", "kind": rng.choice(["consult", "complaint", "other"])}
    if domain == "engagement":
        if luck < 0.4:
            return {"type": "watch", "seconds": rng.randrange(400_000) / 1000}
        if luck < 0.6:
            rating = rng.choice([1, 2.5, 4, 5, 5, 9])  # 9: unusable
            return {"type": "review"} | ({"rating": rating} if rng.random() < 0.8 else {})
        return {"type": rng.choice(["favorite", "share", "view", "search", "cart"])}
    channel = "pigeon" if luck < 0.01 else rng.choice(CHANNELS)
    kinds = ["reach"] * 6 + ["response", "unsubscribe", "subscribe"]
    return {"type": rng.choice(kinds), "channel": channel}
