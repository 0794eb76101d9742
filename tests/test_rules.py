"""Definitions: what a file may hold, every way to get it wrong, and what comes out compiled."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream import data
from stream.commands import tags as tags_command
from stream.conditions import Reader
from stream.domains import discover
from stream.errors import RulesError
from stream.rules import Churn, Rules, load, parse

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Features:
    """A domain over users that are maps of features."""

    names: tuple[str, ...]
    keeps_attributes: bool = False

    @property
    def features(self) -> Mapping[str, Reader]:
        return {name: itemgetter(name) for name in self.names}

    @property
    def attribute_reader(self):
        return itemgetter if self.keeps_attributes else None


DOMAINS = {
    "purchases": Features(
        ("orders_30d", "spend_30d", "days_since_order", "churn_state"), keeps_attributes=True
    ),
    "service": Features(("contacts_month", "region")),
}

HEAD = "version: 1\ntimezone: Asia/Shanghai\n"
TAG = "tags:\n  - {name: t, title: T, domain: purchases, when: orders_30d > 1}\n"


def rules(text: str) -> Rules:
    return parse(text, "tags.yaml", DOMAINS)


def problems(text: str) -> list[str]:
    with pytest.raises(RulesError) as caught:
        rules(text)
    return caught.value.problems


def one_tag(body: str) -> str:
    """A file whose first tag begins in line 4 and goes on with ``body``."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{HEAD}tags:\n  - name: t\n{lines}"


# -- a file that is right

EXAMPLE = """\
version: 7
timezone: Europe/Berlin
max_lateness: 3d
allowed_delay: 30s
attributes: [region, age_band]
churn: {mode: silence, after: 30d, lead: 36h, control: 0.1}
tags:
  - name: regular
    title: {zh: 常客, en: Regular}
    domain: purchases
    owner: growth
    description: Comes often.
    use: Thank them.
    version: 2
    control: 0.25
    when: orders_30d >= 4 and region in ['north', 'south']
  - name: tier
    title: Tier
    domain: purchases
    cases:
      high: spend_30d / orders_30d > 100
      low: spend_30d > 0
    labels: {low: {zh: 低, en: Low}}
  - name: needs_help
    title: Needs help
    domain: service
    when: contacts_month > 2
"""

PREDICTED = f"{HEAD}churn: {{mode: predicted, after: 3d, lead: 1d, parameters: "
FITTED = "{m0: 2.5, kappa0: 1, a0: 3e1, b0: .5, a: 4e-05, b: 9}"


def test_a_file_comes_out_as_written():
    """Every key, in its own unit and type."""
    found = rules(EXAMPLE)
    assert (found.version, found.timezone) == (7, "Europe/Berlin")
    assert (found.max_lateness_ms, found.allowed_delay_ms) == (3 * DAY_MS, 30_000)
    assert found.attributes == ("region", "age_band")
    assert found.churn == Churn(
        mode="silence", after_ms=30 * DAY_MS, lead_ms=36 * 3_600_000, control=0.1
    )
    assert found.source == EXAMPLE
    assert found.warnings == ()
    regular, tier, _ = found.tags
    assert (regular.name, regular.domain, regular.owner) == ("regular", "purchases", "growth")
    assert (regular.title, regular.titles) == ("常客", {"zh": "常客", "en": "Regular"})
    assert (regular.description, regular.use) == ("Comes often.", "Thank them.")
    assert (regular.version, regular.control, regular.kind) == (2, 0.25, "when")
    assert regular.values == (False, True)
    assert regular.features == ("orders_30d", "region")
    assert (tier.title, tier.titles, tier.version, tier.control) == ("Tier", {}, 1, None)
    assert (tier.kind, tier.values) == ("cases", (None, "high", "low"))
    assert tier.labels == {"low": {"zh": "低", "en": "Low"}}
    assert regular.labels == {}


def test_each_domain_gets_its_own_tags_compiled():
    """Values, defaults, evidence and thresholds line up with the tags of the domain."""
    found = rules(EXAMPLE)
    purchases, service = found.domain("purchases"), found.domain("service")
    user = {
        "orders_30d": 4,
        "spend_30d": 500.0,
        "days_since_order": math.inf,
        "churn_state": "none",
        "region": "north",
        "age_band": None,
    }
    assert [tag.name for tag in purchases.tags] == ["regular", "tier"]
    assert purchases.defaults == (False, None)
    assert purchases.evaluate(user) == (True, "high")
    assert purchases.evaluate(user | {"orders_30d": 0}) == (False, "low")
    assert purchases.evidence[0](user) == {"orders_30d": 4, "region": "north"}
    assert purchases.thresholds == {"orders_30d": None, "region": (), "spend_30d": None}
    assert service.evaluate({"contacts_month": 3}) == (True,)
    assert service.thresholds == {"contacts_month": (2,)}


