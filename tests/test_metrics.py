"""What a worker exports: read back with Prometheus' own parser."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from stream.metrics import ALL, Metrics, Value
from stream.profiles import Survey

PURCHASES = ("registered", "updated", "order", "refund", "erase")


@dataclass(frozen=True)
class Tag:
    name: str
    values: tuple[Value, ...]
    domain: str = "purchases"


LOYAL = Tag("loyal", (False, True))
TIER = Tag("tier", (None, "gold", "silver"))
MADE = Tag("made", (False, True), "profile")


@dataclass
class DomainState:
    lag: int | None = 0
    time_ms: int | None = None
    applied_offset: int = 0
    committed_offset: int = 0
    deadlines_pending: int = 0
    next_deadline_ms: int | None = None


@dataclass(eq=False)
class Disk:
    sst_bytes: int = 0
    pending_compaction_bytes: int = 0
    stalled_seconds: float = 0.0


@dataclass
class Memory:
    budget_bytes: int = 256 << 20
    block_cache_bytes: int = 0
    memtable_bytes: int = 0


@dataclass
class Partition:
    number: int
    domains: Mapping[str, DomainState]
    population: Mapping[tuple[str, str], int] = field(default_factory=dict)
    users: int = 0
    tagged: int = 0
    sweep_remaining: int = 0
    survey: Survey | None = None
    store: Disk = field(default_factory=Disk)


@dataclass
class Owner:
    partitions: list[Partition]
    ready: bool = True
    recovering: bool = False
    recovery_started_ms: int | None = None
    recovery_seconds: float | None = None
    recovery_remaining: int = 0
    memory: Memory = field(default_factory=Memory)
    rules_versions: tuple[int, ...] = (4,)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(
        CollectorRegistry(),
        types={"purchases": PURCHASES},
        optional={"purchases": ["coupon"]},
        partitions=8,
        clock=lambda: 1_700.5,
    )


def scrape(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """``{sample name: {label values in order of label name: value}}``."""
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            series = samples.setdefault(sample.name, {})
            assert key not in series, f"{sample.name}{sample.labels} twice"
            series[key] = sample.value
    return samples


def test_every_counter_child_that_can_be_known_starts_at_zero(metrics):
    """Otherwise ``rate`` would not see the first dead letter or transition."""
    metrics.define(3, [LOYAL, TIER, MADE], churn_mode="silence")
    samples = scrape(metrics)

    events = samples["tagstream_events_total"]
    assert events["purchases", "applied", "order"] == 0
    assert events["purchases", "malformed", "other"] == 0
    transitions = samples["tagstream_tag_transitions_total"]
    of_loyal = {key for key in transitions if "loyal" in key}
    assert of_loyal == {
        (cause, previous, "loyal", value)
        for previous, value in (("false", "true"), ("true", "false"))
        for cause in ("event", "time")
    }
    of_tier = {key for key in transitions if "tier" in key}
    assert of_tier == {("event", "null", "tier", "gold"), ("event", "null", "tier", "silver")}
    assert transitions["tag", "false", "made", "true"] == 0
    warnings = samples["tagstream_churn_warnings_total"]
    assert len(warnings) == 2 * (
        1 + 1 + 1 + 2 + 2
    )  # control; raised, churned, erased, returned, scored
    assert set(events.values()) | set(transitions.values()) | set(warnings.values()) == {0}
    for name in (
        "tagstream_deadlines_fired_total",
        "tagstream_recovered_records_total",
        "tagstream_rebalances_total",
        "tagstream_produce_failures_total",
        "tagstream_commit_failures_total",
        "tagstream_background_failures_total",
        "tagstream_http_forwards_total",
        "tagstream_event_to_change_seconds_count",
        "tagstream_batch_seconds_count",
    ):
        assert samples[name]
        assert set(samples[name].values()) == {0}


def test_an_unknown_event_type_is_counted_as_other(metrics):
    """What a producer writes into ``type`` never becomes a label."""
    metrics.events("purchases", {("order", "applied"): 1_999, ("+8613800000000", "invalid"): 1})
    metrics.events("purchases", {("order", "applied"): 1, ("", "invalid"): 2})

    events = scrape(metrics)["tagstream_events_total"]
    assert events["purchases", "applied", "order"] == 2_000
    assert events["purchases", "invalid", "other"] == 3
    assert "13800000000" not in metrics.text().decode()


def test_the_last_event_is_the_last_one_applied(metrics):
    """Duplicates and dead letters are no progress."""
    name = "tagstream_last_event_timestamp_seconds"
    metrics.events("purchases", {("order", "duplicate"): 5})
    assert name not in scrape(metrics)
    metrics.events("purchases", {("order", "late"): 1})
    assert scrape(metrics)[name] == {("purchases",): 1_700.5}


def test_transitions_are_labelled_as_json_writes_values(metrics):
    """False, true and null; strings as they are."""
    metrics.transitions(
        Counter(
            [
                ("loyal", False, True, "event"),
                ("loyal", False, True, "event"),
                ("tier", None, "gold", "time"),
            ]
        )
    )
    assert scrape(metrics)["tagstream_tag_transitions_total"] == {
        ("event", "false", "loyal", "true"): 2,
        ("time", "null", "tier", "gold"): 1,
    }


def test_a_case_named_like_null_shares_its_label_instead_of_repeating_a_series(metrics):
    """A series that comes twice would make Prometheus refuse the whole scrape."""
    odd = Tag("odd", (None, "null", "true"))
    metrics.define(1, [odd], churn_mode=None)
    metrics.transitions(Counter([("odd", None, "true", "event"), ("odd", "null", "true", "event")]))
    metrics.watch(Owner([Partition(0, {})]))
    assert scrape(metrics)["tagstream_tag_transitions_total"]["event", "null", "odd", "true"] == 2


def test_warnings_are_split_by_what_they_were_worth(metrics):
    """Each status has the labels that apply to it; the others are empty."""
    metrics.warnings(
        Counter(
            [
                ("raised", "silence", "red", False, None, None),
                ("scored", "silence", "red", True, False, None),
                ("returned", "silence", "red", False, None, "churned"),
            ]
        )
    )
    # control, level, mode, returned_from, right, status
    assert scrape(metrics)["tagstream_churn_warnings_total"] == {
        ("false", "red", "silence", "", "", "raised"): 1,
        ("true", "red", "silence", "", "false", "scored"): 1,
        ("false", "red", "silence", "churned", "", "returned"): 1,
    }


def test_predictions_are_counted_from_nothing_by_level_and_control(metrics):
    """So that precision by mode and by control can be had from the first one scored."""
    metrics.define(1, [LOYAL], churn_mode="predicted")
    # control, level, mode, returned_from, right, status
    at_first = scrape(metrics)["tagstream_churn_warnings_total"]
    for control, level, right in product(("false", "true"), ("red", "yellow"), ("false", "true")):
        assert at_first[control, level, "predicted", "", right, "scored"] == 0
    one = ("scored", "predicted", "yellow", True)
    metrics.warnings(Counter([(*one, True, None), (*one, True, None), (*one, False, None)]))
    counted = scrape(metrics)["tagstream_churn_warnings_total"]
    assert counted.keys() == at_first.keys()
    assert counted["true", "yellow", "predicted", "", "true", "scored"] == 2
    assert counted["true", "yellow", "predicted", "", "false", "scored"] == 1


def test_a_weighted_observation_equals_that_many_single_ones(metrics):
    """A boundary belongs to its bucket, as ``le`` says; a negative span counts as 0."""
    metrics.event_to_change("purchases", [(0.5, 3), (0.500001, 1), (-2.0, 1), (2_000.0, 2)])
    metrics.event_to_change("purchases", [(0.5, 1)])

    samples = scrape(metrics)
    buckets = {
        le: count for (_, le), count in samples["tagstream_event_to_change_seconds_bucket"].items()
    }
    assert buckets["0.05"] == 1
    assert buckets["0.25"] == 1
    assert buckets["0.5"] == 5
    assert buckets["1.0"] == 6
    assert buckets["300.0"] == 6
    assert buckets["+Inf"] == 8
    assert samples["tagstream_event_to_change_seconds_count"] == {("purchases",): 8}
    total = samples["tagstream_event_to_change_seconds_sum"]["purchases",]
    assert total == pytest.approx(4 * 0.5 + 0.500001 + 2 * 2_000.0)


def test_stages_requests_and_rebalances_are_timed(metrics):
    """Methods that nobody defined share one label."""
    metrics.batch("purchases", "apply", 0.02)
    metrics.batch(ALL, "commit", 0.002)
    metrics.rebalanced(1.5)
    metrics.request("/users/{id}", "GET", 404, 0.001)
    metrics.request("other", "BREW", 405, 0.001)
    metrics.forward("ok")

    samples = scrape(metrics)
    assert samples["tagstream_batch_seconds_count"]["purchases", "apply"] == 1
    assert samples["tagstream_batch_seconds_sum"]["all", "commit"] == 0.002
    assert samples["tagstream_rebalances_total"] == {(): 1}
    assert samples["tagstream_rebalance_seconds_sum"] == {(): 1.5}
    # code, method, route
    assert samples["tagstream_http_request_seconds_count"] == {
        ("4xx", "GET", "/users/{id}"): 1,
        ("4xx", "other", "other"): 1,
    }
    assert samples["tagstream_http_forwards_total"]["ok",] == 1


def test_failures_and_recovered_records_are_counted(metrics):
    """One figure each for the worker."""
    metrics.produce_failed()
    metrics.commit_failed()
    metrics.recovered(2_000)
    metrics.background_failed("wall-clock")
    metrics.deadlines_fired("purchases", 7)
    samples = scrape(metrics)
    assert samples["tagstream_produce_failures_total"] == {(): 1}
    assert samples["tagstream_commit_failures_total"] == {(): 1}
    assert samples["tagstream_background_failures_total"] == {("wall-clock",): 1}
    assert samples["tagstream_recovered_records_total"] == {(): 2_000}
    assert samples["tagstream_deadlines_fired_total"] == {("purchases",): 7}


def test_partition_gauges_are_read_at_the_scrape_and_leave_with_their_partition(metrics):
    """A series that stayed would double sums and fire lag alerts for ever."""
    three = Partition(3, {"purchases": DomainState(lag=12, time_ms=1_500, applied_offset=88)})
    four = Partition(4, {"purchases": DomainState(lag=1, applied_offset=7, committed_offset=5)})
    owner = Owner([three, four])
    metrics.watch(owner)

    samples = scrape(metrics)
    assert samples["tagstream_partition_lag"] == {("purchases", "3"): 12, ("purchases", "4"): 1}
    assert samples["tagstream_partition_time_seconds"] == {
        ("purchases", "3"): 1.5,
        ("purchases", "4"): 0,  # no event yet
    }
    assert samples["tagstream_applied_offset"]["purchases", "3"] == 88
    assert samples["tagstream_committed_offset"] == {("purchases",): 5}

    three.domains["purchases"].lag = 11
    owner.partitions.remove(four)
    samples = scrape(metrics)
    assert samples["tagstream_partition_lag"] == {("purchases", "3"): 11}
    assert set(samples["tagstream_applied_offset"]) == {("purchases", "3")}


def test_a_lag_that_is_not_known_is_absent_while_its_partition_stays_visible(metrics):
    """Neither 0, which would be a lie, nor NaN, which would spoil every sum."""
    metrics.watch(Owner([Partition(0, {"purchases": DomainState(lag=None)})]))
    samples = scrape(metrics)
    assert "tagstream_partition_lag" not in samples
    assert samples["tagstream_applied_offset"] == {("purchases", "0"): 0}


def test_domain_gauges_add_up_partitions_and_show_the_worst_deadline(metrics):
    """A deadline ahead of its partition's time is not overdue."""
    metrics.watch(
        Owner(
            [
                Partition(
                    0,
                    {
                        "purchases": DomainState(
                            time_ms=90_000,
                            next_deadline_ms=60_000,
                            deadlines_pending=2,
                        ),
                        "service": DomainState(),
                    },
                    store=Disk(sst_bytes=10),
                ),
                Partition(
                    1,
                    {
                        "purchases": DomainState(
                            time_ms=90_000,
                            next_deadline_ms=91_000,
                            deadlines_pending=3,
                        )
                    },
                    store=Disk(sst_bytes=5),
                ),
            ]
        )
    )
    samples = scrape(metrics)
    assert samples["tagstream_deadlines_pending"] == {("purchases",): 5, ("service",): 0}
    assert samples["tagstream_state_bytes"] == {("purchases",): 10, ("service",): 5}
    assert samples["tagstream_deadline_overdue_seconds"] == {("purchases",): 30, ("service",): 0}


