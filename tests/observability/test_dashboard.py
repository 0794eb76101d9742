"""The dashboard is what its module says, and is laid out and labelled so that it can be read."""

import json
import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.observability.dashboard import COLUMNS, DASHBOARD, DATASOURCE, chosen, written

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
NAMED = [pytest.param(panel, id=f"{panel['id']}-{panel['title']}") for panel in PANELS]


def test_the_file_is_what_the_module_makes():
    """`python -m tests.observability.dashboard` writes it."""
    assert DASHBOARD.read_text("utf-8") == written()


def test_grafana_knows_every_field():
    """Its own model, read and written again, loses nothing: a misspelt field would be lost."""
    register_default_plugins()
    understood = JSONEncoder(sort_keys=True).encode(Dashboard.from_json(BOARD))
    assert lost(BOARD, json.loads(understood)) == ["/id"]  # null: Grafana gives it one


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Where ``kept`` lacks something that is given, or has it otherwise."""
    if isinstance(given, dict):
        return [
            problem
            for name, value in given.items()
            for problem in (
                lost(value, kept[name], f"{path}/{name}") if name in kept else [f"{path}/{name}"]
            )
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [problem for n, (a, b) in pairs for problem in lost(a, b, f"{path}/{n}")]
    return [] if given == kept else [path]


def test_it_can_be_imported_anywhere_and_again():
    """A name of its own and no number; which Prometheus, is chosen above it."""
    assert BOARD["id"] is None
    assert BOARD["uid"] == "tagstream"
    assert BOARD["schemaVersion"] >= 39
    assert "datasource" in {variable["name"] for variable in BOARD["templating"]["list"]}


def test_panels_are_beside_and_below_each_other():
    """Within the columns that there are, none over another, each row's panels filling its lines."""
    ids = Counter(panel["id"] for panel in BOARD["panels"])
    assert set(ids.values()) == {1}
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
    for one, other in combinations((panel["gridPos"] for panel in BOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


@pytest.mark.parametrize("panel", NAMED)
def test_a_panel_says_what_it_shows_in_which_unit_and_asks_what_was_chosen(panel):
    """And every line of it has a name; a single figure needs none."""
    assert panel["description"].endswith((".", ")."))
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATASOURCE
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["legendFormat"] or panel["type"] == "stat"


@pytest.mark.parametrize("panel", NAMED)
def test_a_panel_is_of_the_namespace_and_at_the_resolution_that_were_chosen(panel):
    """A rate over less than four scrapes has holes, one over more hides what happened."""
    for target in panel["targets"]:
        expression = target["expr"]
        selectors = re.findall(r"\{[^{}]*\}", expression)
        assert selectors or "vector" in expression
        assert all('namespace=~"$namespace"' in selector for selector in selectors)
        for window in re.findall(r"\brate\([^)]*\[([^]]+)\]", expression):
            assert window == "$__rate_interval"
        for window in re.findall(r"\bincrease\([^)]*\[([^]]+)\]", expression):
            assert window in {"1h", "1d", "7d", "30d", "$__range"}


def test_titles_are_given_once_in_a_row():
    """Two panels of one name are one too many."""
    row, seen = "", set()
    for panel in BOARD["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        assert (row, panel["title"]) not in seen
        seen.add((row, panel["title"]))


def test_what_was_chosen_goes_into_every_selector():
    """Beside what it had."""
    assert chosen('a{} / sum(b{c="d"})') == (
        'a{namespace=~"$namespace"} / sum(b{namespace=~"$namespace", c="d"})'
    )
