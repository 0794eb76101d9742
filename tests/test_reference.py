"""The reference itself, against examples worked out by hand from the contract."""

import json
import math
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stream import rules
from tests.reference import Reference, by_user, domains, instant, settled
from tests.reference.churn import GENERIC, Forecast, Rhythm, delay_ms
from tests.reference.times import DAY_MS

#: What conditions may read: only the names matter here.
READABLE = {
    name: SimpleNamespace(
        features=dict.fromkeys(
            domains.features(name, domains.Past([], 0, date(2025, 1, 1)))
            | ({"churn_state": None} if name == "purchases" else {})
        ),
        attribute_reader=(lambda _: None) if name == "purchases" else None,
    )
    for name in domains.DOMAINS
}


def definitions(*tags: dict[str, Any], **content: Any) -> rules.Rules:
    """A file of these tags."""
    file = {"version": 1, "timezone": "Asia/Shanghai", "tags": list(tags)}
    return rules.parse(yaml.safe_dump(file | content, sort_keys=False), "tags.yaml", READABLE)


class Story:
    """Events of one user, told in Shanghai's time, and what the reference makes of them."""

    def __init__(self, *tags: dict[str, Any], **content: Any) -> None:
        self.reference = Reference(definitions(*tags, **content))
        self.number = 0

    def tell(self, at: str, kind: str, domain: str | None = None, /, **fields: Any) -> str:
        self.number += 1
        event = {"event_id": f"e{self.number}", "user_id": "u1", "type": kind, "ts": _ms(at)}
        return self.reference.apply(0, event | fields, domain)

    def until(self, at: str) -> None:
        self.reference.finish(_ms(at))

    def says(self, domain: str, feature: str, at: str | None = None) -> Any:
        person = self.reference.people[0, "u1"]
        clock = None if at is None else _ms(at)
        return self.reference.features(person, person.lives[domain], clock)[feature]

    @property
    def changes(self) -> list[tuple[Any, ...]]:
        """Tag, value, when and why of every change."""
        return [
            (each["tag"], each["value"], each["effective_at"][:16], each["cause"]["kind"])
            for each in self.reference.changes
        ]


def _ms(at: str) -> int:
    return instant(f"{at}+08:00")


def test_service_counts_by_calendar_month_and_over_30_days():
    """A contact of 31 March leaves the month at midnight, the 30 days on 30 April."""
    story = Story({"name": "heavy", "domain": "service", "when": "contacts_month > 2"})
    for at, kind in [("09:00", "consult"), ("10:00", "complaint"), ("23:59", "consult")]:
        story.tell(f"2025-03-31T{at}", "contact", kind=kind)
    assert story.says("service", "consults_month") == 2
    assert story.says("service", "contacts_30d", "2025-04-29T23:59") == 3
    assert story.says("service", "complaints_30d", "2025-04-30T00:00") == 0
    story.until("2025-05-01T00:00")
    assert story.changes == [
        ("heavy", True, "2025-03-31T23:59", "event"),
        ("heavy", False, "2025-04-01T00:00", "time"),
    ]


def test_engagement_averages_are_of_what_is_rated_and_watched():
    """No rating is no zero; milliseconds are kept."""
    story = Story()
    story.tell("2025-03-01T09:00", "watch", seconds=0.001)
    story.tell("2025-03-01T09:01", "watch", seconds=2)
    story.tell("2025-03-02T09:00", "review", rating=4.5)
    story.tell("2025-03-03T09:00", "review")
    assert story.says("engagement", "watch_seconds_30d") == 2.001
    assert story.says("engagement", "avg_watch_seconds_90d") == 1.0005
    assert story.says("engagement", "avg_rating_90d") == 4.5
    assert story.says("engagement", "reviews_30d") == 2
    assert story.says("engagement", "active_days_7d", "2025-03-08T00:00") == 2
    assert story.says("engagement", "days_since_active", "2025-03-08T00:00") == 5


