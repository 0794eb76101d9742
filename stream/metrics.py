"""What one worker tells Prometheus: counters and histograms it adds to, gauges read at scrape time.

Promise: names that dashboards rely on, base units, no user id, nothing per event: callers add
once a chunk or flush. Every child that can be known at start is there with 0, since ``rate`` does
not see the first step of a series that begins at 1. What belongs to a partition is read from a
`WorkerView` at every scrape, over the partitions owned then, so that series leave with it.

One object per worker, no global state. The counts are plain dictionaries (no locks, no ``_created``
series): added to and scraped on the event loop only.

Boundary: knows no Faust, Kafka or HTTP server; it imports no state and owns none.
"""

import platform
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version as installed_version
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from stream.compiled import hot_path

Value = bool | int | float | str | None
Transition = tuple[str, Value, Value, str]
"""``(tag, previous, value, cause.kind)`` of one change."""
Warned = tuple[str, str, str, bool, bool | None, str | None]
"""``(status, mode, level, control, right, returned_from)`` of one record of ``churn-warnings``."""
Weighted = Iterable[tuple[float, int]]
"""``(seconds, how many events)``: those of one chunk that share a time are one pair."""

OTHER = "other"
"""Label of what is not known: the event type of a dead letter, an HTTP method, a route."""
ALL = "all"
"""Domain label of stages that a flush does once for all domains."""
PROFILE = "profile"
"""Domain of the tags made of tags, which change because another tag did."""

# What can become of an event whose type is known, and of one whose type is not. The others, and
# the other codes of dead letters (`stream/events.py`), come when they do, in bulk if at all: for
# every type they would be a tenth of all series.
_OUTCOMES = ("applied", "duplicate", "invalid")
_UNREADABLE = ("too_large", "malformed", "unknown_type")