def test_a_domain_without_tags_is_there():
    """It is consumed all the same."""
    empty = rules(HEAD + TAG).domain("service")
    assert (empty.tags, empty.defaults, empty.evaluate({})) == ((), (), ())


def test_thresholds_of_all_tags_are_merged():
    """A feature that one tag uses in any other way has none."""
    found = rules(
        HEAD
        + "tags:\n"
        + "  - {name: a, title: A, domain: purchases, when: orders_30d > 3 and spend_30d > 9}\n"
        + "  - {name: b, title: B, domain: purchases, when: orders_30d < 1 or spend_30d * 2 > 9}\n"
    )
    assert found.domain("purchases").thresholds == {"orders_30d": (1, 3), "spend_30d": None}


def test_evidence_shows_infinity_as_none():
    """So that it can be written as JSON; everything else is shown as it is."""
    found = rules(one_tag("title: T\ndomain: purchases\nwhen: days_since_order > churn_state"))
    (evidence,) = found.domain("purchases").evidence
    assert evidence({"days_since_order": math.inf, "churn_state": "none"}) == {
        "days_since_order": None,
        "churn_state": "none",
    }
    assert evidence({"days_since_order": 3, "churn_state": True}) == {
        "days_since_order": 3,
        "churn_state": True,
    }


def test_what_may_be_left_out():
    """Lateness of 7 days, a delay of a minute, no attributes, no churn warnings, no title."""
    found = rules(one_tag("domain: purchases\nwhen: orders_30d > 1"))
    assert (found.max_lateness_ms, found.allowed_delay_ms) == (7 * DAY_MS, 60_000)
    assert (found.attributes, found.churn) == ((), None)
    assert found.tags[0].title == "t"
    assert found.warnings == ("tags.yaml:4: tag 't': has no title: people will see its name",)


def test_no_tags_at_all_is_allowed():
    """Churn warnings alone are a use."""
    assert rules(HEAD + "tags: []\n").tags == ()


def test_predicted_churn_comes_out_as_written():
    """Numbers also as YAML 1.1 would not have them; a probability of 0.4 where none is given."""
    found = rules(f"{PREDICTED}{FITTED}}}\n{TAG}")
    fitted = {"m0": 2.5, "kappa0": 1, "a0": 30, "b0": 0.5, "a": 0.00004, "b": 9}
    assert found.churn == Churn(
        mode="predicted",
        after_ms=3 * DAY_MS,
        lead_ms=DAY_MS,
        control=0,
        probability=0.4,
        parameters=fitted,
    )
    assert found.warnings == ()


def test_predictions_by_generic_parameters_are_warned_of():
    """A worker logs the warnings of its definitions; in silence there is nothing to predict."""
    head = f"{HEAD}churn: {{mode: predicted, after: 3d, lead: 1d, probability: 0.5}}\n"
    found = rules(head + TAG)
    assert found.churn and (found.churn.probability, found.churn.parameters) == (0.5, None)
    assert found.warnings == (
        "tags.yaml:3: churn: has no parameters, so predictions go by generic ones: "
        "`tagstream churn fit` makes them from your own orders",
    )
    assert rules(head.replace("predicted", "silence").replace(", probability: 0.5", "") + TAG)


