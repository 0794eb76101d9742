"""``tagstream churn fit``: from files of events to a block of definitions that a worker takes."""

import gzip
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
import yaml

from stream import data, timestamps
from stream.domains import discover
from stream.rules import load, parse
from tables import fitting
from tables.calendar import DAY_MS, NEVER
from tables.rhythm import GENERIC, Model, Parameters, Rhythm
from tests.test_commands import run

BEGIN_MS = timestamps.parse("2025-01-01T00:00:00+08:00")
UNTIL = "2025-07-01T00:00:00+08:00"


def order(number: int, user: str, ts_ms: int) -> bytes:
    return orjson.dumps(
        {"event_id": f"o{number}", "user_id": user, "type": "order", "ts": ts_ms, "amount": 9}
    )


def shop(users: int = 60) -> list[bytes]:
    """Orders of customers with rhythms of their own, in order of time; it ends after UNTIL."""
    chance, dated = Random(1), list[tuple[int, str]]()
    for user in range(users):
        own, ts_ms = chance.gauss(2, 0.7), BEGIN_MS + chance.randrange(30 * DAY_MS)
        while ts_ms < BEGIN_MS + 365 * DAY_MS:
            dated.append((ts_ms, f"u{user}"))
            if chance.random() < 0.03:
                break
            ts_ms += round(chance.lognormvariate(own, 0.5) * DAY_MS)
    return [order(number, user, ts_ms) for number, (ts_ms, user) in enumerate(sorted(dated))]


def known(events: list[bytes], until: str = UNTIL) -> fitting.Rows:
    """The rows that these events make, told in the plainest way."""
    histories: dict[str, list[int]] = {}
    for event in map(orjson.loads, events):
        histories.setdefault(event["user_id"], []).append(event["ts"])
    known = [sorted(history) for _, history in sorted(histories.items())]
    return fitting.rows(known, timestamps.parse(until))


def fitted(*args: str | Path, stdin: bytes | None = None) -> tuple[str, str]:
    """What it wrote to standard output, and to standard error."""
    result = run("churn", "fit", *args, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's events in a file."""
    path = tmp_path_factory.mktemp("shop") / "events.jsonl"
    path.write_bytes(b"\n".join(shop()))
    return path


def test_a_fit_is_a_block_that_definitions_take(events):
    """With the parameters that are likeliest, and all else from the definitions in force."""
    block, said = fitted(events, "--until", UNTIL)
    head = "version: 1\ntimezone: Asia/Shanghai\ntags: []\n"
    churn = parse(head + block, "tags.yaml", discover()).churn
    assert churn is not None and churn.parameters is not None
    assert (churn.mode, churn.after_ms, churn.lead_ms) == ("predicted", 30 * DAY_MS, 3 * DAY_MS)
    assert (churn.probability, churn.control) == (0.4, 0.1)
    rows = known(shop())
    best = fitting.fit(rows)
    expected = {name: getattr(best.parameters, name) for name in churn.parameters}
    assert churn.parameters == pytest.approx(expected, rel=1e-5)
    assert best.log_likelihood > fitting.log_likelihood(rows, GENERIC)
    assert f"{len(rows):,} orders of 60 users, until {UNTIL[:19]}.000+08:00" in said
    assert f"log-likelihood {best.log_likelihood:.1f}" in said
    assert "warning" not in said  # the longest gaps are within 30 days


def test_what_was_fitted_predicts_every_warning_of_a_replay(events, tmp_path):
    """Through the whole service: each at the instant that the model says, judged by what came."""
    tags, told, until = tmp_path / "tags.yaml", tmp_path / "warnings", "2026-06-01T00:00:00+08:00"
    fitted(events, "--until", UNTIL, "--output", tags)
    head = "version: 1\ntimezone: Asia/Shanghai\ntags: []\n"
    tags.write_text(head + tags.read_text().replace("control: 0.1", "control: 0.5"))
    result = run("replay", events, "--tags", tags, "--warnings", told, "--until", until)
    assert result.exit_code == 0, result.stderr
    churn: Any = load(tags, discover()).churn
    model = Model(Parameters(**churn.parameters), horizon_ms=33 * DAY_MS, probability=0.4)
    histories: dict[str, list[int]] = {}
    for event in map(orjson.loads, shop()):
        histories.setdefault(event["user_id"], []).append(event["ts"])
    expected = []
    for user, history in histories.items():
        rhythm = Rhythm()
        for ts_ms, following_ms in zip(history, [*history[1:], NEVER], strict=True):
            rhythm.hear(ts_ms)
            raised_ms = (rhythm.last_ms or 0) + model.delay_ms(rhythm)
            if raised_ms <= following_ms:
                lost_ms = raised_ms + 33 * DAY_MS
                right = not any(raised_ms < other < lost_ms for other in history)
                expected.append((user, raised_ms, right))
    records = [orjson.loads(line) for line in told.read_bytes().splitlines()]
    scored = [
        (record["user_id"], timestamps.parse(record["raised_at"]), record["right"])
        for record in records
        if record["status"] == "scored"
    ]
    assert sorted(scored) == sorted(expected)
    assert sum(right for *_, right in expected) / len(expected) >= 0.4
    assert {record["control"] for record in records} == {False, True}
    assert all(record["probability"] >= 0.4 for record in records)


def test_a_fit_keeps_what_the_definitions_say_of_churn(events, tmp_path):
    """And warns where they call lost who is only slow."""
    churn = {"mode": "predicted", "after": "36h", "lead": "90s", "probability": 0.55, "control": 0}
    tags = tmp_path / "tags.yaml"
    content = {"version": 1, "timezone": "Asia/Shanghai", "tags": [], "churn": churn}
    tags.write_text(yaml.safe_dump(content))
    block, said = fitted(events, "--tags", tags, "--until", UNTIL)
    found = yaml.safe_load(block)["churn"]
    found.pop("parameters")
    assert found == churn
    assert re.search(
        r"warning: 'after' is 36h, but one gap in 20 .* was longer than \d+ days", said
    )
    content.pop("churn")
    tags.write_text(yaml.safe_dump(content))
    block, _ = fitted(events, "--tags", tags, "--until", UNTIL)
    assert yaml.safe_load(block)["churn"]["after"] == "30d"


def test_a_fit_reads_what_a_replay_reads(events, tmp_path):
    """Several files, packed or piped, in any order, repeats and unusable lines among them."""
    expected, _ = fitted(events, "--until", UNTIL)
    halves = shop()[::2], shop()[1::2]
    (tmp_path / "b.jsonl").write_bytes(b"\n".join([*halves[1], b"{", *halves[1][:50], b""]))
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b"\n".join(reversed(halves[0])))
    block, said = fitted(tmp_path / "b.jsonl", tmp_path / "a.jsonl.gz", "--until", UNTIL)
    assert block == expected
    assert " 1 unusable lines" in said
    others = [
        {"event_id": "r", "user_id": "x", "type": "registered", "ts": BEGIN_MS},
        {"event_id": "e", "user_id": "gone", "type": "erase", "ts": BEGIN_MS + 9 * DAY_MS},
    ]
    forgotten = [order(n, "gone", BEGIN_MS + n * DAY_MS) for n in (1, 4, 9)]
    stdin = b"\n".join([*map(orjson.dumps, others), *forgotten, *shop()])
    assert fitted("-", "--until", UNTIL, stdin=stdin)[0] == expected


