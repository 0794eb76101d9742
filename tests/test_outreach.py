"""Outreach: hours to the millisecond, caps of days and months, consent, and against a recount."""

from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.dedup import MemoryBlocks
from tables.outreach import CHANNELS
from tables.table import NEVER, Outputs
from tests.recount import Told, agree, comparisons, in_month, streams, within
from tests.solo import Solo, received
from tests.strategies import DAY_MS, HOUR_MS


def recipient(*tags: Any, **content: Any) -> Solo:
    """A user who is sent things."""
    return Solo(*tags, domain="outreach", **content)


def features(told: list[Told], clock: int, today: date) -> dict[str, Any]:
    """From all events."""

    def reaches(events: list[Told], channel: str) -> list[Told]:
        return [e for e in events if e.kind == "reach" and e.fields["channel"] == channel]

    recent = [event.kind for event in within(told, today, 30)]
    unanswered = 0
    for event in told:
        unanswered = 0 if event.kind == "response" else unanswered + (event.kind == "reach")
    found: dict[str, Any] = {
        "push_3h": sum(e.ts > clock - 3 * HOUR_MS for e in reaches(told, "app_push")),
        "push_day": len(reaches(within(told, today, 1), "app_push")),
        "sms_48h": sum(e.ts > clock - 48 * HOUR_MS for e in reaches(told, "sms")),
        "sms_month": len(reaches(in_month(told, today), "sms")),
        "reaches_30d": recent.count("reach"),
        "responses_30d": recent.count("response"),
        "response_rate_30d": recent.count("response") / recent.count("reach")
        if "reach" in recent
        else 0,
        "unanswered": unanswered,
    }
    for channel in CHANNELS:
        words = [e for e in told if "subscribe" in e.kind and e.fields["channel"] == channel]
        last = max(reversed(words), key=lambda event: event.ts, default=None)
        found[f"opted_out_{channel}"] = last is not None and last.kind == "unsubscribe"
    return found


def leaves(event: Told) -> list[int]:
    """When a reach leaves its window of hours."""
    hours = {"app_push": [3], "sms": [48]}.get(event.fields["channel"], [])
    return [event.ts + span * HOUR_MS for span in hours if event.kind == "reach"]


EVENTS = st.builds(
    lambda kind, channel: {"type": kind, "channel": channel},
    st.sampled_from(["reach"] * 6 + ["response", "response", "unsubscribe", "subscribe"]),
    st.sampled_from(["app_push"] * 4 + ["sms"] * 4 + ["email", "phone"]),
)
NUMBERS: dict[str, list[float]] = {
    "push_3h": [0, 1, 2, 2.5],
    "push_day": [0, 1, 2],
    "sms_48h": [0, 1, 2],
    "sms_month": [0, 1, 2],
    "reaches_30d": [0, 1, 3],
    "responses_30d": [0, 1],
    "response_rate_30d": [0, 0.5, 1],
    "unanswered": [0, 2],
    "opted_out_sms": [0, 1],
}


@settings(max_examples=150, deadline=None)
@given(streams(EVENTS), comparisons(NUMBERS), st.sampled_from([0, DAY_MS]), st.integers())
def test_outreach_equals_a_recount(stream, tags, delay_ms, seed):
    """Features, clock and changes, in any order of arrival."""
    agree("outreach", features, leaves, stream, tags, delay_ms, seed)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York"])
@pytest.mark.parametrize(
    ("feature", "channel", "hours"), [("push_3h", "app_push", 3), ("sms_48h", "sms", 48)]
)
def test_a_window_of_hours_is_open_on_the_left(feature, channel, hours, zone):
    """At exactly so many hours a reach is out; also where the clocks were changed in between."""
    solo = recipient(f"{feature} >= 1", timezone=zone)
    start_ms = solo.ms("2025-03-08 23:30")

    def at(ts_ms: int) -> str:
        return solo.table.calendar.iso(ts_ms)

    span_ms = hours * HOUR_MS
    for ts_ms in (start_ms, start_ms + span_ms - 1):
        event = {"event_id": at(ts_ms), "user_id": "u1", "type": "reach", "ts": ts_ms}
        event |= {"channel": channel}
        solo.table.apply(solo.user, received(event, "outreach"), -NEVER, solo.out)
    assert solo.says(feature) == 2
    solo.table.fire(solo.user, start_ms + span_ms, solo.out)
    solo.table.fire(solo.user, start_ms + 2 * span_ms - 2, solo.out)
    assert len(solo.out.changes) == 1
    solo.table.fire(solo.user, start_ms + 2 * span_ms - 1, solo.out)
    assert solo.out.changes[-1]["effective_at"] == at(start_ms + 2 * span_ms - 1)
    assert solo.says(feature) == 0


