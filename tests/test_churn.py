"""Churn warnings in mode silence: raised, churned, scored and returned, at exact instants."""

from typing import Any

import pytest

from tests.solo import Solo

# With the last order at 1 April 10:00: raised on the 28th, churned on 1 May, at 10:00.
LAST, RAISED, CHURNED = "2025-04-01 10:00", "2025-04-28 10:00", "2025-05-01 10:00"
THE_RAISING, THE_CHURN = "2025-04-28T10:00:00", "2025-05-01T10:00:00"

STATES = {
    "name": "state",
    "cases": {state: f"churn_state == '{state}'" for state in ("none", "warned", "churned")},
}


def buyer(after: str = "30d", lead: str = "3d", control: float = 0) -> Solo:
    """Somebody who ordered at LAST."""
    churn = {"mode": "silence", "after": after, "lead": lead, "control": control}
    solo = Solo(STATES, churn=churn)
    solo.tell(LAST, amount=12.5)
    return solo


def test_silence_is_warned_of_and_then_churned_and_scored():
    """One deadline at a time, not a millisecond early; tags last at each instant."""
    solo = buyer()
    assert solo.deadline == THE_RAISING
    assert not solo.wait("2025-04-28 09:59:59.999")
    assert solo.wait(RAISED)
    assert solo.says("churn_state") == "warned"
    assert solo.deadline == THE_CHURN
    assert solo.wait("2026-01-01")
    assert solo.says("churn_state") == "churned"
    assert solo.deadline is None
    assert solo.warnings == [
        ("raised", THE_RAISING),
        ("churned", THE_CHURN),
        ("scored", THE_CHURN),
    ]
    assert solo.changes == [
        ("none", "2025-04-01T10:00:00", "event"),
        ("warned", THE_RAISING, "time"),
        ("churned", THE_CHURN, "time"),
    ]


def test_a_record_says_everything_in_every_status():
    """The tags are those from before the instant."""
    solo = buyer()
    solo.wait(CHURNED)
    solo.tell("2025-05-02 10:00", amount=0.5)
    shared: dict[str, Any] = {
        "user_id": "u1",
        "raised_at": "2025-04-28T10:00:00.000+08:00",
        "churn_at": "2025-05-01T10:00:00.000+08:00",
        "matures_at": "2025-05-01T10:00:00.000+08:00",
        "mode": "silence",
        "probability": None,
        "level": "red",
        "control": False,
    }
    silent: dict[str, Any] = {
        "last_order_at": "2025-04-01T10:00:00.000+08:00",
        "first_order_at": "2025-04-01T10:00:00.000+08:00",
        "orders_total": 1,
        "spend_total": 12.5,
    }
    ordering = silent | {
        "last_order_at": "2025-05-02T10:00:00.000+08:00",
        "orders_total": 2,
        "spend_total": 13.0,
    }
    away: dict[str, Any] = {"returned_at": None, "returned_from": None}
    back = {"returned_at": "2025-05-02T10:00:00.000+08:00", "returned_from": "churned"}
    expected = [
        ("raised", "2025-04-28T10:00:00.000+08:00", "none", silent, away, None),
        ("churned", "2025-05-01T10:00:00.000+08:00", "warned", silent, away, None),
        ("scored", "2025-05-01T10:00:00.000+08:00", "warned", silent, away, True),
        ("returned", "2025-05-02T10:00:00.000+08:00", "churned", ordering, back, None),
    ]
    assert len({warning.pop("warning_id") for warning in solo.out.warnings}) == 1
    assert solo.out.warnings == [
        {"status": status, "at": at, "tags": {"state": tag}, "evidence": evidence, "right": right}
        | shared
        | returned
        for status, at, tag, evidence, returned, right in expected
    ]


@pytest.mark.parametrize(
    ("at", "right"),
    [
        ("2025-04-28 10:00", True),  # at the raising: the interval is open
        ("2025-04-28 10:00:00.001", False),
        ("2025-05-01 09:59:59.999", False),
    ],
)
def test_an_order_inside_the_open_interval_proves_the_warning_wrong(at, right):
    """It returns the user at once; right or wrong is said at the maturity."""
    solo = buyer()
    assert solo.tell(at) == "applied"
    assert solo.says("churn_state") == "none"
    solo.wait("2025-05-01 10:00")
    assert [status for status, _ in solo.warnings] == ["raised", "returned", "scored"]
    assert solo.out.warnings[1]["returned_from"] == "warned"
    assert solo.out.warnings[2]["right"] is right


def test_an_order_at_the_very_instant_of_the_churn_comes_after_it():
    """So it returns from churned, and the warning was right."""
    solo = buyer()
    solo.tell(CHURNED)
    assert [status for status, _ in solo.warnings] == ["raised", "churned", "scored", "returned"]
    assert solo.out.warnings[2]["right"] is True
    assert solo.out.warnings[3]["returned_from"] == "churned"


