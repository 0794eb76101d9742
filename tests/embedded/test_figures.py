"""What operations count, counted by the whole app as events pass."""

from pathlib import Path
from typing import Any

import pytest

from stream.domains import discover
from tests.inprocess import InProcess

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


@pytest.fixture
async def worker(tmp_path: Path):
    async with InProcess(tmp_path, TAGS) as running:
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


async def test_a_look_at_every_user_once_a_day(tmp_path):
    """Who has had a tag unchanged for a month, and who is in its control group."""
    buyer = {"name": "buyer", "domain": "purchases", "when": "orders_total > 0", "control": 0.5}
    tags = TAGS | {"tags": [TAGS["tags"][0], buyer]}
    async with InProcess(tmp_path, tags) as worker:
        for number in range(20):
            await worker.send(f'u{number} order 2025-04-01T09:00 {{"amount": 101}}')
        await worker.send('v order 2025-05-02T09:00 {"amount": 101}')
        controls = sum(
            "control" in change
            for key, change in worker.rows("tag-changes")
            if change["tag"] == "buyer"
        )
    async with InProcess(tmp_path, tags) as worker:
        await worker.send('w order 2025-05-05T10:00 {"amount": 1}')
        assert worker.counted("tagstream_stable_users") == {"tier": 20, "buyer": 20}
        counted = worker.counted("tagstream_tag_control_users")
        assert 0 < counted.pop("buyer true") == controls < 21
        assert not counted


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
    assert len(kept) == len(discover()) + 1  # the record of each domain, and the profile
    assert set(kept.values()) == {None}
    events = worker.counted("tagstream_events_total")
    assert events["purchases erased order"] == 1


async def test_a_warning_that_an_erasure_ends_is_counted_and_never_scored(worker):
    """Neither right nor wrong; nothing more is said of it."""
    await worker.send(
        'u1 order 2025-04-01T09:00 {"amount": 1}',
        "u2 registered 2025-04-29T09:00",
        "u1 erase 2025-04-29T10:00",
        "u2 updated 2025-06-01T09:00",
    )
    counts = worker.counted("tagstream_churn_warnings_total")
    assert {key.split()[-1]: number for key, number in counts.items()} == {"raised": 1, "erased": 1}
    assert [record["status"] for _, record in worker.rows("churn-warnings")] == ["raised"]