def test_an_event_at_the_instant_of_a_deadline_comes_after_it():
    """The first push has left when the second is counted."""
    solo = recipient("push_3h >= 1")
    solo.tell("2025-04-29 09:00", "reach", channel="app_push")
    solo.tell("2025-04-29 12:00", "reach", channel="app_push")
    assert solo.changes == [
        (True, "2025-04-29T09:00:00", "event"),
        (False, "2025-04-29T12:00:00", "time"),
        (True, "2025-04-29T12:00:00", "event"),
    ]


def test_a_late_push_counts_while_inside_the_window():
    """And leaves three hours after it was sent, not after it came."""
    solo = recipient("push_3h >= 2")
    solo.tell("2025-04-29 11:00", "reach", channel="app_push")
    assert solo.tell("2025-04-29 09:00", "reach", channel="app_push") == "late"
    assert solo.says("push_3h") == 2
    assert solo.tell("2025-04-29 08:00", "reach", channel="app_push") == "late"
    assert solo.says("push_3h") == 2
    assert solo.deadline == "2025-04-29T12:00:00"
    assert solo.says("push_day") == 3


def test_pushes_of_the_day_end_at_local_midnight():
    """To the millisecond, in a zone whose day has 23 hours."""
    solo = recipient("push_day >= 2", timezone="America/New_York")
    solo.tell("2025-03-08 23:59:59.999", "reach", channel="app_push")
    solo.tell("2025-03-09 00:00", "reach", channel="app_push")
    assert solo.says("push_day") == 1
    solo.tell("2025-03-09 23:59:59.999", "reach", channel="app_push")
    solo.tell("2025-03-09 12:00", "reach", channel="sms")
    assert solo.says("push_day") == 2
    solo.wait("2025-03-10 00:00")
    assert solo.changes[-1] == (False, "2025-03-10T00:00:00", "time")


def test_sms_of_the_month_end_with_it():
    """At the first instant of the next."""
    solo = recipient("sms_month >= 2")
    solo.tell("2025-04-01 00:00", "reach", channel="sms")
    solo.tell("2025-04-30 23:59:59.999", "reach", channel="sms")
    assert solo.says("sms_month") == 2
    solo.wait("2025-05-01 00:00")
    assert solo.says("sms_month") == 0
    assert solo.changes[-1] == (False, "2025-05-01T00:00:00", "time")


def test_a_month_of_31_days_is_kept_whole():
    """Although other windows have 30, and many days were folded before it."""
    solo = recipient()
    day_ms = solo.ms("2024-10-01 12:00")
    while day_ms < solo.ms("2025-01-31 13:00"):
        solo.tell(solo.table.calendar.iso(day_ms)[:23], "reach", channel="sms")
        day_ms += DAY_MS
    assert len(solo.user.days) < 31 + 70
    assert solo.says("sms_month") == 31


@pytest.mark.parametrize(
    ("kinds", "changes"),
    [
        (
            ["reach", "reach", "response"],  # one of two, one of one, nothing
            [(True, "2025-05-01T00:00:00", "time"), (False, "2025-05-02T00:00:00", "time")],
        ),
        (
            ["response", "response", "reach"],
            [(True, "2025-04-03T09:00:00", "event"), (False, "2025-05-02T00:00:00", "time")],
        ),
    ],
)
def test_the_response_rate_changes_as_either_side_leaves(kinds, changes):
    """A day each, from the first of April on."""
    solo = recipient("response_rate_30d >= 1")
    for day, kind in enumerate(kinds, 1):
        solo.tell(f"2025-04-0{day} 09:00", kind, channel="email")
    solo.wait("2025-06-01")
    assert solo.changes == changes


def test_unanswered_counts_in_order_of_arrival():
    """A late response still answers all that came before it, on any channel."""
    solo = recipient("unanswered >= 3")
    for day, channel in ("28", "sms"), ("29", "email"), ("30", "store"):
        solo.tell(f"2025-04-{day} 09:00", "reach", channel=channel)
    assert solo.says("unanswered") == 3
    assert solo.tell("2025-04-27 09:00", "response", channel="phone") == "late"
    assert solo.says("unanswered") == 0
    solo.tell("2025-04-26 09:00", "reach", channel="sms")
    assert solo.says("unanswered") == 1
    assert [change[0] for change in solo.changes] == [True, False]


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_latest_word_decides_who_is_opted_out(channel):
    """By event time, then by arrival; each channel for itself."""
    solo = recipient(f"opted_out_{channel}")
    other = next(name for name in CHANNELS if name != channel)
    assert solo.says(f"opted_out_{channel}") is False
    solo.tell("2025-04-29 09:00", "unsubscribe", channel=channel)
    assert solo.says(f"opted_out_{channel}") is True
    assert solo.says(f"opted_out_{other}") is False
    solo.tell("2025-04-28 09:00", "subscribe", channel=channel)
    assert solo.says(f"opted_out_{channel}") is True
    solo.tell("2025-04-29 09:00", "subscribe", channel=channel)
    assert solo.says(f"opted_out_{channel}") is False
    assert [change[0] for change in solo.changes] == [True, False]


