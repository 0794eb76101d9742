"""Engagement: every feature at its boundaries, exact sums and means, long histories, a recount."""

from datetime import date
from fractions import Fraction
from math import inf
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.events.engagement import milliseconds
from tables.table import NEVER, Outputs
from tests.recount import Told, agree, comparisons, streams, within
from tests.solo import Solo, received
from tests.strategies import DAY_MS, MINUTE_MS

COUNTED = {
    "watches": "watch",
    "favorites": "favorite",
    "reviews": "review",
    "shares": "share",
    "views": "view",
    "searches": "search",
    "carts": "cart",
}


def visitor(*tags: Any, **content: Any) -> Solo:
    """A user who watches and looks around."""
    return Solo(*tags, domain="engagement", **content)


def exact(number: float) -> Fraction:
    """A number as written."""
    return Fraction(str(number))


def features(told: list[Told], clock: int, today: date) -> dict[str, Any]:
    """From all events."""
    found: dict[str, Any] = {}
    for days in (30, 90):
        recent = within(told, today, days)
        for name, kind in COUNTED.items():
            found[f"{name}_{days}d"] = sum(event.kind == kind for event in recent)
        watched = [round(exact(e.fields["seconds"]) * 1000) for e in recent if e.kind == "watch"]
        found[f"watch_seconds_{days}d"] = float(Fraction(sum(watched), 1000))
        found[f"avg_watch_seconds_{days}d"] = (
            float(Fraction(sum(watched), 1000 * len(watched))) if watched else 0
        )
    ratings = [exact(e.fields["rating"]) for e in within(told, today, 90) if "rating" in e.fields]
    found["avg_rating_90d"] = float(sum(ratings) / len(ratings)) if ratings else 0
    for days in (7, 30, 90):
        found[f"active_days_{days}d"] = len({event.day for event in within(told, today, days)})
    found["days_since_active"] = min(((today - e.day).days for e in told), default=inf)
    return found


EVENTS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.sampled_from(["favorite", "share", "view", "search", "cart", "review"]).map(
        lambda kind: {"type": kind}
    ),
    st.sampled_from([0, 0.0005, 1, 59.9994, 600]).map(
        lambda seconds: {"type": "watch", "seconds": seconds}
    ),
    st.one_of(st.sampled_from([1, 4.1, 4.3, 5]), st.floats(1, 5)).map(
        lambda rating: {"type": "review", "rating": rating}
    ),
)
NUMBERS: dict[str, list[float]] = {
    "watches_30d": [0, 1, 2],
    "watches_90d": [0, 1],
    "watch_seconds_30d": [0, 1, 60],
    "watch_seconds_90d": [0, 60.5],
    "avg_watch_seconds_30d": [0, 1, 300],
    "avg_watch_seconds_90d": [0, 300],
    "favorites_90d": [0, 1],
    "reviews_30d": [0, 1, 2],
    "shares_90d": [0, 1],
    "views_30d": [0],
    "searches_30d": [0],
    "carts_30d": [0, 1],
    "avg_rating_90d": [0, 4.2],
    "active_days_7d": [0, 1, 2],
    "active_days_30d": [0, 1, 2.5],
    "active_days_90d": [0, 3],
    "days_since_active": [0, 1, 7, 30],
}


@settings(max_examples=150, deadline=None)
@given(streams(EVENTS), comparisons(NUMBERS), st.sampled_from([0, DAY_MS]), st.integers())
def test_engagement_equals_a_recount(stream, tags, delay_ms, seed):
    """Features, clock and changes, in any order of arrival."""
    agree("engagement", features, lambda event: [], stream, tags, delay_ms, seed)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York"])
@pytest.mark.parametrize("days", [30, 90])
@pytest.mark.parametrize("name", COUNTED)
def test_a_window_covers_today_and_the_days_before_it(name, days, zone):
    """The first instant of the oldest day is in, the last of the day before is out."""
    solo = visitor(timezone=zone)
    oldest = date.fromordinal(date(2025, 4, 30).toordinal() - days + 1)
    before = date.fromordinal(oldest.toordinal() - 1)
    fields: dict[str, Any] = {"seconds": 2.5} if name == "watches" else {}
    for at in f"{before} 23:59:59.999", f"{oldest} 00:00", "2025-04-30 12:00":
        solo.tell(at, COUNTED[name], **fields)
    assert solo.says(f"{name}_{days}d") == 2
    assert solo.says(f"watch_seconds_{days}d") == (5 if fields else 0)
    assert solo.says(f"avg_watch_seconds_{days}d") == (2.5 if fields else 0)


@pytest.mark.parametrize("days", [7, 30, 90])
def test_active_days_are_days_with_any_event(days):
    """However many there are on a day."""
    solo = visitor()
    oldest = date.fromordinal(date(2025, 4, 30).toordinal() - days + 1)
    before = date.fromordinal(oldest.toordinal() - 1)
    for at in f"{before} 23:59:59.999", f"{oldest} 00:00", f"{oldest} 00:01", "2025-04-30 12:00":
        solo.tell(at, "view")
    assert solo.says(f"active_days_{days}d") == 2


