"""Applying what arrives to the users of one partition: the hot path of the service.

`Applying` takes decoded events to users (`stream/users.py`), what these say to the profile
(`stream/profiles.py`), and gathers all that follows for the partition's next transaction. It knows
no wall clock, no broker and no event loop: those are `stream/partition.py`'s.
"""

import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec
import orjson

from stream.batches import Records
from stream.events import MAX_AHEAD_MS, Code, Rejected, dead_letter
from stream.journal import Row
from stream.metrics import Transition, Warned, value_label
from stream.partitioner import partition_for
from stream.position import Place, Position
from stream.profiles import Profiles
from stream.settings import Settings
from stream.store import index_key
from stream.users import Users
from tables.calendar import NEVER
from tables.outputs import Outputs
from tables.record import NO_DAY, User
from tables.table import Table

WARNED: Final = ("status", "mode", "level", "control", "right", "returned_from")
#: Figures that are counted by the value of the tag ``breakdown``.
BY_VALUE: Final = frozenset({"orders", "spend", "refunds", "reaches", "responses"})
ABSENT: Final = (None, msgspec.UNSET)  # what a field holds that was left out


class Metrics(Protocol):
    """What a partition counts (see `stream/metrics.py`)."""

    def events(self, domain: str, outcomes: Mapping[tuple[str, str], int]) -> None: ...
    def batch(self, domain: str, stage: str, seconds: float) -> None: ...
    def transitions(self, changes: Any) -> None: ...
    def warnings(self, records: Any) -> None: ...
    def event_to_change(self, domain: str, weighted: Any) -> None: ...
    def deadlines_fired(self, domain: str, number: int) -> None: ...
    def lateness(self, domain: str, weighted: Any) -> None: ...
    def figures(self, amounts: Mapping[tuple[str, str, str], int]) -> None: ...
    def dwelt(self, times: Sequence[tuple[str, int]]) -> None: ...
    def arrivals(self, domain: str, delays_ms: Sequence[int]) -> None: ...
    def optional(self, domain: str, field: str, *, present: int, absent: int) -> None: ...
    def produce_failed(self) -> None: ...
    def commit_failed(self) -> None: ...


@dataclass
class Gathered:
    """What the next transaction will say, and whom to thank for it.

    ``emitted_at`` is the time, as whoever gathers next wants it to be written.
    """

    changes: Records = field(default_factory=Records)
    warnings: Records = field(default_factory=Records)
    # (Not ``Counter``: that writes through Python's slow way to a subclass.)
    transitions: dict[Transition, int] = field(default_factory=dict)
    warned: dict[Warned, int] = field(default_factory=dict)
    figures: dict[tuple[str, str, str], int] = field(default_factory=dict)
    dwelt: list[tuple[str, int]] = field(default_factory=list)
    dead: list[Row] = field(default_factory=list)
    chunks: list[Callable[[], object]] = field(default_factory=list)  # acknowledge them
    causes: list[tuple[str, int]] = field(default_factory=list)  # domain, append time of a cause
    events: int = 0
    since: float | None = None  # monotonic time of the first thing that waits
    emitted_at: str = ""

    def say(self, key: bytes, changes: Sequence[Any], warnings: Sequence[Any]) -> None:
        """Turn what was said of a user into rows and counts."""
        for change in changes:
            transition = change["tag"], change["previous"], change["value"], change["cause"]["kind"]
            self.transitions[transition] = self.transitions.get(transition, 0) + 1
            change["emitted_at"] = self.emitted_at
            self.changes.add(key, orjson.dumps(change))
        for warning in warnings:
            self.count_warning(warning)
            self.warnings.add(key, orjson.dumps({**warning, "emitted_at": self.emitted_at}))

    def count_warning(self, warning: Mapping[str, Any]) -> None:
        """Count a record of churn-warnings."""
        status, mode, level, control, right, returned_from = (warning[name] for name in WARNED)
        warned = status, mode, level, control, right, returned_from
        self.warned[warned] = self.warned.get(warned, 0) + 1

    def count(self, name: str, kind: str, label: str, amount: int) -> None:
        """Count what operations ask for."""
        figure = name, kind, label
        self.figures[figure] = self.figures.get(figure, 0) + amount


