"""The profile: tags of all domains folded together, and tags made of them."""

from typing import Any

import orjson
import pytest
import yaml

from stream import rules
from tables.kept import Profile
from tables.profile import Profiles
from tests.strategies import PURCHASES

AT_MS = 1_745_942_400_000  # 2025-04-30 00:00 in Shanghai
LATER_MS = AT_MS + 60_000

FILE: dict[str, Any] = {
    "version": 3,
    "timezone": "Asia/Shanghai",
    "tags": [
        {"name": "buyer", "domain": "purchases", "when": "orders_total > 0"},
        {"name": "tier", "domain": "purchases", "cases": {"high": "spend_total > 100"}},
        {"name": "best", "domain": "profile", "when": "buyer and tier == 'high'"},
        {"name": "stranger", "domain": "profile", "when": "not buyer"},
        {"name": "group", "domain": "profile", "cases": {"a": "best", "b": "stranger"}},
    ],
}


@pytest.fixture
def profiles() -> Profiles:
    return Profiles(rules.parse(yaml.safe_dump(FILE), "tags.yaml", {"purchases": PURCHASES}))


def change(tag: str, value: Any, change_id: str = "c1") -> dict[str, Any]:
    """What a domain says of one of its tags, as far as profiles read it."""
    return {"tag": tag, "value": value, "change_id": change_id}


def said(changes: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    return [(each["tag"], each["previous"], each["value"]) for each in changes]


def current(profile: Profile) -> dict[str, Any]:
    return {name: held.value for name, held in profile.tags.items()}


def test_the_first_event_evaluates_tags_that_hold_for_anybody(profiles):
    """The event itself is the cause where it changed no tag."""
    profile = profiles.new("u1")
    assert profiles.heard(profile, "purchases", AT_MS)
    cause = {"kind": "event", "event_id": "e1"}
    changes = profiles.evaluate(profile, AT_MS, cause, [])
    assert said(changes) == [("stranger", False, True), ("group", None, "b")]
    assert changes[0]["cause"] == cause
    assert changes[0]["features"] == {"buyer": False}
    assert not profiles.heard(profile, "purchases", LATER_MS)


def test_tags_made_of_tags_follow_in_order_and_name_the_last_change(profiles):
    """One that stands above is read as it has just become."""
    profile = profiles.new("u1")
    profiles.heard(profile, "purchases", AT_MS)
    changes = profiles.fold(
        profile, [change("buyer", True), change("tier", "high", "c2")], AT_MS, [], always=True
    )
    assert said(changes) == [("best", False, True), ("group", None, "a")]
    assert {each["cause"]["change_id"] for each in changes} == {"c2"}
    assert changes[0]["features"] == {"buyer": True, "tier": "high"}
    assert changes[0]["effective_at"] == "2025-04-30T00:00:00.000+08:00"
    assert changes[0]["rules_version"] == 3
    assert current(profile) == {"buyer": True, "tier": "high", "best": True, "group": "a"}


def test_a_change_that_no_tag_reads_evaluates_nothing(profiles):
    """It is folded in all the same."""
    profile = profiles.new("u1")
    assert profiles.fold(profile, [change("unread", True)], AT_MS, []) == []
    assert current(profile) == {"unread": True}


def test_every_change_has_an_id_of_its_own(profiles):
    """In and out and in again are three changes."""
    profile = profiles.new("u1")
    ids = []
    for value in (True, False, True, False):
        ids += [
            each["change_id"]
            for each in profiles.fold(profile, [change("buyer", value)], AT_MS, [])
        ]
    assert len(set(ids)) == len(ids) > 4


def test_after_an_erasure_tags_made_of_tags_may_only_leave(profiles):
    """Until something newer than it is applied, in any domain."""
    profile = profiles.new("u1")
    for domain in ("purchases", "service"):
        profiles.heard(profile, domain, AT_MS)
    profiles.fold(profile, [change("buyer", True), change("tier", "high")], AT_MS, [])
    left = profiles.erase(
        profile, "purchases", [change("buyer", False), change("tier", None)], AT_MS, LATER_MS, []
    )
    assert said(left) == [("best", True, False), ("group", "a", None)]
    assert profiles.fold(profile, [change("buyer", False)], LATER_MS, []) == []  # no stranger yet
    assert not profiles.heard(profile, "service", AT_MS)
    assert profiles.heard(profile, "service", AT_MS + 1)
    again = profiles.evaluate(profile, LATER_MS, {"kind": "event", "event_id": "e2"}, [])
    assert said(again) == [("stranger", False, True), ("group", None, "b")]


def test_an_erasure_bars_nothing_where_something_newer_is_known(profiles):
    """Another domain was ahead: had it been behind, it would have lifted the bar by now."""
    profile = profiles.new("u1")
    for domain in ("purchases", "service"):
        profiles.heard(profile, domain, AT_MS)
    profiles.fold(profile, [change("buyer", True)], AT_MS, [])
    back = [change("buyer", False)]
    left = profiles.erase(profile, "purchases", back, AT_MS, LATER_MS, [], newest_ms=AT_MS + 1)
    assert said(left) == [("stranger", False, True), ("group", None, "b")]


def test_who_is_new_here_but_was_erased_elsewhere_is_barred_too(profiles):
    """What he did before the erasure makes him no stranger."""
    profile = profiles.new("u1")
    profiles.bar(profile, [AT_MS])
    cause = {"kind": "event", "event_id": "e1"}
    assert profiles.heard(profile, "service", AT_MS - 1)
    assert profiles.evaluate(profile, AT_MS - 1, cause, []) == []
    assert profiles.heard(profile, "service", AT_MS + 1)
    assert said(profiles.evaluate(profile, AT_MS + 1, cause, [])) == [
        ("stranger", False, True),
        ("group", None, "b"),
    ]


def test_the_erasure_in_the_last_domain_takes_every_tag(profiles):
    """Also those that hold for somebody of whom nothing is known."""
    profile = profiles.new("u1")
    profiles.heard(profile, "purchases", AT_MS)
    profiles.evaluate(profile, AT_MS, {"kind": "event", "event_id": "e1"}, [])
    left = profiles.erase(profile, "purchases", [], LATER_MS, LATER_MS, [])
    assert said(left) == [("stranger", True, False), ("group", "b", None)]
    assert {each["cause"]["kind"] for each in left} == {"erase"}
    assert [each["features"] for each in left] == [{}, {}]
    assert profile == profiles.new("u1")


def test_a_profile_survives_encoding(profiles):
    """What is read back is what was written."""
    profile = profiles.new("u1")
    profiles.heard(profile, "purchases", AT_MS)
    profiles.fold(profile, [change("buyer", True)], AT_MS, [], always=True)
    assert profiles.decode(profiles.encode(profile)) == profile
    assert orjson.loads(profiles.told(profile)) == {
        "user_id": "u1",
        "tags": {"buyer": {"value": True, "since": "2025-04-30T00:00:00.000+08:00"}},
        "updated_at": "2025-04-30T00:00:00.000+08:00",
    }