def test_outreach_windows_of_hours_are_open_at_their_beginning():
    """A push leaves the three hours 3 h after it, to the millisecond; the day at midnight."""
    story = Story(
        {"name": "push_blocked", "domain": "outreach", "when": "push_3h >= 1 or push_day >= 2"}
    )
    story.tell("2025-03-01T19:00", "reach", channel="app_push")
    story.tell("2025-03-01T20:00", "reach", channel="app_push")
    story.tell("2025-03-01T20:30", "reach", channel="sms")
    assert story.says("outreach", "push_3h", "2025-03-01T21:59:59.999") == 2
    assert story.says("outreach", "push_3h", "2025-03-01T22:00") == 1
    assert story.says("outreach", "sms_48h", "2025-03-03T20:29:59.999") == 1
    assert story.says("outreach", "sms_48h", "2025-03-03T20:30") == 0
    story.until("2025-03-04T00:00")
    assert story.changes == [
        ("push_blocked", True, "2025-03-01T19:00", "event"),
        ("push_blocked", False, "2025-03-02T00:00", "time"),
    ]


def test_outreach_counts_what_was_not_answered_as_it_arrives():
    """A response that arrives late answers what arrived before it."""
    story = Story()
    story.tell("2025-03-01T09:00", "reach", channel="sms")
    story.tell("2025-03-03T09:00", "reach", channel="email")
    story.tell("2025-03-02T09:00", "response", channel="phone")
    assert story.says("outreach", "unanswered") == 0
    assert story.says("outreach", "response_rate_30d") == 0.5
    story.tell("2025-03-01T10:00", "reach", channel="store")
    assert story.says("outreach", "unanswered") == 1


def test_the_latest_word_on_a_channel_counts_by_time_then_by_arrival():
    """Each channel on its own."""
    story = Story()
    story.tell("2025-03-02T09:00", "unsubscribe", channel="sms")
    story.tell("2025-03-01T09:00", "subscribe", channel="sms")
    assert story.says("outreach", "opted_out_sms") is True
    story.tell("2025-03-02T09:00", "subscribe", channel="sms")
    assert story.says("outreach", "opted_out_sms") is False
    assert story.says("outreach", "opted_out_email") is False


def test_time_is_of_each_domain_and_partition():
    """An order of a year later lets no contact expire; other contacts do."""
    story = Story(
        {"name": "asked", "domain": "service", "when": "contacts_30d > 0"}, allowed_delay="1m"
    )
    story.tell("2025-03-01T09:00", "contact")
    story.tell("2026-03-01T09:00", "order", amount=1)
    story.reference.finish()
    assert [change[1] for change in story.changes] == [True]
    story.tell("2025-03-31T00:00:59", "contact", user_id="u2")
    story.reference.finish()
    assert len(story.changes) == 2  # the other's
    story.tell("2025-03-31T00:01", "contact", user_id="u2")
    story.reference.finish()
    assert story.changes[-1] == ("asked", False, "2025-03-31T00:00", "time")


@pytest.mark.parametrize(
    ("late_at", "clock"),
    [
        ("2025-03-02T23:00", "2025-03-03T00:00"),  # the push left the day, nothing since
        ("2025-03-02T22:00", "2025-03-02T23:30"),
    ],
)
def test_the_clock_before_a_late_event_is_where_a_feature_last_changed(late_at, clock):
    """Whether a tag reads it or not: push_3h at 23:30, push_day at midnight, then neither."""
    story = Story(allowed_delay="0s")
    story.tell("2025-03-02T20:30", "reach", channel="app_push")
    reached = "2025-03-02T23:45" if clock.endswith("23:30") else "2025-03-03T12:00"
    story.tell(reached, "reach", channel="email", user_id="u2")
    assert story.tell(late_at, "response", channel="email") == "late"
    assert story.reference.people[0, "u1"].lives["outreach"].clock == _ms(clock)


PROFILE: list[dict[str, Any]] = [
    {"name": "buyer", "domain": "purchases", "when": "orders_total > 0"},
    {"name": "asked", "domain": "service", "when": "contacts_month > 0"},
    {"name": "stranger", "domain": "profile", "when": "not buyer"},
    {"name": "group", "domain": "profile", "cases": {"a": "buyer and asked", "b": "stranger"}},
]


