"""``tags diff``: what it says of a state is what a switch on that state then does."""

import itertools
import multiprocessing
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from stream.__main__ import app
from stream.errors import StateError
from stream.store import Budget, Store
from tests.broker.everything import EVERY_TAG, everything, unusable
from tests.embedded.test_reload import reformed


def run(*args: str | Path) -> Result:
    unset = dict.fromkeys(("TAGSTREAM_BROKER", "TAGSTREAM_DATA_DIR", "TAGSTREAM_TAGS"))
    return CliRunner().invoke(app, [str(arg) for arg in args], env=unset)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of some weeks of all domains, and both definitions."""
    folder = tmp_path_factory.mktemp("diff")
    (folder / "old.yaml").write_text(EVERY_TAG)
    (folder / "new.yaml").write_text(reformed())
    sent = itertools.islice(everything(seed=5, users=60), 2_000)
    events = [each.value for each in sent if not unusable(each.value)]
    (folder / "events.jsonl").write_bytes(b"\n".join(events) + b"\n")
    done = run(
        *("replay", folder / "events.jsonl", "--tags", folder / "old.yaml"),
        *("--state-dir", folder / "state", "--partitions", "2"),
    )
    assert done.exit_code == 0, done.output
    return folder


def compared(folder: Path, *options: str) -> dict[str, Any]:
    files = folder / "old.yaml", folder / "new.yaml"
    result = run("tags", "diff", *files, "--state-dir", folder / "state", *options)
    assert result.exit_code == 0, result.output
    described: dict[str, Any] = orjson.loads(result.stdout)
    return described


def test_the_counts_are_those_of_the_switch_that_follows(state: Path, tmp_path: Path):
    """On a copy of the same state: who comes and who goes, in every domain and of the profile."""
    shutil.copytree(state / "state", tmp_path / "state")
    (tmp_path / "none.jsonl").touch()
    done = run(
        *("replay", tmp_path / "none.jsonl", "--tags", state / "new.yaml", "--partitions", "2"),
        *("--state-dir", tmp_path / "state", "--changes", tmp_path / "changes.jsonl"),
    )
    assert done.exit_code == 0, done.output
    enter: Counter[tuple[str, str]] = Counter()
    leave: Counter[tuple[str, str]] = Counter()
    for line in (tmp_path / "changes.jsonl").read_bytes().splitlines():
        change = orjson.loads(line)
        for value, counts in ((change["previous"], leave), (change["value"], enter)):
            if value not in (None, False):
                counts[change["tag"], str(value).lower()] += 1
    found = compared(state)["tags"]
    assert {(tag["tag"], tag["value"]): tag["enter"] for tag in found if tag["enter"]} == enter
    assert {(tag["tag"], tag["value"]): tag["leave"] for tag in found if tag["leave"]} == leave
    assert all(tag["users"] + tag["enter"] - tag["leave"] == tag["then"] for tag in found)


def test_a_sample_says_who_and_why(state: Path):
    """What the new condition reads, of as many as are asked for."""
    (tired,) = [tag for tag in compared(state, "--sample", "2")["tags"] if tag["tag"] == "tired"]
    assert len(tired["entering"]) == 2
    for move in tired["entering"]:
        assert (move["before"], move["after"]) == (None, True)
        assert move["features"] == {"unanswered": 2}


def test_nothing_changes_under_the_same_definitions(state: Path):
    """And nothing is written: it says the same again."""
    shutil.copy(state / "new.yaml", state / "kept.yaml")
    try:
        shutil.copy(state / "old.yaml", state / "new.yaml")
        found = compared(state)
        assert found == compared(state)
        assert not any(tag["enter"] or tag["leave"] for tag in found["tags"])
        assert found["users"] > 50
    finally:
        (state / "kept.yaml").replace(state / "new.yaml")


def test_a_directory_without_state_is_refused(state: Path, tmp_path: Path):
    """With where to look."""
    files = state / "old.yaml", state / "new.yaml"
    result = run("tags", "diff", *files, "--state-dir", tmp_path)
    assert result.exit_code == 2
    assert "holds no state; give the data directory" in result.output


def _hold(path: Path, held: Any, done: Any) -> None:
    store = Store.open(path, Budget(16))
    held.set()
    done.wait()
    store.close()


def test_a_state_that_is_in_use_is_refused(tmp_path: Path):
    """A worker has it open: what it has not written out yet would be missing."""
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "p0", held, done))
    holder.start()
    try:
        assert held.wait(60)
        with pytest.raises(StateError, match="a process has it open: stop the worker"):
            Store.read(tmp_path / "p0")
    finally:
        done.set()
        holder.join()
    Store.read(tmp_path / "p0").close()