def test_memory_and_disk_are_read_off_rocksdb(metrics):
    """Memory once, for partitions share it; what is pending added up."""
    one, two = (Partition(n, {}, store=Disk(pending_compaction_bytes=n)) for n in (3, 4))
    memory = Memory(block_cache_bytes=2_000, memtable_bytes=1_000)
    metrics.watch(Owner([one, two], memory=memory))
    samples = scrape(metrics)
    assert samples["tagstream_config_memory_bytes"] == {(): 256 << 20}
    assert samples["tagstream_rocksdb_block_cache_bytes"] == {(): 2_000}
    assert samples["tagstream_rocksdb_memtable_bytes"] == {(): 1_000}
    assert samples["tagstream_rocksdb_pending_compaction_bytes"] == {(): 7}


def test_stalls_of_partitions_that_left_still_count(metrics):
    """A counter that falls would be taken for a restart, and all it shows counted again."""
    one, two = Partition(0, {}), Partition(1, {})
    owner = Owner([one, two])
    metrics.watch(owner)
    name = "tagstream_rocksdb_write_stall_seconds_total"
    assert scrape(metrics)[name] == {(): 0}
    one.store.stalled_seconds, two.store.stalled_seconds = 2.0, 0.5
    assert scrape(metrics)[name] == {(): 2.5}
    owner.partitions.remove(one)
    two.store.stalled_seconds = 0.75
    assert scrape(metrics)[name] == {(): 2.75}
    owner.partitions.append(Partition(0, {}, store=Disk(stalled_seconds=0.25)))  # opened anew
    assert scrape(metrics)[name] == {(): 3.0}