# -- the fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: Tier", "title: Level"),
        ("owner: growth", "owner: sales"),
        ("description: Comes often.", "description: Comes."),
        ("use: Thank them.", "use: Nothing."),
        ("    version: 2", "    version: 3"),
        ("orders_30d >= 4 and", "(orders_30d>=4)  and"),
        ("['north', 'south']", '["north", "south"]'),
        ("max_lateness: 3d", "max_lateness: 72h"),
        ("timezone:", "# a comment\ntimezone:"),
    ],
)
def test_the_fingerprint_ignores_what_changes_no_output(old, new):
    """Words for people, spelling and layout."""
    assert old in EXAMPLE
    assert rules(EXAMPLE.replace(old, new)).fingerprint == rules(EXAMPLE).fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 7", "version: 8"),
        ("timezone: Europe/Berlin", "timezone: Asia/Tokyo"),
        ("max_lateness: 3d", "max_lateness: 4d"),
        ("allowed_delay: 30s", "allowed_delay: 31s"),
        ("[region, age_band]", "[region]"),
        ("after: 30d", "after: 31d"),
        ("lead: 36h", "lead: 37h"),
        ("control: 0.1}", "control: 0.2}"),
        ("control: 0.25", "control: 0.5"),
        ("churn: {mode: silence, after: 30d, lead: 36h, control: 0.1}\n", ""),
        ("name: regular", "name: steady"),
        ("orders_30d >= 4", "orders_30d > 4"),
        ("high: spend", "top: spend"),
        ("domain: service\n    when: contacts_month > 2", "domain: purchases\n    when: 1 == 1"),
        (
            "      high: spend_30d / orders_30d > 100\n      low: spend_30d > 0\n",
            "      low: spend_30d > 0\n      high: spend_30d / orders_30d > 100\n",
        ),
    ],
)
def test_the_fingerprint_follows_what_changes_outputs(old, new):
    """Anything that a change or a warning could depend on."""
    assert old in EXAMPLE
    assert rules(EXAMPLE.replace(old, new)).fingerprint != rules(EXAMPLE).fingerprint


def test_the_fingerprint_follows_what_changes_predictions():
    """The probability, and every parameter; not in which order they are written."""
    made = {
        rules(f"{head}\n{TAG}").fingerprint
        for head in (
            f"{PREDICTED}{FITTED}}}",
            f"{PREDICTED}{FITTED}, probability: 0.5}}",
            f"{PREDICTED}{FITTED.replace('b: 9', 'b: 8')}}}",
            f"{HEAD}churn: {{mode: predicted, after: 3d, lead: 1d}}",
            f"{HEAD}churn: {{mode: silence, after: 3d, lead: 1d}}",
        )
    }
    assert len(made) == 5
    turned = FITTED.replace("m0: 2.5, kappa0: 1", "kappa0: 1, m0: 2.5")
    assert rules(f"{PREDICTED}{turned}}}\n{TAG}").fingerprint in made


def test_the_fingerprint_is_the_same_in_every_process():
    """It is kept in changelogs, so it may change only with a reason."""
    assert rules(HEAD + TAG).fingerprint == (
        "f4fd53e8f70a3d0c4901dfc15aa531febeea8daf87b2678cf2f8a3cbd1bef171"
    )


# -- warnings


def test_a_condition_that_costs_a_midnight_per_user_is_warned_of():
    """Arithmetic on a feature that grows daily; comparing it with numbers costs nothing."""
    clever = rules(one_tag("title: T\ndomain: purchases\nwhen: days_since_order / 7 > 2"))
    assert clever.warnings == (
        "tags.yaml:4: tag 't': days_since_order is not just compared with numbers, which costs "
        "every user an evaluation at every midnight: compare it with numbers alone",
    )
    plain = rules(one_tag("title: T\ndomain: purchases\nwhen: days_since_order > 14"))
    assert plain.warnings == ()


def test_a_condition_that_is_the_same_for_all_is_warned_of():
    """But a last case that always holds is how one says: all others."""
    constant = rules(one_tag("title: T\ndomain: purchases\nwhen: 1 == 1"))
    assert constant.warnings == (
        "tags.yaml:4: tag 't': reads nothing: it is the same for all users",
    )
    others = "title: T\ndomain: purchases\ncases: {some: orders_30d > 1, others: 1 == 1}"
    assert rules(one_tag(others)).warnings == ()


def test_remarks_on_a_condition_are_warnings():
    """With the line of the condition."""
    found = rules(one_tag("title: T\ndomain: purchases\nwhen: orders_30d < None"))
    assert found.warnings == (
        "tags.yaml:7: tag 't': when: 'orders_30d < None': never holds, None has no order",
    )


# -- files that are wrong


