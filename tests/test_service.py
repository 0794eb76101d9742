"""Service: every feature at its boundaries, and against a recount."""

from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recount import Told, agree, comparisons, in_month, streams, within
from tests.solo import Solo, received


def service(*tags: Any, **content: Any) -> Solo:
    """A user of customer service."""
    return Solo(*tags, domain="service", **content)


def features(told: list[Told], clock: int, today: date) -> dict[str, Any]:
    """From all contacts."""
    kinds = [event.fields.get("kind", "other") for event in within(told, today, 30)]
    month = [event.fields.get("kind", "other") for event in in_month(told, today)]
    return {
        "contacts_month": len(month),
        "consults_month": month.count("consult"),
        "contacts_30d": len(kinds),
        "complaints_30d": kinds.count("complaint"),
    }


CONTACTS = st.builds(
    lambda kind: {"type": "contact"} | ({"kind": kind} if kind else {}),
    st.sampled_from(["consult", "complaint", "other", None]),
)
NUMBERS: dict[str, list[float]] = {
    "contacts_month": [0, 1, 2.5],
    "consults_month": [0, 1],
    "contacts_30d": [0, 1, 3],
    "complaints_30d": [-1, 0, 1],
}


@settings(max_examples=150, deadline=None)
@given(streams(CONTACTS), comparisons(NUMBERS), st.sampled_from([0, 86_400_000]), st.integers())
def test_service_equals_a_recount(stream, tags, delay_ms, seed):
    """Features, clock and changes, in any order of arrival."""
    agree("service", features, lambda event: [], stream, tags, delay_ms, seed)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York"])
def test_a_month_begins_with_its_first_local_instant(zone):
    """And holds nothing of the one before."""
    solo = service(timezone=zone)
    solo.tell("2025-02-28 23:59:59.999", "contact", kind="consult")
    assert solo.says("contacts_month") == 1
    solo.tell("2025-03-01 00:00", "contact")
    assert solo.says("contacts_month") == 1
    assert solo.says("consults_month") == 0
    solo.tell("2025-03-31 23:59:59.999", "contact", kind="consult")
    assert solo.says("contacts_month") == 2
    assert solo.says("consults_month") == 1
    assert solo.says("contacts_30d") == 1


def test_a_late_contact_counts_in_its_own_month():
    """Not in the one that began since."""
    solo = service()
    solo.tell("2025-05-01 09:00", "contact")
    assert solo.tell("2025-04-30 09:00", "contact", kind="complaint") == "late"
    assert solo.says("contacts_month") == 1
    assert solo.says("contacts_30d") == 2
    assert solo.says("complaints_30d") == 1


@pytest.mark.parametrize(
    ("condition", "deadlines"),
    [
        ("contacts_month > 2", ["2025-05-01"]),
        ("contacts_month > 4", []),
        ("contacts_month == 0", ["2025-05-01"]),
        ("contacts_month > 0.5", ["2025-05-01"]),
        ("contacts_month + 1 > 2", ["2025-05-01"]),
        ("consults_month > 0", ["2025-05-01"]),
        ("consults_month >= 2", []),
        ("contacts_30d > 2", ["2025-05-28", "2025-05-29"]),
        ("complaints_30d > 0", ["2025-05-29"]),
    ],
)
def test_deadlines_are_where_a_tag_may_change(condition, deadlines):
    """Three contacts at the end of April: one of each kind."""
    solo = service(condition)
    for day, kind in ("28", "consult"), ("29", "complaint"), ("30", "other"):
        solo.tell(f"2025-04-{day} 12:00", "contact", kind=kind)
    for deadline in deadlines:
        assert solo.deadline == f"{deadline}T00:00:00"
        solo.wait(deadline)
    assert solo.deadline is None


def test_service_heavy_leaves_with_the_month():
    """At local midnight, in a zone whose clocks went forward in it."""
    solo = service("contacts_month > 2", timezone="America/New_York")
    for day in 3, 9, 31:
        solo.tell(f"2025-03-{day:02} 12:00", "contact")
    solo.wait("2025-04-02")
    assert solo.changes == [
        (True, "2025-03-31T12:00:00", "event"),
        (False, "2025-04-01T00:00:00", "time"),
    ]
    assert solo.out.changes[-1]["effective_at"] == "2025-04-01T00:00:00.000-04:00"


def test_the_month_moves_the_clock_read_or_not():
    """The clock before a late contact is the last instant at which any feature changed."""
    solo = service("complaints_30d > 5")
    solo.tell("2025-04-20 12:00", "contact")
    solo.tell("2025-04-29 12:00", "contact", time="2025-05-10 12:00")
    assert solo.clock == "2025-05-01T00:00:00"


@pytest.mark.parametrize("fields", [{"kind": "praise"}, {"kind": None}, {"channel": 1}])
def test_contacts_are_checked_when_decoded(fields):
    """The channel may be anything, the kind one of three."""
    event = {"event_id": "e1", "user_id": "u1", "ts": 0, "type": "contact"}
    received(event | {"channel": "telephone", "kind": "other"}, "service")
    with pytest.raises(msgspec.ValidationError):
        received(event | fields, "service")


def test_erasure_takes_contacts_back():
    """The record is as new."""
    solo = service("contacts_30d > 0")
    solo.tell("2025-04-29 09:00", "contact")
    solo.tell("2025-04-29 10:00", "erase")
    assert solo.changes[-1] == (False, "2025-04-29T10:00:00", "erase")
    assert solo.says("contacts_30d") == 0