def test_a_late_order_returns_but_does_not_refute_what_it_lies_before():
    """It moves the silence: the next warning counts from it."""
    solo = buyer()
    solo.wait(RAISED)
    assert solo.tell("2025-04-20 10:00", time=RAISED) == "late"
    assert solo.says("churn_state") == "none"
    assert solo.warnings[-1] == ("returned", THE_RAISING)  # at the clock
    solo.wait(CHURNED)
    assert solo.warnings[2:] == [("scored", THE_CHURN)]
    assert solo.out.warnings[2]["right"] is True
    assert solo.deadline == "2025-05-17T10:00:00"


def test_a_late_order_inside_the_interval_refutes_until_the_maturity():
    """Though it arrives after later ones."""
    solo = buyer()
    solo.tell("2025-04-28 10:00")
    solo.tell("2025-04-30 10:00", "updated")
    solo.tell("2025-04-29 10:00")
    solo.wait(CHURNED)
    assert solo.out.warnings[-1]["status"] == "scored"
    assert solo.out.warnings[-1]["right"] is False


def test_a_late_order_before_the_last_one_starts_no_new_silence():
    """The user is welcomed, and still churned when the silence has lasted."""
    solo = buyer()
    solo.wait(RAISED)
    solo.tell("2025-03-31 10:00", time=RAISED)
    assert solo.says("churn_state") == "none"
    assert solo.deadline == THE_CHURN
    solo.wait(CHURNED)
    assert solo.says("churn_state") == "churned"
    solo.tell("2025-05-03 10:00")
    assert [status for status, _ in solo.warnings] == ["raised", "returned", "churned", "scored"]
    assert solo.says("churn_state") == "none"


def test_deadlines_that_a_late_order_puts_into_the_past_fire_with_their_own_instants():
    """Tags follow as of the clock, once for each."""
    solo = buyer(after="2d", lead="1d")
    solo.wait("2025-04-03 10:00")
    solo.tell("2025-04-10 00:00", "updated")
    said = len(solo.warnings)
    solo.tell("2025-04-05 10:00", time="2025-04-10")
    solo.tell("2025-04-10 00:00", "updated", time="2025-04-10")
    assert solo.warnings[said:] == [
        ("returned", "2025-04-10T00:00:00"),
        ("raised", "2025-04-06T10:00:00"),
        ("churned", "2025-04-07T10:00:00"),
        ("scored", "2025-04-07T10:00:00"),
    ]
    assert solo.changes[-3:] == [
        ("none", "2025-04-10T00:00:00", "event"),
        ("warned", "2025-04-10T00:00:00", "time"),
        ("churned", "2025-04-10T00:00:00", "time"),
    ]


def test_warnings_may_overlap():
    """A refuted one is scored while the next is open; each under its own id."""
    solo = buyer(after="5d", lead="4d")  # raised a day after each order
    solo.tell("2025-04-03 10:00")
    solo.wait("2025-04-20")
    assert solo.warnings == [
        ("raised", "2025-04-02T10:00:00"),
        ("returned", "2025-04-03T10:00:00"),
        ("raised", "2025-04-04T10:00:00"),
        ("scored", "2025-04-06T10:00:00"),
        ("churned", "2025-04-08T10:00:00"),
        ("scored", "2025-04-08T10:00:00"),
    ]
    first, second = solo.out.warnings[0], solo.out.warnings[2]
    assert first["warning_id"] != second["warning_id"]
    assert [w["warning_id"] for w in solo.out.warnings[3:]] == [
        first["warning_id"],
        *[second["warning_id"]] * 2,
    ]
    assert len(solo.user.churn.warnings) == 1  # the first is done with


def test_the_record_of_a_user_who_comes_and_goes_stays_small():
    """Warnings that are scored and returned from are dropped."""
    solo = buyer(after="2d", lead="1d")
    for day in range(2, 30, 3):
        solo.tell(f"2025-06-{day:02} 10:00")
    assert solo.user.churn.raised == 10
    assert len(solo.user.churn.warnings) <= 1


def test_the_control_group_is_marked():
    """All of it at a share of 1."""
    solo = buyer(control=1)
    solo.wait(CHURNED)
    assert [warning["control"] for warning in solo.out.warnings] == [True, True, True]


def test_without_churn_nobody_is_ever_warned():
    """`churn_state` is a feature all the same."""
    solo = Solo(STATES)
    solo.tell(LAST)
    solo.wait("2030-01-01")
    assert solo.says("churn_state") == "none"
    assert not solo.warnings