def test_every_problem_is_reported_at_once_in_the_order_of_the_file():
    """One run shows all that there is to mend."""
    text = """\
version: one
timezone: Asia/Shangai
attributes: [region, orders_30d]
tags:
  - name: a
    domain: purchases
    when: orders_30 > 3 and abs(spend_30d) > 2
  - name: a
    domain: purchase
    when: contacts_month > 2
  - domain: service
    when: orders_30d > 1
"""
    assert problems(text) == [
        "tags.yaml:1: version: found 'one', must be a whole number from 1",
        "tags.yaml:2: timezone: unknown time zone 'Asia/Shangai': did you mean 'Asia/Shanghai'?",
        "tags.yaml:3: attributes: 'orders_30d' is a feature of purchases: choose another name",
        "tags.yaml:7: tag 'a': when: unknown feature 'orders_30': did you mean 'orders_30d'?",
        "tags.yaml:7: tag 'a': when: 'abs(spend_30d)': calls are not allowed",
        "tags.yaml:8: tag 'a': is in line 5 already: rename or remove one of them",
        "tags.yaml:9: tag 'a': domain: unknown domain 'purchase': did you mean 'purchases'?",
        "tags.yaml:11: tag 3: 'name' is missing: add it",
        "tags.yaml:12: tag 3: when: 'orders_30d' is a feature of purchases: "
        "a tag reads those of its own domain only",
    ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("when: orders_30d > 1", "4: tag 't': 'domain' is missing: add it"),
        ("domain: purchases", "4: tag 't': 'when' or 'cases' is missing: add one"),
        (
            "domain: purchases\nwhen: orders_30d > 1\ncases: {a: orders_30d > 1}",
            "4: tag 't': has both 'when' and 'cases': keep one",
        ),
        (
            "domain: purchases\nwhne: 1\nwhen: orders_30d > 1",
            "6: tag 't': unknown key 'whne': did you mean 'when'?",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\nwhen: orders_30d > 2",
            "7: tag 't': 'when' is in line 6 already: remove or rename one of them",
        ),
        (
            "domain: purchases\ncases:\n  a: orders_30d > 1\n  a: orders_30d > 2",
            "8: tag 't': 'a' is in line 7 already: remove or rename one of them",
        ),
        (
            "domain: purchases\ncases:\n  a: orders_30d > 1\n  b: region > 1",
            "8: tag 't': b: 'region' is a feature of service: "
            "a tag reads those of its own domain only",
        ),
        ("domain: purchases\ncases: {}", "6: tag 't': cases: holds no case: add a value and"),
        ("domain: purchases\ncases: x", "6: tag 't': cases: found 'x', must be a map of names"),
        (
            "domain: purchases\ncases: {yes: orders_30d > 1}",
            "6: tag 't': the key 'yes' must be text: put it in quotes",
        ),
        (
            "domain: purchases\ncases: {a b: orders_30d > 1}",
            "6: tag 't': a b: is no value: use letters, digits, _, - and ., 64 at most",
        ),
        (
            "domain: purchases\nwhen: true",
            "6: tag 't': when: found 'true', must be a condition (one that always holds is 1 == 1)",
        ),
        ("domain: purchases\nwhen:", "6: tag 't': when: found nothing, must be a condition"),
        ("domain: purchases\nwhen: ''", "6: tag 't': when: must not be empty"),
        ("domain: purchases\nwhen: [a]", "6: tag 't': when: found a list, must be a condition"),
        (
            "domain: purchases\nwhen: orders_30d == null",
            "6: tag 't': when: 'null' is no feature: write None",
        ),
        (
            "domain: purchases\nwhen: orders_30d == true",
            "6: tag 't': when: 'true' is no feature: write the name itself",
        ),
        (
            "domain: purchases\nwhen: zzz > 1",
            "6: tag 't': when: unknown feature 'zzz': purchases has orders_30d, spend_30d, "
            "days_since_order, churn_state",
        ),
        (
            "domain: sales\nwhen: x > 1",
            "5: tag 't': domain: unknown domain 'sales': known are purchases, service, profile",
        ),
        (
            "domain: profile\nwhen: orders_30d > 1",
            "6: tag 't': when: 'orders_30d' is a feature of purchases: a tag of the profile reads "
            "tags alone",
        ),
        (
            "domain: profile\nwhen: not t",
            "6: tag 't': when: no tag 't' is defined, or not above: define it first",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\ncontrol: 1.5",
            "7: tag 't': control: found '1.5', must be a number from 0 to 1",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\ncontrol: .nan",
            "7: tag 't': control: found '.nan', must be a number from 0 to 1",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\nowner: 12",
            "7: tag 't': owner: found '12', must be text; put it in quotes",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\nversion: 0",
            "7: tag 't': version: found '0', must be a whole number from 1",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\ntitle: {de: Kunde}",
            "7: tag 't': unknown key 'de': known are zh, en",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\nlabels: {hihg: H}",
            "7: tag 't': hihg: labels no case 'hihg': remove it, or name a case so",
        ),
        (
            "domain: purchases\nwhen: orders_30d > 1\ntitle: [T]",
            "7: tag 't': title: found a list, must be text, or a map of zh and en",
        ),
        (
            'domain: purchases\nwhen: orders_30d > 1\ntitle: "\\ud800"',
            "7: tag 't': title: holds control characters, or others that are not text",
        ),
    ],
)
def test_problems_of_a_tag(body, problem):
    """Each with its line, the tag, what is wrong and what to do."""
    (found,) = problems(one_tag(body))
    assert found.startswith(f"tags.yaml:{problem}")


