"""The table, driven as a partition drives it, against the naive reference: equal, always."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tables import purchases
from tables.table import NEVER, Outputs
from tests.reference import Reference, by_domain, by_user, run, telling
from tests.solo import received
from tests.strategies import DAY_MS, Scene, scenes


@dataclass
class Partition:
    """What the machinery does around a table, and nothing else.

    ``chance`` decides what must not matter: when users are encoded and decoded again, when
    the index of deadlines is brought up to date, and when which of the due ones fire.
    """

    table: purchases.Purchases
    allowed_delay_ms: int
    chance: Random
    out: Outputs = field(default_factory=Outputs)
    dead: list[str] = field(default_factory=list)
    users: dict[str, purchases.Buyer] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    index: dict[str, int] = field(default_factory=dict)
    newest_ms: int = -NEVER
    time_ms: int = -NEVER

    def apply(self, event: Any) -> str:
        user_id = event.user_id
        user = self.users.setdefault(user_id, self.table.new(user_id))
        outcome = self.table.apply(user, event, self.time_ms, self.out)
        if outcome in ("applied", "late"):
            self.changed.add(user_id)
            self.newest_ms = max(self.newest_ms, event.ts)
            self.time_ms = max(self.time_ms, self.newest_ms - self.allowed_delay_ms)
        elif outcome == "too_late":
            self.dead.append(event.event_id)
        return outcome

    def meddle(self) -> None:
        """Anything that a worker might do between two events."""
        for action in self.chance.sample([self.flush, self.reload, self.fire_some], 2):
            if self.chance.random() < 0.5:
                action()

    def flush(self) -> None:
        for user_id in self.changed:
            self.index[user_id] = self.table.deadline_ms(self.users[user_id])
        self.changed.clear()

    def reload(self) -> None:
        for user_id, user in self.users.items():
            if self.chance.random() < 0.5:
                raw = self.table.encode(user)
                self.users[user_id] = self.table.decode(raw)
                assert self.table.encode(self.users[user_id]) == raw

    def fire_some(self) -> None:
        due = [user_id for user_id, due_ms in self.index.items() if due_ms <= self.time_ms]
        for user_id in self.chance.sample(due, self.chance.randint(0, len(due))):
            user = self.users[user_id]
            time_ms = min(self.time_ms, self.index[user_id] + self.chance.choice([0, DAY_MS]))
            if self.table.fire(user, time_ms, self.out):
                self.changed.add(user_id)
            else:
                self.index[user_id] = self.table.deadline_ms(user)

    def finish(self, until_ms: int | None) -> None:
        if until_ms is not None:
            self.time_ms = max(self.time_ms, until_ms)
        self.flush()
        while due := [user for user, due_ms in self.index.items() if due_ms <= self.time_ms]:
            for user_id in due:
                self.table.fire(self.users[user_id], self.time_ms, self.out)
                self.index[user_id] = self.table.deadline_ms(self.users[user_id])


def drive(scene: Scene, seed: int) -> list[Partition]:
    """A worker's work on the scene's two partitions."""
    chance = Random(seed)
    partitions = [
        Partition(purchases.Purchases(scene.rules), scene.rules.allowed_delay_ms, chance)
        for _ in range(2)
    ]
    for number, event in scene.stream:
        partitions[number].apply(received(event))
        partitions[number].meddle()
    for partition in partitions:
        partition.finish(scene.until_ms)
    return partitions


@settings(max_examples=80, deadline=None)
@given(scenes(), st.integers(0, 2**32))
def test_changes_warnings_and_dead_letters_equal_the_reference(scene, seed):
    """Whatever is encoded, flushed or fired in between, in whatever order."""
    partitions = drive(scene, seed)
    reference = run(scene.rules, scene.stream, scene.until_ms)

    changes = [change for partition in partitions for change in partition.out.changes]
    warnings = [warning for partition in partitions for warning in partition.out.warnings]
    dead = [event_id for partition in partitions for event_id in partition.dead]
    # Tags made of tags are beyond a table of one domain.
    assert by_domain(changes) == by_domain(reference.changes)
    own = {tag.name for tag in scene.rules.tags if tag.domain == "purchases"}
    assert by_user(warnings) == by_user(telling(own, reference.warnings))
    assert sorted(dead) == sorted(letter["event_id"] for letter in reference.dead)


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_every_feature_and_the_clock_equal_the_reference_after_every_event(scene):
    """Also those that no tag reads."""
    partitions = [
        Partition(purchases.Purchases(scene.rules), scene.rules.allowed_delay_ms, Random(0))
        for _ in range(2)
    ]
    reference = Reference(scene.rules)
    readers = purchases.FEATURES | {
        name: purchases.attribute(name) for name in scene.rules.attributes
    }
    for number, event in scene.stream:
        outcome = partitions[number].apply(received(event))
        assert outcome == reference.apply(number, event)
        user = partitions[number].users[event["user_id"]]
        person = reference.people[number, event["user_id"]]
        life = person.lives["purchases"]
        assert user.clock_ms == life.clock
        features = {name: read(user) for name, read in readers.items()}
        assert features == reference.features(person, life)


@settings(max_examples=50, deadline=None)
@given(scenes(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_second_run_emits_the_same_records_with_the_same_ids(scene, seed, other_seed):
    """Ids name the change, not the emission."""
    for first, second in zip(drive(scene, seed), drive(scene, other_seed), strict=True):
        for kind in ("changes", "warnings"):
            ids = [
                sorted(
                    (record.get("change_id") or record["warning_id"] + record["status"])
                    for record in getattr(partition.out, kind)
                )
                for partition in (first, second)
            ]
            assert ids[0] == ids[1]
            assert len(set(ids[0])) == len(ids[0])
