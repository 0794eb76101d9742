"""Every feature of purchases, each at its boundaries; amounts, attributes, long histories."""

from math import inf
from random import Random

import msgspec
import orjson
import pytest

from tables import purchases
from tables.events.purchases import fen
from tables.purchases import FEATURES
from tables.rhythm import Rhythm
from tables.table import NEVER, Outputs
from tests.reference import Reference
from tests.solo import Solo, received
from tests.strategies import DAY_MS, HOUR_MS


def told(*events: str, at: str | None = None) -> Solo:
    """A user with an order at each of these times; the clock then at ``at``."""
    solo = Solo()
    for event in events:
        solo.tell(event)
    if at:
        solo.tell(at, "updated")
    return solo


def test_streak_counts_days_in_a_row_up_to_today():
    """Two orders of one day are one day."""
    solo = told(
        "2025-04-28 09:00", "2025-04-29 23:59:59.999", "2025-04-30 00:00", "2025-04-30 12:00"
    )
    assert solo.says("purchase_streak_days") == 3


def test_streak_holds_through_a_day_without_an_order_and_no_longer():
    """It may still be continued while yesterday had one."""
    days = "2025-04-28 09:00", "2025-04-29 09:00"
    assert told(*days, at="2025-04-30 23:59:59.999").says("purchase_streak_days") == 2
    assert told(*days, at="2025-05-01 00:00").says("purchase_streak_days") == 0


def test_a_late_order_joins_two_runs():
    """The 29th comes last."""
    solo = told("2025-04-27 09:00", "2025-04-28 09:00", "2025-04-30 09:00")
    assert solo.says("purchase_streak_days") == 1
    assert solo.tell("2025-04-29 09:00") == "late"
    assert solo.says("purchase_streak_days") == 4


def test_a_late_order_before_the_gap_changes_no_streak():
    """It lengthens a run that is over."""
    solo = told("2025-04-26 09:00", "2025-04-28 09:00", "2025-04-30 09:00")
    solo.tell("2025-04-27 09:00")
    assert solo.says("purchase_streak_days") == 1


def test_a_refund_makes_no_streak():
    """Only orders count as days."""
    solo = told("2025-04-28 09:00", "2025-04-30 09:00")
    solo.tell("2025-04-29 09:00", "refund")
    assert solo.says("purchase_streak_days") == 1
    assert solo.says("active_days_90d") == 2


@pytest.mark.parametrize("days", [30, 90, 365])
def test_a_window_covers_today_and_the_days_before_it(days):
    """The first instant of the oldest day is in, the last of the day before is out."""
    solo = Solo()
    noon_ms = solo.ms("2026-04-30 12:00")
    oldest_ms = solo.ms("2026-04-30") - (days - 1) * DAY_MS
    for ts_ms in oldest_ms - 1, oldest_ms, noon_ms:
        solo.tell(solo.table.calendar.iso(ts_ms)[:23], amount=1.5)
    assert solo.says(f"orders_{days}d") == 2
    assert solo.says(f"spend_{days}d") == 3
    assert solo.says("orders_total") == 3
    assert solo.says("spend_total") == 4.5


def test_refunds_are_taken_off_on_their_own_day():
    """So a window may hold a refund and not its order."""
    solo = told("2025-03-01 09:00")
    solo.tell("2025-04-20 09:00", "refund", amount=4.25)
    assert solo.says("spend_30d") == -4.25
    assert solo.says("spend_90d") == 5.75
    assert solo.says("spend_total") == 5.75
    assert solo.says("orders_30d") == 0


def test_repurchases_are_orders_without_the_earliest():
    """A late one may turn out to be the earliest."""
    solo = told("2025-04-28 09:00", "2025-04-28 10:00")
    assert solo.says("repurchases_90d") == 1
    solo.tell("2025-04-27 09:00")
    assert solo.says("repurchases_90d") == 2
    assert solo.wait("2025-07-26 00:00") is False  # the earliest leaves the window
    solo.tell("2025-07-26 00:00", "updated")
    assert solo.says("repurchases_90d") == 2


def test_averages_and_rates_are_of_orders_and_0_without_any():
    """Refunds do not count."""
    solo = Solo()
    solo.tell("2025-04-28 09:00", "refund")
    assert solo.says("avg_order_90d") == solo.says("coupon_rate_90d") == 0
    solo.tell("2025-04-28 10:00", amount=10, coupon=True)
    solo.tell("2025-04-28 11:00", amount=5.5)
    solo.tell("2025-04-28 12:00", amount=0.01)
    assert solo.says("avg_order_90d") == 15.51 / 3
    assert solo.says("coupon_rate_90d") == 1 / 3


def test_days_since_count_local_midnights():
    """One millisecond before midnight it was yesterday."""
    solo = Solo()
    assert solo.tell("2025-04-28 23:59:59.999", "registered") == "applied"
    assert solo.says("days_since_order") == solo.says("days_since_first_order") == inf
    solo.tell("2025-04-29 00:00")
    assert solo.says("days_since_registered") == 1
    solo.tell("2025-05-02 08:00")
    solo.tell("2025-05-01 08:00")
    solo.tell("2025-05-03 00:00", "updated")
    assert solo.says("days_since_order") == 1
    assert solo.says("days_since_first_order") == 4
    assert solo.says("days_since_registered") == 5