def test_a_problem_is_one_line_that_a_terminal_can_show():
    """Whatever the file spells with escapes."""
    text = f'{HEAD}tags:\n  - {{"name": "a\\nb\\e[2J", "dom\\ud800ain": x, when: 1 == 1}}\n'
    for problem in problems(text):
        assert problem.startswith("tags.yaml:4: tag 'a b [2J': ")
        assert problem.isprintable()


@pytest.mark.parametrize("name", ["9lives", "a-b", "a b", "标签", "x" * 65, "_a"])
def test_a_name_is_an_identifier(name):
    """Profile tags and metrics use it as one."""
    (found,) = problems(HEAD + TAG.replace("name: t,", f"name: {name},"))
    assert found.startswith(f"tags.yaml:4: tag '{name[:60]}': name: found '{name[:60]}', must be")


def test_a_name_is_no_word_of_python():
    """A condition could not read it."""
    assert problems(HEAD + TAG.replace("name: t,", "name: lambda,")) == [
        "tags.yaml:4: tag 'lambda': name: 'lambda' is a word of Python: choose another name"
    ]


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("timezone: UTC", "1: 'version' is missing: add it"),
        ("version: 1", "1: 'timezone' is missing: add it"),
        ("version: 1\ntimezone: Mars/Base", "2: timezone: unknown time zone 'Mars/Base': use one"),
        ("version: 1\ntimezone: localtime", "2: timezone: unknown time zone 'localtime'"),
        ("version: 1\ntimezone: ../UTC", "2: timezone: unknown time zone '../UTC'"),
        ("version: 1\ntimezone: America", "2: timezone: unknown time zone 'America'"),
        ("version: 1.5\ntimezone: UTC", "1: version: found '1.5', must be a whole number from 1"),
        (f"{HEAD}tag: 1", "3: unknown key 'tag': did you mean 'tags'?"),
        (f"{HEAD}max_lateness: 7", "3: max_lateness: found '7', must be a whole number and s, m"),
        (f"{HEAD}max_lateness: 1w", "3: max_lateness: found '1w', must be a whole number and s,"),
        (f"{HEAD}max_lateness: 0d", "3: max_lateness: must be longer than 0"),
        (f"{HEAD}max_lateness: -1d", "3: max_lateness: found '-1d', must be a whole number and"),
        (f"{HEAD}max_lateness: 9999d", "3: max_lateness: found '9999d', must be at most 3660d"),
        (f"{HEAD}allowed_delay: soon", "3: allowed_delay: found 'soon', must be a whole number"),
        (f"{HEAD}attributes: region", "3: attributes: found 'region', must be a list"),
        (f"{HEAD}attributes: [a, a]", "3: attributes: 'a' is declared twice: remove one"),
        (f"{HEAD}attributes: [a b]", "3: attributes: found 'a b', must be a name"),
        (f"{HEAD}attributes: ['in']", "3: attributes: 'in' is a word of Python: choose another"),
        (f"{HEAD}churn: on", "3: churn: found 'on', must be a map of names and values"),
        (f"{HEAD}churn: {{after: 3d, lead: 1d}}", "3: churn: 'mode' is missing: add it"),
        (
            f"{HEAD}churn: {{mode: quiet, after: 3d, lead: 1d}}",
            "3: churn: mode: found 'quiet', must be silence or predicted",
        ),
        (
            f"{HEAD}churn: {{mode: predicted, after: 3d, lead: 1d, probability: 1}}",
            "3: churn: probability: must lie between 0 and 1",
        ),
        (
            f"{HEAD}churn: {{mode: predicted, after: 3d, lead: 1d, probability: often}}",
            "3: churn: probability: found 'often', must be a number from 0 to 1",
        ),
        (
            f"{HEAD}churn: {{mode: predicted, after: 3d, lead: 1d, parameters: generic}}",
            "3: churn: parameters: found 'generic', must be a map of names and values",
        ),
        (
            f"{PREDICTED}{{m0: 2, kappa0: 1, a0: 1, b0: 1, a: 1}}}}",
            "3: churn: parameters: 'b' is missing: add it",
        ),
        (
            f"{PREDICTED}{{m0: 2, kappa: 1, a0: 1, b0: 1, a: 1, b: 1, kappa0: 1}}}}",
            "3: churn: parameters: unknown key 'kappa': did you mean 'kappa0'?",
        ),
        (
            f"{PREDICTED}{{m0: 2, kappa0: 0, a0: 1, b0: 1, a: 1, b: 1}}}}",
            "3: churn: parameters: kappa0: found '0', must be a number from 1e-09 to 1e+09",
        ),
        (
            f"{PREDICTED}{{m0: .nan, kappa0: 1, a0: 1, b0: 1, a: 1, b: 1}}}}",
            "3: churn: parameters: m0: found '.nan', must be a number from -20 to 20",
        ),
        (
            f"{HEAD}churn: {{mode: silence, after: 3d, lead: 1d, probability: 0.4}}",
            "3: churn: probability: belongs to the mode predicted: remove it",
        ),
        (
            f"{HEAD}churn: {{mode: silence, after: 3d, lead: 72h}}",
            "3: churn: lead: must be shorter than 'after'",
        ),
        (
            f"{HEAD}churn: {{mode: silence, after: 3d, lead: 0h}}",
            "3: churn: lead: must be longer than 0",
        ),
        (
            f"{HEAD}churn: {{mode: silence, after: 3d, lead: 1d, control: 2}}",
            "3: churn: control: found '2', must be a number from 0 to 1",
        ),
    ],
)
def test_problems_of_a_file(head, problem):
    """Each with its line, the key, what is wrong and what to do."""
    (found,) = problems(f"{head}\n{TAG}")
    assert found.startswith(f"tags.yaml:{problem}")


