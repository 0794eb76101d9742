"""Service, engagement and outreach in the running service: events in, changes out, on disk too."""

from pathlib import Path
from typing import Any

from tests.inprocess import InProcess

TAGS: dict[str, Any] = {
    "version": 1,
    "timezone": "Asia/Shanghai",
    "allowed_delay": "0s",
    "tags": [
        {"name": "needs_service", "domain": "service", "when": "contacts_month > 2"},
        {
            "name": "content",
            "domain": "engagement",
            "when": "avg_watch_seconds_90d > 300 and favorites_90d > 1",
        },
        {"name": "rested", "domain": "outreach", "when": "push_3h == 0 and reaches_30d > 0"},
        {"name": "busy", "domain": "outreach", "when": "push_3h > 150"},
        {"name": "no_sms", "domain": "outreach", "when": "opted_out_sms"},
    ],
}


def changes(worker: InProcess, *tags: str) -> list[tuple[Any, ...]]:
    """Tag, value, instant to the minute and kind of cause of every change of these tags."""
    return [
        (change["tag"], change["value"], change["effective_at"][:16], change["cause"]["kind"])
        for _, change in worker.rows("tag-changes")
        if change["tag"] in tags
    ]


async def test_a_contact_too_many_in_a_month(tmp_path: Path):
    """The tag comes with the third and leaves with the month: another user tells the time."""
    async with InProcess(tmp_path, TAGS) as worker:
        for day in 29, 30, 31:
            await worker.send(f'u contact 2025-03-{day}T09:00 {{"kind": "consult"}}')
        await worker.send("v contact 2025-04-01T00:00")
        assert changes(worker, "needs_service") == [
            ("needs_service", True, "2025-03-31T09:00", "event"),
            ("needs_service", False, "2025-04-01T00:00", "time"),
        ]
        assert worker.counted("tagstream_events_total") == {"service applied contact": 4}


async def test_engagement_is_kept_through_a_restart(tmp_path: Path):
    """Sums go on where they were; what cannot be an event is a dead letter."""
    async with InProcess(tmp_path, TAGS) as worker:
        await worker.send(
            'u watch 2025-04-01T09:00 {"seconds": 600}',
            "u favorite 2025-04-02T09:00",
            'u review 2025-04-02T09:01 {"rating": 6}',
        )
    async with InProcess(tmp_path, TAGS) as worker:
        await worker.send(
            'u favorite 2025-04-03T09:00 {"event_id": "new1"}',
            'u watch 2025-04-04T09:00 {"event_id": "new2", "seconds": 0}',
        )
        assert [
            (change["value"], change["features"]) for _, change in worker.rows("tag-changes")
        ] == [
            (True, {"avg_watch_seconds_90d": 600, "favorites_90d": 2}),
            (False, {"avg_watch_seconds_90d": 300, "favorites_90d": 2}),
        ]
        letters = [letter for _, letter in worker.rows("dead-letters")]
        assert [(letter["code"], letter["detail"][:7]) for letter in letters] == [
            ("invalid", "rating:")
        ]


async def test_two_hundred_pushes_in_three_hours(tmp_path: Path):
    """More than a record holds: rows in the store, read back after a restart, exact to the end."""
    async with InProcess(tmp_path, TAGS) as worker:
        reach = 'u reach 2025-04-01T{:02}:{:02} {{"channel": "app_push"}}'
        await worker.send(*(reach.format(9 + n // 60, n % 60) for n in range(120)))
        await worker.send(*(reach.format(9 + n // 60, n % 60) for n in range(80)))
    async with InProcess(tmp_path, TAGS) as worker:
        await worker.send('v response 2025-04-01T13:58 {"channel": "sms"}')
        await worker.send('v unsubscribe 2025-04-01T13:59 {"channel": "sms"}')
        assert changes(worker, "busy", "no_sms", "rested") == [
            ("busy", True, "2025-04-01T10:59", "event"),
            ("busy", False, "2025-04-01T12:24", "time"),
            ("no_sms", True, "2025-04-01T13:59", "event"),
            ("rested", True, "2025-04-01T13:59", "time"),  # another user's: his time came with it
        ]
        await worker.send("u erase 2025-04-02T09:00")
        assert changes(worker, "rested")[-1] == ("rested", False, "2025-04-02T09:00", "erase")
        newest = {
            record.key: record.value
            for record in worker.service.broker.read(
                "tagstream-state-changelog", 0, 0, max_records=10_000
            )
        }
        assert any(key.startswith(b"bo") for key in newest)
        assert not any(value for key, value in newest.items() if key.startswith(b"bo"))
