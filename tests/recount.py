"""One user in one domain, everything kept for ever: what a table says, counted again from scratch.

A domain's test says, from all events and a clock, what every feature is (``features``), and at
which instants other than midnights an event lets one change (``leaves``). From that follow the
clock and the changes of tags, walked instant by instant; `agree` holds a table against it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from stream.domains import discover
from tables.dedup import MemoryBlocks
from tables.table import NEVER, Outputs
from tests.solo import definitions, received
from tests.strategies import DAY_MS, HOUR_MS, MINUTE_MS

ZONES = {
    "Asia/Shanghai": "2025-04-29",
    "America/New_York": "2025-03-08",  # clocks go forward on the 9th
    "America/Havana": "2024-11-02",  # and back on the 3rd, at one to midnight
}


@dataclass(frozen=True)
class Told:
    """An event that counted."""

    kind: str
    ts: int
    day: date
    fields: dict[str, Any]


Features = Callable[[list[Told], int, date], dict[str, Any]]
Leaves = Callable[[Told], list[int]]


def within(told: list[Told], today: date, days: int) -> list[Told]:
    """What happened in the last local days, today included."""
    return [event for event in told if event.day > today - timedelta(days=days)]


def in_month(told: list[Told], today: date) -> list[Told]:
    """What happened in today's month."""
    return [
        event for event in told if (event.day.year, event.day.month) == (today.year, today.month)
    ]


class Recount:
    """The naive answer."""

    def __init__(self, zone: str, features: Features, leaves: Leaves, tags: dict[str, str]) -> None:
        self.zone = ZoneInfo(zone)
        self.clock = -NEVER
        self.told: list[Told] = []
        self.values = dict.fromkeys(tags, False)
        self.changes: list[tuple[str, bool, int, str]] = []
        self._features, self._leaves, self._tags = features, leaves, tags

    def day(self, ts: int) -> date:
        """The local date of an instant."""
        return datetime.fromtimestamp(ts / 1000, self.zone).date()

    def midnight(self, day: date) -> int:
        """The first instant of a date, in zones that never skip or repeat one."""
        return round(datetime(day.year, day.month, day.day, tzinfo=self.zone).timestamp() * 1000)

    def says(self, clock: int | None = None) -> dict[str, Any]:
        """Every feature."""
        clock = self.clock if clock is None else clock
        return self._features(self.told, clock, self.day(clock))

    def apply(self, event: dict[str, Any], time: int) -> None:
        """One more event, the partition's time having come so far."""
        if self.told:
            self.pass_time(max(event["ts"], time))
        self.clock = max(self.clock, event["ts"])
        own = ("event_id", "user_id", "type", "ts")
        fields = {name: value for name, value in event.items() if name not in own}
        self.told.append(Told(event["type"], event["ts"], self.day(event["ts"]), fields))
        self._evaluate("event")

    def pass_time(self, reached: int) -> None:
        """Every instant at which a feature changes by itself."""
        walked, features = self.clock, self.says()
        while True:
            due = min(
                instant
                for instant in (
                    self.midnight(self.day(walked) + timedelta(days=1)),
                    *(leaves for event in self.told for leaves in self._leaves(event)),
                )
                if instant > walked
            )
            if due > reached:
                return
            walked = due
            before, features = features, self.says(walked)
            if features != before:
                self.clock = walked
                self._evaluate("time")

    def _evaluate(self, cause: str) -> None:
        features = self.says()
        for tag, condition in self._tags.items():
            value = bool(eval(condition, {}, features))
            if value != self.values[tag]:
                self.values[tag] = value
                self.changes.append((tag, value, self.clock, cause))