def test_tags_are_maps_in_a_list():
    """The two slips of those who are new to YAML."""
    assert problems(f"{HEAD}tags: {{name: t}}\n") == [
        "tags.yaml:3: tags: found a map, must be a list"
    ]
    assert problems(f"{HEAD}tags: [t]\n") == [
        "tags.yaml:3: tag 1: found 't', must be a map: name, domain, when"
    ]


REMEDY = (
    "; indent with spaces, and put a value in quotes where it holds ': ' or ' #' "
    "or begins with a quote or another special character"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: nothing is defined"),
        ("# only a comment\n", "1: nothing is defined"),
        ("version: 1\n\ttimezone: UTC\n", "2: not YAML: while scanning for the next token"),
        ("version: 1\na: [1, 2\n", "3: not YAML: while parsing a flow sequence expected ',' or"),
        ("version: 1\nwhen: 'x' == a\n", "2: not YAML: while parsing a block mapping expected"),
        ("a: 1\n---\nb: 2\n", "2: not YAML: expected a single document in the stream"),
        ("a: *b\n", "1: not YAML: found undefined alias 'b'"),
        ("a: 1\nb: \x01\n", "2: holds a control character: remove it"),
        ("[" * 100_000, "1: not YAML that can be read: nested too deep"),
        ("- a\n", "1: found a list, must be a map of names and values"),
        ("? [a]\n: 1\n", "1: the key a list must be text: put it in quotes"),
        ("&a {x: *a}\n", "1: unknown key 'x': known are version, timezone, tags, max_lateness"),
    ],
)
def test_problems_of_yaml_itself(text, problem):
    """With the line, like all others."""
    found = problems(text)[0]
    assert found.startswith(f"tags.yaml:{problem}")


def test_a_yaml_mistake_says_what_usually_helps():
    """What YAML itself says is not for everybody."""
    (found,) = problems("version: 1\nwhen: 'x' == a\n")
    assert found.endswith(REMEDY)


