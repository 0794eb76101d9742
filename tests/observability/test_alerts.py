"""Every alert fires when it should, is quiet when it should, and says what to do."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.prometheus import ROOT, alerts, groups, promtool, rules, write_rules

FOLDER = Path(__file__).parent
UNIT_TESTS = sorted(FOLDER.glob("*.test.yaml"))
SITUATIONS: list[tuple[str, dict[str, Any]]] = [
    (content["evaluation_interval"], situation)
    for content in (yaml.safe_load(path.read_text("utf-8")) for path in UNIT_TESTS)
    for situation in content["tests"]
]
RUNBOOK = ROOT / "k8s" / "RUNBOOK.md"
ADDRESS = "https://git.example.com/tagstream/k8s/RUNBOOK.md#"
ALWAYS = {"TagstreamWatchdog"}  # has no quiet side


def sections() -> dict[str, str]:
    """What the runbook says under each heading of the third level."""
    parts = re.split(r"^### (.+)$", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.prometheus
def test_prometheus_takes_the_rules_and_has_nothing_to_say_about_them(tmp_path):
    """Expressions, templates and names, with every lint that there is."""
    path = write_rules(tmp_path / "rules.yml")
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", path)[0] == 0


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("every", "situation"), SITUATIONS, ids=[situation["name"] for _, situation in SITUATIONS]
)
def test_in_this_situation_the_right_alerts_fire(tmp_path, every, situation):
    """promtool compares labels and number of what fires; annotations are looked at below."""
    write_rules(tmp_path / "rules.yml", annotated=False)
    unit_test = tmp_path / "test.yml"
    content = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": every,
        # Else promtool's order is random, and what an alert reads was recorded too long ago.
        "group_eval_order": [group["name"] for group in groups()],
        "tests": [situation],
    }
    unit_test.write_text(yaml.safe_dump(content), "utf-8")
    code, said = promtool("test", "rules", unit_test)
    assert code == 0, said


def test_every_alert_has_a_situation_in_which_it_fires_and_one_in_which_it_is_quiet():
    """And no situation speaks of an alert that there is not, which is always quiet."""
    fires: set[str] = set()
    quiet: set[str] = set()
    for _, situation in SITUATIONS:
        for looked in situation["alert_rule_test"]:
            (fires if looked.get("exp_alerts") else quiet).add(looked["alertname"])
    assert fires == alerts().keys()
    assert quiet | ALWAYS == alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(name):
    """One line that names what it is about, and a section of the runbook."""
    alert = alerts()[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning", "ticket", "none"}
    assert alert["annotations"].keys() == {"summary", "runbook_url"}
    assert alert["annotations"]["summary"].endswith((".", ")."))
    assert alert["annotations"]["runbook_url"] == ADDRESS + name.lower()
    assert name in sections()


def test_the_runbook_has_a_section_for_every_alert_and_for_nothing_else():
    """What it means, what to look at, what to do."""
    assert sections().keys() == alerts().keys()
    for name, text in sections().items():
        for part in ("**Means.**", "**Look.**", "**Do.**"):
            assert part in text, (name, part)


def test_names_are_given_once():
    """Two rules of one name would be two series of the same, or silence each other."""
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(set(names)) == len(names)
