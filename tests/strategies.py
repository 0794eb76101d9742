"""Random definitions and random streams, crowded around the places where things go wrong.

Streams keep to a few users whose events fall on and beside midnights, window ends and churn
instants, in zones with and without daylight saving, in order, late within and beyond the
allowed delay, too late, and repeated. Definitions read every feature, in every way a condition
allows, with constants that small streams reach.
"""

from datetime import date
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from hypothesis import strategies as st

from stream import rules
from tables import purchases
from tests.reference import first_instant, local_date

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

PLACES = [
    ("Asia/Shanghai", date(2025, 4, 29)),
    ("America/New_York", date(2025, 3, 8)),  # clocks go forward on the 9th
    ("America/New_York", date(2024, 11, 2)),  # and back on the 3rd
    ("America/Havana", date(2025, 3, 8)),  # forward at midnight: the 9th begins at one
]

NUMBERS: dict[str, list[float]] = {
    "purchase_streak_days": [1, 2, 3, 7],
    "orders_30d": [0, 1, 2, 4],
    "orders_90d": [1, 3, 5],
    "orders_365d": [0, 2, 6],
    "orders_total": [0, 1, 5],
    "repurchases_90d": [0, 1, 2],
    "spend_30d": [-5, 0, 10.5, 100],
    "spend_90d": [0, 50.25, 100],
    "spend_365d": [0, 100, 300],
    "spend_total": [0, 100],
    "avg_order_90d": [0, 10.5, 50.25],
    "coupon_rate_90d": [0, 0.5, 0.6, 1],
    "active_days_90d": [0, 1, 2, 5],
    "days_since_order": [0, 1, 2.5, 7, 29, 30],
    "days_since_first_order": [0, 3, 30, 89.5],
    "days_since_registered": [1, 7, 7.5, 90],
    "age": [18, 40],
}
TEXTS = {
    "churn_state": ["none", "warned", "churned"],
    "region": ["north", "south"],
}
PURCHASES = SimpleNamespace(features=purchases.FEATURES, attribute_reader=purchases.attribute)
COMPARISONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    """A feature beside what it is compared with."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        name = draw(st.sampled_from(sorted(TEXTS)))
        operator = draw(st.sampled_from(["==", "!="]))
        return f"{name} {operator} '{draw(st.sampled_from(TEXTS[name]))}'"
    if kind == 1:
        name = draw(st.sampled_from(sorted(TEXTS)))
        return f"{name} in {draw(st.lists(st.sampled_from(TEXTS[name]), min_size=1, max_size=2))}"
    name, other = (draw(st.sampled_from(sorted(NUMBERS))) for _ in range(2))
    number = draw(st.sampled_from(NUMBERS[name]))
    if kind == 2:
        return f"{name} {draw(st.sampled_from('+-*/'))} {other} {draw(COMPARISONS)} {number}"
    if kind == 3:
        return f"{name} {draw(COMPARISONS)} {other}"
    if kind == 4:
        return f"{number} <= {name} < {number + draw(st.sampled_from([1, 2, 30]))}"
    return f"{name} {draw(COMPARISONS)} {number}"


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not {}".format, inner.map("({})".format)),
    ),
    max_leaves=3,
)


@cache
def parsed(text: str) -> rules.Rules:
    """Definitions for purchases from the text of a file."""
    return rules.parse(text, "tags.yaml", {"purchases": PURCHASES})


def shipped() -> rules.Rules:
    """The definitions that come with the package."""
    return parsed((Path(rules.__file__).parent / "data" / "tags.yaml").read_text())


@st.composite
def definitions(draw: st.DrawFn, zone: str) -> rules.Rules:
    """One to six tags, and everything else that a file may set."""
    tags: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 6))):
        tag: dict[str, Any] = {"name": f"tag_{number}", "domain": "purchases"}
        if draw(st.booleans()):
            tag["when"] = draw(CONDITIONS)
        else:
            tag["cases"] = {
                f"value_{case}": draw(CONDITIONS) for case in range(draw(st.integers(1, 3)))
            }
        if draw(st.integers(0, 3)) == 0:
            tag["control"] = 0.5
        tags.append(tag)
    content: dict[str, Any] = {
        "version": draw(st.integers(1, 3)),
        "timezone": zone,
        "max_lateness": draw(st.sampled_from(["1h", "1d", "7d"])),
        "allowed_delay": draw(st.sampled_from(["0s", "1m", "1d"])),
        "attributes": ["region", "age"],
        "tags": tags,
    }
    churn = draw(st.sampled_from([None, ("30d", "3d"), ("2d", "1d"), ("36h", "12h"), ("5d", "4d")]))
    if churn:
        content["churn"] = {"mode": "silence", "after": churn[0], "lead": churn[1], "control": 0.5}
    return parsed(yaml.safe_dump(content, sort_keys=False))


class Scene:
    """Definitions, and a stream of (partition, event) to go with them."""

    def __init__(
        self,
        definition: rules.Rules,
        stream: list[tuple[int, dict[str, Any]]],
        until_ms: int | None,
    ) -> None:
        self.rules = definition
        self.stream = stream
        self.until_ms = until_ms

    def __repr__(self) -> str:
        events = "\n".join(f"  {event}" for event in self.stream)
        return f"until {self.until_ms}\n{events}\n{self.rules.source}"


@st.composite
def scenes(draw: st.DrawFn, max_events: int = 30) -> Scene:
    """A stream in one of the places."""
    zone_name, first_day = draw(st.sampled_from(PLACES))
    zone = ZoneInfo(zone_name)
    definition = draw(definitions(zone_name))
    if zone_name == shipped().timezone and draw(st.booleans()):
        definition = shipped()
    now_ms = first_instant(zone, first_day) + 12 * HOUR_MS
    stream: list[tuple[int, dict[str, Any]]] = []
    for number in range(draw(st.integers(1, max_events))):
        user = draw(st.integers(0, 2))
        own = [event for _, event in stream if event["user_id"] == f"u{user}"]
        if own and draw(st.integers(0, 6)) == 0:
            repeated = draw(st.sampled_from(own))
            if draw(st.integers(0, 3)) == 0:  # an id used twice for different events
                repeated = repeated | {"ts": now_ms}
            stream.append((user % 2, repeated))
            continue
        ts_ms = draw(_instants(zone, definition, now_ms, own))
        now_ms = max(now_ms, ts_ms)
        event = {"event_id": f"e{number}", "user_id": f"u{user}", "ts": ts_ms} | draw(_CONTENTS)
        stream.append((user % 2, event))
    until_ms = draw(
        st.none() | st.sampled_from([0, DAY_MS, 31 * DAY_MS, 400 * DAY_MS]).map(now_ms.__add__)
    )
    return Scene(definition, stream, until_ms)


_AMOUNTS = st.sampled_from([0, 0.01, 0.29, 10.5, 50.25, 99.99, 100])
_CONTENTS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(
        lambda amount, coupon: {"type": "order", "amount": amount, "coupon": coupon},
        _AMOUNTS,
        st.booleans(),
    ),
    st.builds(lambda amount: {"type": "order", "amount": amount}, _AMOUNTS),
    st.builds(lambda amount: {"type": "refund", "amount": amount}, _AMOUNTS),
    st.builds(
        lambda kind, attributes: {"type": kind, "attributes": attributes},
        st.sampled_from(["registered", "updated"]),
        st.fixed_dictionaries(
            {},
            optional={
                "region": st.sampled_from(["north", "south", None]),
                "age": st.sampled_from([17, 18, 40.5, None]),
                "undeclared": st.just("x"),
            },
        ),
    ),
)


@st.composite
def _instants(
    draw: st.DrawFn, zone: ZoneInfo, definition: rules.Rules, now_ms: int, own: list[dict[str, Any]]
) -> int:
    """When the next event happens, seen from the newest one so far."""
    today = local_date(zone, now_ms)

    def midnight(days: int) -> int:
        return first_instant(zone, date.fromordinal(today.toordinal() + days))

    beside = draw(st.sampled_from([-1, 0, 0, 1]))  # milliseconds
    kind = draw(st.integers(0, 11))
    if kind <= 2:
        return now_ms + draw(st.sampled_from([0, 1, MINUTE_MS, 5 * HOUR_MS, 26 * HOUR_MS]))
    if kind <= 4:
        return midnight(draw(st.sampled_from([1, 1, 2, 3]))) + beside
    if kind == 5:
        return midnight(draw(st.sampled_from([29, 30, 31, 89, 90, 91, 364, 365, 366]))) + beside
    if kind == 6 and own:
        churn, origin = definition.churn, draw(st.sampled_from(own))["ts"]
        if churn is None:
            return int(origin + 30 * DAY_MS + beside)
        after_ms = churn.after_ms - draw(st.sampled_from([0, churn.lead_ms]))
        return int(origin + after_ms + beside)
    if kind == 7:
        return now_ms - draw(st.sampled_from([1, MINUTE_MS, MINUTE_MS + 1, HOUR_MS, DAY_MS]))
    if kind == 8:
        return midnight(draw(st.sampled_from([0, -1, -2, -6]))) + beside
    if kind == 9 and own:
        newest_ms = max(event["ts"] for event in own)
        return int(newest_ms - definition.max_lateness_ms + beside)
    if kind == 10 and own:
        return int(draw(st.sampled_from(own))["ts"] + beside)
    return now_ms - draw(st.integers(0, 8 * DAY_MS))