def test_files_that_cannot_be_read(tmp_path):
    """Missing, no file, in another encoding, too large: a line each."""

    def only_problem(path: Path) -> str:
        with pytest.raises(RulesError) as caught:
            load(path, DOMAINS)
        (problem,) = caught.value.problems
        return problem.removeprefix(f"{path}:")

    latin, large = tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes("version: 1\ntitle: Größe\n".encode("latin-1"))
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    assert only_problem(tmp_path / "none.yaml") == "1: cannot be read: No such file or directory"
    assert only_problem(tmp_path) == "1: cannot be read: Is a directory"
    assert only_problem(latin) == "2: not UTF-8: save the file in that encoding"
    assert only_problem(large) == "1: over 1,048,576 bytes: split or shorten it"


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    """Editors of some systems write one."""
    path = tmp_path / "tags.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + TAG).encode())
    assert load(path, DOMAINS).fingerprint == rules(HEAD + TAG).fingerprint


@settings(deadline=None)
@given(st.text("tags: version-[]{}&*!|>'\"%@`#,?\n\t1az~\\", max_size=80))
def test_no_text_does_anything_but_load_or_be_refused(text):
    """Whatever stands in a file, its author gets an answer and the worker no other exception."""
    for candidate in (text, HEAD + text, one_tag(text)):
        try:
            rules(candidate)
        except RulesError as error:
            assert all(problem.startswith("tags.yaml:") for problem in error.problems)


# -- the shipped definitions, over the features of the purchases domain

PURCHASES = {
    "purchase_streak_days": 0,
    "orders_30d": 0,
    "orders_90d": 0,
    "orders_365d": 0,
    "orders_total": 0,
    "repurchases_90d": 0,
    "spend_30d": 0.0,
    "spend_90d": 0.0,
    "spend_365d": 0.0,
    "coupon_rate_90d": 0.0,
    "days_since_order": math.inf,
    "days_since_first_order": math.inf,
    "days_since_registered": 0,
    "churn_state": "none",
}


def shipped() -> Rules:
    ours = Features(tuple(PURCHASES), keeps_attributes=True)
    return load(data.TAGS, {**discover(), "purchases": ours})


def test_the_shipped_definitions_are_complete():
    """Two titles, an owner, a description and a use each, real features, nothing to warn of."""
    found = load(data.TAGS, discover())
    assert found.warnings == ()
    assert found.churn == Churn(
        mode="silence", after_ms=30 * DAY_MS, lead_ms=3 * DAY_MS, control=0.1
    )
    for tag in found.tags:
        assert set(tag.titles) == {"zh", "en"}
        assert all(set(label) == {"zh", "en"} for label in tag.labels.values())
        assert set(tag.labels) == (set(tag.values[1:]) if tag.kind == "cases" else set())
        assert tag.owner
        assert tag.description
        assert tag.use


@pytest.mark.parametrize(
    ("tag", "without", "having", "value"),
    [
        (
            "high_repurchase",
            {"purchase_streak_days": 29, "repurchases_90d": 29},
            {"purchase_streak_days": 30, "repurchases_90d": 29},
            True,
        ),
        (
            "high_repurchase_active",
            {"orders_30d": 1, "repurchases_90d": 2},
            {"orders_30d": 1, "repurchases_90d": 3},
            True,
        ),
        ("price_sensitive", {"coupon_rate_90d": 0.6}, {"coupon_rate_90d": 0.61}, True),
        ("value_tier", {"spend_365d": 50_000}, {"spend_365d": 50_000.01}, "super_vip"),
        ("value_tier", {"spend_365d": 9_999.99}, {"spend_365d": 10_000}, "potential_vip"),
        ("value_tier", {"spend_365d": 10_000}, {"spend_365d": 9_999.99}, "basic"),
        ("lifecycle", {"orders_total": 1}, {"orders_total": 0}, "prospect"),
        (
            "lifecycle",
            {"orders_total": 1, "days_since_first_order": 8},
            {"orders_total": 1, "days_since_first_order": 7},
            "new",
        ),
        (
            "lifecycle",
            {"orders_total": 5, "days_since_first_order": 8, "orders_365d": 4},
            {"orders_total": 5, "days_since_first_order": 8, "orders_365d": 5},
            "mature",
        ),
        (
            "lifecycle",
            {"orders_total": 5, "days_since_first_order": 8, "orders_365d": 5},
            {"orders_total": 5, "days_since_first_order": 8, "orders_365d": 4},
            "growing",
        ),
        ("lifecycle", {"orders_total": 9}, {"orders_total": 9, "churn_state": "warned"}, "at_risk"),
        ("lifecycle", {"orders_total": 9}, {"orders_total": 9, "churn_state": "churned"}, "lost"),
        ("not_activated", {"days_since_registered": 7}, {"days_since_registered": 8}, True),
        (
            "not_activated",
            {"days_since_registered": 8, "orders_total": 1},
            {"days_since_registered": 8},
            True,
        ),
    ],
)
def test_shipped_tags_at_their_boundaries(tag, without, having, value):
    """The last user without the tag (or with another value), and the first who has it."""
    found = shipped().domain("purchases")
    index = [definition.name for definition in found.tags].index(tag)
    assert found.evaluate(PURCHASES | without)[index] != value
    assert found.evaluate(PURCHASES | having)[index] == value