@st.composite
def streams(
    draw: st.DrawFn, contents: st.SearchStrategy[dict[str, Any]], most: int = 25
) -> tuple[str, list[dict[str, Any]]]:
    """A zone and the events of one user: at and beside midnights, ends of months and of windows,
    in order and late.
    """
    zone_name = draw(st.sampled_from(sorted(ZONES)))
    zone = ZoneInfo(zone_name)
    now = datetime.fromisoformat(ZONES[zone_name]).replace(hour=20, tzinfo=zone)
    now_ms = first_ms = round(now.timestamp() * 1000)
    stream: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, most))):
        today = datetime.fromtimestamp(now_ms / 1000, zone)
        midnight = today.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        month = midnight.replace(day=1) + timedelta(days=32)
        origin_ms = draw(st.sampled_from(stream))["ts"] if stream else now_ms
        ts_ms = draw(
            st.sampled_from(
                [
                    *(now_ms + step for step in (0, 0, 1, MINUTE_MS, HOUR_MS, 7 * HOUR_MS)),
                    *(now_ms - step for step in (1, HOUR_MS, 3 * HOUR_MS, 26 * HOUR_MS)),
                    *(origin_ms + span * HOUR_MS for span in (3, 48)),
                    *(_ms(midnight + timedelta(days=days)) for days in (0, 1, 1, 7, 30, 90)),
                    _ms(month.replace(day=1)),
                ]
            )
        ) + draw(st.sampled_from([-1, 0, 0, 1]))
        ts_ms = max(ts_ms, now_ms - 6 * DAY_MS, first_ms - 6 * DAY_MS)
        now_ms = max(now_ms, ts_ms)
        event = {"event_id": f"e{number}", "user_id": "u1", "ts": ts_ms} | draw(contents)
        stream.append(event)
    return zone_name, stream


def _ms(local: datetime) -> int:
    return round(local.timestamp() * 1000)


def comparisons(numbers: dict[str, list[float]]) -> st.SearchStrategy[dict[str, str]]:
    """A few tags, each a feature beside a number that it is likely to reach, or beside another."""

    def comparison(name: str, other: str, number: float, operator: str, kind: int) -> str:
        right = other if kind == 0 else f"{other} + {number}" if kind == 1 else f"{number}"
        return f"{name} {operator} {right}"

    names = st.sampled_from(sorted(numbers))
    one = names.flatmap(
        lambda name: st.builds(
            comparison,
            st.just(name),
            names,
            st.sampled_from(numbers[name]),
            st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
            st.integers(0, 5),
        )
    )
    return st.lists(one, min_size=1, max_size=4).map(
        lambda conditions: {f"t{number}": text for number, text in enumerate(conditions)}
    )


def agree(
    domain: str,
    features: Features,
    leaves: Leaves,
    stream: tuple[str, list[dict[str, Any]]],
    tags: dict[str, str],
    delay_ms: int,
    seed: int,
) -> Any:
    """The table says what a recount does, after every event, and changes tags when it does.

    Whatever is encoded and fired in between. The table's last record.
    """
    zone, events = stream
    chance = Random(seed)
    listed = [{"name": name, "when": condition} for name, condition in tags.items()]
    rules = definitions(*listed, domain=domain, timezone=zone)
    found = discover()[domain]
    table, out = found.table(rules), Outputs()
    table.blocks = MemoryBlocks()
    naive = Recount(zone, features, leaves, tags)
    user, time_ms = table.new("u1"), -NEVER
    for event in events:
        naive.apply(event, time_ms)
        if chance.random() < 0.3:
            table.fire(user, time_ms - chance.choice([0, HOUR_MS, DAY_MS]), out)
        assert table.apply(user, received(event, domain), time_ms, out) in ("applied", "late")
        time_ms = max(time_ms, event["ts"] - delay_ms)
        if chance.random() < 0.3:
            user = table.decode(table.encode(user))
        if chance.random() < 0.3:
            table.deadline_ms(user)
        assert user.clock_ms == naive.clock
        assert {name: read(user) for name, read in found.features.items()} == naive.says()
    until_ms = time_ms + chance.choice([0, HOUR_MS, 49 * HOUR_MS, 95 * DAY_MS])
    naive.pass_time(until_ms)
    table.deadline_ms(user)
    while user.deadline_ms <= until_ms:
        table.fire(user, user.deadline_ms, out)
        table.deadline_ms(user)
    assert [
        (change["tag"], change["value"], change["effective_at"], change["cause"]["kind"])
        for change in out.changes
    ] == [(tag, value, table.calendar.iso(at), kind) for tag, value, at, kind in naive.changes]
    return user
