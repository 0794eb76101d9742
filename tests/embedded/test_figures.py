"""What operations count, counted by the whole app as events pass."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stream import rules
from stream.app import Tagstream
from stream.domains import discover
from stream.settings import Settings

TAGS: dict[str, Any] = {
    "version": 1,
    "timezone": "Asia/Shanghai",
    "attributes": ["region"],
    "breakdown": "tier",
    "churn": {"mode": "silence", "after": "30d", "lead": "3d"},
    "tags": [
        {"name": "tier", "domain": "purchases", "cases": {"high": "spend_total > 100"}},
        {"name": "buyer", "domain": "purchases", "when": "orders_30d > 0"},
    ],
}


class Worker:
    """The service in this process, with nothing but events to move time."""

    def __init__(self, directory: Path, **changed: Any) -> None:
        domains = discover()
        options = {"partitions": "1", "time": "events", "data_dir": str(directory)}
        definitions = rules.parse(yaml.safe_dump(TAGS | changed), "tags.yaml", domains)
        self.service = Tagstream(Settings.load(options, {}), definitions, domains)
        self.sent = 0

    async def __aenter__(self) -> "Worker":
        await self.service.start(web=False)
        await self.service.until_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()

    async def send(self, *events: str, topic: str = "purchases") -> None:
        """Events of one user each, as ``user type time`` and further JSON fields."""
        rows = []
        for event in events:
            user, kind, at, *fields = event.split(maxsplit=3)
            self.sent += 1
            content = {
                "event_id": f"e{self.sent}",
                "user_id": user,
                "type": kind,
                "ts": f"{at}:00+08:00",
            } | (orjson.loads(fields[0]) if fields else {})
            rows.append((user.encode(), orjson.dumps(content)))
        self.service.broker.append_many({(topic, 0): rows})
        await self.service.drained()

    def counted(self, name: str) -> dict[str, float]:
        """The samples of a metric that are not 0, by their label values."""
        return {
            " ".join(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.service.metrics.text().decode())
            for sample in family.samples
            if sample.name == name and sample.value
        }

    def rows(self, topic: str) -> list[tuple[bytes | None, Any]]:
        """Keys and decoded values of everything on a topic."""
        return [
            (record.key, record.value and orjson.loads(record.value))
            for record in self.service.broker.read(topic, 0, 0, max_records=10_000)
        ]


@pytest.fixture
async def worker(tmp_path: Path):
    async with Worker(tmp_path) as running:
        yield running


async def test_a_user_is_active_once_in_a_day_a_week_and_a_month(worker):
    """Also where a day becomes known late; weeks begin on Monday."""
    await worker.send(
        'u1 order 2025-04-30T09:00 {"amount": 1}',  # a Wednesday
        'u1 order 2025-04-30T21:00 {"amount": 1}',
        'u1 order 2025-05-02T09:00 {"amount": 1}',
        'u1 order 2025-05-01T09:00 {"amount": 1}',
        'u1 order 2025-05-01T10:00 {"amount": 1}',
        'u1 order 2025-05-05T09:00 {"amount": 1}',
        'u2 order 2025-05-05T09:00 {"amount": 1}',
    )
    assert worker.counted("tagstream_active_users_total") == {"day": 5, "week": 3, "month": 3}


async def test_who_signed_up_is_counted_when_he_is_active_1_7_and_30_days_later(worker):
    """Exactly then, once; also where it is known late that he signed up, or that he was."""
    await worker.send(
        "u1 updated 2025-04-01T08:00",
        "u1 registered 2025-04-01T09:00",
        "u1 registered 2025-04-03T09:00",
        "u1 updated 2025-04-02T09:00",
        "u1 updated 2025-04-02T10:00",
        "u1 updated 2025-04-08T09:00",
        "u1 updated 2025-04-09T09:00",
        "u2 updated 2025-04-05T09:00",
        "u2 registered 2025-04-04T09:00",
    )
    assert worker.counted("tagstream_registered_users_total") == {"": 2}
    assert worker.counted("tagstream_retained_users_total") == {"1": 2, "7": 1}


async def test_orders_and_spend_are_counted_by_the_value_of_a_tag(worker):
    """The value that the user has once the event is applied; those who churned too."""
    await worker.send(
        'u1 order 2025-04-01T09:00 {"amount": 99.5}',
        'u1 order 2025-04-02T09:00 {"amount": 10.25}',
        'u1 refund 2025-04-02T10:00 {"amount": 20}',
        'u2 order 2025-06-01T09:00 {"amount": 5}',
    )
    assert worker.counted("tagstream_orders_total") == {"null": 2, "high": 1}
    assert worker.counted("tagstream_spend_yuan_total") == {"null": 104.5, "high": 10.25}
    assert worker.counted("tagstream_refunds_yuan_total") == {"null": 20}
    assert worker.counted("tagstream_churned_users_total") == {"null": 1}


async def test_events_that_cannot_be_true_are_counted_and_applied(worker):
    """Refunds of nothing, spend below nothing, doings before signing up, contradictions."""
    await worker.send(
        "u1 registered 2025-04-02T09:00",
        'u1 refund 2025-04-02T10:00 {"amount": 20}',
        'u1 order 2025-04-02T11:00 {"amount": 10}',
        'u1 refund 2025-04-02T12:00 {"amount": 20}',
        'u1 order 2025-04-01T09:00 {"amount": 10, "coupon": false}',
        'u1 updated 2025-04-02T13:00 {"attributes": {"region": "north"}}',
        'u1 updated 2025-04-02T13:00 {"attributes": {"region": "south"}}',
        'u1 updated 2025-04-02T13:00 {"attributes": {"region": "south"}}',
    )
    assert worker.counted("tagstream_inaccurate_events_total") == {
        "refund_without_order purchases": 1,
        "negative_spend purchases": 1,
        "before_registration purchases": 1,
    }
    assert worker.counted("tagstream_inconsistent_events_total") == {"attribute purchases": 1}
    assert worker.counted("tagstream_optional_fields_total") == {
        "purchases coupon true": 1,
        "purchases coupon false": 1,
        "purchases attributes true": 3,
        "purchases attributes false": 1,
    }


async def test_users_tagged_users_and_how_long_tags_were_held(worker):
    """Gauges of now, exact through a restart; a tag that ends says how long it was held."""
    await worker.send(
        'u1 order 2025-04-01T09:00 {"amount": 1}',
        "u2 registered 2025-04-01T10:00",
        'u3 order 2025-06-01T09:00 {"amount": 101}',
    )
    assert worker.counted("tagstream_users") == {"": 3}
    assert worker.counted("tagstream_tagged_users") == {"": 1}
    assert worker.counted("tagstream_tag_users") == {"tier high": 1, "buyer true": 1}
    held_s = (30 - 9 / 24) * 86_400  # until the midnight at which the order leaves
    assert worker.counted("tagstream_tag_dwell_seconds_sum") == {"buyer": held_s}


async def test_tags_that_were_not_changed_for_a_month_are_stable(tmp_path):
    """Looked at once a day, by time that events move."""
    async with Worker(tmp_path) as worker:
        await worker.send('u1 order 2025-04-01T09:00 {"amount": 101}')
        await worker.send('u2 order 2025-05-02T09:00 {"amount": 101}')
        await worker.send("u3 registered 2025-05-05T09:00")
    async with Worker(tmp_path) as worker:
        await worker.send("u3 updated 2025-05-05T10:00")
        await worker.send("u3 updated 2025-05-05T11:00")
        assert worker.counted("tagstream_stable_users") == {"tier": 1}


async def test_an_erased_user_leaves_no_count_behind(worker):
    """Populations fall, profiles and what is compacted go, nothing comes back late."""
    await worker.send(
        'u1 order 2025-04-01T09:00 {"amount": 101}',
        "u1 erase 2025-04-02T09:00",
        'u1 order 2025-04-02T08:00 {"amount": 101}',
    )
    assert worker.counted("tagstream_users") == worker.counted("tagstream_tag_users") == {}
    assert worker.rows("user-tags")[-1] == (b"u1", None)
    newest = {
        record.key: record.value
        for record in worker.service.broker.read(
            "tagstream-state-changelog", 0, 0, max_records=10_000
        )
    }
    kept = {key: value for key, value in newest.items() if b"u1" in key}
    assert len(kept) == 2  # the record and the profile
    assert set(kept.values()) == {None}
    events = worker.counted("tagstream_events_total")
    assert events["purchases erased order"] == 1
