"""The file of definitions watched while a worker runs: what is taken up, what is refused, when."""

import logging
from pathlib import Path
from typing import Any

import pytest

from stream.definitions import objections
from stream.errors import RulesError
from stream.reload import Watch
from stream.rules import Rules, load
from tests.solo import definitions
from tests.strategies import PURCHASES

TEXT = """\
version: {version}
timezone: {zone}
tags:
  - {{name: t, title: T, domain: purchases, when: {when}}}
"""


def text(version: int, when: str = "orders_total > 0", zone: str = "Asia/Shanghai") -> str:
    return TEXT.format(version=version, zone=zone, when=when)


class Watched:
    """A file, whoever watches it, and what came of that."""

    def __init__(self, path: Path, then: str | None = None) -> None:
        self.path = path
        self.path.write_text(text(1))
        self.rules = self.read()
        if then is not None:
            self.path.write_text(then)
        self.taken: list[int] = []
        self.failures = 0
        self.watch = Watch(
            path, self.rules.source, read=self.read, take=self._take, failed=self._failed
        )

    def read(self) -> Rules:
        return load(self.path, {"purchases": PURCHASES})

    def _take(self, rules: Rules) -> None:
        if problems := objections(self.rules, rules):
            raise RulesError(problems)
        self.rules = rules
        self.taken.append(rules.version)

    def _failed(self) -> None:
        self.failures += 1

    async def looks(self) -> None:
        """Twice: one alone might find a file half written."""
        await self.watch.look()
        await self.watch.look()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "tags.yaml")


async def test_a_changed_file_is_taken_up_once(watched: Watched):
    """Whatever is not changed is not read."""
    await watched.looks()
    assert watched.taken == []
    watched.path.write_text(text(2, "orders_total > 1"))
    await watched.watch.look()
    assert watched.taken == []  # it may still be being written
    await watched.watch.look()
    await watched.looks()
    assert watched.taken == [2]
    assert watched.failures == 0


async def test_a_file_that_changed_while_the_worker_started_is_not_missed(tmp_path: Path):
    """It was read, and then written before anybody watched it."""
    watched = Watched(tmp_path / "tags.yaml", then=text(2))
    await watched.looks()
    assert watched.taken == [2]


async def test_a_mount_of_kubernetes_changes_under_the_same_name(tmp_path: Path):
    """A link to a link to a directory that is replaced as a whole."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "tags.yaml").symlink_to("..data/tags.yaml")
    watched = Watched(tmp_path / "tags.yaml")
    (tmp_path / "second" / "tags.yaml").write_text(text(2))
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").replace(tmp_path / "..data")
    await watched.looks()
    assert watched.taken == [2]


async def test_a_bad_file_is_refused_with_a_line_for_every_problem_once(watched: Watched, caplog):
    """What was in force stays, and the next good file is taken up."""
    bad = "version: 2\ntimezone: Mars\ntags:\n  - {name: t, domain: purchases, when: nothing > 0}\n"
    for _ in range(2):
        watched.path.write_text(bad)
        await watched.looks()
    assert watched.taken == []
    assert watched.failures == 1
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert len(lines) == 2
    assert f"{watched.path}:2: timezone: unknown time zone 'Mars'" in lines[0]
    assert f"{watched.path}:4: tag 't': when: unknown feature 'nothing'" in lines[1]
    watched.path.write_text(text(2))
    await watched.looks()
    assert watched.taken == [2]


async def test_a_file_that_is_gone_is_refused_until_it_is_back(watched: Watched):
    """As it was, it is nothing new."""
    watched.path.unlink()
    await watched.looks()
    assert watched.failures == 1
    watched.path.write_text(text(1))
    await watched.looks()
    assert (watched.taken, watched.failures) == ([], 1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (text(1, "orders_total > 1"), "version: is 1 as before, but the content is another"),
        (text(1).replace("title: T", "title: U"), "version: is 1 as before"),
        (text(2, zone="UTC"), "timezone: cannot change from Asia/Shanghai to UTC"),
    ],
)
async def test_what_cannot_follow_is_refused_with_the_remedy(
    watched: Watched, caplog, changed: str, reason: str
):
    """Content under the version of another one, and the time zone of a state."""
    watched.path.write_text(changed)
    await watched.looks()
    assert (watched.taken, watched.failures) == ([], 1)
    assert reason in caplog.text


def test_a_tag_moves_to_no_other_domain_under_its_name():
    """What leaves in one and comes in the other have no order between them."""
    before = definitions({"name": "a", "when": "orders_total > 0"}, "orders_total > 1")
    tags: list[Any] = [
        {"name": "t", "when": "orders_total > 1"},
        {"name": "a", "domain": "profile", "when": "t"},
    ]
    (reason,) = objections(before, definitions(*tags, version=2))
    assert reason.startswith("tag 'a': cannot move from purchases to profile in one step")
