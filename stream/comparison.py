"""Who would enter and leave each tag if other definitions came into force, read off a state.

Every user's records are read as the definitions in force have left them, brought up to the time
that their domains had reached, and evaluated under the old definitions and under the new ones.
Nothing is written. What the new definitions count from now on, as attributes that were not
declared before, is unknown of the past and counts as such.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream.definitions import Definitions
from stream.domains import Domain
from stream.errors import UsageError
from stream.metrics import value_label
from stream.position import POSITION, Position, decode_position
from stream.rules import Rules, parse
from stream.store import DEADLINE_BYTES, PROFILE, Store, record_key
from tables import profile
from tables.outputs import Outputs
from tables.table import Before

PAGE = 500  # users read at a time

Held = tuple[str, str]  # a tag, and its value as a label


@dataclass(frozen=True, slots=True)
class Move:
    """A user whose tag would change, and what the new condition read."""

    user_id: str
    before: Any
    after: Any
    features: Mapping[str, Any]


@dataclass(slots=True)
class Comparison:
    """What was found. ``samples`` are a few who would come, and a few who would go.

    ``reached_ms`` is by domain the earliest time that a partition had reached.
    """

    users: int = 0
    reached_ms: dict[str, int] = field(default_factory=dict)
    before: Counter[Held] = field(default_factory=Counter)
    after: Counter[Held] = field(default_factory=Counter)
    enter: Counter[Held] = field(default_factory=Counter)
    leave: Counter[Held] = field(default_factory=Counter)
    samples: dict[tuple[Held, str], list[Move]] = field(default_factory=dict)

    def add(
        self,
        user_id: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        evidence: Mapping[str, Mapping[str, Any]],
        most: int,
    ) -> None:
        """One user's tags under the old definitions and under the new ones."""
        self.users += 1
        self.before.update((name, value_label(value)) for name, value in before.items())
        self.after.update((name, value_label(value)) for name, value in after.items())
        for name in before.keys() | after.keys():
            old, new = before.get(name), after.get(name)
            if old == new:
                continue
            move = Move(user_id, old, new, evidence.get(name, {}))
            for value, way, counts in ((old, "leave", self.leave), (new, "enter", self.enter)):
                if value is not None:
                    held = name, value_label(value)
                    counts[held] += 1
                    sample = self.samples.setdefault((held, way), [])
                    if len(sample) < most:
                        sample.append(move)


def stores_in(directory: Path) -> list[Path]:
    """The databases of a data directory, one for each partition.

    Raises:
        UsageError: there are none.
    """
    for place in (directory / "state", directory):
        if found := sorted(each.parent for each in place.glob("*/CURRENT")):
            return found
    raise UsageError(
        f"{directory}: holds no state; give the data directory of a worker that is stopped, or"
        " what replay --state-dir kept"
    )


def compare(
    paths: list[Path],
    old: Rules,
    new: Rules,
    domains: Mapping[str, Domain],
    *,
    sample: int,
    progress: Callable[[int, int], None],
) -> Comparison:
    """Look at every user in these databases; ``progress(done, of)`` is told of users.

    Raises:
        StateError: a database cannot be read, or is in use.
    """
    found = Comparison()
    stores = [Store.read(path) for path in paths]
    try:
        positions = [_position(store) for store in stores]
        known = sum(position.users for position in positions)
        for store, position in zip(stores, positions, strict=True):
            for name, place in position.places.items():
                if place.time_ms >= 0:
                    reached_ms = found.reached_ms.get(name, place.time_ms)
                    found.reached_ms[name] = min(reached_ms, place.time_ms)
            judge = _Judge(store, position, old, new, domains)
            for user_id, before, after, evidence in judge.users():
                found.add(user_id, before, after, evidence, sample)
                if found.users % PAGE == 0:
                    progress(found.users, known)
        progress(found.users, found.users)
    finally:
        for store in stores:
            store.close()
    return found


def _position(store: Store) -> Position:
    raw = store.get(POSITION)
    if raw is None:
        return Position("", 0, "", "UTC", {}, [])
    return decode_position(raw)


class _Judge:
    """Both definitions at work on the users of one partition."""

    def __init__(
        self,
        store: Store,
        position: Position,
        old: Rules,
        new: Rules,
        domains: Mapping[str, Domain],
    ) -> None:
        def parsed(source: str) -> Rules:
            return parse(source, "the definitions in force", domains)

        in_force = Definitions.read(store, domains, parsed) or Definitions(old, domains)
        self._store = store
        self._domains = domains
        self._in_force = in_force.tables
        self._times = {
            name: position.places[name].time_ms if name in position.places else -1
            for name in domains
        }
        self._old = {name: domain.table(old) for name, domain in domains.items()}
        self._new = {name: domain.table(new) for name, domain in domains.items()}
        for tables, before in ((self._old, self._in_force), (self._new, self._old)):
            for name, table in tables.items():
                table.before = Before(before[name], self._times[name], _everybody, always_tell=True)
        self._old_profiles, self._new_profiles = profile.Profiles(old), profile.Profiles(new)
        self._old_profiles.before = in_force.profiles
        self._new_profiles.before = self._old_profiles

    def users(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
        """Each user's tags under the old definitions, under the new ones, and why."""
        start = PROFILE
        while rows := self._store.page(PROFILE, start, PAGE):
            for key, raw in rows:
                yield self._judge(key[len(PROFILE) :], raw)
            start = rows[-1][0] + b"\0"

    def _judge(
        self, key: bytes, raw: bytes
    ) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
        person = self._old_profiles.decode(raw)
        records = {}
        for name, domain in self._domains.items():
            row = self._store.get(record_key(domain.code, key))
            if row is not None:
                records[name] = self._old[name].decode(row[DEADLINE_BYTES:])
        for name, user in records.items():
            out = Outputs()
            self._in_force[name].take_up(user, out)
            self._old[name].take_up(user, out)
            self._old[name].finish(user, self._times[name], out)
            self._old_profiles.follow(person, name, out, user.clock_ms, None)
        before = {name: held.value for name, held in person.tags.items()}
        evidence = {}
        for name, user in records.items():
            out = Outputs()
            self._new[name].take_up(user, out)
            for change in self._new_profiles.follow(person, name, out, user.clock_ms, None):
                evidence[change["tag"]] = change["features"]
        after = {name: held.value for name, held in person.tags.items()}
        return person.user_id, before, after, evidence


def _everybody(user_id: str) -> bool:
    return True
