"""Events and deadlines of one user: order, clock, causes, ids, and what never changes anything."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import purchases
from tables.dedup import MemoryBlocks
from tables.identity import is_control
from tables.table import NEVER, Before, Outputs, Table
from tests.reference import by_user
from tests.solo import Solo, definitions, received
from tests.strategies import DAY_MS, scenes


def test_a_change_says_what_why_and_since_when():
    """The contract's record, without the time of emission."""
    solo = Solo({"name": "buyer", "when": "orders_30d >= 2 and days_since_registered < 9"})
    solo.tell("2025-04-29 09:00")
    solo.tell("2025-04-30 09:00")
    solo.tell("2025-04-28 09:00", "registered")
    assert solo.out.changes == [
        {
            "change_id": solo.out.changes[0]["change_id"],
            "user_id": "u1",
            "domain": "purchases",
            "tag": "buyer",
            "value": True,
            "previous": False,
            "effective_at": "2025-04-30T09:00:00.000+08:00",
            "cause": {"kind": "event", "event_id": "e3"},
            "features": {"orders_30d": 2, "days_since_registered": 2},
            "rules_version": 1,
        }
    ]
    assert len(solo.out.changes[0]["change_id"]) == 32


def test_infinity_is_null_in_a_record():
    """JSON has no word for it."""
    solo = Solo("days_since_order > 5")
    solo.tell("2025-04-29 09:00", "updated")
    assert solo.out.changes[0]["features"] == {"days_since_order": None}


def test_a_tag_starts_unset_and_changes_when_its_value_does():
    """A first value that is the starting one is no change."""
    tier = {"name": "t", "cases": {"big": "spend_total > 15", "some": "orders_total > 0"}}
    solo = Solo(tier)
    solo.tell("2025-04-29 09:00", "updated")
    for _ in range(2):
        solo.tell("2025-04-29 10:00")
    assert [(change["previous"], change["value"]) for change in solo.out.changes] == [
        (None, "some"),
        ("some", "big"),
    ]


def test_a_repetition_changes_nothing_within_max_lateness():
    """Whatever time it carries; at the horizon it is too late, or was forgotten."""
    solo = Solo(max_lateness="1d")
    event = {"event_id": "same", "user_id": "u1", "type": "order", "amount": 1}
    at = solo.ms("2025-04-29 09:00")

    def apply(ts_ms: int) -> str:
        raw = solo.table.encode(solo.user)
        outcome = solo.table.apply(solo.user, received(event | {"ts": ts_ms}), -NEVER, solo.out)
        assert (solo.table.encode(solo.user) == raw) == (outcome in ("duplicate", "too_late"))
        return outcome

    assert apply(at) == "applied"
    assert apply(at) == apply(at + DAY_MS) == "duplicate"
    solo.tell("2025-04-30 08:59:59.999", "updated")
    assert apply(at) == "duplicate"
    solo.tell("2025-04-30 09:00", "updated")
    assert apply(at) == "too_late"
    assert apply(at + 1) == "late"
    assert solo.says("orders_total") == 2


def test_too_late_counts_from_the_largest_event_time_not_from_deadlines():
    """Time that merely passed refuses nobody."""
    solo = Solo("orders_30d > 0", max_lateness="1d")
    solo.tell("2025-04-01 09:00")
    solo.wait("2025-06-01")
    assert solo.tell("2025-03-31 09:00", time="2025-06-01") == "too_late"
    assert solo.tell("2025-03-31 09:00:00.001", time="2025-06-01") == "late"


def test_a_window_empties_at_the_midnight_after_its_last_day():
    """Order on 1 April: in the 30 days up to the 30th, out on 1 May."""
    solo = Solo("orders_30d > 0")
    solo.tell("2025-04-01 23:00")
    assert solo.deadline == "2025-05-01T00:00:00"
    solo.wait("2025-05-01")
    assert solo.changes[-1] == (False, "2025-05-01T00:00:00", "time")
    assert solo.deadline is None


def test_a_deadline_at_the_time_of_an_event_comes_first():
    """The tag leaves by time and enters again by the event."""
    solo = Solo("orders_30d > 0")
    solo.tell("2025-04-01 23:00")
    solo.tell("2025-05-01")
    assert solo.changes[1:] == [
        (False, "2025-05-01T00:00:00", "time"),
        (True, "2025-05-01T00:00:00", "event"),
    ]