def test_only_what_a_tag_reads_has_a_deadline():
    """And only where a number it is compared with can be reached."""
    for condition, deadline in (
        ("reaches_30d > 5", None),
        ("push_3h > 5", None),
        ("push_3h > 1.5", "2025-04-29T12:00:00"),
        ("push_3h >= 1", "2025-04-29T12:00:00"),
        ("push_3h > 0", "2025-04-29T13:00:00"),
        ("push_3h + sms_48h > 1", "2025-04-29T12:00:00"),
        ("sms_48h > 0", "2025-05-01T11:00:00"),
    ):
        solo = recipient(condition)
        solo.tell("2025-04-29 09:00", "reach", channel="app_push")
        solo.tell("2025-04-29 10:00", "reach", channel="app_push")
        solo.tell("2025-04-29 11:00", "reach", channel="sms")
        assert solo.deadline == deadline, condition


@pytest.mark.parametrize(
    ("time", "clock"),
    [
        ("2025-04-29 11:59", "2025-04-29T09:30:00"),
        ("2025-04-29 12:00", "2025-04-29T12:00:00"),
        ("2025-04-29 23:59", "2025-04-29T12:00:00"),
        ("2025-04-30 00:00", "2025-04-30T00:00:00"),
        ("2025-05-01 09:29", "2025-05-01T00:00:00"),
        ("2025-05-01 09:30", "2025-05-01T09:30:00"),
        ("2025-05-20 12:00", "2025-05-01T09:30:00"),
    ],
)
def test_hours_move_the_clock_read_or_not(time, clock):
    """The clock before a late event is the last instant at which any feature changed."""
    solo = recipient("reaches_30d > 9")
    solo.tell("2025-04-29 09:00", "reach", channel="app_push")
    solo.tell("2025-04-29 09:30", "reach", channel="sms")
    solo.tell("2025-04-29 08:30", "unsubscribe", channel="sms", time=time)
    assert solo.clock == clock


def test_a_user_of_a_hundred_thousand_reaches_stays_a_small_record():
    """Within 48 hours, ids included; time passes exactly; erasure leaves nothing."""
    solo, out = recipient("sms_48h > 5"), Outputs()
    solo.table.blocks = blocks = MemoryBlocks()
    start_ms, reaches = solo.ms("2025-04-28 00:00"), 100_000
    for number in range(reaches):
        ts_ms = start_ms + number * 1_700
        event = {"event_id": f"e{number}", "user_id": "u1", "ts": ts_ms}
        event |= {"type": "reach", "channel": "sms"}
        solo.table.apply(solo.user, received(event, "outreach"), ts_ms - 60_000, out)
    assert solo.says("sms_48h") == reaches
    assert len(solo.table.encode(solo.user)) < 10_000
    assert max(len(msgspec.msgpack.encode(row)) for row in blocks.rows.values()) < 10_000

    copy, out = solo.table.decode(solo.table.encode(solo.user)), Outputs()  # as a look-up does
    left_ms = start_ms + (reaches - 6) * 1_700 + 48 * HOUR_MS
    solo.table.fire(copy, left_ms - 1, out)
    assert not out.changes
    solo.table.fire(copy, left_ms, out)
    assert copy.clock_ms == left_ms
    assert [change["features"] for change in out.changes] == [{"sms_48h": 5}]

    solo.tell("2025-04-30 00:00:00.001", "reach", channel="sms")
    assert solo.says("sms_48h") == reaches
    solo.tell("2025-05-02 00:00", "erase")
    assert not blocks.rows


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "reach"},
        {"type": "reach", "channel": "fax"},
        {"type": "response", "channel": None},
        {"type": "unsubscribe", "channel": 1},
        {"type": "subscribe"},
    ],
)
def test_events_are_checked_when_decoded(fields):
    """A channel is one of seven, and every event has one."""
    with pytest.raises(msgspec.ValidationError):
        received({"event_id": "e1", "user_id": "u1", "ts": 0} | fields, "outreach")