def test_tags_made_of_tags_follow_the_last_change_of_an_event():
    """With its instant; the event itself is the cause where it changed no tag."""
    story = Story(*PROFILE)
    story.tell("2025-03-01T09:00", "registered")
    story.tell("2025-03-01T10:00", "order", amount=1)
    story.tell("2025-02-28T09:00", "contact")
    story.reference.finish()
    assert story.changes == [
        ("stranger", True, "2025-03-01T09:00", "event"),
        ("group", "b", "2025-03-01T09:00", "event"),
        ("buyer", True, "2025-03-01T10:00", "event"),
        ("stranger", False, "2025-03-01T10:00", "tag"),
        ("group", None, "2025-03-01T10:00", "tag"),
        ("asked", True, "2025-02-28T09:00", "event"),
        ("group", "a", "2025-02-28T09:00", "tag"),
    ]
    changes = by_user(story.reference.changes)["u1"]
    assert changes[-1]["cause"]["change"]["tag"] == "asked"
    assert changes[-1]["features"] == {"buyer": True, "asked": True, "stranger": False}
    assert story.reference.user_tags()["u1"] == {
        "user_id": "u1",
        "tags": {
            "buyer": {"value": True, "since": "2025-03-01T10:00:00.000+08:00"},
            "asked": {"value": True, "since": "2025-02-28T09:00:00.000+08:00"},
            "group": {"value": "a", "since": "2025-02-28T09:00:00.000+08:00"},
        },
        "updated_at": "2025-03-01T10:00:00.000+08:00",
    }
    assert story.reference.population() == {
        ("buyer", True): 1,
        ("asked", True): 1,
        ("group", "a"): 1,
    }


def test_an_erasure_takes_back_a_domain_and_bars_what_is_not_newer():
    """Tags made of tags may only leave, until something newer than it is applied."""
    story = Story(*PROFILE)
    story.tell("2025-03-01T10:00", "order", amount=1)
    story.tell("2025-03-01T11:00", "contact")
    assert story.tell("2025-03-02T00:00", "erase", "purchases") == "applied"
    assert story.changes[-2:] == [
        ("buyer", False, "2025-03-02T00:00", "erase"),
        ("group", None, "2025-03-02T00:00", "tag"),
    ]
    assert story.reference.changes[-2]["features"] == {}
    assert story.tell("2025-03-02T00:00", "order", amount=1) == "erased"
    assert story.tell("2025-03-02T00:00", "contact") == "applied"
    assert len(story.changes) == 5  # no stranger yet
    story.tell("2025-03-02T00:00:00.001", "contact")
    assert story.changes[-2:] == [
        ("stranger", True, "2025-03-02T00:00", "event"),
        ("group", "b", "2025-03-02T00:00", "event"),
    ]


def test_the_last_erasure_leaves_nothing():
    """Also of tags that hold for somebody of whom nothing is known; a repeat does nothing."""
    story = Story(*PROFILE)
    story.tell("2025-03-01T10:00", "registered")
    assert story.tell("2025-03-02T00:00", "erase") == "applied"
    assert story.changes[-2:] == [
        ("stranger", False, "2025-03-02T00:00", "erase"),
        ("group", None, "2025-03-02T00:00", "erase"),
    ]
    assert story.tell("2025-03-02T00:00", "erase") == "erased"
    assert story.reference.user_tags() == {}
    assert settled(story.reference.changes) == {}
    assert story.tell("2025-03-01T12:00", "registered") == "erased"
    assert story.tell("2025-03-03T12:00", "registered") == "applied"
    assert story.changes[-2:] == [
        ("stranger", True, "2025-03-03T12:00", "event"),
        ("group", "b", "2025-03-03T12:00", "event"),
    ]


def test_an_erasure_ends_an_open_warning_without_a_word():
    """It is never scored; a new silence is warned of anew."""
    story = Story(churn={"mode": "silence", "after": "30d", "lead": "3d"})
    story.tell("2025-03-01T10:00", "order", amount=1)
    story.until("2025-03-29T00:00")
    story.tell("2025-03-29T01:00", "erase")
    story.until("2025-06-01T00:00")
    assert [each["status"] for each in story.reference.warnings] == ["raised"]


