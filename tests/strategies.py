"""Random definitions and random streams, crowded around the places where things go wrong.

Streams keep to a few users whose events fall on and beside midnights, window ends and churn
instants, in zones with and without daylight saving, in order, late within and beyond the
allowed delay, too late, and repeated. Definitions read every feature, in every way a condition
allows, with constants that small streams reach.
"""

from datetime import date
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import yaml
from hypothesis import strategies as st

from stream import data, rules
from stream.domains import discover
from tables import purchases
from tests.reference import CHANNELS, first_instant, local_date, names_in

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

PLACES = [
    ("Asia/Shanghai", date(2025, 4, 29)),
    ("America/New_York", date(2025, 3, 8)),  # clocks go forward on the 9th
    ("America/New_York", date(2024, 11, 2)),  # and back on the 3rd
    ("America/Havana", date(2025, 3, 8)),  # forward at midnight: the 9th begins at one
]

#: By domain and feature: numbers that small streams reach.
NUMBERS: dict[str, dict[str, list[float]]] = {
    "purchases": {
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
    },
    "service": {
        "contacts_month": [0, 1, 2, 3],
        "consults_month": [0, 1, 2],
        "contacts_30d": [0, 1, 2, 4],
        "complaints_30d": [0, 1],
    },
    "engagement": {
        **{f"watches_{days}d": [0, 1, 2] for days in (30, 90)},
        **{f"watch_seconds_{days}d": [0, 0.001, 300, 400.5] for days in (30, 90)},
        **{f"avg_watch_seconds_{days}d": [0, 150, 300] for days in (30, 90)},
        **{
            f"{what}_{days}d": [0, 1, 2]
            for what in ("favorites", "reviews", "shares", "views", "searches", "carts")
            for days in (30, 90)
        },
        "avg_rating_90d": [0, 3, 4.5],
        **{f"active_days_{days}d": [0, 1, 2, 3] for days in (7, 30, 90)},
        "days_since_active": [0, 1, 7, 30],
    },
    "outreach": {
        "push_3h": [0, 1, 2],
        "push_day": [0, 1, 2],
        "sms_48h": [0, 1, 2],
        "sms_month": [0, 1, 2],
        "reaches_30d": [0, 1, 3],
        "responses_30d": [0, 1],
        "response_rate_30d": [0, 0.5, 1],
        "unanswered": [0, 1, 2, 3],
    },
}
TEXTS = {
    "purchases": {"churn_state": ["none", "warned", "churned"], "region": ["north", "south"]},
}
FLAGS = {
    "outreach": [f"opted_out_{channel}" for channel in CHANNELS],
}
RHYTHMS: list[dict[str, float]] = [  # of quick buyers, and of those who often do not return
    {"m0": 0.7, "kappa0": 0.6, "a0": 2.8, "b0": 1.4, "a": 0.3, "b": 1.2},
    {"m0": 3.0, "kappa0": 0.6, "a0": 2.8, "b0": 1.4, "a": 0.9, "b": 1.2},
]
PURCHASES = SimpleNamespace(features=purchases.FEATURES, attribute_reader=purchases.attribute)
COMPARISONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


@st.composite
def comparisons(draw: st.DrawFn, domain: str) -> str:
    """A feature beside what it is compared with."""
    numbers, texts, flags = NUMBERS[domain], TEXTS.get(domain), FLAGS.get(domain)
    kind = draw(st.integers(0, 9))
    if kind == 0 and texts:
        name = draw(st.sampled_from(sorted(texts)))
        operator = draw(st.sampled_from(["==", "!="]))
        return f"{name} {operator} '{draw(st.sampled_from(texts[name]))}'"
    if kind == 1 and texts:
        name = draw(st.sampled_from(sorted(texts)))
        return f"{name} in {draw(st.lists(st.sampled_from(texts[name]), min_size=1, max_size=2))}"
    if kind <= 1 and flags:
        return draw(st.sampled_from(flags))
    name, other = (draw(st.sampled_from(sorted(numbers))) for _ in range(2))
    number = draw(st.sampled_from(numbers[name]))
    if kind == 2:
        return f"{name} {draw(st.sampled_from('+-*/'))} {other} {draw(COMPARISONS)} {number}"
    if kind == 3:
        return f"{name} {draw(COMPARISONS)} {other}"
    if kind == 4:
        return f"{number} <= {name} < {number + draw(st.sampled_from([1, 2, 30]))}"
    if kind == 5:
        return f"{name} in {draw(st.lists(st.sampled_from(numbers[name]), min_size=1, max_size=3))}"
    return f"{name} {draw(COMPARISONS)} {number}"