def test_the_earliest_registration_counts():
    """A repetition under another id changes nothing, a late one does."""
    solo = Solo()
    for at in "2025-04-28 09:00", "2025-04-30 09:00", "2025-04-27 09:00":
        solo.tell(at, "registered")
    assert solo.says("days_since_registered") == 3


def test_attributes_follow_event_time_and_then_arrival():
    """Undeclared ones are not kept; null removes; what is older and later does not return."""
    solo = Solo()
    region = purchases.attribute("region")
    solo.tell("2025-04-28 09:00", "registered", attributes={"region": "north", "shoe": 42})
    assert region(solo.user) == "north"
    solo.tell("2025-04-28 09:00", "updated", attributes={"region": "south"})
    assert region(solo.user) == "south"
    solo.tell("2025-04-29 09:00", "updated", attributes={"region": None})
    assert region(solo.user) is None
    solo.tell("2025-04-28 10:00", "updated", attributes={"region": "east"})
    assert region(solo.user) is None
    assert purchases.attribute("age")(solo.user) is None
    assert set(solo.user.attributes) == {"region"}


@pytest.mark.parametrize(
    ("yuan", "expected"), [(0, 0), (0.01, 1), (0.29, 29), (19.99, 1999), (1e9, 10**11), (12, 1200)]
)
def test_yuan_become_fen(yuan, expected):
    """Also those that no binary fraction meets."""
    assert fen(yuan) == expected


@pytest.mark.parametrize("yuan", [0.001, 19.999, 1e9 + 0.01, -0.01, float("nan")])
def test_amounts_that_are_no_whole_fen_are_refused(yuan):
    """With the field in front, as dead letters show it."""
    with pytest.raises(ValueError, match=r"^amount: "):
        fen(yuan)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "order"},
        {"type": "order", "amount": -1},
        {"type": "order", "amount": "1"},
        {"type": "order", "amount": 2e9},
        {"type": "order", "amount": 1, "coupon": 1},
        {"type": "refund", "amount": None},
        {"type": "updated", "attributes": {"region": True}},
        {"type": "updated", "attributes": None},
        {"type": "updated", "event_id": ""},
        {"type": "updated", "user_id": "u" * 129},
        {"type": "updated", "ts": 1.5},
        {"type": "unheard-of"},
    ],
)
def test_events_are_checked_when_decoded(fields):
    """Types, lengths and ranges of every field."""
    with pytest.raises(msgspec.ValidationError):
        received({"event_id": "e1", "user_id": "u1", "ts": 0} | fields)


@pytest.mark.parametrize("seed", range(2))
def test_years_of_orders_equal_the_reference(seed):
    """A streak of years with a few gaps, some filled late; far more days than are kept."""
    chance, solo = Random(seed), Solo()
    reference = Reference(solo.rules)
    now_ms, gaps = solo.ms("2021-01-01 12:00"), []
    for number in range(700):
        now_ms += chance.choice([20, 24, 24, 24, 24, 24, 28]) * HOUR_MS
        if chance.random() < 0.02:
            gaps.append(now_ms)
            continue
        ts_ms = now_ms
        if gaps and now_ms - gaps[0] > 5 * DAY_MS:
            ts_ms = gaps.pop(0)
        event = {"event_id": f"e{number}", "user_id": "u1", "type": "order", "amount": 1}
        event |= {"ts": ts_ms, "type": chance.choice(["order"] * 9 + ["refund"])}
        solo.table.apply(solo.user, received(event), -NEVER, Outputs())
        reference.apply(0, event)
        if number % 50 == 0:
            person = reference.people[0, "u1"]
            features = {name: read(solo.user) for name, read in FEATURES.items()}
            assert features == {
                name: reference.features(person, person.lives["purchases"])[name]
                for name in features
            }
    assert len(solo.user.days) < 500


def test_a_streak_outlives_the_days_that_are_kept():
    """Through a gap that is filled after years, up to its very first day."""
    solo = Solo()
    start_ms, days = solo.ms("2021-01-01 12:00"), 1_000
    for day in [*range(days - 3), days - 2, days - 1, days - 3]:
        solo.tell(solo.table.calendar.iso(start_ms + day * DAY_MS)[:23])
    assert solo.says("purchase_streak_days") == days
    assert len(solo.user.days) < 500


def test_features_that_count_are_whole_numbers_in_json():
    """Compiled code must not make floating-point numbers of them: evidence is text that stays."""
    solo = Solo("orders_total > 0")
    solo.tell("2025-04-29 09:00", "registered")
    names = ("coupon_rate_90d", "avg_order_90d", "days_since_registered", "orders_30d")
    assert orjson.dumps([FEATURES[name](solo.user) for name in names]) == b"[0,0,0,0]"
    solo.tell("2025-04-30 09:00")
    names = ("days_since_order", "days_since_first_order", "days_since_registered", "orders_30d")
    assert orjson.dumps([FEATURES[name](solo.user) for name in names]) == b"[0,0,1,1]"


def test_nothing_of_a_rhythm_outlives_an_erasure():
    """The next gap is the first again."""
    solo = Solo("orders_total > 0")
    for day in (1, 9, 15):
        solo.tell(f"2025-04-{day:02} 09:00")
    assert solo.user.rhythm.x == 2
    solo.tell("2025-04-16 09:00", "erase")
    assert solo.user.rhythm == Rhythm()
