"""A real Prometheus scrapes a real worker under load; every panel and every alert is asked.

What is compared with a day or a week ago finds the worker's own series there, as they might
have been then.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stream import data
from stream.domains import discover
from tests.broker.worker import Worker, wait_until
from tests.embedded.test_service import post
from tests.observability import dashboard
from tests.observability.load import DAY_MS, Shop
from tests.observability.prometheus import Prometheus, alerts, promtool, rules

pytestmark = pytest.mark.prometheus

BATCH = 500
#: When there are samples of the past, and what part of now's counts had been counted then.
PAST = ((7 * DAY_MS, 0.3), (DAY_MS, 0.8))
#: Recorded only where more happens than in a small shop.
RARE = {"namespace:tagstream_churn_warnings_raised:week_ratio"}
AROUND_MS = 6 * 60_000
STEP_MS = 60_000


def definitions(directory: Path) -> Path:
    """The shipped ones, with figures by value tier, and half of everybody left alone."""
    content = yaml.safe_load(data.TAGS.read_text("utf-8"))
    content["breakdown"] = "value_tier"
    for part in (content["churn"], *content["tags"]):
        part["control"] = 0.5
    path = directory / "tags.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def before(text: str, now_ms: int, instance: str) -> str:
    """A scrape as it might have been a day and a week ago, in OpenMetrics."""
    lines = []
    for family in text_string_to_metric_families(text):
        counted = family.type in ("counter", "histogram")
        for sample in family.samples:
            labels = {**sample.labels, "job": "tagstream", "instance": instance}
            shown = ",".join(f"{name}={orjson.dumps(v).decode()}" for name, v in labels.items())
            for ago_ms, part in PAST:
                value = math.floor(sample.value * part) if counted else sample.value
                around = range(-AROUND_MS, AROUND_MS + 1, STEP_MS)
                lines += [
                    f"{sample.name}{{{shown}}} {value} {(now_ms - ago_ms + offset_ms) / 1000}"
                    for offset_ms in around
                ]
    return "\n".join([*lines, "# EOF\n"])


class Ring:
    """A worker, what comes to it, and the Prometheus that watches."""

    def __init__(self, directory: Path) -> None:
        self.shop = Shop(discover(), Random(7))
        self.worker = Worker(
            directory / "worker",
            {"TAGSTREAM_PARTITIONS": "2", "TAGSTREAM_TAGS": str(definitions(directory))},
        ).start()
        self.worker.wait_ready()
        history = list(self.shop.history(now_ms()))
        for first in range(0, len(history), BATCH):
            assert post(self.worker, history[first : first + BATCH])
        wait_until(self.caught_up, "the history to be applied")
        self.scraped = self.worker.get("/metrics")[1]
        # Users are surveyed once a day, the first time perhaps before there were any; and counters
        # that begin again are what Prometheus has to live with.
        self.worker.stop()
        self.worker.start().wait_ready()
        wait_until(self.caught_up, "the worker to go on")
        instance = f"127.0.0.1:{self.worker.port}"
        self.prometheus = Prometheus(directory, instance, before(self.scraped, now_ms(), instance))
        wait_until(self.prometheus.ready, "Prometheus to be ready")

    def caught_up(self) -> bool:
        """All is applied, all deadlines have fired, and users have been looked at once."""
        metric = self.worker.metric
        return (
            metric("tagstream_partition_lag") == 0
            and metric("tagstream_deadline_overdue_seconds") == 0
            and metric("tagstream_stable_users") >= 0
        )

    def go_on(self) -> None:
        """A moment's load: events, and look-ups of users known and unknown."""
        assert post(self.worker, self.shop.now(now_ms(), 20))
        for user in ("u1", "u2", "nobody"):
            self.worker.get(f"/users/{user}")
        self.worker.get("/tags/value_tier/users?value=basic")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    ring = Ring(tmp_path_factory.mktemp("ring"))
    yield ring
    ring.prometheus.stop()
    ring.worker.stop()


def asked(expression: str) -> str:
    """A panel's expression as Grafana would ask it, everything chosen."""
    for variable, value in (
        ("$__rate_interval", "1m"),
        ("$__range", "8d"),
        ("$namespace", ".*"),
        ("$tag", ".*"),
    ):
        expression = expression.replace(variable, value)
    return expression


def test_every_panel_has_data(ring: Ring) -> None:
    """Every expression of every panel: a number at least, and one that is one."""
    questions = {
        f"{row.title}: {panel.title}: {legend}": asked(dashboard.chosen(expression))
        for row in dashboard.ROWS
        for panel in row.panels
        for expression, legend in panel.queries
    }
    empty: list[str] = []

    def all_answered() -> bool:
        ring.go_on()
        empty[:] = [
            name
            for name, expression in questions.items()
            if not any(math.isfinite(value) for value in ring.prometheus.values(expression))
        ]
        return not empty

    try:
        wait_until(all_answered, "every panel to have data", within_s=60)
    except AssertionError as error:
        error.add_note(f"without data: {empty}")
        raise


@pytest.mark.parametrize("name", alerts())
def test_prometheus_can_evaluate_every_alert(ring: Ring, name: str) -> None:
    """No error and no warning; what it says is for the unit tests."""
    ring.prometheus.ask("query", query=alerts()[name]["expr"])


def test_the_rules_are_evaluated_in_time_and_what_is_recorded_is_there(ring: Ring) -> None:
    """What Prometheus itself says of them."""
    listed = [rule for group in ring.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(listed) == len(rules())
    assert {rule["health"] for rule in listed} == {"ok"}
    recorded = {rule["record"] for rule in rules() if "record" in rule} - RARE
    wait_until(lambda: all(map(ring.prometheus.values, recorded)), "what is recorded", within_s=60)


def test_a_worker_under_load_is_all_right(ring: Ring) -> None:
    """Nothing fires but what always does."""
    firing = ring.prometheus.ask("query", query='ALERTS{alertstate="firing"}')["result"]
    assert {series["metric"]["alertname"] for series in firing} == {"TagstreamWatchdog"}


def test_promtool_has_nothing_to_say_about_the_metrics(ring: Ring) -> None:
    """Names, units, help and types."""
    assert promtool("check", "metrics", text=ring.scraped) == (0, "")


def test_every_panel_is_about_users_who_are_named_nowhere(ring: Ring) -> None:
    """No user id is in a label."""
    assert '"u1"' not in ring.scraped
