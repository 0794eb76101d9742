"""Purchases as one commonly writes them in Faust: what `bench_pipeline.py` compares with.

Stock faust-streaming, the way its guide shows it: a `faust.Table` on RocksDB with a
changelog, read and written at every event, and every change sent by ``topic.send``. The
same events, features, conditions (those of the shipped `tags.yaml`) and churn warnings;
but at least once, nothing while no event comes, and a late event counts for the latest day.

    python -m tests.bench.common_faust worker --web-port PORT    # BROKER, PREFIX, DATA_DIR
"""

import hashlib
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import faust
import yaml

from stream.data import TAGS as SHIPPED

DAY_MS = 86_400_000
RULES = yaml.safe_load(SHIPPED.read_text())
ZONE = ZoneInfo(RULES["timezone"])
LATENESS_MS = 7 * DAY_MS
CHURN_MS, LEAD_MS = 30 * DAY_MS, 3 * DAY_MS

Condition = Callable[[dict[str, Any]], Any]


def compiled(condition: str) -> Condition:
    code = compile(condition, "tags.yaml", "eval")
    return lambda features: eval(code, {}, features)


def tags_of(domain: str) -> list[tuple[str, list[tuple[Any, Condition]], Any]]:
    return [
        (tag["name"], [(True, compiled(tag["when"]))], False)
        if "when" in tag
        else (tag["name"], [(value, compiled(case)) for value, case in tag["cases"].items()], None)
        for tag in RULES["tags"]
        if tag["domain"] == domain
    ]


TAGS, MADE_OF_TAGS = tags_of("purchases"), tags_of("profile")
UNSET = {tag["name"]: False if "when" in tag else None for tag in RULES["tags"]}

PREFIX = os.environ["PREFIX"]
PARTITIONS = int(os.environ["PARTITIONS"])

app = faust.App(
    f"{PREFIX}app",
    broker=os.environ["BROKER"],
    store="rocksdb://?driver=rocksdict",
    datadir=os.environ["DATA_DIR"],
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    table_standby_replicas=0,
    topic_disable_leader=True,
)
source = app.topic(f"{PREFIX}purchases", key_type=str, value_serializer="json")
changes = app.topic(f"{PREFIX}tag-changes", key_type=str, value_serializer="json")
warnings = app.topic(f"{PREFIX}warnings", key_type=str, value_serializer="json")
user_tags = app.topic(f"{PREFIX}user-tags", key_type=str, value_serializer="json")
users = app.Table("users", default=dict, partitions=PARTITIONS)
done = 0


@app.agent(source)
async def purchases(events):
    global done
    async for event in events:
        done += 1
        user_id = event["user_id"]
        user = users[user_id]
        if not apply(user, event):
            continue
        users[user_id] = user
        for warning in churn(user, event):
            await warnings.send(key=user_id, value=warning)
        told = evaluate(user, event)
        for change in told:
            await changes.send(key=user_id, value=change)
        if told:
            await user_tags.send(key=user_id, value={"user_id": user_id, "tags": user["tags"]})


@app.page("/done/")
async def how_many(web, request):
    return web.json({"done": done})


def apply(user: dict[str, Any], event: dict[str, Any]) -> bool:
    """Whether the event counts: it is no repeat and not too late."""
    ts = event["ts"]
    seen = user.setdefault("seen", {})
    if ts <= user.get("clock", 0) - LATENESS_MS or event["event_id"] in seen:
        return False
    user["clock"] = max(ts, user.get("clock", 0))
    seen[event["event_id"]] = ts
    if len(seen) > 64:
        user["seen"] = {id_: at for id_, at in seen.items() if at > user["clock"] - LATENESS_MS}
    if event["type"] in ("registered", "updated"):
        user.setdefault("registered", ts)
        user.setdefault("attributes", {}).update(event.get("attributes", {}))
        return True
    fen = round(event["amount"] * 100)
    days = user.setdefault("days", {})
    day = days.setdefault(str(local_day(ts)), [0, 0, 0, 0])  # orders, amount, net, coupons
    if event["type"] == "refund":
        day[2] -= fen
        return True
    day[0] += 1
    day[1] += fen
    day[2] += fen
    day[3] += event.get("coupon", False)
    user["orders"] = user.get("orders", 0) + 1
    user.setdefault("first", ts)
    user["last"] = ts
    return True


