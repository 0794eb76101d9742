"""Definitions switched in the middle of a stream: what follows depends on where, on nothing else.

Whatever the chunks, the flushes, the kills between any two of them, the lost disks and the moments
at which users happen to be taken up: what is committed equals the naive reference, which takes up
everybody at once. One switch or two, the second one asked for while the first is under way.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from stream.broker import LocalBroker
from tests.partition import Worker, broker_with_topics, committed, folded, produce
from tests.reference import Reference, by_user
from tests.strategies import Scene, definitions, parsed, scenes


@st.composite
def versions(draw: st.DrawFn, before: Any) -> Any:
    """Definitions to follow others, with a tag made of tags now and then."""
    drawn = draw(definitions(before.timezone))
    content = yaml.safe_load(drawn.source)
    content["version"] = before.version + 1
    if drawn.max_lateness_ms > before.max_lateness_ms:
        # Ids that were forgotten are not known again, as they are to the reference.
        content["max_lateness"] = f"{before.max_lateness_ms // 1000}s"
    names = [tag["name"] for tag in content["tags"]]
    # Some stay in the middle or leave it, some become others of the same name.
    kept = draw(st.lists(st.sampled_from(content["tags"]), unique_by=id))
    content["tags"] = [*kept, *(tag for tag in content["tags"] if tag not in kept)]
    for number in range(draw(st.integers(0, 2))):
        read, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        condition = draw(
            st.sampled_from([f"not {read}", f"{read} and {other}", f"{read} == 'value_0'"])
        )
        content["tags"].append(
            {"name": f"made_{number}", "domain": "profile", "when": condition, "control": 0.5}
        )
    return parsed(yaml.safe_dump(content, sort_keys=False))


@st.composite
def switches(draw: st.DrawFn) -> tuple[Scene, list[tuple[int, Any]]]:
    """A scene, and what is switched to before which of its events, in order."""
    scene = draw(scenes())
    at = sorted(draw(st.lists(st.integers(0, len(scene.stream)), min_size=1, max_size=2)))
    switched: list[tuple[int, Any]] = []
    for place in at:
        before = switched[-1][1] if switched else scene.rules
        switched.append((place, draw(versions(before))))
    return scene, switched


def expected(scene: Scene, switches: list[tuple[int, Any]]) -> Reference:
    """What the reference says."""
    reference = Reference(scene.rules)
    for number in range(len(scene.stream) + 1):
        for place, rules in switches:
            if place == number:
                reference.switch(rules, 0)
        if number < len(scene.stream):
            reference.apply(0, scene.stream[number][1])
    reference.finish(scene.until_ms)
    return reference


class Life:
    """A partition that is killed again and again while its definitions are switched."""

    def __init__(
        self, scene: Scene, switches: list[tuple[int, Any]], chance: Random, disk: Path
    ) -> None:
        self.broker = broker_with_topics()
        produce(self.broker, [event for _, event in scene.stream])
        self.scene, self.switches, self.chance, self.disk = scene, switches, chance, disk
        self.worker = Worker(
            self.broker, scene.rules, disk, allowance=chance.choice([1, 40_000, 1 << 24])
        )
        self.worker.chance, self.worker.failures = chance, chance.choice([0.0, 0.2])

    async def run(self) -> LocalBroker:
        chance, end = self.chance, len(self.scene.stream)
        self.partition = await self.worker.open()
        while (at := self.offset) < end or self.due():
            if (rules := self.due()) is not None:
                self.partition.switch(rules)
                # It waits for the sweep of the one before.
                await until(lambda: self.partition.rules is rules or self.worker.errors)
            else:
                places = [place for place, _ in self.switches if place > at]
                size = min([chance.choice([1, 2, 5, 100]), *(place - at for place in places)])
                self.worker.offer(self.partition, at, size)
                await until(lambda at=at: self.offset > at or self.worker.errors)
            if chance.random() < 0.25:
                await self.partition.drain()
            for _ in range(chance.randint(0, 9)):
                await asyncio.sleep(0)
            if self.worker.errors or chance.random() < 0.3:
                await self.again(lost=chance.random() < 0.4)
        self.worker.failures = 0.0
        await self.again(lost=False)
        while (at := self.offset) < end or self.due():
            if (rules := self.due()) is not None:
                self.partition.switch(rules)
            else:
                places = [place for place, _ in self.switches if place > at]
                size = min([100, *(place - at for place in places)])
                self.worker.offer(self.partition, at, size)
            await self.partition.drain()
        if self.scene.until_ms is not None:
            self.partition.advance(self.scene.until_ms)
        await self.partition.drain()
        await self.partition.close()
        assert self.worker.errors == []
        return self.broker

    @property
    def offset(self) -> int:
        return self.partition.feeds["purchases"].place.offset

    def due(self) -> Any | None:
        """What has to be switched to before the next event: at its place, not later."""
        known = self.partition.rules.version
        for place, rules in self.switches:
            if rules.version > known and place == self.offset:
                return rules
        return None

    async def again(self, *, lost: bool) -> None:
        await self.partition.close()
        self.worker.errors.clear()
        if lost:
            shutil.rmtree(self.disk / "state")
        self.partition = await self.worker.open()


async def until(condition: Any) -> None:
    """Wait for it."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def added_up(changes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tags by user, as they follow from their changes."""
    users: dict[str, dict[str, Any]] = {}
    for change in changes:
        tags = users.setdefault(change["user_id"], {})
        tags[change["tag"]] = change["value"]
        if change["value"] in (None, False):
            del tags[change["tag"]]
    return {user: tags for user, tags in users.items() if tags}


# To shrink a case takes minutes and seldom helps.
@settings(max_examples=25, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(switches(), st.randoms(use_true_random=False))
def test_what_follows_a_switch_equals_the_reference_whatever_happens(case, chance):
    """Kills, lost disks, evictions and chunk borders leave no trace in the outputs."""
    scene, switched = case
    with tempfile.TemporaryDirectory() as folder:
        broker = asyncio.run(Life(scene, switched, chance, Path(folder)).run())
        with broker:
            reference = expected(scene, switched)
            changes, warnings = (
                committed(broker, "tag-changes"),
                committed(broker, "churn-warnings"),
            )
            assert by_user(changes) == by_user(reference.changes)
            assert by_user(warnings) == by_user(reference.warnings)
            assert len({change["change_id"] for change in changes}) == len(changes)
            assert len({(w["warning_id"], w["status"]) for w in warnings}) == len(warnings)
            tags = {
                user: {name: held["value"] for name, held in told["tags"].items()}
                for user, told in folded(broker, "user-tags").items()
            }
            assert {user: held for user, held in tags.items() if held} == added_up(changes)