def test_days_since_active_counts_from_the_latest_by_event_time():
    """A late one changes nothing; before the first it is infinite."""
    solo = visitor("days_since_active >= 2")
    assert solo.says("days_since_active") == inf
    solo.tell("2025-04-28 23:59:59.999", "search")
    solo.tell("2025-04-27 09:00", "cart")
    solo.wait("2025-04-30 00:00")
    assert solo.says("days_since_active") == 2
    assert solo.changes == [(True, "2025-04-30T00:00:00", "time")]


def test_a_late_event_counts_on_its_own_day():
    """Also in the means."""
    solo = visitor()
    solo.tell("2025-04-29 09:00", "watch", seconds=10)
    assert solo.tell("2025-04-28 09:00", "watch", seconds=20) == "late"
    assert solo.says("avg_watch_seconds_30d") == 15
    assert solo.says("active_days_7d") == 2


@pytest.mark.parametrize(
    ("ratings", "mean"),
    [
        ([], 0),
        ([4], 4),
        ([4.1, 4.3], 4.2),
        ([4.1] * 3, 4.1),
        ([1.1, 2.2, 3.3], 2.2),
        ([1, 5, 5], 11 / 3),
        ([1.0000000000000002, 1, 1.0000000000000002], 1.0000000000000002),
        ([4.999999999999999] * 2, 4.999999999999999),
    ],
)
def test_the_mean_rating_is_exact(ratings, mean):
    """Of ratings as written, rounded once; a review without a rating does not count."""
    solo = visitor()
    solo.tell("2025-04-01 09:00", "review")
    for number, rating in enumerate(ratings):
        solo.tell(f"2025-04-{number + 1:02} 10:00", "review", rating=rating)
    assert solo.says("avg_rating_90d") == mean
    assert solo.says("reviews_90d") == len(ratings) + 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, 0), (0.0004, 0), (0.0005, 0), (0.0015, 2), (1.0005, 1000), (0.0285, 28), (1e9, 10**12)],
)
def test_seconds_become_whole_milliseconds(seconds, expected):
    """A half, as written, goes to the even one."""
    assert milliseconds(seconds) == expected


@given(st.floats(0, 1e9))
def test_milliseconds_round_what_is_written(seconds):
    """Whatever a binary fraction makes of it."""
    assert milliseconds(seconds) == round(exact(seconds) * 1000)


def test_sums_stay_exact_and_keepable_over_a_long_history():
    """Ratings of all digits, watching of ten years a time."""
    solo = visitor()
    for number in range(3_000):
        at = solo.table.calendar.iso(solo.ms("2025-04-01 09:00") + number * MINUTE_MS)[:23]
        solo.tell(at, "review", rating=4.999999999999999)
        solo.tell(at, "watch", seconds=1e9)
    assert solo.says("avg_rating_90d") == 4.999999999999999
    assert solo.says("avg_watch_seconds_90d") == 1e9
    assert solo.table.decode(solo.table.encode(solo.user)) == solo.user


def test_a_record_does_not_grow_with_history():
    """Ten thousand events over two years: as many days are kept as windows and late events need."""
    solo, out = visitor(), Outputs()
    sizes = []
    for number in range(10_000):
        ts_ms = solo.ms("2023-01-01 09:00") + number * 105 * MINUTE_MS
        event = {"event_id": f"e{number}", "user_id": "u1", "type": "view", "ts": ts_ms}
        solo.table.apply(solo.user, received(event, "engagement"), -NEVER, out)
        if number % 1_000 == 999:
            sizes.append(len(solo.table.encode(solo.user)))
    assert len(solo.user.days) < 90 + 7 + 70
    assert max(sizes[2:]) < 1.5 * min(sizes[2:])


@pytest.mark.parametrize(
    ("condition", "deadlines"),
    [
        ("favorites_30d > 2", ["2025-05-01", "2025-05-02"]),
        ("favorites_90d > 5", []),
        ("avg_watch_seconds_90d > 300", []),  # watches nothing
        ("avg_rating_90d > 3", []),  # no rating
        ("active_days_7d >= 3", ["2025-04-08"]),
        ("active_days_7d < 1", ["2025-04-09", "2025-04-10"]),
        ("days_since_active > 7", ["2025-04-10", "2025-04-11"]),
        ("favorites_30d - favorites_90d < 0", ["2025-05-01", "2025-05-02"]),
    ],
)
def test_deadlines_are_where_a_tag_may_change(condition, deadlines):
    """A favourite and an unrated review on each of the first days of April."""
    solo = visitor(condition)
    for day in "123":
        solo.tell(f"2025-04-0{day} 12:00", "favorite")
        solo.tell(f"2025-04-0{day} 12:00", "review")
    for deadline in deadlines:
        assert solo.deadline == f"{deadline}T00:00:00"
        solo.wait(deadline)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "watch"},
        {"type": "watch", "seconds": -1},
        {"type": "watch", "seconds": None},
        {"type": "watch", "seconds": "5"},
        {"type": "watch", "seconds": 1e10},
        {"type": "review", "rating": 0.9},
        {"type": "review", "rating": 5.1},
        {"type": "review", "rating": None},
        {"type": "review", "rating": "5"},
        {"type": "like"},
    ],
)
def test_events_are_checked_when_decoded(fields):
    """Types and ranges of every field."""
    with pytest.raises(msgspec.ValidationError):
        received({"event_id": "e1", "user_id": "u1", "ts": 0} | fields, "engagement")