def test_a_late_event_is_judged_as_of_the_clock():
    """Deadlines already fired stay fired."""
    solo = Solo("orders_30d > 1")
    solo.tell("2025-04-01 23:00")
    solo.tell("2025-05-01", "updated")
    assert solo.tell("2025-04-30 09:00") == "late"
    assert solo.changes == []
    assert solo.tell("2025-04-29 09:00") == "late"
    assert solo.changes == [(True, "2025-05-01T00:00:00", "event")]


def test_the_clock_follows_deadlines_of_no_tag():
    """Days since the order grew at the last midnight before the time reached."""
    solo = Solo("orders_30d > 1")
    solo.tell("2025-04-01 23:00")
    solo.tell("2025-04-02 09:00", time="2025-04-20 12:00")
    assert solo.clock == "2025-04-20T00:00:00"
    assert solo.changes == [(True, "2025-04-20T00:00:00", "event")]


@pytest.mark.parametrize(
    ("amount", "clock"), [(10, "2025-05-01T00:00:00"), (0, "2025-04-02T09:00:00")]
)
def test_the_clock_stays_where_nothing_changes_by_itself(amount, clock):
    """A refund leaves the 30 days' spend on 1 May; one of nothing never does."""
    solo = Solo("orders_30d > 1")
    solo.tell("2025-04-01 23:00", "refund", amount=amount)
    solo.tell("2025-04-02 09:00", "updated", time="2025-05-20 12:00")
    assert solo.clock == clock


@pytest.mark.parametrize(
    ("condition", "deadlines"),
    [
        ("orders_30d == 0", ["2025-05-03"]),
        ("orders_30d >= 2", ["2025-05-01"]),  # 3, then 2, then 1
        ("orders_90d == 1", ["2025-07-01", "2025-07-02"]),  # 2 on the day before
        ("orders_30d > 0.5", ["2025-05-03"]),
        ("orders_30d > 5 or orders_total > 9", []),
        ("orders_30d - orders_90d > 0", ["2025-05-01"]),  # who knows
        ("spend_30d > 29", ["2025-05-01"]),
        ("spend_30d > 30.3", []),
        ("spend_30d == 10.29", ["2025-05-02"]),
        ("coupon_rate_90d > 0.5", []),  # no coupon, no change
        ("avg_order_90d > 5", ["2025-06-30"]),
        ("purchase_streak_days >= 4", []),
        ("purchase_streak_days >= 3", ["2025-05-05"]),
        ("days_since_order < 7.5", ["2025-05-11"]),
        ("days_since_order == 7", ["2025-05-10", "2025-05-11"]),
        ("days_since_registered < 7", []),
        ("region == 'north'", []),
    ],
)
def test_deadlines_are_where_a_tag_may_change(condition, deadlines):
    """Orders on 1, 2 and 3 April of 10, 10 and 10.29 yuan, or in May for what counts days."""
    month = "05" if "streak" in condition or "since" in condition else "04"
    solo = Solo(condition)
    for day, amount in ("01", 10), ("02", 10), ("03", 10.29):
        solo.tell(f"2025-{month}-{day} 12:00", amount=amount)
    for deadline in deadlines:
        assert solo.deadline == f"{deadline}T00:00:00"
        solo.wait(deadline)
    if not deadlines:
        assert solo.deadline is None


def test_a_refund_in_the_window_makes_every_day_of_it_count():
    """Spend may rise by itself where a refund leaves."""
    solo = Solo("spend_30d > 15")
    solo.tell("2025-04-01 12:00", amount=20)
    solo.tell("2025-04-02 12:00", "refund", amount=20)
    solo.tell("2025-04-03 12:00", amount=20)
    solo.wait("2025-07-01")
    assert solo.changes == [
        (True, "2025-04-01T12:00:00", "event"),
        (False, "2025-04-02T12:00:00", "event"),
        (True, "2025-04-03T12:00:00", "event"),
        (False, "2025-05-01T00:00:00", "time"),
        (True, "2025-05-02T00:00:00", "time"),
        (False, "2025-05-03T00:00:00", "time"),
    ]


def test_firing_says_whether_there_is_anything_to_write():
    """A deadline that changed nothing is found again from the record as it was."""
    solo = Solo("spend_30d > 5")
    solo.tell("2025-04-01 12:00", amount=10)
    solo.tell("2025-04-01 12:00", "refund", amount=1)
    solo.tell("2025-04-02 12:00", amount=10)
    written = solo.table.encode(solo.user)
    assert solo.wait("2025-05-01") is False
    solo.user = solo.table.decode(written)
    assert solo.wait("2025-05-02") is True
    assert solo.wait("2025-05-02") is False