_CHUNK_STAGES = ("decode", "apply")
_FLUSH_STAGES = ("encode", "produce", "commit", "persist")
_BACKGROUND = ("wall-clock",)
_FORWARDS = ("ok", "moved", "failed")
# Figures whose children are known before anything is counted.
_FIGURES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "active": (("day",), ("week",), ("month",)),
    "retained": (("1",), ("7",), ("30",)),
    "inaccurate": (
        ("purchases", "before_registration"),
        ("purchases", "negative_spend"),
        ("purchases", "refund_without_order"),
    ),
    "inconsistent": (("purchases", "attribute"),),
}
_BY_DOMAIN = frozenset({"inaccurate", "inconsistent"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Thresholds of objectives (0.5 s, 5 s) are boundaries, so that they can be read off exactly.
# Few boundaries where a histogram has many children: a worker is to have under 1,000 series.
_TO_CHANGE_S = (0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0)
_BATCH_S = (0.05, 0.5)
_REQUEST_S = (0.005, 0.025, 0.1, 0.5)
_ARRIVAL_S = (1.0, 60.0, 3_600.0, 86_400.0)
_DWELL_S = (7 * 86_400.0,)
_REBALANCE_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LATENESS_S = (0.0, 10.0, 60.0, 3_600.0, 86_400.0)


class DomainView(Protocol):
    """One domain of one partition that this worker owns, as it is now. Cheap to read."""

    @property
    def lag(self) -> int | None:
        """Records not applied yet; None while no recent answer of the broker says, or while
        nothing may be applied (a rebalance)."""

    @property
    def time_ms(self) -> int | None:
        """Partition time, epoch ms; None before the first event."""

    @property
    def applied_offset(self) -> int:
        """Source offset after the last record applied."""

    @property
    def committed_offset(self) -> int:
        """Source offset in the last transaction."""

    @property
    def deadlines_pending(self) -> int:
        """Deadlines that have not fired."""

    @property
    def next_deadline_ms(self) -> int | None:
        """The earliest of them, epoch ms; None where there are none."""


class StoreView(Protocol):
    """The database of one partition."""

    @property
    def sst_bytes(self) -> int:
        """Live bytes on disk, of all domains."""

    @property
    def pending_compaction_bytes(self) -> int:
        """What compaction has still to rewrite, as RocksDB estimates it."""

    @property
    def stalled_seconds(self) -> float:
        """How long writes were held up since it was opened."""


class MemoryView(Protocol):
    """What is allowed in memory, and RocksDB's part of it, of all partitions together."""

    @property
    def budget_bytes(self) -> int:
        """RocksDB, users in memory and buffers together."""

    @property
    def block_cache_bytes(self) -> int:
        """The block cache now, with the memtables, which are charged to it."""

    @property
    def memtable_bytes(self) -> int:
        """Rows that are not in a table file yet."""


class Survey(Protocol):
    """Users by tag: who has had it with one value for 30 days; who is in its control group."""

    @property
    def stable(self) -> Mapping[str, int]: ...

    @property
    def controls(self) -> Mapping[tuple[str, str], int]: ...


class PartitionView(Protocol):
    """One partition that this worker owns: all its domains, and its population."""

    @property
    def number(self) -> int: ...

    @property
    def domains(self) -> Mapping[str, DomainView]:
        """By name of the domain."""

    @property
    def store(self) -> StoreView: ...

    @property
    def population(self) -> Mapping[tuple[str, str], int]:
        """Users by ``(tag, value_label(value))``."""

    @property
    def users(self) -> int:
        """Users of whom anything is known."""

    @property
    def sweep_remaining(self) -> int:
        """About how many users' records wait to be looked at since definitions were switched."""

    @property
    def tagged(self) -> int:
        """Those among them with at least one tag."""

    @property
    def survey(self) -> Survey | None:
        """What the last look at every profile found; None before the first."""


class WorkerView(Protocol):
    """What a scrape reads of a worker."""

    @property
    def partitions(self) -> Iterable[PartitionView]:
        """Those owned and open now."""

    @property
    def memory(self) -> MemoryView: ...

    @property
    def rules_versions(self) -> Collection[int]:
        """Of the definitions in force in these partitions."""

    @property
    def ready(self) -> bool:
        """Partitions are assigned and all of them recovered."""

    @property
    def recovering(self) -> bool:
        """An owned partition is being recovered."""

    @property
    def recovery_started_ms(self) -> int | None:
        """When the last recovery began, epoch ms; None before the first."""

    @property
    def recovery_seconds(self) -> float | None:
        """How long the last recovery took, start to ready; None before the end of the first."""

    @property
    def recovery_remaining(self) -> int:
        """Changelog records still to be read, all partitions together."""


class Tag(Protocol):
    """What labels need of a tag's definition."""

    @property
    def name(self) -> str: ...

    @property
    def domain(self) -> str: ...

    @property
    def values(self) -> tuple[Value, ...]:
        """What it may hold, the value it starts with first."""


def value_label(value: Value) -> str:
    """A tag's value as the label that stands for it: as JSON writes it, strings unquoted.

    >>> [value_label(value) for value in (True, False, None, "basic")]
    ['true', 'false', 'null', 'basic']
    """
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Counts:
    """A counter and its children; keys hold the label values in the order of ``labels``."""

    __slots__ = ("_help", "labels", "_name", "_unit", "children")

    def __init__(self, name: str, help_: str, *labels: str, unit: int = 1) -> None:
        self._name, self._help, self.labels, self._unit = name, help_, labels, unit
        self.children: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def start(self, *key: str) -> None:
        """Shows a child before its first event."""
        self.children.setdefault(key, 0)

    def add(self, key: tuple[str, ...], number: int = 1) -> None:
        self.children[key] = self.children.get(key, 0) + number

    def family(self) -> Metric:
        family = CounterMetricFamily(self._name, self._help, labels=self.labels)
        for key, number in self.children.items():
            family.add_metric(key, number / self._unit if self._unit > 1 else number)
        return family


class _Seconds:
    """A histogram of seconds that takes many equal observations in one step."""

    __slots__ = ("_bounds", "_help", "labels", "_name", "_texts", "children")

    def __init__(self, name: str, help_: str, bounds: tuple[float, ...], *labels: str) -> None:
        self._name, self._help, self.labels, self._bounds = name, help_, labels, bounds
        self._texts = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
        # Per child: how many in each bucket (the last has no upper bound), and their sum.
        self.children: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        if not labels:
            self.start()

    def start(self, *key: str) -> tuple[list[int], list[float]]:
        """Shows a child before its first observation; the child."""
        return self.children.setdefault(key, ([0] * len(self._texts), [0.0]))

    def observe(self, key: tuple[str, ...], weighted: Weighted) -> None:
        """Adds pairs of seconds and weight; what two clocks made negative counts as 0."""
        buckets, total = self.children.get(key) or self.start(*key)
        for seconds, weight in weighted:
            if seconds < 0:
                seconds = 0.0
            buckets[bisect_left(self._bounds, seconds)] += weight
            total[0] += seconds * weight

    def observe_sorted(self, key: tuple[str, ...], ascending_ms: Sequence[int]) -> None:
        """Adds many observations at once, in milliseconds, ascending."""
        buckets, total = self.children.get(key) or self.start(*key)
        below = 0
        for position, bound in enumerate(self._bounds):
            upto = bisect_right(ascending_ms, bound * 1000)
            buckets[position] += upto - below
            below = upto
        buckets[-1] += len(ascending_ms) - below
        total[0] += sum(ascending_ms[bisect_right(ascending_ms, 0) :]) / 1000

    def family(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._help, labels=self.labels)
        for key, (buckets, total) in self.children.items():
            cumulative = zip(self._texts, map(float, accumulate(buckets)), strict=True)
            family.add_metric(key, list(cumulative), total[0])
        return family


def _gauge(
    name: str, help_: str, *labels: str, of: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for key, value in of:
        family.add_metric(key, value)
    return family


def _single(name: str, help_: str, value: float | None) -> Metric:
    """A gauge without labels; no sample where there is nothing to say."""
    return _gauge(name, help_, of=() if value is None else (((), value),))


class Metrics(Collector):
    """Everything one worker counts, registered with ``registry`` when made.

    Args:
        types: the event types of each domain; others are counted under ``other``.
        optional: the fields that events of each domain may leave out.
        partitions: how many partitions the settings say there are.
        clock: epoch seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        types: Mapping[str, Collection[str]],
        optional: Mapping[str, Collection[str]] = MappingProxyType({}),
        partitions: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._types = {domain: frozenset(names) for domain, names in types.items()}
        self._partitions = partitions
        self._clock = clock
        self._worker: WorkerView | None = None
        self._loop_lag: Callable[[], float] | None = None
        self._tags: dict[str, list[str]] = {}
        self._rules_version: int | None = None
        self._last_event: dict[str, float] = {}

        self._events = _Counts(
            "tagstream_events_total",
            "Records read, by what became of them; dead letters under their code.",
            *("domain", "type", "outcome"),
        )
        self._transitions = _Counts(
            "tagstream_tag_transitions_total",
            "Changes of tags that were committed.",
            *("tag", "previous", "value", "cause"),
        )
        self._warnings = _Counts(
            "tagstream_churn_warnings_total",
            "Records on churn-warnings, and warnings that an erasure ended.",
            *("status", "mode", "level", "control", "right", "returned_from"),
        )
        self._fired = _Counts("tagstream_deadlines_fired_total", "Deadlines that fired.", "domain")
        self._recovered = _Counts(
            "tagstream_recovered_records_total", "Changelog records read to recover state."
        )
        self._rebalances = _Counts(
            "tagstream_rebalances_total", "Rebalances of the consumer group seen."
        )
        self._produce_failures = _Counts(
            "tagstream_produce_failures_total", "Transactions that failed before their commit."
        )
        self._commit_failures = _Counts(
            "tagstream_commit_failures_total", "Transactions that failed in their commit."
        )
        self._background_failures = _Counts(
            "tagstream_background_failures_total",
            "Work in the background that failed and is tried again.",
            "task",
        )
        self._reload_failures = _Counts(
            "tagstream_rules_reload_failures_total",
            "Definitions that were refused; those before stayed in force.",
        )
        # What closed partitions were stalled, and what each open one is known to have been.
        self._stalled_s = 0.0
        self._stalls: WeakKeyDictionary[StoreView, float] = WeakKeyDictionary()
        self._forwards = _Counts(
            "tagstream_http_forwards_total", "Look-ups sent on to the owner.", "outcome"
        )
        self._to_change = _Seconds(
            "tagstream_event_to_change_seconds",
            "From the broker's append time of an event to the commit of what followed from it.",
            _TO_CHANGE_S,
            "domain",
        )
        self._lateness = _Seconds(
            "tagstream_event_lateness_seconds",
            "Partition time minus the time of the event; 0 for events in order.",
            _LATENESS_S,
            "domain",
        )
        self._batch = _Seconds(
            "tagstream_batch_seconds",
            "Stages of work: decode and apply per chunk; encode, produce (until the broker has"
            " acknowledged all records), commit and persist per flush.",
            _BATCH_S,
            *("domain", "stage"),
        )
        self._rebalance = _Seconds(
            "tagstream_rebalance_seconds",
            "From the stop of a rebalance until records flow again.",
            _REBALANCE_S,
        )
        self._requests = _Seconds(
            "tagstream_http_request_seconds",
            "HTTP requests, by route template and class of status.",
            _REQUEST_S,
            *("route", "method", "code"),
        )
        self._arrival = _Seconds(
            "tagstream_arrival_delay_seconds",
            "From the time of an event to its append by the broker; 0 where it is dated ahead.",
            _ARRIVAL_S,
            "domain",
        )
        self._dwell = _Seconds(
            "tagstream_tag_dwell_seconds",
            "How long users had a tag with one value, in event time, when that ended.",
            _DWELL_S,
            "tag",
        )
        self._optional = _Counts(
            "tagstream_optional_fields_total",
            "Fields that events may leave out, by whether they did.",
            *("domain", "field", "present"),
        )
        self._figures = {
            "active": _Counts(
                "tagstream_active_users_total",
                "Users who were active, each once in a local day, week (from Monday) and month.",
                "period",
            ),
            "registered": _Counts("tagstream_registered_users_total", "Users who signed up."),
            "retained": _Counts(
                "tagstream_retained_users_total",
                "Users who were active exactly so many local days after they signed up.",
                "day",
            ),
            "orders": _Counts("tagstream_orders_total", "Orders, by the users' tag.", "value"),
            "spend": _Counts("tagstream_spend_yuan_total", "Amounts of orders.", "value", unit=100),
            "refunds": _Counts(
                "tagstream_refunds_yuan_total", "Amounts of refunds.", "value", unit=100
            ),
            "churned": _Counts("tagstream_churned_users_total", "Users who churned.", "value"),
            "reaches": _Counts("tagstream_reaches_total", "Reaches.", "channel", "value"),
            "responses": _Counts("tagstream_responses_total", "Responses.", "channel", "value"),
            "inaccurate": _Counts(
                "tagstream_inaccurate_events_total",
                "Events applied that disagree with the user's own past.",
                *("domain", "check"),
            ),
            "inconsistent": _Counts(
                "tagstream_inconsistent_events_total",
                "Events applied that contradict another of the same instant.",
                *("domain", "check"),
            ),
        }
        self._start_children()
        for domain, names in optional.items():
            for name in names:
                self.optional(domain, name, present=0, absent=0)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(self)

    def _start_children(self) -> None:
        for domain, types in self._types.items():
            for type_ in types:
                for outcome in _OUTCOMES:
                    self._events.start(domain, type_, outcome)
            for outcome in _UNREADABLE:
                self._events.start(domain, OTHER, outcome)
            self._fired.start(domain)
            self._to_change.start(domain)
            self._lateness.start(domain)
            for stage in _CHUNK_STAGES:
                self._batch.start(domain, stage)
        for stage in _FLUSH_STAGES:
            self._batch.start(ALL, stage)
        for outcome in _FORWARDS:
            self._forwards.start(outcome)
        for task in _BACKGROUND:
            self._background_failures.start(task)
        for domain in self._types:
            self._arrival.start(domain)
        for name, kinds in _FIGURES.items():
            for kind in kinds:
                self._figures[name].start(*kind)

    # What the worker tells, at start and when it changes.

    def define(self, version: int, tags: Iterable[Tag], *, churn_mode: str | None) -> None:
        """The definitions in force; ``churn_mode`` is None where there are no warnings.

        Call it again when they change: the series of the version before end.
        """
        self._rules_version = version
        self._tags = {}
        for tag in tags:
            labels = [value_label(value) for value in tag.values]
            self._tags[tag.name] = labels
            # Of the 42 ways between seven values few are ever taken: those in are there from the
            # start, and of a tag that one has or has not, those out.
            causes = ("tag",) if tag.domain == PROFILE else ("event", "time")
            for value in labels[1:]:
                self._transitions.start(tag.name, labels[0], value, causes[0])
                for cause in causes if len(labels) == 2 else ():
                    self._transitions.start(tag.name, labels[0], value, cause)
                    self._transitions.start(tag.name, value, labels[0], cause)
        if churn_mode is None:
            return
        for level in ("red",) if churn_mode == "silence" else ("red", "yellow"):
            for control in ("false", "true"):
                who = (churn_mode, level, control)
                self._warnings.start("raised", *who, "", "")
                self._warnings.start("churned", *who, "", "")
                self._warnings.start("erased", *who, "", "")
                for state in ("warned", "churned"):
                    self._warnings.start("returned", *who, "", state)
                for right in ("false", "true"):
                    self._warnings.start("scored", *who, right, "")

    def route(self, route: str, method: str, *codes: str) -> None:
        """A route that is served, and the classes of status it answers with (``2xx``)."""
        for code in codes:
            self._requests.start(route, method, code)

    def watch(self, worker: WorkerView, *, loop_lag: Callable[[], float] | None = None) -> None:
        """Reads ``worker`` at every scrape from now on.

        ``loop_lag`` gives the event loop's largest lag since it was last called, in seconds.
        """
        self._worker, self._loop_lag = worker, loop_lag

    # What happened. Once per chunk:

    def events(self, domain: str, outcomes: Mapping[tuple[str, str], int]) -> None:
        """Events of one chunk: ``{(type, outcome): number}``; any type, bounded here."""
        known = self._types[domain]
        for (type_, outcome), number in outcomes.items():
            self._events.add((domain, type_ if type_ in known else OTHER, outcome), number)
            if outcome in {"applied", "late"}:
                self._last_event[domain] = self._clock()

    def lateness(self, domain: str, weighted: Weighted) -> None:
        """How far events were behind their partition's time; those in order as one ``(0, n)``."""
        self._lateness.observe((domain,), weighted)

    def batch(self, domain: str, stage: str, seconds: float) -> None:
        """One stage of one chunk, or of one flush (domain ``ALL``)."""
        self._batch.observe((domain, stage), ((seconds, 1),))

    # Once per flush, after its commit:

    def transitions(self, changes: Mapping[Transition, int]) -> None:
        """Changes that were committed, and how many of each kind."""
        for (tag, previous, value, cause), number in changes.items():
            self._transitions.add((tag, value_label(previous), value_label(value), cause), number)

    def warnings(self, records: Mapping[Warned, int]) -> None:
        """Records of ``churn-warnings`` that were committed, and how many of each kind."""
        for record, number in records.items():
            status, mode, level, control, right, state = record
            scored = "" if right is None else value_label(right)
            key = (status, mode, level, value_label(control), scored, state or "")
            self._warnings.add(key, number)

    def event_to_change(self, domain: str, weighted: Weighted) -> None:
        """Seconds from append to commit of the events that a flush covered."""
        self._to_change.observe((domain,), weighted)

    def figures(self, amounts: Mapping[tuple[str, str, str], int]) -> None:
        """What operations count: amounts by name, kind, and domain or value of ``breakdown``."""
        for (name, kind, label), amount in amounts.items():
            counts = self._figures[name]
            match len(counts.labels):
                case 0:
                    counts.add((), amount)
                case 1:
                    counts.add((kind or label,), amount)
                case _:
                    counts.add((label, kind) if name in _BY_DOMAIN else (kind, label), amount)

    def dwelt(self, times_ms: Iterable[tuple[str, int]]) -> None:
        """Tags that users no longer have with the value before, and for how long they did."""
        by_tag: dict[str, list[int]] = {}
        for tag, time_ms in times_ms:
            by_tag.setdefault(tag, []).append(time_ms)
        for tag, each_ms in by_tag.items():
            self._dwell.observe_sorted((tag,), sorted(each_ms))

    def arrivals(self, domain: str, delays_ms: Sequence[int]) -> None:
        """How long the events of a chunk took to arrive, ascending."""
        self._arrival.observe_sorted((domain,), delays_ms)

    def optional(self, domain: str, field: str, *, present: int, absent: int) -> None:
        """A field that the events of a chunk may leave out."""
        self._optional.add((domain, field, "true"), present)
        self._optional.add((domain, field, "false"), absent)

    def deadlines_fired(self, domain: str, number: int) -> None:
        """Deadlines that fired."""
        self._fired.add((domain,), number)

    # Now and then:

    def produce_failed(self) -> None:
        """A transaction failed before its commit."""
        self._produce_failures.add(())

    def commit_failed(self) -> None:
        """A transaction failed in its commit."""
        self._commit_failures.add(())

    def background_failed(self, task: str) -> None:
        """Something in the background failed, and will be tried again."""
        self._background_failures.add((task,))

    def reload_failed(self) -> None:
        """Definitions were refused."""
        self._reload_failures.add(())

    def recovered(self, records: int) -> None:
        """Changelog records read during recovery: once per batch of them."""
        self._recovered.add((), records)

    def rebalanced(self, seconds: float) -> None:
        """A rebalance ended; records flow again after ``seconds``."""
        self._rebalances.add(())
        self._rebalance.observe((), ((seconds, 1),))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered; ``route`` is a template, never a path."""
        key = (route, method if method in _METHODS else OTHER, f"{status // 100}xx")
        self._requests.observe(key, ((seconds, 1),))

    def forward(self, outcome: str) -> None:
        """A look-up was sent on: ``ok``, ``moved`` (not there any more) or ``failed``."""
        self._forwards.add((outcome,))

    # For those who watch (`stream/live.py`), once a second.

    def totals(self) -> dict[str, Any]:
        """Since the start: events by domain, changes, and warnings by status, right or wrong.

        ``events`` are those that were applied, ``refused`` those that became dead letters.
        """
        events, refused, warnings = Counter[str](), Counter[str](), Counter[str]()
        for (domain, _, outcome), number in self._events.children.items():
            if outcome in ("applied", "late"):
                events[domain] += number
            elif outcome not in _OUTCOMES:
                refused[domain] += number
        for (status, _, _, _, right, _), number in self._warnings.children.items():
            warnings["right" if right == "true" else "wrong" if right else status] += number
        return {
            "events": dict(events),
            "refused": dict(refused),
            "changes": sum(self._transitions.children.values()),
            "warnings": dict(warnings),
        }

    def to_change(self) -> tuple[int, float]:
        """Events that changed something since the start, and the seconds that they took."""
        each = self._to_change.children.values()
        return sum(sum(buckets) for buckets, _ in each), sum(total for _, (total,) in each)

    # The scrape.

    def text(self) -> bytes:
        """Everything in Prometheus' text format 0.0.4, UTF-8."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Families of now, for the registry."""
        for counts in (
            *(self._events, self._transitions, self._warnings, self._fired, self._forwards),
            *(self._recovered, self._rebalances, self._produce_failures, self._commit_failures),
            *(self._background_failures, self._reload_failures),
            *(self._optional, *self._figures.values()),
        ):
            yield counts.family()
        for seconds in (
            *(self._to_change, self._lateness, self._batch, self._rebalance, self._requests),
            *(self._arrival, self._dwell),
        ):
            yield seconds.family()

        yield InfoMetricFamily(
            "tagstream_build",
            "The program.",
            {
                "version": installed_version("tagstream"),
                "python": platform.python_version(),
                "hot_path": hot_path(),
            },
        )
        yield _single(
            "tagstream_config_partitions", "Partitions that the settings say.", self._partitions
        )
        versions: Collection[int] = ()
        if self._worker is not None:
            versions = self._worker.rules_versions
        elif self._rules_version is not None:
            versions = (self._rules_version,)
        yield _gauge(
            "tagstream_rules_info",
            "The version of the definitions in force in any partition; always 1.",
            "version",
            of=(((str(version),), 1) for version in sorted(versions)),
        )
        yield _gauge(
            "tagstream_last_event_timestamp_seconds",
            "Wall clock when an event was last applied; none before the first.",
            "domain",
            of=(((domain,), at) for domain, at in self._last_event.items()),
        )
        if self._loop_lag is not None:
            yield _single(
                "tagstream_event_loop_lag_seconds",
                "The longest the event loop was late since the last scrape.",
                self._loop_lag(),
            )
        if self._worker is not None:
            yield from self._of_worker(self._worker)
            partitions = tuple(self._worker.partitions)
            yield from self._of_stores(partition.store for partition in partitions)
            yield from self._of_partitions(partitions)

    def _of_worker(self, worker: WorkerView) -> Iterator[Metric]:
        yield _single("tagstream_ready", "1 when assigned and recovered.", worker.ready)
        yield _single(
            "tagstream_recovering", "1 while a partition is recovered.", worker.recovering
        )
        started_ms = worker.recovery_started_ms
        yield _single(
            "tagstream_recovery_start_timestamp_seconds",
            "When the last recovery began; none before the first.",
            None if started_ms is None else started_ms / 1000,
        )
        yield _single(
            "tagstream_recovery_seconds",
            "How long the last recovery took, start to ready; none before the end of the first.",
            worker.recovery_seconds,
        )
        yield _single(
            "tagstream_recovery_remaining_records",
            "Changelog records still to be read.",
            worker.recovery_remaining,
        )
        memory = worker.memory
        yield _single(
            "tagstream_config_memory_bytes",
            "What RocksDB, users in memory and buffers may take together.",
            memory.budget_bytes,
        )
        yield _single(
            "tagstream_rocksdb_block_cache_bytes",
            "RocksDB's block cache, with the memtables charged to it.",
            memory.block_cache_bytes,
        )
        yield _single(
            "tagstream_rocksdb_memtable_bytes",
            "Rows in RocksDB that are not in a table file yet.",
            memory.memtable_bytes,
        )

    def _of_stores(self, stores: Iterable[StoreView]) -> Iterator[Metric]:
        pending_bytes = 0
        for store in stores:
            pending_bytes += store.pending_compaction_bytes
            stalled_s = store.stalled_seconds
            # A sum over what is open now would fall when a partition leaves, which no counter may.
            self._stalled_s += max(0.0, stalled_s - self._stalls.get(store, 0.0))
            self._stalls[store] = stalled_s
        yield _single(
            "tagstream_rocksdb_pending_compaction_bytes",
            "What RocksDB has still to rewrite, as it estimates.",
            pending_bytes,
        )
        stalls = CounterMetricFamily(
            "tagstream_rocksdb_write_stall_seconds_total",
            "How long RocksDB held up writes, summed over partitions.",
        )
        stalls.add_metric((), self._stalled_s)
        yield stalls

    def _of_partitions(self, partitions: tuple[PartitionView, ...]) -> Iterator[Metric]:
        """Gauges over what is owned now; per domain where the partition would not help."""
        each = [
            ((domain, str(partition.number)), view)
            for partition in partitions
            for domain, view in partition.domains.items()
        ]
        yield _gauge(
            "tagstream_partition_lag",
            "Records not applied yet; none while it is not known.",
            *("domain", "partition"),
            of=((key, view.lag) for key, view in each if view.lag is not None),
        )
        yield _gauge(
            "tagstream_partition_time_seconds",
            "Event time reached, as an instant; 0 before the first event.",
            *("domain", "partition"),
            of=((key, (view.time_ms or 0) / 1000) for key, view in each),
        )
        yield _gauge(
            "tagstream_applied_offset",
            "Source offset after the last record applied; one series for every partition owned.",
            *("domain", "partition"),
            of=((key, view.applied_offset) for key, view in each),
        )
        pending: Counter[str] = Counter()
        committed: Counter[str] = Counter()
        state: dict[str, float] = {}
        overdue: dict[str, float] = {}
        for (domain, _), view in each:
            pending[domain] += view.deadlines_pending
            committed[domain] += view.committed_offset
            late_s = 0.0
            if view.time_ms is not None and view.next_deadline_ms is not None:
                late_s = max(0.0, (view.time_ms - view.next_deadline_ms) / 1000)
            overdue[domain] = max(overdue.get(domain, 0.0), late_s)
        for partition in partitions:
            for domain in partition.domains:
                part = partition.store.sst_bytes / len(partition.domains)
                state[domain] = state.get(domain, 0) + part
        for name, help_, values in (
            (
                "tagstream_committed_offset",
                "Source offset in the last transaction, summed over partitions.",
                committed,
            ),
            ("tagstream_deadlines_pending", "Deadlines that have not fired.", pending),
            (
                "tagstream_state_bytes",
                "Live bytes of state on disk, which domains share: of each an equal part.",
                state,
            ),
            (
                "tagstream_deadline_overdue_seconds",
                "Partition time minus the earliest deadline that has not fired; 0 if not reached.",
                overdue,
            ),
        ):
            yield _gauge(name, help_, "domain", of=(((d,), v) for d, v in values.items()))
        yield self._population(partitions)
        if partitions:
            yield _single(
                "tagstream_users",
                "Users of whom anything is known.",
                sum(partition.users for partition in partitions),
            )
            yield _single(
                "tagstream_tagged_users",
                "Those among them with at least one tag.",
                sum(partition.tagged for partition in partitions),
            )
        yield _single(
            "tagstream_rules_sweep_remaining",
            "Users' records still to be looked at since definitions were switched, about.",
            sum(partition.sweep_remaining for partition in partitions),
        )
        surveys = [partition.survey for partition in partitions if partition.survey is not None]
        if surveys and len(surveys) == len(partitions):
            yield _gauge(
                "tagstream_stable_users",
                "Users who have had a tag with one value for 30 days; looked at once a day.",
                "tag",
                of=(
                    ((tag,), sum(each.stable.get(tag, 0) for each in surveys)) for tag in self._tags
                ),
            )
            controls: Counter[tuple[str, str]] = Counter()
            for survey in surveys:
                controls.update(survey.controls)
            yield _gauge(
                "tagstream_tag_control_users",
                "Users in the control group of a tag that they have; looked at once a day.",
                *("tag", "value"),
                of=controls.items(),
            )

    def _population(self, partitions: tuple[PartitionView, ...]) -> Metric:
        users: Counter[tuple[str, str]] = Counter()
        if partitions:  # nobody has the tag: 0; we do not know: no series
            users.update(
                {(tag, label): 0 for tag, labels in self._tags.items() for label in labels[1:]}
            )
        for partition in partitions:
            users.update(partition.population)
        return _gauge("tagstream_tag_users", "Users now.", "tag", "value", of=users.items())