def churn(user: dict[str, Any], event: dict[str, Any]) -> list[dict[str, Any]]:
    """Warnings that an event ends: raising them takes a timer, which one adds later."""
    before, user["ordered"] = user.get("ordered"), user.get("last")
    if before is None or user["last"] - before < CHURN_MS - LEAD_MS:
        return []
    state = "churned" if user["last"] - before >= CHURN_MS else "warned"
    return [{"user_id": event["user_id"], "status": "returned", "returned_from": state}]


def features(user: dict[str, Any]) -> dict[str, Any]:
    today = local_day(user["clock"])
    days = {int(day): counts for day, counts in user.get("days", {}).items()}
    of = {
        span: [counts for day, counts in days.items() if today - span < day <= today]
        for span in (30, 90, 365)
    }
    orders = {span: sum(counts[0] for counts in of[span]) for span in of}
    streak, day = 0, today if days.get(today, [0])[0] else today - 1
    while days.get(day, [0])[0]:
        streak, day = streak + 1, day - 1
    first, registered, last = user.get("first"), user.get("registered"), user.get("last")
    return {
        "purchase_streak_days": streak,
        "orders_30d": orders[30],
        "orders_90d": orders[90],
        "orders_365d": orders[365],
        "orders_total": user.get("orders", 0),
        "repurchases_90d": orders[90] - (first is not None and since(first, today) < 90),
        "spend_30d": sum(counts[2] for counts in of[30]) / 100,
        "spend_90d": sum(counts[2] for counts in of[90]) / 100,
        "spend_365d": sum(counts[2] for counts in of[365]) / 100,
        "coupon_rate_90d": sum(counts[3] for counts in of[90]) / (orders[90] or 1),
        "days_since_order": since(last, today),
        "days_since_first_order": since(first, today),
        "days_since_registered": since(registered, today),
        "churn_state": "none",
    }


def since(ts: int | None, today: int) -> float:
    return math.inf if ts is None else today - local_day(ts)


def evaluate(user: dict[str, Any], event: dict[str, Any]) -> list[dict[str, Any]]:
    tags = user.setdefault("tags", {})
    changed = change(user, event, TAGS, features(user), tags)
    if changed:
        changed += change(user, event, MADE_OF_TAGS, {**UNSET, **tags}, tags)
    return changed


def change(
    user: dict[str, Any],
    event: dict[str, Any],
    definitions: list[tuple[str, list[tuple[Any, Condition]], Any]],
    known: dict[str, Any],
    tags: dict[str, Any],
) -> list[dict[str, Any]]:
    changed = []
    for name, cases, default in definitions:
        value = next((value for value, holds in cases if holds(known)), default)
        previous = tags.get(name, default)
        if value != previous:
            tags[name] = value
            identity = f"{event['user_id']} {name} {value} {event['event_id']}"
            changed.append(
                {
                    "change_id": hashlib.sha256(identity.encode()).hexdigest(),
                    "user_id": event["user_id"],
                    "tag": name,
                    "value": value,
                    "previous": previous,
                    "effective_at": datetime.fromtimestamp(user["clock"] / 1000, ZONE).isoformat(),
                    "cause": {"kind": "event", "event_id": event["event_id"]},
                    "rules_version": RULES["version"],
                    "emitted_at": datetime.now(UTC).isoformat(),
                }
            )
    return changed


def local_day(ts: int) -> int:
    return datetime.fromtimestamp(ts / 1000, ZONE).toordinal()


if __name__ == "__main__":
    app.main()