@st.composite
def comparisons_of_tags(draw: st.DrawFn, tags: list[dict[str, Any]]) -> str:
    """A tag, or what it is compared with."""
    tag = draw(st.sampled_from(tags))
    name, values = tag["name"], sorted(tag.get("cases", ()))
    if not values or draw(st.integers(0, 5)) == 0:
        return str(name)
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return f"{name} in {draw(st.lists(st.sampled_from(values), min_size=1, max_size=2))}"
    if kind == 1:
        return f"{name} {draw(st.sampled_from(['==', '!=']))} None"
    if kind == 2:
        return f"{name} {draw(COMPARISONS)} {draw(st.sampled_from(tags))['name']}"
    return f"{name} {draw(COMPARISONS)} '{draw(st.sampled_from(values))}'"


def conditions(leaves: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Comparisons joined and turned around."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds("({} and {})".format, inner, inner),
            st.builds("({} or {})".format, inner, inner),
            st.builds("not {}".format, inner.map("({})".format)),
        ),
        max_leaves=3,
    )


CONDITIONS = {domain: conditions(comparisons(domain)) for domain in NUMBERS}


@cache
def parsed(text: str) -> rules.Rules:
    """Definitions from the text of a file."""
    return parsed_for_all(text)


def shipped() -> rules.Rules:
    """The definitions that come with the package."""
    return parsed_for_all(data.TAGS.read_text("utf-8"))


@st.composite
def definitions(draw: st.DrawFn, zone: str) -> rules.Rules:
    """One to six tags of purchases, and everything else that a file may set."""
    tags = [draw(_tags("purchases", number)) for number in range(draw(st.integers(1, 6)))]
    return parsed(yaml.safe_dump(draw(_files(zone, tags)), sort_keys=False))