def test_a_change_keeps_its_id_whenever_it_is_made_again():
    """And every change has another."""
    runs = []
    for _ in range(2):
        solo = Solo("orders_30d > 0")
        for month in "123":
            solo.tell(f"2025-0{month}-01 12:00")
        runs.append([change["change_id"] for change in solo.out.changes])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


def test_control_groups_are_marked_and_differ_between_tags():
    """The share is one of users, drawn anew for each tag."""
    users = [f"u{number}" for number in range(2_000)]
    marked = {tag: {user for user in users if is_control(tag, user, 0.1)} for tag in ("a", "b")}
    assert all(150 < len(group) < 250 for group in marked.values())
    assert len(marked["a"] & marked["b"]) < 50
    assert not any(is_control("a", user, share) for user in users for share in (0, None))

    solo = Solo({"name": "t", "when": "orders_total > 0", "control": 1.0})
    solo.tell("2025-04-29 09:00")
    assert solo.out.changes[0]["control"] is True


def switched(before: Table[Any], rules: Any, time_ms: int) -> purchases.Purchases:
    """The table of other definitions, which are in force since the domain reached ``time_ms``."""
    table = purchases.Purchases(rules)
    table.before = Before(before, time_ms, lambda _: True, always_tell=False)
    return table


def test_new_definitions_are_taken_up_at_the_next_touch():
    """Values carry over by name, the rest is judged as of the clock; a dropped tag leaves."""
    solo = Solo(
        {"name": "kept", "when": "orders_total > 0"},
        {"name": "dropped", "when": "orders_total > 0"},
        {"name": "tightened", "when": "orders_total > 0"},
    )
    solo.tell("2025-04-29 09:00")
    raw = solo.table.encode(solo.user)
    rules = definitions(
        {"name": "added", "when": "orders_30d > 0"},
        {"name": "tightened", "when": "orders_total > 1"},
        {"name": "kept", "when": "orders_total > 0"},
        version=2,
    )
    table, out = switched(solo.table, rules, -NEVER), Outputs()
    user = table.decode(raw)
    assert table.fire(user, -NEVER, out) is True
    assert [(change["tag"], change["value"]) for change in out.changes] == [
        ("dropped", False),
        ("added", True),
        ("tightened", False),
    ]
    assert {change["effective_at"] for change in out.changes} == {"2025-04-29T09:00:00.000+08:00"}
    assert out.changes[0]["cause"] == {"kind": "rules"}
    assert out.changes[0]["rules_version"] == 2
    assert out.changes[0]["features"] == {}
    assert table.fire(user, -NEVER, out) is False
    assert table.deadline_ms(user) == solo.ms("2025-05-29")


def test_deadlines_until_a_switch_fire_under_the_definitions_before():
    """What time changed by then is said first; the new ones judge as of the last of them."""
    solo = Solo("orders_30d > 0")
    solo.tell("2025-04-01 09:00")
    rules = definitions({"name": "t", "when": "orders_30d == 0"}, version=2)
    solo.table = switched(solo.table, rules, solo.ms("2025-05-20 12:00"))
    solo.wait("2025-05-20 12:00")
    assert solo.changes == [
        (True, "2025-04-01T09:00:00", "event"),
        (False, "2025-05-01T00:00:00", "time"),
        (True, "2025-05-20T00:00:00", "rules"),
    ]
    assert [change["rules_version"] for change in solo.out.changes] == [1, 1, 2]


def test_a_tag_that_comes_back_under_its_name_goes_on_counting_its_changes():
    """Or its change would have the id of the one long ago."""
    solo = Solo("orders_total > 0")
    solo.tell("2025-04-01 09:00")
    tags: list[dict[str, Any]] = [
        {"name": "other", "when": "orders_total > 5"},
        {"name": "t", "when": "orders_total > 0"},
    ]
    for version, tag in enumerate(2 * tags, 2):
        solo.table = switched(solo.table, definitions(tag, version=version), -NEVER)
        solo.wait("2025-04-01 10:00")
    assert [change["value"] for change in solo.out.changes] == [True, False, True, False, True]
    assert len({change["change_id"] for change in solo.out.changes}) == 5