def test_users_per_tag_are_summed_and_a_tag_that_lost_everyone_shows_zero(metrics):
    """Zero is an answer, unless the worker owns nothing."""
    metrics.define(1, [LOYAL, TIER], churn_mode=None)
    owner = Owner(
        [
            Partition(0, {}, {("loyal", "true"): 4, ("tier", "gold"): 1}),
            Partition(1, {}, {("loyal", "true"): 5}),
        ]
    )
    metrics.watch(owner)
    assert scrape(metrics)["tagstream_tag_users"] == {
        ("loyal", "true"): 9,
        ("tier", "gold"): 1,
        ("tier", "silver"): 0,
    }
    owner.partitions.clear()
    assert "tagstream_tag_users" not in scrape(metrics)


def test_recovery_is_visible_from_its_start_to_its_end(metrics):
    """Instants and spans are absent until there is one."""
    owner = Owner([], ready=False)
    metrics.watch(owner)
    samples = scrape(metrics)
    assert samples["tagstream_ready"] == {(): 0}
    assert "tagstream_recovery_seconds" not in samples
    assert "tagstream_recovery_start_timestamp_seconds" not in samples

    owner.recovering, owner.recovery_started_ms, owner.recovery_remaining = True, 5_000, 42
    samples = scrape(metrics)
    assert samples["tagstream_recovering"] == {(): 1}
    assert samples["tagstream_recovery_start_timestamp_seconds"] == {(): 5}
    assert samples["tagstream_recovery_remaining_records"] == {(): 42}

    owner.recovering, owner.recovery_seconds, owner.ready = False, 2.5, True
    samples = scrape(metrics)
    assert samples["tagstream_recovery_seconds"] == {(): 2.5}
    assert samples["tagstream_ready"] == {(): 1}