@st.composite
def _tags(
    draw: st.DrawFn, domain: str, number: int, below: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A tag; one made of tags where there are some ``below`` it. Its name tells its kind."""
    condition = conditions(comparisons_of_tags(below)) if below else CONDITIONS[domain]
    tag: dict[str, Any]
    if draw(st.booleans()):
        tag = {"name": f"{domain}_{number}", "domain": domain, "when": draw(condition)}
    else:
        cases = {f"value_{case}": draw(condition) for case in range(draw(st.integers(1, 3)))}
        tag = {"name": f"{domain}_{number}_cases", "domain": domain, "cases": cases}
    if draw(st.integers(0, 3)) == 0:
        tag["control"] = 0.5
    return tag


@st.composite
def _files(draw: st.DrawFn, zone: str, tags: list[dict[str, Any]]) -> dict[str, Any]:
    """What a file of these tags holds."""
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
        if draw(st.booleans()):
            content["churn"] |= {
                "mode": "predicted",
                "probability": draw(st.sampled_from([0.1, 0.4, 0.59, 0.7])),
                "parameters": draw(st.sampled_from(RHYTHMS)),
            }
    return content


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
        event = {"event_id": f"e{number}", "user_id": f"u{user}", "ts": ts_ms}
        stream.append((user % 2, event | draw(_CONTENTS["purchases"])))
    until_ms = draw(
        st.none()
        | st.sampled_from([0, 0, DAY_MS, DAY_MS, 31 * DAY_MS, 400 * DAY_MS]).map(now_ms.__add__)
    )
    return Scene(definition, stream, until_ms)


class Sent(NamedTuple):
    """An event on its way to a domain's topic."""

    domain: str
    event: dict[str, Any]


class World:
    """Definitions over all domains, and what is sent to one partition of each topic, in order.

    ``switch`` are other definitions that come into force before event number ``switch_at``.
    """

    def __init__(
        self,
        definition: rules.Rules,
        stream: list[Sent],
        until_ms: int | None,
        switch: rules.Rules | None = None,
        switch_at: int = 0,
    ) -> None:
        self.rules = definition
        self.stream = stream
        self.until_ms = until_ms
        self.switch = switch
        self.switch_at = switch_at

    def __repr__(self) -> str:
        events = "\n".join(f"  {number} {sent}" for number, sent in enumerate(self.stream))
        told = f"until {self.until_ms}\n{events}\n{self.rules.source}"
        return told + (f"from {self.switch_at} on\n{self.switch.source}" if self.switch else "")


@st.composite
def worlds(
    draw: st.DrawFn, max_events: int = 40, *, erasures: bool = True, switches: bool = False
) -> World:
    """Three users in all domains of this build, in one of the places."""
    zone_name, first_day = draw(st.sampled_from(PLACES))
    zone = ZoneInfo(zone_name)
    names = sorted(discover())
    content = draw(_worldly(zone_name, names))
    definition = parsed_for_all(yaml.safe_dump(content, sort_keys=False))
    now_ms = first_instant(zone, first_day) + 12 * HOUR_MS
    stream: list[Sent] = []
    waiting: list[Sent] = []  # erasures on their way to further domains
    for number in range(draw(st.integers(1, max_events))):
        if draw(st.booleans()) and waiting:
            stream.append(waiting.pop(0))
        user_id = f"u{draw(st.integers(0, 2))}"
        domain = draw(st.sampled_from(names))
        own = [sent for sent in stream if sent.event["user_id"] == user_id]
        kind = draw(st.integers(0, 13))
        if own and kind <= 1:
            repeated = draw(st.sampled_from(own))
            stream.append(repeated)
            continue
        times = [sent.event for sent in own if sent.domain == domain] if kind < 12 else []
        ts_ms = draw(_instants(zone, definition, now_ms, times or [sent.event for sent in own]))
        now_ms = max(now_ms, ts_ms)
        event = {"event_id": f"e{number}", "user_id": user_id, "ts": ts_ms}
        if own and kind == 2:  # ids are a domain's own
            event["event_id"] = draw(st.sampled_from(own)).event["event_id"]
        if erasures and own and kind == 13:
            event |= {"event_id": f"erase-{number}", "type": "erase"}
            order = draw(st.permutations(names))
            first = draw(st.integers(1, len(order)))
            stream += [Sent(name, event) for name in order[:first]]
            waiting += [Sent(name, event) for name in order[first:]]
            continue
        stream.append(Sent(domain, event | draw(_CONTENTS[domain])))
    stream += waiting
    until_ms = draw(
        st.none() | st.sampled_from([0, 0, DAY_MS, 3 * DAY_MS, 40 * DAY_MS]).map(now_ms.__add__)
    )
    if not switches:
        return World(definition, stream, until_ms)
    other = draw(_worldly(zone_name, names))
    other |= {key: content[key] for key in ("max_lateness", "churn") if key in content}
    if "churn" not in content:
        other.pop("churn", None)
    other["version"] = content["version"] + 1
    if draw(st.booleans()):  # keep some
        kept = draw(st.lists(st.sampled_from(content["tags"]), unique_by=lambda tag: tag["name"]))
        made = [tag for tag in other["tags"] if tag["domain"] == "profile"]
        other["tags"] = _without_gaps([tag for tag in kept if tag not in made] + other["tags"])
    return World(
        definition,
        stream,
        until_ms,
        parsed_for_all(yaml.safe_dump(other, sort_keys=False)),
        draw(st.integers(0, len(stream))),
    )


@cache
def parsed_for_all(text: str) -> rules.Rules:
    """Definitions for all domains from the text of a file."""
    return rules.parse(text, "tags.yaml", discover())


@st.composite
def _worldly(draw: st.DrawFn, zone: str, names: list[str]) -> dict[str, Any]:
    """A file with tags of all domains, and tags made of them anywhere among them."""
    tags: list[dict[str, Any]] = []
    for domain in names:
        tags += [draw(_tags(domain, number)) for number in range(draw(st.integers(0, 2)))]
    tags = draw(st.permutations(tags)) if tags else [draw(_tags(names[0], 0))]
    below = list(tags)
    for number in range(draw(st.integers(0, 4))):
        made = draw(_tags("profile", number, below))
        place = max([tags.index(tag) for tag in below if tag["domain"] == "profile"], default=-1)
        tags.insert(draw(st.integers(place + 1, len(tags))), made)
        below.append(made)
    return draw(_files(zone, tags))


def _without_gaps(tags: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each name once, and no tag made of one that is not there."""
    once = list({tag["name"]: tag for tag in reversed(tags)}.values())[::-1]
    known: set[str] = {tag["name"] for tag in once if tag["domain"] != "profile"}
    kept = []
    for tag in once:
        texts = [tag["when"]] if "when" in tag else list(tag["cases"].values())
        read = {name for text in texts for name in names_in(text)}
        if tag["domain"] == "profile" and not read <= known:
            continue
        known.add(tag["name"])
        kept.append(tag)
    return kept


_AMOUNTS = st.sampled_from([0, 0.01, 0.29, 10.5, 50.25, 99.99, 100])
_CHANNELS = st.sampled_from(["app_push", "app_push", "sms", "sms", "email", "phone"])
_CONTENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "purchases": st.one_of(
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
    ),
    "service": st.fixed_dictionaries(
        {"type": st.just("contact")},
        optional={
            "kind": st.sampled_from(["consult", "complaint", "other"]),
            "channel": st.sampled_from(["hotline", "chat"]),
        },
    ),
    "engagement": st.one_of(
        st.builds(
            lambda seconds: {"type": "watch", "seconds": seconds},
            st.sampled_from([0, 0.001, 59.999, 300, 301.5, 7200]),
        ),
        st.fixed_dictionaries(
            {"type": st.just("review")}, optional={"rating": st.sampled_from([1, 3, 4.5, 5])}
        ),
        st.sampled_from(["favorite", "share", "view", "search", "cart"]).map(
            lambda kind: {"type": kind}
        ),
    ),
    "outreach": st.builds(
        lambda kind, channel: {"type": kind, "channel": channel},
        st.sampled_from(["reach"] * 5 + ["response", "unsubscribe", "subscribe"]),
        _CHANNELS,
    ),
}


@st.composite
def _instants(
    draw: st.DrawFn, zone: ZoneInfo, definition: rules.Rules, now_ms: int, own: list[dict[str, Any]]
) -> int:
    """When the next event happens, seen from the newest one so far."""
    today = local_date(zone, now_ms)

    def midnight(days: int) -> int:
        return first_instant(zone, date.fromordinal(today.toordinal() + days))

    beside = draw(st.sampled_from([-1, 0, 0, 1]))  # milliseconds
    kind = draw(st.integers(0, 13))
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
        span_ms = churn.after_ms - draw(st.sampled_from([0, churn.lead_ms]))
        if churn.mode == "predicted":
            span_ms = draw(st.sampled_from([DAY_MS, DAY_MS + churn.after_ms + churn.lead_ms]))
        return int(origin + span_ms + beside)
    if kind == 7:
        return now_ms - draw(st.sampled_from([1, MINUTE_MS, MINUTE_MS + 1, HOUR_MS, DAY_MS]))
    if kind == 8:
        return midnight(draw(st.sampled_from([0, -1, -2, -6]))) + beside
    if kind == 9 and own:
        newest_ms = max(event["ts"] for event in own)
        return int(newest_ms - definition.max_lateness_ms + beside)
    if kind == 10 and own:
        return int(draw(st.sampled_from(own))["ts"] + beside)
    if kind == 11 and own:
        hours = draw(st.sampled_from([3, 3, 48]))
        return int(draw(st.sampled_from(own))["ts"] + hours * HOUR_MS + beside)
    if kind == 12:
        later = today.replace(day=1).toordinal() + draw(st.sampled_from([0, 32, 63]))
        return first_instant(zone, date.fromordinal(later).replace(day=1)) + beside
    return now_ms - draw(st.integers(0, 8 * DAY_MS))
