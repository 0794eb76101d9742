"""The commands, as people and scripts use them: outputs, exit codes, what a failure says."""

import contextlib
import gzip
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from stream import lines, timestamps
from stream.__main__ import app
from stream.commands import history, synthetic
from stream.commands.demo import cdnow
from stream.compiled import hot_path
from stream.domains import discover
from stream.errors import UsageError
from stream.events import MAX_BYTES, Decoder, Rejected
from stream.lines import Routed, Router
from stream.partitioner import partition_for
from stream.rules import load
from stream.settings import Settings
from stream.topics import CHANGELOG, DAY_MS, Problem, Topic, Weight, problems, wanted
from tests.broker.everything import EVERY_TAG, everything, unusable
from tests.broker.purchases import START_MS
from tests.reference import Reference, by_domain, by_user, settled, telling

COMMANDS = (
    *("audience", "churn", "dead-letters", "demo", "erase", "generate", "load", "replay"),
    *("tags", "topics", "user", "worker"),
)


def run(*args: str | Path, stdin: bytes | None = None, **environ: str) -> Result:
    """A command in this process, with no settings but these."""
    unset = dict.fromkeys(("TAGSTREAM_BROKER", "TAGSTREAM_DATA_DIR", "TAGSTREAM_TAGS"))
    return CliRunner().invoke(
        app, [str(arg) for arg in args], input=stdin, env={**unset, "COLUMNS": "200", **environ}
    )


def started(
    folder: Path, *args: str, stdout: int = subprocess.PIPE, **more: str
) -> subprocess.Popen[str]:
    """A command in a process of its own, with no variables set but ``more``."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "stream", *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[1]), **more},
    )


def on_a_terminal(folder: Path, *args: str) -> str:
    """What a command that succeeds shows on a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = started(folder, *args, stdout=theirs)
        os.close(theirs)
        shown = b""
        with command, contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
            while part := terminal.read(65_536):
                shown += part
    assert command.returncode == 0
    return shown.decode()


def read(path: Path) -> list[dict[str, object]]:
    """The records of a JSON Lines file."""
    content = path.read_bytes()
    plain = gzip.decompress(content) if path.suffix == ".gz" else content
    return [orjson.loads(line) for line in plain.splitlines()]


def generate(path: Path, *args: str) -> list[dict[str, object]]:
    """Synthetic events in a file."""
    result = run("generate", "-o", path, *args)
    assert result.exit_code == 0, result.stderr
    return read(path)


# -- help, errors and exit codes


def test_the_help_of_every_command_says_what_it_does():
    """All are listed with a line each, and name the variables behind their options."""
    listed = run("--help")
    assert listed.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in listed.output
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert not re.search(r"<(float|int)|INTEGER|FLOAT", shown.output)  # Python's types
    assert "TAGSTREAM_FLUSH_MS, default 250" in run("worker", "--help").output
    assert "PASSWORD_FILE" in run("worker", "--help").output
    assert "--sasl-password " not in run("worker", "--help").output