class Feed:
    """One domain's source in the partition: where it is, its time, its users."""

    def __init__(
        self,
        name: str,
        topic: str,
        code: bytes,
        table: Table[Any],
        decoder: Any,
        users: Users,
        optional: Mapping[type, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.topic = topic
        self.code = code
        self.table = table
        self.decoder = decoder
        self.users = users
        self.place = Place()
        #: No entry of the deadline index that is still to be looked at lies before this.
        self.floor_ms = 0
        #: The index is looked at from here; what lies before it goes with a flush.
        self.cursor = index_key(code, 0, b"")
        self.optional = {kind: names for kind, names in optional.items() if names}
        self.lag: int | None = None  # records not applied yet, as last heard from the broker
        self.committed_offset = 0

    @property
    def is_due(self) -> bool:
        """Whether a deadline may be due."""
        return self.place.time_ms >= self.floor_ms

    def follow(self, table: Table[Any]) -> None:
        """Go by other definitions from the next event on."""
        self.table = table
        self.users.follow(table)

    # What a scrape reads (`stream/metrics.py`, DomainView)

    @property
    def time_ms(self) -> int | None:
        return self.place.time_ms if self.place.time_ms >= 0 else None

    @property
    def applied_offset(self) -> int:
        return self.place.offset

    @property
    def deadlines_pending(self) -> int:
        return self.users.deadlines_pending

    @property
    def next_deadline_ms(self) -> int | None:
        return self.floor_ms if self.floor_ms < NEVER else None


class Applying:
    """What events make of the users of partition ``number``.

    ``breakdown`` is the tag by the value of which figures are counted. What was said of the user at
    hand is in ``out``; whoever has it filled calls `settle`.
    """

    def __init__(
        self,
        number: int,
        feeds: Mapping[str, Feed],
        profiles: Profiles,
        position: Position,
        settings: Settings,
        metrics: Metrics,
        breakdown: str | None,
    ) -> None:
        self.out = Outputs()
        self.breakdown = breakdown
        self._number = number
        self._feeds = list(feeds.values())
        self._profiles = profiles
        self._position = position
        self._settings = settings
        self._metrics = metrics
        self._labels: dict[Any, str] = {}  # of the values of ``breakdown``

    def apply(
        self,
        feed: Feed,
        records: Sequence[Any],
        end: int,
        wall_ms: int,
        delay_ms: int,
        gathered: Gathered,
    ) -> None:
        """Apply the next records of a feed, of which ``end`` is the offset after the last.

        ``wall_ms`` is the wall clock (``NEVER`` where it does not count), ``delay_ms`` how far time
        stays behind the newest event.
        """
        started = time.perf_counter()
        decoded = feed.decoder.decode_chunk(records)
        applying = time.perf_counter()
        place = feed.place
        latest_ms = wall_ms + MAX_AHEAD_MS if wall_ms < NEVER else NEVER
        newest_ms: int = place.newest_ms
        # An event dated ahead counts no more than the clock, and as the clock goes on, more.
        time_ms: int = max(place.time_ms, min(newest_ms, wall_ms) - delay_ms)
        users, table, out, changes = feed.users, feed.table, self.out, gathered.changes
        unusual: Counter[tuple[Any, str]] = Counter()  # outcomes other than "applied"
        behind_s: list[float] = []  # of events behind the partition's time
        delays_ms: list[int] = []
        for record, event in zip(records, decoded, strict=True):
            if event.__class__ is Rejected:
                self._refuse(feed, record, event.code, event.detail, gathered)
                continue
            key: bytes = record.key
            ts_ms: int = event.ts
            appended_ms: int = record.timestamp
            delays_ms.append(appended_ms - ts_ms)
            user = users.get(key)
            if user is None or ts_ms > latest_ms:
                refused = self._misplaced(key, ts_ms, latest_ms)
                if refused is not None:
                    self._refuse(feed, record, refused[0], refused[1], gathered)
                    unusual[event.__class__, refused[0]] += 1
                    continue
                if user is None:
                    user = users.new(event.user_id)
            outcome = table.apply(user, event, time_ms, out)
            if outcome != "applied":
                unusual[event.__class__, outcome] += 1
                if outcome == "too_late":
                    detail = "ts: behind the user's newest event"
                    self._refuse(feed, record, "too_late", detail, gathered)
                    continue
                if outcome != "late":
                    continue
            users.put(key, user)
            if out.heard is not None or out.steps or out.warnings or out.erased_ms is not None:
                said = len(changes)
                self.settle(feed, key, user, event.event_id, gathered)
                if len(changes) != said:
                    gathered.causes.append((feed.name, appended_ms))
            elif out.active_day is not None:
                self._profiles.activate(key, out.active_day, out.figures)
                out.active_day = None
            if out.figures:
                self._tally(feed, key, user, gathered)
            if ts_ms < time_ms:
                behind_s.append((time_ms - ts_ms) / 1000)
            if ts_ms > newest_ms:
                newest_ms = ts_ms
                reached_ms = (ts_ms if ts_ms < wall_ms else wall_ms) - delay_ms
                if reached_ms > time_ms:
                    time_ms = reached_ms
        last = records[-1]
        place.offset, place.timestamp, place.crc = end, last.timestamp, fingerprint(last)
        place.newest_ms, place.time_ms = newest_ms, time_ms
        gathered.events += len(records)
        outcomes = _outcomes(decoded, unusual)
        applied = sum(n for (_, outcome), n in outcomes.items() if outcome in ("applied", "late"))
        metrics, name = self._metrics, feed.name
        metrics.events(name, outcomes)
        metrics.lateness(name, [(0.0, applied - len(behind_s)), *((s, 1) for s in behind_s)])
        delays_ms.sort()
        metrics.arrivals(name, delays_ms)
        self._count_optional(feed, decoded)
        metrics.batch(name, "decode", applying - started)
        metrics.batch(name, "apply", time.perf_counter() - applying)

    def settle(
        self, feed: Feed, key: bytes, user: User, event_id: str | None, gathered: Gathered
    ) -> None:
        """Fold what was said of a user into the profile, and gather all that follows.

        ``event_id`` is that of the event applied, None where only time passed.
        """
        out, position, profiles = self.out, self._position, self._profiles
        profile = profiles.get(key, user.user_id)
        was_known, was_tagged = bool(profile.domains), bool(profile.tags)
        newest_ms = -NEVER
        if out.erased_ms is not None:
            newest_ms = self._newest_elsewhere(feed, key)
        elif not was_known:
            erased_ms = [each.users.erased_ms(user.user_id) for each in self._feeds]
            profiles.table.bar(profile, erased_ms)
        told = profiles.table.follow(profile, feed.name, out, user.clock_ms, event_id, newest_ms)
        if profile.barred and event_id is not None and out.erased_ms is None:
            user.heard_day = NO_DAY  # the next event may be what lifts the bar
            feed.users.put(key, user)
        # An erasure is told even where no tag was left to take back.
        profiles.put(key, profile, retold=bool(told) or out.erased_ms is not None)
        if told:
            position.tagged += bool(profile.tags) - was_tagged
        position.users += bool(profile.domains) - was_known
        gathered.say(key, told, out.warnings)
        for warning in out.warnings:
            if warning["status"] == "churned":
                name = self.breakdown
                value = "" if name is None else value_label(warning["tags"].get(name))
                gathered.count("churned", "", value, 1)
        gathered.dwelt += out.dwelt
        for warning in out.ended:
            gathered.count_warning(warning)
        if out.erased_ms is not None:
            self._forget(feed, key, user, out.erased_ms[0])
        out.clear()

    def _tally(self, feed: Feed, key: bytes, user: User, gathered: Gathered) -> None:
        """Count what operations ask for, by the value of the user's tag where they do."""
        value: str | None = None
        for name, kind, amount in self.out.figures:
            if name not in BY_VALUE:
                gathered.count(name, kind, feed.name, amount)
                continue
            if value is None:
                value = self._label(self._group(feed, key, user))
            gathered.count(name, kind, value, amount)
        self.out.figures.clear()

    def _label(self, value: Any) -> str:
        label = self._labels.get(value)
        if label is None:
            label = self._labels[value] = value_label(value)
        return label

    def _group(self, feed: Feed, key: bytes, user: User) -> Any:
        """The value of the tag by which figures are broken down."""
        name = self.breakdown
        if name is None:
            return ""
        position = feed.table.positions.get(name)
        if position is not None:
            return user.values[position]
        held = self._profiles.get(key, user.user_id).tags.get(name)
        return None if held is None else held.value

    def _count_optional(self, feed: Feed, decoded: Sequence[Any]) -> None:
        """Count the fields that events may leave out."""
        for kind, names in feed.optional.items():
            own = [event for event in decoded if event.__class__ is kind]
            for name in names if own else ():
                absent = sum(1 for event in own if getattr(event, name) in ABSENT)
                self._metrics.optional(feed.name, name, present=len(own) - absent, absent=absent)

    def _forget(self, feed: Feed, key: bytes, user: User, ts_ms: int) -> None:
        """The user was erased in one domain: mark it, and have the others speak up."""
        feed.users.erase(user.user_id, ts_ms)
        for other in self._feeds:
            known = other.users.get(key)
            if known is not None and other is not feed:
                known.heard_day = NO_DAY  # what is newer than the erasure lifts its ban
                other.users.put(key, known)

    def _newest_elsewhere(self, feed: Feed, key: bytes) -> int:
        """The largest event time of a user in all domains but one."""
        others = [other.users.get(key) for other in self._feeds if other is not feed]
        return max((user.newest_ms for user in others if user is not None), default=-NEVER)

    def _misplaced(self, key: bytes, ts_ms: int, latest_ms: int) -> tuple[Code, str] | None:
        settings = self._settings
        owner = partition_for(key, settings.partitions, settings.partitioner)
        if owner != self._number:
            return (
                "wrong_partition",
                f"{settings.partitioner} puts this key into partition {owner}",
            )
        if ts_ms > latest_ms:
            return "future", "ts: more than 5 minutes ahead of the clock"
        return None

    def _refuse(self, feed: Feed, record: Any, code: Code, detail: str, gathered: Gathered) -> None:
        letter = dead_letter(
            code,
            detail,
            topic=feed.topic,
            partition=self._number,
            offset=record.offset,
            timestamp=record.timestamp,
            value=record.value,
        )
        gathered.dead.append((record.key, letter))


def _outcomes(
    decoded: Sequence[Any], unusual: Mapping[tuple[Any, str], int]
) -> dict[tuple[str, str], int]:
    """What became of a chunk's events, by type: those not said to be unusual were applied."""
    counts: Counter[tuple[str, str]] = Counter()
    kind: Any
    for kind, number in Counter(map(type, decoded)).items():
        if kind is not Rejected:
            counts[kind.__struct_config__.tag, "applied"] = number
    for (kind, outcome), number in unusual.items():
        counts[kind.__struct_config__.tag, outcome] += number
        counts[kind.__struct_config__.tag, "applied"] -= number
    for event in decoded:
        if event.__class__ is Rejected:
            counts[event.type, event.code] += 1
    return counts


def fingerprint(record: Any) -> int:
    """CRC-32 of a record's key and value."""
    return zlib.crc32(record.value or b"", zlib.crc32(record.key or b""))