# -- the commands


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``tagstream tags …`` over the domains of this file."""
    monkeypatch.setattr(tags_command, "discover", lambda: DOMAINS)
    return lambda *arguments: CliRunner().invoke(
        tags_command.app, [str(item) for item in arguments]
    )


def test_check_sums_up_a_file_that_can_be_used(run, tmp_path):
    """Exit 0; warnings do not refuse it."""
    path = tmp_path / "tags.yaml"
    path.write_text(EXAMPLE.replace("    title: Tier\n", ""), "utf-8")
    result = run("check", path)
    assert result.exit_code == 0
    assert result.stdout == f"{path}: 3 tags (purchases 2, service 1), version 7, 1 warning\n"
    others = "add what others should know of it"
    assert result.stderr.splitlines() == [
        f"warning: {path}:17: tag 'tier': has no title: people will see its name",
        f"note: {path}:5: attributes: no tag reads age_band: look-ups show them",
        f"note: {path}:17: tag 'tier': has no owner and no description: {others}",
        f"note: {path}:23: tag 'needs_help': has no owner and no description: {others}",
    ]


def test_check_names_every_problem_on_a_line_of_its_own(run, tmp_path):
    """Exit 2, nothing on standard output."""
    path = tmp_path / "tags.yaml"
    path.write_text(EXAMPLE.replace("version: 7", "version: x").replace("> 100", "is 1"), "utf-8")
    result = run("check", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:1: version: found 'x', must be a whole number from 1",
        f"{path}:21: tag 'tier': high: 'spend_30d / orders_30d is 1': "
        "`is` is not allowed: write ==",
    ]


def test_list_shows_every_definition(run, tmp_path):
    """Name, titles, domain, owner and conditions, with brackets as they are."""
    path = tmp_path / "tags.yaml"
    path.write_text(EXAMPLE, "utf-8")
    result = run("list", path)
    assert result.exit_code == 0
    for text in (
        "regular",
        "常客",
        "Regular",
        "service",
        "growth",
        "orders_30d >= 4 and region in ['north', 'south']",
        "high: spend_30d / orders_30d > 100",
        "low: spend_30d > 0",
    ):
        assert text in result.stdout


OF_TAGS = (
    HEAD
    + """tags:
  - {name: rich_and_loud, domain: profile, when: tier == 'high' and loud}
  - {name: tier, domain: purchases, cases: {high: spend_30d > 100, low: spend_30d > 0}}
  - {name: loud, domain: service, when: contacts_month > 2}
  - {name: who, domain: profile, cases: {both: rich_and_loud, one: tier == 'high' or loud}}
"""
)


def test_tags_are_made_of_tags_of_any_domain_and_of_their_own_above_them():
    """Where the tags of a domain stand in the file does not matter."""
    made = rules(OF_TAGS).profile
    assert [tag.name for tag in made.tags] == ["rich_and_loud", "who"]
    assert made.unset == {"rich_and_loud": False, "tier": None, "loud": False, "who": None}
    assert made.reads == {"tier", "loud", "rich_and_loud"}
    rich_and_loud, who = made.cases
    assert rich_and_loud({**made.unset, "tier": "high", "loud": True}) is True
    assert rich_and_loud({**made.unset, "tier": "high"}) is False
    assert who({**made.unset, "rich_and_loud": True}) == "both"
    assert who({**made.unset, "loud": True}) == "one"
    assert who(made.unset) is None