def test_the_version_is_the_packages():
    """And asks for nothing else."""
    assert run("--version").output.startswith("tagstream ")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["generate", "--web-port", "x"], 2, "No such option"),
        (["generate", "--partitions", "x"], 2, "--partitions (TAGSTREAM_PARTITIONS) holds 'x'"),
        (["generate", "--duration", "1"], 2, "--duration needs --rate"),
        (["generate", "--start", "yesterday"], 2, "--start holds 'yesterday'"),
        (["generate", "-o", "/no/such/place"], 2, "/no/such/place: No such file"),
        (["generate", "--url", "http://127.0.0.1:1"], 1, "no worker answers"),
        (["generate", "--broker", "kafka://127.0.0.1:1"], 1, "no broker answers"),
        (["replay"], 2, "Missing argument"),
        (["replay", "/no/such/file"], 2, "/no/such/file: No such file"),
        (["replay", "."], 2, ".: is a directory"),
        (["replay", "-", "--until", "soon"], 2, "--until holds 'soon'"),
        (["replay", "-", "--tags", "/no/tags"], 2, "/no/tags"),
        (["topics"], 2, "set TAGSTREAM_BROKER"),
        (["topics", "--broker", "kafka://127.0.0.1:1"], 1, "no broker answers"),
        (["load", "-"], 2, "set TAGSTREAM_BROKER"),
        (["user", "u", "--url", "http://127.0.0.1:1"], 1, "no worker answers"),
        (["worker", "--data-dir", "/dev/null/d"], 2, "TAGSTREAM_DATA_DIR holds '/dev/null/d'"),
        (["replay", "-", "--state-dir", "/dev/null"], 2, "--state-dir holds '/dev/null'"),
        (["user", "u", "--url", "nowhere"], 2, "--url (TAGSTREAM_URL) holds 'nowhere'"),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(args, code, said, tmp_path, monkeypatch):
    """2 for bad usage, 1 for what the world did not allow; no traceback."""
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == code
    assert said in result.stderr
    assert isinstance(result.exception, SystemExit)
    if "tagstream: " in result.stderr:
        assert result.stderr.count("\n") == 1


