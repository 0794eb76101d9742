"""What alerts and dashboard read is what the worker exports, and the other way round."""

import re
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry

from stream import data
from stream.events import Code
from stream.metrics import Metrics
from stream.profiles import Survey
from tables.table import Outcome
from tests.observability import dashboard
from tests.observability.expressions import COUNTED, reads
from tests.observability.prometheus import rules
from tests.test_metrics import Owner, Partition

#: Of others: kube-state-metrics, the kubelet, Prometheus itself.
FOREIGN = ("kube_", "kubelet_", "ALERTS", "up")
#: What is there to be asked by hand.
UNREAD = {"tagstream_build_info", "tagstream_last_event_timestamp_seconds"}

PARTS = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "info": ("_info",)}


def exported() -> dict[str, str]:
    """Every series that a worker exports, with the type of its metric."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, types={"purchases": ["order"]}, partitions=1)
    metrics.define(1, [], churn_mode="silence")
    surveyed = Partition(0, {}, survey=Survey())
    owner = Owner([surveyed], recovery_started_ms=1, recovery_seconds=1.0)
    metrics.watch(owner, loop_lag=lambda: 0.0)
    return {
        family.name + part: family.type
        for family in registry.collect()
        for part in PARTS.get(family.type, ("",))
    }


EXPORTED = exported()
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
PANELS = [(row.title, panel) for row in dashboard.ROWS for panel in row.panels]
IN_PANELS = [
    expression.replace("$__rate_interval", "1m").replace("$__range", "1h")
    for _, panel in PANELS
    for expression, _ in panel.queries
]
IN_RULES = [rule["expr"] for rule in rules()]


@pytest.mark.parametrize("expression", IN_RULES + IN_PANELS)
def test_an_expression_reads_what_there_is(expression):
    """A name that nothing exports is no data for ever: an alert that never fires."""
    names = {read.name for read in reads(expression)}
    unknown = {name for name in names if not name.startswith(FOREIGN)}
    assert unknown <= EXPORTED.keys() | RECORDED


def test_what_a_worker_exports_is_read():
    """Or it would be paid for by everybody and seen by nobody."""
    read = {read.name for expression in IN_RULES + IN_PANELS for read in reads(expression)}
    unread = {
        name
        for name, kind in EXPORTED.items()
        if name.startswith("tagstream_")
        and name not in read | UNREAD
        # Of a histogram one of its parts is enough.
        and not (kind == "histogram" and any(other in read for other in siblings(name)))
    }
    assert unread == set()


def siblings(name: str) -> set[str]:
    """The other series of a histogram."""
    base = name.rpartition("_")[0]
    return {base + part for part in PARTS["histogram"]}


@pytest.mark.parametrize("expression", IN_RULES + IN_PANELS)
def test_no_counter_is_read_raw(expression):
    """How high one stands depends on when the worker was started."""
    for read in reads(expression):
        kind = EXPORTED.get(read.name)
        if kind in ("counter", "histogram"):
            assert read.function in COUNTED, read


@pytest.mark.parametrize("expression", IN_RULES + IN_PANELS)
def test_an_outcome_that_is_named_can_come_about(expression):
    """A misspelt one would be counted with the dead letters."""
    for read in reads(expression):
        named = read.labels.get("outcome", "applied").split("|")
        assert set(named) <= {*get_args(Code), *get_args(Outcome)}


def test_the_layers_that_are_watched_are_there():
    """Among the shipped definitions, at least the tiers of value."""
    (pattern,) = {
        read.labels["tag"] for rule in IN_RULES for read in reads(rule) if "tag" in read.labels
    }
    names = {tag["name"] for tag in yaml.safe_load(data.TAGS.read_text("utf-8"))["tags"]}
    assert "value_tier" in {name for name in names if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("expression", IN_RULES)
def test_a_rate_is_not_taken_of_a_gauge(expression):
    """It would take every fall for a restart."""
    for read in reads(expression):
        if read.function in COUNTED and read.name in EXPORTED:
            assert EXPORTED[read.name] in ("counter", "histogram"), read


@pytest.mark.parametrize("expression", IN_RULES + IN_PANELS)
def test_a_bucket_that_is_asked_for_exists(expression):
    """``le`` is matched as text."""
    bounds = buckets()
    for read in reads(expression):
        if "le" in read.labels:
            assert read.labels["le"] in bounds[read.name]


def buckets() -> dict[str, set[Any]]:
    """Upper bounds of every histogram, as they are written."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, types={"purchases": ["order"]}, partitions=1)
    metrics.event_to_change("purchases", [(0.1, 1)])
    found: dict[str, set[Any]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if "le" in sample.labels:
                found.setdefault(sample.name, set()).add(sample.labels["le"])
    return found
