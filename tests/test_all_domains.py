"""All domains of a partition together, with everything real but Faust, against the reference.

Run step by step, everything is equal: tags made of tags, what warnings tell of other domains,
`user-tags` and the population included. Run at will, what two domains leave open between them
differs, and nothing else.
"""

import asyncio
import base64
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import orjson
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.broker import LocalBroker
from stream.partition import Partition
from tests.partition import Worker, broker_with_topics, committed, folded, produce
from tests.reference import Record, Reference, by_domain, by_user, settled, telling, values
from tests.strategies import DAY_MS, Sent, World, parsed_for_all, worlds


@dataclass
class Outcome:
    """What a partition said in the end."""

    changes: list[Record]
    warnings: list[Record]
    dead: list[Record]
    user_tags: dict[str, Record]
    population: Counter[tuple[str, Any]]
    users: int
    tagged: int

    @classmethod
    def of(cls, broker: LocalBroker, partition: Partition) -> "Outcome":
        changes, warnings = committed(broker, "tag-changes"), committed(broker, "churn-warnings")
        assert len({change["change_id"] for change in changes}) == len(changes)
        assert len({(w["warning_id"], w["status"]) for w in warnings}) == len(warnings)
        return cls(
            changes,
            warnings,
            committed(broker, "dead-letters"),
            folded(broker, "user-tags"),
            Counter({(t, _value(v)): n for t, v, n in partition.position.population if n}),
            partition.position.users,
            partition.position.tagged,
        )


def _value(label: str) -> Any:
    return {"true": True}.get(label, label)


class Run:
    """A world on its way through a partition that is opened again and again."""

    def __init__(self, world: World, disk: Path, chance: Random) -> None:
        self.world = world
        self.disk = disk
        self.chance = chance
        self.is_switched = False
        self.broker = broker_with_topics()
        for sent in world.stream:
            produce(self.broker, [sent.event], sent.domain)
        allowance = chance.choice([1, 40_000, 1 << 24])
        self.worker = Worker(self.broker, world.rules, disk, allowance=allowance)
        self.worker.chance = chance

    async def open(self) -> Partition:
        return await self.worker.open()

    async def open_again(self, partition: Partition) -> Partition:
        """What has not been committed is lost, and now and then the disk."""
        await partition.close()
        self.worker.errors.clear()
        if self.chance.random() < 0.4:
            shutil.rmtree(self.disk / "state")
        return self.switched(await self.open())

    def switched(self, partition: Partition) -> Partition:
        """Where it is time for other definitions, the partition follows them."""
        other = self.world.switch
        if self.is_switched and other and partition.rules.version != other.version:
            partition.switch(other)
        return partition

    async def step_by_step(self, reference: Reference) -> Outcome:
        """Everything that follows from some events of one domain, then from the next ones.

        The reference goes along.
        """
        partition = await self.open()
        for domain, size in self.steps():
            start = partition.feeds[domain].place.offset
            self.worker.offer(partition, start, size, domain)
            if self.chance.random() < 0.1:
                for _ in range(self.chance.randint(0, 5)):
                    await asyncio.sleep(0)
                partition = await self.open_again(partition)
                place = partition.feeds[domain].place.offset
                if place < start + size:
                    self.worker.offer(partition, place, start + size - place, domain)
            await partition.drain()
            self.follow(reference, domain, start, size)
            if self.chance.random() < 0.1:
                partition = await self.open_again(partition)
        await self.finish(partition)
        reference.finish(self.world.until_ms)
        return Outcome.of(self.broker, partition)

    def steps(self) -> Iterator[tuple[str, int]]:
        """How many events of which domain come next."""
        for domain, group in groupby(sent.domain for sent in self.world.stream):
            left = len(list(group))
            while left:
                size = min(left, self.chance.choice([1, 2, 100]))
                yield domain, size
                left -= size

    def follow(self, reference: Reference, domain: str, start: int, size: int) -> None:
        """Have the reference do the same."""
        own = [sent.event for sent in self.world.stream if sent.domain == domain]
        for event in own[start : start + size]:
            reference.apply(0, event, domain)
        for person in reference.people.values():
            reference.pass_time(person, domain, reference.time(domain, 0))

    async def at_will(self) -> Outcome:
        """Chunks of any size, domains in any order, transactions that fail, crashes.

        Other definitions come into force where the world says so, and are taken up meanwhile.
        """
        self.worker.failures = self.chance.choice([0.0, 0.2])
        stream, at = self.world.stream, self.world.switch_at
        partition = await self.reach(await self.open(), stream[:at])
        self.is_switched = True
        partition = await self.reach(self.switched(partition), stream)
        self.worker.failures = 0.0
        partition = await self.open_again(partition)
        await self.finish(partition)
        return Outcome.of(self.broker, partition)

    async def reach(self, partition: Partition, stream: list[Sent]) -> Partition:
        """Have all of these events applied, and committed; the partition that did."""
        ends = Counter(sent.domain for sent in stream)
        fetched = self.places(partition)
        while True:
            left = [domain for domain, end in ends.items() if fetched[domain] < end]
            if not left:
                await partition.drain()
                if not self.worker.errors:
                    return partition
            else:
                domain = self.chance.choice(left)
                size = min(self.chance.choice([1, 2, 5, 100]), ends[domain] - fetched[domain])
                fetched[domain] = self.worker.offer(partition, fetched[domain], size, domain)
            action = self.chance.random()
            if action < 0.25:
                await partition.drain()
            elif action < 0.5:
                for _ in range(self.chance.randint(0, 5)):
                    await asyncio.sleep(0)
            if self.worker.errors or action < 0.15:
                partition = await self.open_again(partition)
                fetched = self.places(partition)

    def places(self, partition: Partition) -> dict[str, int]:
        """Where to go on."""
        return {domain: feed.place.offset for domain, feed in partition.feeds.items()}

    async def finish(self, partition: Partition) -> None:
        if self.world.until_ms is not None:
            partition.advance(self.world.until_ms)
        await partition.drain()
        await partition.close()
        for error in self.worker.errors:
            raise error