def test_a_variable_that_sets_nothing_is_named_once_and_stops_nothing(tmp_path):
    """A typing error is worth a line; the command runs."""
    result = run("generate", "--count", "1", "-o", tmp_path / "e", TAGSTREAM_PARTITONS="4")
    assert result.exit_code == 0
    assert "TAGSTREAM_PARTITONS is no setting: did you mean TAGSTREAM_PARTITIONS?" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_interrupted_ends_quietly(number, code, tmp_path):
    """Ctrl-C and SIGTERM, in the middle of its work."""
    with started(tmp_path, "generate", "--rate", "50", "-o", "-") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, said) == (code, "")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_command_that_is_terminated_leaves_no_temporary_directory(ignored, tmp_path):
    """In the foreground, and in the background of a script, which ignores Ctrl-C."""
    args = ("demo", "--sample", "--web-port", "0")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        demo = started(tmp_path, *args, TMPDIR=str(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    with demo:
        assert demo.stdout is not None
        assert any("HTTP is up" in line for line in demo.stdout)
        assert list(tmp_path.iterdir()) != []
        demo.terminate()
        _, said = demo.communicate()
    assert (demo.returncode, said) == (143, "")
    assert list(tmp_path.iterdir()) == []


# -- generate


def test_the_same_seed_gives_the_same_events_in_any_form(tmp_path):
    """A plain file, a compressed one and standard output hold the same bytes."""
    first = generate(tmp_path / "a.jsonl", "--count", "500", "--users", "20")
    assert generate(tmp_path / "b.jsonl.gz", "--count", "500", "--users", "20") == first
    assert generate(tmp_path / "c.jsonl", "--count", "500", "--users", "20", "--seed", "1") != first
    printed = run("generate", "--count", "500", "--users", "20", "-o", "-")
    assert printed.stdout_bytes == (tmp_path / "a.jsonl").read_bytes()
    assert "500 events, up to 2025-" in printed.stderr


def test_every_synthetic_event_is_valid_and_in_order_of_time(tmp_path):
    """Registrations come first, orders follow; nothing is late or twice unless asked for."""
    events = generate(tmp_path / "e", "--days", "60", "--users", "50")
    decoder = Decoder(discover()["purchases"].events)
    registered = set()
    for event in events:
        user_id = str(event["user_id"])
        decoded = decoder.decode(orjson.dumps(event), user_id.encode())
        assert not isinstance(decoded, Rejected)
        if event["type"] == "registered":
            registered.add(user_id)
        assert user_id in registered
    assert len(registered) == 50
    assert all(before["ts"] <= after["ts"] for before, after in pairwise(events))  # type: ignore[operator]
    assert len({event["event_id"] for event in events}) == len(events)
    assert {event["type"] for event in events} == {"registered", "updated", "order", "refund"}


def test_events_of_all_domains_are_of_the_same_customers_and_valid(tmp_path):
    """Each in its own source, about as many as asked for in the span."""
    events = generate(
        tmp_path / "e", "--all-domains", "--count", "5000", "--days", "60", "--users", "50"
    )
    domains = discover()
    decoders = {name: Decoder(domain.events) for name, domain in domains.items()}
    router = Router(domains)
    users: dict[str, set[object]] = {name: set() for name in domains}
    for event in events:
        raw = orjson.dumps(event)
        (domain,) = router.route(raw).domains
        assert not isinstance(
            decoders[domain].decode(raw, str(event["user_id"]).encode()), Rejected
        )
        users[domain].add(event["user_id"])
    assert users["engagement"] == users["purchases"] == users["outreach"] >= users["service"]
    span_ms = events[-1]["ts"] - events[0]["ts"]  # type: ignore[operator]
    assert 30 * DAY_MS < span_ms < 90 * DAY_MS
    assert synthetic.DOMAIN_OF.keys() >= {e["type"] for e in events} - {
        *("registered", "updated", "order", "refund")
    }


def test_late_and_repeated_events_come_in_about_the_share_asked_for(tmp_path):
    """Late by hours, never by more than six days; a repeat has the same event_id."""
    events = generate(
        tmp_path / "e", "--count", "4000", "--users", "50", "--late", "0.1", "--repeats", "0.05"
    )
    newest, late = 0, 0
    for event in events:
        ts = int(str(event["ts"]))
        late += ts < newest
        assert newest - ts <= synthetic.MOST_LATE_MS
        newest = max(newest, ts)
    repeats = len(events) - len({event["event_id"] for event in events})
    assert 100 < late < 800
    assert 100 < repeats < 350


def test_a_count_within_days_quickens_the_rhythms():
    """About so many events fall into the span, whoever the customers are."""
    for users, count, days in ((1_000, 20_000, 90), (200, 20_000, 30), (5_000, 20_000, 365)):
        made = synthetic.purchases(seed=0, users=users, start_ms=0, days=days, events=count)
        *_, last = islice(made, count)
        assert 0.6 * days < last.at_ms / DAY_MS < 1.4 * days


def test_live_events_are_as_old_as_they_are_late():
    """At a rate and without a span, the wall clock dates them."""
    made = list(
        islice(synthetic.purchases(seed=3, users=20, start_ms=0, late=0.3, repeats=0.1), 300)
    )
    for before, after in zip(made, synthetic.live(iter(made)), strict=True):
        assert before.at_ms - before.event["ts"] == after.at_ms - after.event["ts"]
        assert after.at_ms > 1_700_000_000_000


def test_a_rate_ends_after_its_duration(tmp_path):
    """As many as are due by then, and no more."""
    assert len(generate(tmp_path / "e", "--rate", "400", "--duration", "0.25")) == 100


# -- replay, and what it leaves behind

UNTIL = "2025-08-01T00:00:00+08:00"


def replayed(folder: Path, *args: str | Path, stdin: bytes | None = None) -> Counter[str]:
    """Replay into files; returns what the summary counts."""
    folder.mkdir(exist_ok=True)
    names = ("changes", "warnings", "dead-letters")
    outputs = [item for name in names for item in (f"--{name}", folder / name)]
    result = run("replay", *args, *outputs, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return Counter({name: len(read(folder / name)) for name in names})


def test_a_replay_emits_what_the_reference_says(tmp_path):
    """Late and repeated events among them, to the last deadline before --until."""
    settings = Settings.load({}, {})
    rules = load(settings.tags, discover())
    span = ("--count", "3000", "--users", "40", "--days", "90")
    events = generate(tmp_path / "e", *span, "--late", "0.1", "--repeats", "0.1")
    replayed(tmp_path / "out", tmp_path / "e", "--until", UNTIL)

    reference = Reference(rules, partitions=settings.partitions)
    numbered = [
        (partition_for(str(event["user_id"]).encode(), settings.partitions, "murmur2"), event)
        for event in events
    ]
    reference.run(numbered, timestamps.parse(UNTIL))
    assert by_user(read(tmp_path / "out/changes")) == by_user(reference.changes)
    assert by_user(read(tmp_path / "out/warnings")) == by_user(reference.warnings)


@pytest.mark.parametrize("timezone", ["America/New_York", "Asia/Shanghai"])
def test_a_replay_of_all_domains_emits_what_the_reference_says(tmp_path, timezone):
    """Users who are forgotten and unusable lines among them, under tags made of tags."""
    partitions = Settings.load({}, {}).partitions
    tags = tmp_path / "tags.yaml"
    tags.write_text(EVERY_TAG.replace("America/New_York", timezone))
    sent = [
        each
        for each in islice(everything(seed=5, users=60), 2_000)
        # An erasure is one line for all domains.
        if b"erase" not in each.value or each.domain == "purchases"
    ]
    (tmp_path / "e").write_bytes(b"".join(each.value + b"\n" for each in sent))
    until = START_MS + 40 * 86_400_000
    replayed(tmp_path / "out", tmp_path / "e", "--tags", tags, "--until", str(until))

    rules = load(tags, discover())
    reference = Reference(rules, partitions)
    codes: Counter[str] = Counter()
    for each in sent:
        place = partition_for(each.key.encode(), partitions, "murmur2")
        codes[unusable(each.value) or reference.apply(place, orjson.loads(each.value))] += 1
    reference.finish(until)
    changes, warnings = read(tmp_path / "out/changes"), read(tmp_path / "out/warnings")
    assert by_domain(changes) == by_domain(reference.changes)
    assert settled(changes) == settled(reference.changes)
    own = {tag.name for tag in rules.tags if tag.domain == "purchases"}
    told, expected = (telling(own, records) for records in (warnings, reference.warnings))
    assert by_user(told) == by_user(expected)
    letters = Counter(letter["code"] for letter in read(tmp_path / "out/dead-letters"))
    refused = {code: codes[code] for code in ("malformed", "invalid", "too_late")}
    assert letters == {code: times for code, times in refused.items() if times}


def test_a_replay_of_everything_again_brings_back_nobody_who_was_forgotten(tmp_path):
    """The same file on the state that is there: it says what the reference says of both times."""
    tags = tmp_path / "tags.yaml"
    tags.write_text(EVERY_TAG.replace("max_lateness: 3d", "max_lateness: 300d"))
    sent = [
        each
        for each in islice(everything(seed=6, users=30), 1_200)
        if not unusable(each.value) and (b"erase" not in each.value or each.domain == "purchases")
    ]
    (tmp_path / "e").write_bytes(b"".join(each.value + b"\n" for each in sent))
    state = ("--tags", tags, "--state-dir", tmp_path / "state")
    for turn in ("first", "again"):
        replayed(tmp_path / turn, tmp_path / "e", *state)

    partitions = Settings.load({}, {}).partitions
    reference = Reference(load(tags, discover()), partitions)
    outcomes: Counter[str] = Counter()
    for each in [*sent, *sent]:
        place = partition_for(each.key.encode(), partitions, "murmur2")
        outcomes[reference.apply(place, orjson.loads(each.value))] += 1
    reference.finish()
    assert outcomes["erased"] > 100
    changes = read(tmp_path / "first/changes") + read(tmp_path / "again/changes")
    assert len(changes) > 500
    assert by_domain(changes) == by_domain(reference.changes)
    assert settled(changes) == settled(reference.changes)


BAD = [b"{", b'{"type":"wish","user_id":"u1"}', b"[" * 9_000, b"x" * (MAX_BYTES + 9), b"\xff{}"]


def test_unusable_lines_are_dead_lettered_and_stop_nothing(tmp_path):
    """Whatever a line holds, it leads to one record with its code, and the rest goes on."""
    good = orjson.dumps(
        {"event_id": "e", "user_id": "u1", "type": "order", "ts": 1_735_660_800_000, "amount": 5}
    )
    (tmp_path / "e").write_bytes(b"\n\r\n  \n" + b"\r\n".join([*BAD, good]))
    assert replayed(tmp_path / "out", tmp_path / "e")["dead-letters"] == len(BAD)
    codes = Counter(record["code"] for record in read(tmp_path / "out/dead-letters"))
    assert codes == {"malformed": 3, "unknown_type": 1, "too_large": 1}
    assert {record["tag"] for record in read(tmp_path / "out/changes")} >= {"value_tier"}


def test_files_standard_input_and_gzip_lead_to_the_same(tmp_path):
    """Whole, in two files, compressed and through a pipe; and in two goes on one state."""
    generate(tmp_path / "e.jsonl", "--count", "600", "--users", "20")
    events = (tmp_path / "e.jsonl").read_bytes()
    whole = replayed(tmp_path / "whole", tmp_path / "e.jsonl", "--until", UNTIL)
    assert whole["changes"] > 100
    expected = by_user(read(tmp_path / "whole/changes"))

    cut = events.index(b"\n", len(events) // 2) + 1
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(events[:cut]))
    (tmp_path / "b.jsonl").write_bytes(events[cut:])
    replayed(tmp_path / "two", tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl", "--until", UNTIL)
    assert by_user(read(tmp_path / "two/changes")) == expected
    replayed(tmp_path / "piped", "-", "--until", UNTIL, stdin=events)
    assert by_user(read(tmp_path / "piped/changes")) == expected

    kept = ["--state-dir", tmp_path / "state"]
    replayed(tmp_path / "first", tmp_path / "a.jsonl.gz", *kept)
    replayed(tmp_path / "then", tmp_path / "b.jsonl", *kept, "--until", UNTIL)
    both = read(tmp_path / "first/changes") + read(tmp_path / "then/changes")
    assert by_user(both) == expected


def test_outputs_may_share_standard_output(tmp_path):
    """Records on standard output, people's lines on standard error."""
    generate(tmp_path / "e", "--count", "50", "--users", "5")
    result = run("replay", tmp_path / "e", "--changes", "-", "--warnings", "-", "--until", UNTIL)
    records = [orjson.loads(line) for line in result.stdout.splitlines()]
    assert {"change_id" in record for record in records} == {True, False}
    assert "50 events: " in result.stderr


def test_no_replay_empties_a_file_that_it_needs_or_cannot_fill(tmp_path):
    """Inputs by any name, two outputs in one file, and outputs of a replay that cannot start."""
    generate(tmp_path / "e", "--count", "5")
    before = (tmp_path / "e").read_bytes()
    (tmp_path / "link").symlink_to("e")
    (tmp_path / "same").hardlink_to(tmp_path / "e")
    for name in ("e", "link", "same"):
        result = run("replay", tmp_path / "e", "--changes", tmp_path / name)
        assert result.exit_code == 2
        assert f"{name} is an output, and an input too" in result.stderr
    both = ("--changes", tmp_path / "out", "--warnings", tmp_path / "." / "out")
    assert "and another too" in run("replay", tmp_path / "e", *both).stderr
    for stopped in (["--tags", tmp_path / "e"], [tmp_path / "missing"], ["--until", "soon"]):
        (tmp_path / "out").write_text("kept")
        result = run("replay", tmp_path / "e", *stopped, "--changes", tmp_path / "out")
        assert result.exit_code == 2
        assert (tmp_path / "out").read_text() == "kept"
    assert (tmp_path / "e").read_bytes() == before


def test_a_full_output_is_named_in_one_line(tmp_path):
    """A file, a compressed one and standard output; exit 1, no traceback."""
    generate(tmp_path / "e", "--count", "50", "--users", "5")
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "full.gz").symlink_to("/dev/full")
    for args in (("replay", "e", "--changes", "full"), ("generate", "--count", "9", "-o", "full")):
        for name in ("full", "full.gz"):
            with started(tmp_path, *args[:-1], name) as command:
                _, said = command.communicate()
            assert command.returncode == 1
            assert said == f"tagstream: {name} cannot be written: No space left on device\n"
    with (
        Path("/dev/full").open("wb") as full,
        started(tmp_path, "replay", "e", "--changes", "-", stdout=full.fileno()) as command,
    ):
        _, said = command.communicate()
    assert command.returncode == 1
    assert said == "tagstream: standard output cannot be written: No space left on device\n"


def test_a_user_is_shown_from_the_data_that_a_replay_left(tmp_path):
    """Tags and features by name; somebody unknown is no error of the program."""
    generate(tmp_path / "e", "--count", "50", "--users", "5")
    replayed(tmp_path / "out", tmp_path / "e", "--state-dir", tmp_path / "state")
    shown = run("user", "user-000000", "--data-dir", tmp_path / "state")
    user = orjson.loads(shown.stdout)
    assert user["user_id"] == "user-000000"
    assert user["tags"]["value_tier"]["since"]
    assert user["features"]["purchases"]["days_since_registered"] is not None
    unknown = run("user", "nobody", "--data-dir", tmp_path / "state")
    assert unknown.exit_code == 1
    says = f"the data in {tmp_path}/state/log"
    assert unknown.stderr == f"tagstream: no event of this user was ever applied, says {says}\n"


def test_a_user_is_readable_on_a_terminal(tmp_path):
    """Large sums are written out, to the fen."""
    order = {"event_id": "e", "user_id": "u1", "type": "order", "ts": 1_735_660_800_000}
    (tmp_path / "e").write_bytes(orjson.dumps({**order, "amount": 1_234_567.89}))
    replayed(tmp_path / "out", tmp_path / "e", "--state-dir", tmp_path / "state")
    shown = on_a_terminal(tmp_path, "user", "u1", "--data-dir", "state")
    assert re.search(r"spend_total +1,234,567\.89 ", shown)
    assert re.search(r"orders_total +1 ", shown)


def test_a_cut_off_file_is_said_and_what_came_before_it_is_kept(tmp_path):
    """A damaged .gz is bad input: exit 2, not a traceback."""
    generate(tmp_path / "e.jsonl.gz", "--count", "500", "--users", "20")
    (tmp_path / "cut.gz").write_bytes((tmp_path / "e.jsonl.gz").read_bytes()[:-200])
    (tmp_path / "no.gz").write_bytes(b"plain text")
    for name in ("cut.gz", "no.gz"):
        result = run("replay", tmp_path / name)
        assert result.exit_code == 2
        assert "no complete gzip file" in result.stderr


# -- lines and histories


def test_a_type_decides_the_domain_and_the_rest_goes_to_the_first():
    """An erasure belongs to every domain; a line that belongs nowhere has no key."""
    domains = discover()
    router, first = Router(domains), next(iter(domains))
    order = b'{"type":"order","user_id":"u","ts":"2025-01-01T00:00:00+08:00"}'
    assert router.route(order) == Routed(("purchases",), b"u", 1_735_660_800_000)
    assert router.route(b'{"type":"erase","user_id":"u","ts":1}').domains == tuple(domains)
    for line in (b"{", b"[]", b'{"type":["order"],"user_id":1,"ts":true}', b"[" * 9_000):
        assert router.route(line) == Routed((first,), None, None)
    assert router.route(b'{"type":"x","user_id":"u","ts":-1}') == Routed((first,), b"u", None)


def test_no_line_is_kept_longer_than_an_event_may_be(tmp_path):
    """A file without line ends must not fill the memory."""
    (tmp_path / "e").write_bytes(b"x" * 10 * MAX_BYTES + b"\nshort\n" + b"y" * MAX_BYTES)
    long, short, exact = lines.read(tmp_path / "e")
    assert len(long) == MAX_BYTES + 2
    assert (short, len(exact)) == (b"short", MAX_BYTES)


def dated(ts_ms: int | None, number: int) -> bytes:
    """A line that can be told from all others."""
    return orjson.dumps({"type": "order", "ts": ts_ms, "n": number})


@given(
    files=st.lists(st.lists(st.none() | st.integers(0, 9), max_size=12), min_size=1, max_size=3),
    in_order=st.booleans(),
)
def test_a_history_is_its_files_lines_sorted_by_time(tmp_path_factory, files, in_order):
    """Equal times keep the order of files and lines; a line without one stays behind another."""
    folder = tmp_path_factory.mktemp("history")
    paths, expected, number = [], [], 0
    for index, times in enumerate(files):
        content, before = [], -1
        for ts_ms in sorted(times, key=lambda ts: ts or 0) if in_order else times:
            content.append(dated(ts_ms, number))
            before = before if ts_ms is None else ts_ms
            expected.append((before, number, content[-1]))
            number += 1
        paths.append(folder / f"{index}.jsonl")
        paths[-1].write_bytes(b"".join(line + b"\n" for line in content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "RUN_BYTES", 600)  # three lines a run
        found = history.examine(paths, Router(discover()), folder, lambda *_: None)
        assert list(found) == [line for _, _, line in sorted(expected)]
    assert found.count == number
    assert found.begins_ms == min((ts for ts, _, _ in expected if ts >= 0), default=None)


def test_a_file_that_cannot_be_read_names_itself(tmp_path):
    """Before anything is sent."""
    with pytest.raises(UsageError, match="missing.jsonl: No such file"):
        history.examine([tmp_path / "missing.jsonl"], Router(discover()), tmp_path, print)


# -- topics


def as_wanted(settings: Settings) -> dict[str, Topic]:
    """Topics that leave nothing to be said."""
    return {topic.name: topic for topic in wanted(settings, ["purchases"])}


def test_topics_as_we_make_them_have_no_problem():
    """With and without a prefix."""
    for prefix in ("", "eu."):
        settings = Settings(topic_prefix=prefix)
        assert problems(wanted(settings, ["purchases"]), as_wanted(settings)) == []
        assert f"{prefix}purchases" in as_wanted(settings)


@pytest.mark.parametrize(
    ("name", "change", "weight", "said"),
    [
        ("purchases", {"cleanup.policy": "compact"}, Weight.LOSS, "cleanup.policy=delete"),
        (CHANGELOG, {"cleanup.policy": "delete"}, Weight.LOSS, "cleanup.policy=compact"),
        (CHANGELOG, {"cleanup.policy": "compact,delete"}, Weight.LOSS, "cleanup.policy=compact"),
        (CHANGELOG, {"delete.retention.ms": "86400000"}, Weight.READERS, "less than 7 days"),
        ("user-tags", {"cleanup.policy": "delete"}, Weight.LOSS, "cleanup.policy=compact"),
        ("tag-changes", {"retention.ms": "86400000"}, Weight.READERS, "less than 30 days"),
        ("churn-warnings", {"retention.ms": "1"}, Weight.READERS, "less than 90 days"),
        ("dead-letters", {"retention.ms": "1"}, Weight.READERS, "less than 7 days"),
    ],
)
def test_a_topic_that_would_lose_records_is_one_problem_with_its_remedy(name, change, weight, said):
    """What would lose state or input stops a worker; the rest is for its readers to know."""
    settings = Settings()
    found = as_wanted(settings)
    found[name] = Topic(name, 8, {**found[name].configs, **change})
    (problem,) = problems(wanted(settings, ["purchases"]), found)
    assert (problem.topic, problem.weight) == (name, weight)
    assert said in problem.text
    assert "kafka-configs.sh" in problem.text


def test_longer_retention_than_the_default_is_the_operators_to_choose():
    """So is none at all."""
    settings = Settings()
    for kept in ("-1", str(400 * DAY_MS)):
        found = as_wanted(settings)
        found["tag-changes"] = Topic("tag-changes", 8, {"retention.ms": kept})
        assert problems(wanted(settings, ["purchases"]), found) == []


def test_missing_topics_and_unequal_partition_counts_stop_a_worker():
    """Partitions are never added: the remedy is another."""
    settings = Settings()
    found = as_wanted(settings)
    del found["dead-letters"]
    found["purchases"] = Topic("purchases", 6, found["purchases"].configs)
    unequal, missing = problems(wanted(settings, ["purchases"]), found)
    assert missing == Problem(
        Weight.LOSS, "dead-letters", "dead-letters is missing: run 'tagstream topics'"
    )
    assert unequal.weight is Weight.LOSS
    assert "purchases has 6 partitions, TAGSTREAM_PARTITIONS is 8" in unequal.text
    assert "never add partitions" in unequal.text


# -- the demo and the worker


def test_the_demos_orders_are_the_real_ones_moved_in_time():
    """Every customer registers before his first order; none is of today."""
    zone = ZoneInfo("Asia/Shanghai")
    today = datetime.now(zone).date()
    arrivals = cdnow(zone, sample=False)
    types = Counter(arrival.event["type"] for arrival in arrivals)
    assert types == {"registered": 23_570, "order": 69_659}
    assert all(before.at_ms <= after.at_ms for before, after in pairwise(arrivals))
    assert (today - datetime.fromtimestamp(arrivals[-1].at_ms / 1000, zone).date()).days == 1
    dollars = sum(arrival.event.get("amount", 0) for arrival in arrivals) / 7
    assert round(dollars / 69_659, 2) == 35.89
    tenth = Counter(arrival.event["type"] for arrival in cdnow(zone, sample=True))
    assert tenth == {"registered": 2_357, "order": 6_919}


def test_the_demo_shows_tags_change_and_ends_by_itself(tmp_path):
    """History first, then live events; nothing is left where it was started."""
    with started(tmp_path, "demo", "--sample", "--web-port", "0", "--seconds", "1") as demo:
        shown, said = demo.communicate()
    assert (demo.returncode, said) == (0, "")
    assert "Live events from now on." in shown
    pointed = re.search(r"/users/(cdnow-[0-9]{5}) ", shown)
    loaded = {item.event["user_id"] for item in cdnow(ZoneInfo("Asia/Shanghai"), sample=True)}
    assert pointed and pointed[1] in loaded
    assert re.search(r"· [1-9][0-9,]* tag changes · [1-9][0-9,]* churn", shown.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def test_the_demo_goes_on_with_live_events_on_a_terminal(tmp_path):
    """The screen of the history makes room for one that is drawn anew as events come."""
    shown = on_a_terminal(tmp_path, "demo", "--sample", "--web-port", "0", "--seconds", "2")
    history, live = shown.split("Live events from now on.")
    drawn = re.findall(r"of ([0-9,]+) events", live)
    assert len(set(drawn)) > 1, live  # more and more were made
    assert set(re.findall(r"of ([0-9,]+) events", history)) == {drawn[0]}


def test_a_worker_takes_what_is_generated_and_answers_for_its_users(tmp_path):
    """The embedded broker, fed over HTTP while it runs and looked into when it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    worker = started(tmp_path, "worker", "--web-port", port, "--data-dir", "d")
    with worker:
        assert worker.stderr is not None
        begun = [worker.stderr.readline()]
        while "ready" not in begun[-1]:
            begun.append(worker.stderr.readline())
            assert begun[-1], begun
        url = ("--url", f"http://127.0.0.1:{port}")
        made = run("generate", "--count", "300", "--users", "9", "--days", "9", *url)
        assert made.exit_code == 0, made.stderr
        own = ("user", "user-000000", *url, "--data-dir", tmp_path / "d")
        shown = run(*own)
        while shown.exit_code and worker.poll() is None:  # its first event is on its way
            shown = run(*own)
        assert orjson.loads(shown.stdout)["tags"]["value_tier"]["since"]
        unknown = run("user", "nobody", *url)
        assert unknown.stderr.endswith(f"applied, says the worker at {url[1]}\n")
        assert run("replay", "-", "--state-dir", tmp_path / "d").exit_code == 2
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate()
    assert worker.returncode == 0
    assert "INFO stream.commands.worker: told to stop" in said
    started_at = f"embedded broker in d/log; HTTP on http://127.0.0.1:{port}; tags version "
    assert started_at in said + "".join(begun)
    assert f"; hot path {hot_path()}\n" in said + "".join(begun)
    assert orjson.loads(run(*own).stdout)["features"]["purchases"]["orders_total"] > 1