def test_one_version_of_the_definitions_at_a_time(metrics):
    """Otherwise the alert on versions that differ would fire for ever after a reload."""
    metrics.define(3, [LOYAL], churn_mode=None)
    metrics.transitions(Counter([("loyal", False, True, "event")]))
    metrics.define(4, [LOYAL], churn_mode=None)
    samples = scrape(metrics)
    assert samples["tagstream_rules_info"] == {("4",): 1}
    assert samples["tagstream_tag_transitions_total"]["event", "false", "loyal", "true"] == 1


def test_the_loop_lag_is_asked_for_at_every_scrape(metrics):
    """Whoever measures it starts anew then."""
    lags = iter([0.25, 0.0])
    metrics.watch(Owner([]), loop_lag=lambda: next(lags))
    assert scrape(metrics)["tagstream_event_loop_lag_seconds"] == {(): 0.25}
    assert scrape(metrics)["tagstream_event_loop_lag_seconds"] == {(): 0.0}


def test_names_units_and_help_follow_the_conventions(metrics):
    """What ``promtool check metrics`` looks at: help texts, ``_total``, base units."""
    metrics.define(1, [LOYAL, TIER], churn_mode="predicted")
    metrics.dwelt([("loyal", 1)])
    for name in ("orders", "spend", "refunds", "churned", "reaches", "responses"):
        metrics.figures({(name, "sms", "gold"): 1})
    metrics.watch(Owner([Partition(0, {"purchases": DomainState(committed_offset=1)})]))
    units = ("_milliseconds", "_ms", "_minutes", "_kilobytes", "_percent")
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.documentation
        assert not family.name.endswith(units)
        counter = any(sample.name.endswith("_total") for sample in family.samples)
        assert counter == (family.type == "counter"), family.name
        assert not any(sample.name.endswith("_created") for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