def test_a_record_need_not_be_written_where_it_leads_to_the_same():
    """Not where a deadline of the new definitions lies before the switch: it would fire."""
    solo = Solo({"name": "t", "when": "days_since_order > 40"})
    solo.tell("2025-04-01 09:00")
    assert solo.deadline == "2025-05-11T00:00:00"  # and so does the record say
    raw = solo.table.encode(solo.user)
    for tag, stands in (
        ({"name": "t", "when": "days_since_order > 40"}, True),
        ({"name": "t", "when": "days_since_order > 50"}, True),
        ({"name": "t", "when": "days_since_order > 30"}, False),
        ({"name": "t", "when": "days_since_order == 5 or days_since_order > 40"}, False),
    ):
        rules, out = definitions(tag, version=2), Outputs()
        table = switched(solo.table, rules, solo.ms("2025-04-20"))
        user = table.decode(raw)
        table.take_up(user, out)
        assert out.steps == []
        assert table.stands(user, table.decode(raw)) is stands


def test_deadlines_of_new_definitions_fire_before_the_next_event():
    """The old ones had none."""
    solo = Solo("orders_total > 0")
    solo.tell("2025-04-01 09:00")
    assert solo.deadline is None
    rules = definitions("orders_30d > 0")
    solo.table, solo.out = purchases.Purchases(rules), Outputs()
    solo.tell("2025-05-20 09:00")
    assert solo.changes == [
        (False, "2025-05-01T00:00:00", "time"),
        (True, "2025-05-20T09:00:00", "event"),
    ]


def test_definitions_without_churn_leave_nobody_warned():
    """The state goes, and with it the tags that read it."""
    churn = {"mode": "silence", "after": "30d", "lead": "3d"}
    tag = {"name": "t", "when": "churn_state != 'none'"}
    solo = Solo(tag, churn=churn)
    solo.tell("2025-04-01 09:00")
    solo.wait("2025-04-29")
    table, out = switched(solo.table, definitions(tag), -NEVER), Outputs()
    user = table.decode(solo.table.encode(solo.user))
    table.fire(user, -NEVER, out)
    assert [change["value"] for change in out.changes] == [False]
    assert table.deadline_ms(user) == NEVER


def test_erasure_takes_back_every_tag_and_leaves_nothing():
    """However old it is; the same one again changes nothing."""
    solo = Solo("orders_total > 0")
    blocks = MemoryBlocks()
    solo.table.blocks = blocks
    for minute in range(200):
        solo.tell(f"2025-04-29 {9 + minute // 60:02}:{minute % 60:02}")
    assert blocks.rows
    assert solo.tell("2025-01-01 09:00", "erase") == "applied"
    leaving = solo.out.changes[-1]
    assert leaving["value"] is False
    assert leaving["cause"] == {"kind": "erase"}
    assert leaving["features"] == {}
    assert solo.out.erased_ms == (solo.ms("2025-01-01 09:00"), solo.ms("2025-04-29 12:19"))
    fresh = solo.table.new("u1")
    fresh.erased_ms = solo.ms("2025-01-01 09:00")
    assert solo.user == fresh
    assert not blocks.rows
    assert solo.tell("2025-01-01 09:00", "erase") == "erased"
    assert len(solo.out.changes) == 2


def test_what_happened_up_to_an_erasure_is_dropped():
    """At the very instant too; what is newer begins anew."""
    solo = Solo("orders_total > 1")
    solo.tell("2025-04-29 09:00")
    solo.tell("2025-04-29 10:00", "erase")
    assert solo.tell("2025-04-29 09:30") == "erased"
    assert solo.tell("2025-04-29 10:00") == "erased"
    assert solo.tell("2025-04-29 10:01") == "applied"
    assert solo.says("orders_total") == 1
    assert solo.changes == []


@settings(max_examples=50, deadline=None)
@given(scenes(max_events=15), st.data())
def test_any_time_already_reached_may_fire_at_any_moment(scene, data):
    """Between any two events, up to any instant before the time reached: nothing differs."""
    outs = []
    for meddles in (False, True):
        table, out = purchases.Purchases(scene.rules), Outputs()
        users: dict[str, purchases.Buyer] = {}
        time_ms = -NEVER
        for _, event in scene.stream:
            user = users.setdefault(event["user_id"], table.new(event["user_id"]))
            outcome = table.apply(user, received(event), time_ms, out)
            if outcome in ("applied", "late"):
                time_ms = max(time_ms, event["ts"] - scene.rules.allowed_delay_ms)
            if meddles:
                behind_ms = data.draw(st.sampled_from([0, 1, DAY_MS, 40 * DAY_MS]))
                table.fire(
                    users[data.draw(st.sampled_from(sorted(users)))], time_ms - behind_ms, out
                )
        for user in users.values():
            table.fire(user, time_ms, out)
        outs.append(out)
    assert by_user(outs[0].changes) == by_user(outs[1].changes)
    assert by_user(outs[0].warnings) == by_user(outs[1].warnings)
