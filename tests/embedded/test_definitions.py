"""Every tag that comes with the package: somebody who gets it, and loses it again."""

from pathlib import Path
from typing import Any

import pytest

from stream import data
from stream.domains import discover
from stream.rules import Rules, load
from tests.inprocess import InProcess


def march(event: str, number: int) -> list[str]:
    """The same on so many days of March."""
    return [event.replace("TIME", f"2025-03-{day:02}T10:00") for day in range(1, number + 1)]


def times(event: str, number: int, day: str = "2025-03-01") -> list[str]:
    """The same so many times on one day, from ten o'clock on, a minute apart."""
    return [event.replace("TIME", f"{day}T10:{minute:02}") for minute in range(number)]


ORDER = 'u order TIME {"amount": 100}'
COUPON = 'u order TIME {"amount": 100, "coupon": true}'
PUSH, SMS = 'u reach TIME {"channel": "app_push"}', 'u reach TIME {"channel": "sms"}'

# What happens; the tag's value afterwards. None ends the tag, or the value, that was there.
Scenario = list[tuple[list[str], Any]]
SHIPPED: dict[str, list[Scenario]] = {
    "high_repurchase": [
        [(march(ORDER, 29), False), (['u order 2025-03-30T10:00 {"amount": 1}'], True)]
        + [(['x order 2025-04-01T10:00 {"amount": 1}'], False)],
    ],
    "high_repurchase_active": [
        [(march(ORDER, 3), False), (times(ORDER, 1, "2025-03-04"), True)]
        + [(times("x updated TIME", 1, "2025-04-04"), False)],
    ],
    "content_lover": [
        [(times('u watch TIME {"seconds": 301}', 1), False), (times("u favorite TIME", 11), True)]
        + [(times('u watch TIME {"seconds": 10}', 1, "2025-03-02"), False)],
    ],
    "social_sharer": [
        [(times("u review TIME", 4), False), (times("u share TIME", 6), True)]
        + [(["x share 2025-05-31T10:00"], False)],
    ],
    "price_sensitive": [
        [(times(COUPON, 3), True), (times(ORDER, 2, "2025-03-02"), False)],
    ],
    "service_heavy": [
        [(times("u contact TIME", 2), False), (["u contact 2025-03-31T23:00"], True)]
        + [(["x contact 2025-04-01T00:01"], False)],
    ],
    "value_tier": [
        [(['u order 2025-03-01T10:00 {"amount": 9999.99}'], "basic")]
        + [(['u order 2025-03-02T10:00 {"amount": 0.01}'], "potential_vip")]
        + [(['u order 2025-03-03T10:00 {"amount": 40000.01}'], "super_vip")]
        + [(['u refund 2025-03-04T10:00 {"amount": 0.01}'], "potential_vip")]
        + [(["x updated 2026-03-03T00:02"], "basic")],
    ],
    "rfm_group": [
        [(times('u order TIME {"amount": 400}', 2), "potential")]
        + [(times('u order TIME {"amount": 400}', 1, "2025-03-02"), "high_value")]
        + [(["x updated 2025-04-01T00:02"], "potential")]
        + [(["x updated 2025-05-31T00:02"], "silent")],
    ],
    "lifecycle": [
        [(["u registered 2025-03-01T10:00"], "prospect"), (times(ORDER, 1), "new")]
        + [(["x updated 2025-03-09T00:02"], "growing"), (times(ORDER, 4, "2025-03-10"), "mature")]
        + [(["x updated 2025-04-07T00:02"], "at_risk"), (["x updated 2025-04-10T00:02"], "lost")],
    ],
    "high_potential_new": [
        [(times(ORDER, 1), False), (times(ORDER, 1, "2025-03-02"), True)]
        + [(["x updated 2025-03-09T00:02"], False)],
        [(times('u order TIME {"amount": 500}', 1), True)],
    ],
    "not_activated": [
        [(["u registered 2025-03-01T10:00"], False), (["x updated 2025-03-09T00:02"], True)]
        + [(times(ORDER, 1, "2025-03-10"), False)],
    ],
    "recent_buyer": [[(times(ORDER, 1), True), (["x updated 2025-03-31T00:02"], False)]],
    "cart_filler": [[(times("u cart TIME", 1), True), (["x cart 2025-03-31T00:02"], False)]],
    "cart_abandoner": [
        [(times("u cart TIME", 1), True), (times(ORDER, 1, "2025-03-02"), False)],
        [(times("u cart TIME", 1), True), (["x cart 2025-03-31T00:02"], False)],
    ],
    "activity": [
        [(march("u view TIME", 3), "potential"), (march("u view TIME", 4)[3:], "active")]
        + [(march("u view TIME", 15)[4:], "core"), (["x view 2025-03-31T00:02"], "active")]
        + [(["x view 2025-04-10T00:02"], "active"), (["x view 2025-04-11T00:02"], "potential")]
        + [(["x view 2025-04-14T00:02"], "dormant"), (["u view 2025-04-16T09:00"], "potential")],
    ],
    "operating_group": [
        [(times('u order TIME {"amount": 10}', 1), "sustain")]
        + [(times('u order TIME {"amount": 10}', 1, "2025-03-02"), "growth")]
        + [(times('u order TIME {"amount": 60000}', 1, "2025-03-03"), "core_value")]
        + [(["x updated 2025-03-30T11:02"], "churn_risk")],
        [(times("u view TIME", 1), "silent"), (march("u view TIME", 5)[1:], "sustain")]
        + [(["x view 2025-04-05T00:02"], "silent")],
    ],
    "push_blocked": [
        [(times(PUSH, 1), True), (["x view 2025-03-01T13:00", *times(SMS, 1)], True)]
        + [(['x reach 2025-03-01T13:01 {"channel": "email"}'], False)],
        [(['u unsubscribe 2025-03-01T13:00 {"channel": "app_push"}'], True)]
        + [(['u subscribe 2025-03-01T13:01 {"channel": "app_push"}'], False)],
    ],
    "sms_blocked": [
        [(times(SMS, 1), True), (['x reach 2025-03-03T10:01 {"channel": "email"}'], False)],
    ],
    "opted_out": [
        [(['u unsubscribe 2025-03-01T13:00 {"channel": "phone"}'], True)]
        + [(['u subscribe 2025-03-01T13:01 {"channel": "phone"}'], False)],
    ],
    "reach_fatigue": [
        [(times('u reach TIME {"channel": "email"}', 2), False)]
        + [(times('u reach TIME {"channel": "store"}', 1, "2025-03-02"), True)]
        + [(['u response 2025-03-02T11:00 {"channel": "store"}'], False)],
    ],
}