def test_other_definitions_are_taken_up_as_of_the_later_of_clock_and_time():
    """Deadlines up to there are the old ones'; what is no longer defined leaves."""
    story = Story(
        {"name": "slept", "domain": "purchases", "when": "days_since_order >= 2"},
        {"name": "buyer", "domain": "purchases", "when": "orders_total > 0"},
        allowed_delay="0s",
    )
    story.tell("2025-03-01T10:00", "order", amount=1)
    story.tell("2025-03-04T10:00", "order", amount=1, user_id="u2")
    story.reference.switch(
        definitions(
            {"name": "slept", "domain": "purchases", "when": "days_since_order >= 3"},
            {"name": "slept_2", "domain": "purchases", "when": "days_since_order >= 2"},
            version=2,
        ),
        0,
    )
    mine = by_user(story.reference.changes)["u1"]
    assert [(each["tag"], each["value"], each["effective_at"][:16]) for each in mine] == [
        ("buyer", True, "2025-03-01T10:00"),
        ("slept", True, "2025-03-03T00:00"),
        ("buyer", False, "2025-03-04T00:00"),  # every midnight moves the clock
        ("slept_2", True, "2025-03-04T00:00"),
    ]
    assert [each["cause"]["kind"] for each in mine] == ["event", "time", "rules", "rules"]
    assert mine[2]["features"] == {}
    assert [each["rules_version"] for each in mine] == [1, 1, 2, 2]


#: churn.md's vectors of the default model: gaps in days, then mu, sigma, nu, F(10), p(1), p(20),
#: and the delays for 0.4 and 0.7.
VECTORS = [
    ([], 3, 1.15470054, 5.6, 0.772420969, 0.47436683, 0.621890007, 1, 30.7266),
    ([7], 2.34119384, 0.889933591, 6.6, 0.574679504, 0.223362486, 0.507066446, 13.9555, 33.9870),
    (
        [7] * 4,
        *(2.10249691, 0.681768924, 9.039, 0.421208898, 0.0864148062, 0.409406408),
        *(19.6351, 33.5400),
    ),
    (
        [3, 4, 2, 5, 3, 4, 3],
        *(1.38672939, 0.72917752, 10.817031, 0.148869524, 0.0437631466, 0.632954723),
        *(13.3991, 22.5621),
    ),
    (
        [30, 45, 28, 60],
        *(3.57915279, 0.683683548, 9.039, 0.955273978, 0.555737102, 0.409593815),
        *(1, 95.9432),
    ),
    (
        [1, 1, 1, 90],
        *(1.5597449, 1.60321013, 9.039, 0.363646249, 0.208091101, 0.554484203),
        *(9.2425, 37.2036),
    ),
    (
        [2] * 40,
        *(0.825570293, 0.641831022, 15.4521912, 0.0249539225, 0.00850497586, 0.794718965),
        *(11.6036, 17.1510),
    ),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: json.dumps(vector[0]))
def test_the_model_of_a_rhythm_has_the_published_figures(vector):
    """To the digits given; delays to the precision of their search."""
    gaps, *expected, soon, late = vector
    orders = [0]
    for gap in gaps:
        orders.append(orders[-1] + gap * DAY_MS)
    parameters = {"m0": 3.0, "kappa0": 0.6, "a0": 2.8, "b0": 1.4, "a": 0.3, "b": 1.2}
    model = Forecast(Rhythm.of(orders), parameters, 33)
    found = [model.mu, model.sigma, model.nu, model.longer_than(10)]
    found += [model.silent_on(1), model.silent_on(20)]
    assert found == pytest.approx(expected, rel=1e-8)
    assert (delay_ms(model, 0.4) or 0) / DAY_MS == pytest.approx(soon, abs=1e-3)
    assert (delay_ms(model, 0.7) or 0) / DAY_MS == pytest.approx(late, abs=1e-3)


def test_orders_of_one_occasion_and_late_ones_make_no_gap():
    """Less than a day apart, or before the last."""
    hours = [0, 23, 48, 24, 71]
    assert Rhythm.of([hour * DAY_MS // 24 for hour in hours]) == Rhythm(
        last=2 * DAY_MS, n=1.0, mean=math.log(2), m2=0.0, x=1
    )
    assert math.log(14) == GENERIC["m0"]