def dead_ids(letters: Iterable[Record]) -> list[str]:
    """The events that were refused, all of them for being too late."""
    assert {letter["code"] for letter in letters} <= {"too_late"}
    return sorted(orjson.loads(base64.b64decode(each["value"]))["event_id"] for each in letters)


@settings(max_examples=40, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_step_by_step_everything_equals_the_reference(world, chance):
    """Changes, warnings, dead letters, user-tags, and how many users have which tag."""
    reference = Reference(world.rules)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(world, Path(folder), chance)
        with run.broker:
            said = asyncio.run(run.step_by_step(reference))
    assert by_user(said.changes) == by_user(reference.changes)
    assert by_user(said.warnings) == by_user(reference.warnings)
    assert dead_ids(said.dead) == sorted(letter["event_id"] for letter in reference.dead)
    assert said.user_tags == reference.user_tags()
    assert said.population == reference.population()
    known = [person for person in reference.people.values() if person.lives]
    assert said.users == len(known)
    assert said.tagged == sum(bool(person.tags) for person in known)


@settings(max_examples=30, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_at_will_only_what_domains_leave_open_may_differ(world, chance):
    """Each domain's changes, the warnings, and where all tags end."""
    reference = Reference(world.rules)
    reference.run([(0, sent.event, sent.domain) for sent in world.stream], world.until_ms)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(world, Path(folder), chance)
        with run.broker:
            said = asyncio.run(run.at_will())
    assert by_domain(said.changes) == by_domain(reference.changes)
    own = {tag.name for tag in world.rules.tags if tag.domain == "purchases"}
    told, expected = (telling(own, warnings) for warnings in (said.warnings, reference.warnings))
    assert by_user(told) == by_user(expected)
    assert dead_ids(said.dead) == sorted(letter["event_id"] for letter in reference.dead)
    assert settled(said.changes) == settled(reference.changes)
    assert values(said.user_tags) == values(reference.user_tags())
    assert said.population == reference.population()


@settings(max_examples=30, deadline=None)
@given(worlds(switches=True), st.randoms(use_true_random=False))
def test_other_definitions_in_the_middle_end_where_the_reference_does(world, chance):
    """Each domain's changes, those that the switch made among them, and where all tags end."""
    reference = Reference(world.rules)
    for number, sent in enumerate(world.stream):
        if number == world.switch_at:
            reference.switch(world.switch, 0)
        reference.apply(0, sent.event, sent.domain)
    if world.switch_at == len(world.stream):
        reference.switch(world.switch, 0)
    reference.finish(world.until_ms)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(world, Path(folder), chance)
        with run.broker:
            said = asyncio.run(run.at_will())
    assert by_domain(said.changes) == by_domain(reference.changes)
    told, expected = (telling((), warnings) for warnings in (said.warnings, reference.warnings))
    assert by_user(told) == by_user(expected)
    assert settled(said.changes) == settled(reference.changes)
    assert values(said.user_tags) == values(reference.user_tags())
    assert said.population == reference.population()


async def lived(disk: Path, *sent: Sent) -> LocalBroker:
    """What a few purchases leave behind, under one tag that whoever ordered lately has."""
    file = {
        "version": 1,
        "timezone": "UTC",
        "tags": [{"name": "buyer", "domain": "purchases", "when": "orders_30d > 0"}],
    }
    run = Run(World(parsed_for_all(yaml.safe_dump(file)), list(sent), None), disk, Random(0))
    partition = await run.open()
    run.worker.offer(partition, 0, len(sent))
    await run.finish(partition)
    return run.broker


def of_purchases_at(ts: int, kind: str, **fields: Any) -> Sent:
    """An event of user u at a time."""
    event = {"event_id": f"{kind}-{ts}", "user_id": "u", "type": kind, "ts": ts}
    return Sent("purchases", event | fields)


async def test_who_returns_right_after_an_erasure_is_nobody_yet(tmp_path):
    """In the same transaction, with an event that changes no tag."""
    events = [
        of_purchases_at(1, "order", amount=1),
        of_purchases_at(2, "erase"),
        of_purchases_at(3, "registered"),
    ]
    with await lived(tmp_path, *events) as broker:
        assert [change["value"] for change in committed(broker, "tag-changes")] == [True, False]
        assert folded(broker, "user-tags") == {}


async def test_an_erasure_leaves_a_tombstone_where_no_tag_was_left(tmp_path):
    """The tag left by itself before, and the empty record of it goes too."""
    order, later = of_purchases_at(1, "order", amount=1), 31 * DAY_MS
    events = [order, of_purchases_at(later, "registered")]
    with await lived(tmp_path / "a", *events) as broker:
        assert folded(broker, "user-tags")["u"]["tags"] == {}
    with await lived(tmp_path / "b", *events, of_purchases_at(later + 1, "erase")) as broker:
        assert [change["value"] for change in committed(broker, "tag-changes")] == [True, False]
        assert folded(broker, "user-tags") == {}