def test_a_fit_without_an_end_ends_with_the_newest_order(tmp_path):
    """Of whoever ordered last, nothing is known but that."""
    until = "2025-02-01T00:00:00+08:00"
    events = [event for event in shop() if orjson.loads(event)["ts"] <= timestamps.parse(until)]
    last = timestamps.iso_utc(orjson.loads(events[-1])["ts"])
    (tmp_path / "e").write_bytes(b"\n".join(events))
    assert fitted(tmp_path / "e")[0] == fitted(tmp_path / "e", "--until", last)[0]


def test_a_fit_is_written_where_it_overwrites_only_its_like(events, tmp_path):
    """Definitions that somebody wrote stay."""
    written = tmp_path / "churn.yaml"
    for _ in range(2):
        assert fitted(events, "--until", UNTIL, "--output", written)[0] == ""
    assert written.read_text() == fitted(events, "--until", UNTIL)[0]
    result = run("churn", "fit", events, "--output", events)
    assert result.exit_code == 2
    assert "exists, and is not from 'churn fit'" in result.stderr
    assert events.read_bytes().startswith(b"{")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--until", "soon"], "--until holds 'soon'"),
        (["--until", "2024-01-01T00:00:00Z"], "nobody has ordered twice, a day or more apart, bef"),
        (["--tags", "/no/tags"], "/no/tags"),
        (["--output", "/no/such/place"], "/no/such/place: No such file"),
    ],
)
def test_a_fit_that_fails_says_why_in_one_line(events, args, said):
    """Exit 2, no traceback."""
    result = run("churn", "fit", events, *args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_fit_without_its_libraries_says_which(events, monkeypatch):
    """The extra that brings them."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.delitem(sys.modules, "tables.fitting")
    result = run("churn", "fit", events)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'tagstream[fit]'" in result.stderr


def test_a_fit_shows_how_far_it_is(events):
    """On a terminal; the block alone goes to standard output."""
    shown = run("churn", "fit", events, "--until", UNTIL, FORCE_COLOR="1")
    assert "reading" in shown.stderr
    assert "fitting" in shown.stderr
    assert shown.stdout == fitted(events, "--until", UNTIL)[0]


def test_the_rows_of_the_shop_are_those_that_are_meant():
    """Closed gaps up to the end, one open one for each user who came before it."""
    rows = known(shop())
    assert not rows.closed.all()
    assert (~rows.closed).sum() == 60
    assert 5 < rows.days[rows.closed].mean() < 30


def test_the_shipped_definitions_are_ready_to_be_fitted():
    """What a fit proposes to those who have not changed them."""
    churn: Any = load(data.TAGS, discover()).churn
    assert (churn.after_ms, churn.lead_ms, churn.control) == (30 * DAY_MS, 3 * DAY_MS, 0.1)