TEMPLATES: dict[str, dict[str, list[Scenario]]] = {
    "value_tiers_five": {
        "value_tier": [
            [(['u order 2025-03-01T10:00 {"amount": 199}'], "regular")]
            + [(['u order 2025-03-02T10:00 {"amount": 1}'], "silver")]
            + [(['u order 2025-03-03T10:00 {"amount": 1801}'], "gold")]
            + [(["x updated 2025-04-02T00:02"], "regular")]
            + [(['u order 2025-04-03T10:00 {"amount": 50000}'], "platinum")]
            + [(['u order 2025-04-04T10:00 {"amount": 50000}'], "diamond")]
            + [(['u refund 2025-04-05T10:00 {"amount": 102001}'], "regular")],
        ],
    },
    "churn_predicted": {
        "lifecycle": [
            [(march(ORDER, 10), "well"), (["x updated 2025-04-15T00:02"], "at_risk")]
            + [(["x updated 2025-06-15T00:02"], "lost"), (times(ORDER, 1, "2025-06-16"), "well")],
        ],
    },
    "contact_caps": {
        "push_blocked": [
            [(times(PUSH, 1), True), (['x reach 2025-03-01T13:01 {"channel": "sms"}'], False)],
        ],
        "sms_blocked": [
            [(times(SMS, 1), True), (['x reach 2025-03-03T10:01 {"channel": "sms"}'], False)],
        ],
        "reach_blocked": [
            [(times('u reach TIME {"channel": "email"}', 3), True)]
            + [(['u response 2025-03-02T11:00 {"channel": "email"}'], False)],
        ],
    },
}


def unset(rules: Rules, tag: str) -> Any:
    """The value of somebody who does not have the tag."""
    return rules.profile.unset[tag]


async def live(definitions: Path, tag: str, scenario: Scenario, folder: Path) -> None:
    """Let it happen, and look at the user's tag after each step."""
    async with InProcess(folder, definitions.read_text("utf-8")) as worker:
        before = unset(worker.rules, tag)
        for events, expected in scenario:
            await worker.send(*events)
            told = [record for key, record in worker.rows("user-tags") if key == b"u"]
            held = told[-1]["tags"].get(tag, {}) if told else {}
            value = held.get("value", unset(worker.rules, tag))
            assert value == expected, (tag, events[-1], before)
            before = value


@pytest.mark.parametrize(
    ("tag", "number"),
    [(tag, number) for tag, scenarios in SHIPPED.items() for number in range(len(scenarios))],
)
async def test_a_shipped_tag_comes_and_goes(tag: str, number: int, tmp_path: Path):
    """As its description says."""
    await live(data.TAGS, tag, SHIPPED[tag][number], tmp_path)


@pytest.mark.parametrize(
    ("template", "tag"), [(name, tag) for name, tags in TEMPLATES.items() for tag in tags]
)
async def test_a_tag_of_a_template_comes_and_goes(template: str, tag: str, tmp_path: Path):
    """As its description says."""
    for number, scenario in enumerate(TEMPLATES[template][tag]):
        await live(data.TEMPLATES[template], tag, scenario, tmp_path / str(number))


def test_every_tag_of_every_file_is_shown_and_governed():
    """None is left out above; each has an owner, both titles, a description and a use."""
    files = {data.TAGS: SHIPPED} | {data.TEMPLATES[name]: tags for name, tags in TEMPLATES.items()}
    assert TEMPLATES.keys() == data.TEMPLATES.keys()
    for path, shown in files.items():
        rules = load(path, discover())
        assert {tag.name for tag in rules.tags} == shown.keys()
        assert rules.warnings == ()
        for tag in rules.tags:
            assert tag.owner and tag.description and tag.use
            assert tag.titles.keys() == {"zh", "en"}
