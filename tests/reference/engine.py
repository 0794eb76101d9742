"""Events in, deadlines in between, and what follows from both."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

from tests.reference import churn, domains
from tests.reference.conditions import holds, names_in
from tests.reference.domains import DOMAINS, Applied, Past, Record, domain_of
from tests.reference.records import PROFILE
from tests.reference.times import BEFORE_ALL, first_instant, instant, local, local_date

UNSET = (None, False)


@dataclass
class Life:
    """Everything known of one user in one domain."""

    domain: str
    clock: int = BEFORE_ALL
    newest: int = BEFORE_ALL
    applied: list[Applied] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    values: Record = field(default_factory=dict)
    course: churn.Course = field(default_factory=churn.Course)

    @property
    def orders(self) -> list[Applied]:
        """All orders, as they arrived."""
        return [each for each in self.applied if each.kind == "order"]


@dataclass
class Person:
    """One user: what every domain knows, the tags held, and how long each was held so far.

    ``erased`` is the largest ts of an erasure by domain, and stays. ``told`` is the instant of
    the last change, None where nobody has heard of the user's tags.
    """

    user_id: str
    partition: int
    lives: dict[str, Life] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    tags: dict[str, tuple[Any, int]] = field(default_factory=dict)
    told: int | None = None

    @property
    def may_only_leave(self) -> bool:
        """Whether of an erasure nothing newer is known, in any domain: no new profile tags."""
        newest = max((life.newest for life in self.lives.values()), default=BEFORE_ALL)
        return bool(self.erased) and newest <= max(self.erased.values())


class Reference:
    """The naive answer under ``rules`` (a `stream.rules.Rules`), one event at a time."""

    def __init__(self, rules: Any, partitions: int = 1) -> None:
        self.rules = rules
        self.zone = ZoneInfo(rules.timezone)
        self.partitions = range(partitions)
        self.people: dict[tuple[int, str], Person] = {}
        self.rules_in: dict[int, Any] = {}  # where they were switched
        self.newest: dict[tuple[str, int], int] = {}
        self.reached: dict[tuple[str, int], int] = {}
        self.changes: list[Record] = []
        self.warnings: list[Record] = []
        self.dead: list[Record] = []

    def run(
        self, events: Iterable[tuple[Any, ...]], until_ms: int | None = None
    ) -> tuple[list[Record], list[Record], list[Record]]:
        """Apply all events, then let time pass: changes, warnings and dead letters."""
        for partition, event, *domain in events:
            self.apply(partition, event, *domain)
        self.finish(until_ms)
        return self.changes, self.warnings, self.dead

    # -- events

    def apply(self, partition: int, event: Record, domain: str | None = None) -> str:
        """One event; what became of it. An erasure goes to ``domain``, or to all of them."""
        if event["type"] == "erase":
            names = sorted(DOMAINS) if domain is None else [domain]
            return [self._erase(partition, event, name) for name in names][-1]
        domain = domain_of(event["type"])
        ts = instant(event["ts"])
        user_id = event["user_id"]
        person = self.people.setdefault((partition, user_id), Person(user_id, partition))
        if ts <= person.erased.get(domain, BEFORE_ALL):
            return "erased"
        life = person.lives.get(domain, Life(domain))
        horizon = life.newest - self.rules_of(person).max_lateness_ms
        if ts <= horizon:
            self.dead.append(
                {"code": "too_late", "user_id": user_id, "event_id": event["event_id"]}
            )
            return "too_late"
        if event["event_id"] in life.seen and life.seen[event["event_id"]] > horizon:
            return "duplicate"
        self.pass_time(person, domain, max(ts, self.time(domain, partition)))
        outcome = "late" if ts < life.clock else "applied"
        is_first, was_barred = not person.lives, person.may_only_leave
        person.lives[domain] = life
        life.seen[event["event_id"]] = ts
        life.newest = max(life.newest, ts)
        life.clock = max(life.clock, ts)
        self.note(domain, partition, ts)
        life.applied.append(Applied(ts, self.day(ts), self.kept(person, event)))
        if event["type"] == "order":
            self.welcome_back(person, life)
        cause = {"kind": "event", "event_id": event["event_id"]}
        changed = self.evaluate(person, life, cause)
        is_free_again = was_barred and not person.may_only_leave
        if not changed and (is_first or is_free_again):
            self.evaluate_profile(person, life.clock, cause)
        return outcome

    def kept(self, person: Person, event: Record) -> Record:
        """The event without attributes that nobody declared."""
        if "attributes" not in event:
            return event
        declared = self.rules_of(person).attributes
        told = {name: told for name, told in event["attributes"].items() if name in declared}
        return event | {"attributes": told}

    def _erase(self, partition: int, event: Record, domain: str) -> str:
        ts, user_id = instant(event["ts"]), event["user_id"]
        person = self.people.setdefault((partition, user_id), Person(user_id, partition))
        if ts <= person.erased.get(domain, BEFORE_ALL):
            return "erased"
        self.pass_time(person, domain, max(ts, self.time(domain, partition)))
        self.note(domain, partition, ts)
        life = person.lives.pop(domain, Life(domain))
        clock = max(life.clock, ts)
        person.erased[domain] = ts
        cause = {"kind": "erase"}
        changed = [
            self.change(person, domain, tag, unset(tag), life.values[tag.name], clock, cause, {})
            for tag in self.tags(person, domain)
            if life.values.get(tag.name) not in UNSET
        ]
        if changed:
            self.evaluate_profile(person, clock, self.because_of(changed))
        if not person.lives:
            for tag in self.tags(person, PROFILE):
                if tag.name in person.tags:
                    value = person.tags[tag.name][0]
                    self.change(person, PROFILE, tag, unset(tag), value, clock, cause, {})
            person.told = None
        return "applied"

    def finish(self, until_ms: int | None = None) -> None:
        """After the last event: everything that its time, or ``until_ms``, makes due."""
        for domain in DOMAINS:
            for partition in {person.partition for person in self.people.values()}:
                if until_ms is not None:
                    self.move(domain, partition, until_ms)
        for person in self.people.values():
            for domain in DOMAINS:
                self.pass_time(person, domain, self.time(domain, person.partition))

    # -- definitions

    def rules_of(self, person: Person) -> Any:
        """The definitions in force in the user's partition."""
        return self.rules_in.get(person.partition, self.rules)

    def tags(self, person: Person, domain: str) -> list[Any]:
        """The tags of a domain, in order."""
        return [tag for tag in self.rules_of(person).tags if tag.domain == domain]

    def switch(self, rules: Any, partition: int) -> None:
        """Other definitions come into force in a partition, between two of its events.

        Deadlines up to the later of a user's clock and the time reached fire under the old ones.
        """
        people = [person for person in self.people.values() if person.partition == partition]
        for person in people:
            for domain, life in person.lives.items():
                self.pass_time(person, domain, max(life.clock, self.time(domain, partition)))
        for domain in DOMAINS:
            self.move(domain, partition, self.time(domain, partition))
        before = self.rules_in.get(partition, self.rules)
        self.rules_in[partition] = rules
        for person in people:
            self._take_up(person, before)

    def _take_up(self, person: Person, before: Any) -> None:
        cause = {"kind": "rules"}
        defined = {(tag.domain, tag.name) for tag in self.rules_of(person).tags}
        gone = [tag for tag in before.tags if (tag.domain, tag.name) not in defined]
        for domain, life in sorted(person.lives.items()):
            for tag in gone:
                if tag.domain == domain:
                    value = life.values.pop(tag.name, None)
                    if value not in UNSET:
                        self.change(person, domain, tag, unset(tag), value, life.clock, cause, {})
            self._carry_over(life, before.churn, self.rules_of(person).churn)
            # One that was left is left, be it false before and null now.
            life.values = {name: value for name, value in life.values.items() if value not in UNSET}
            life.applied = [
                Applied(each.ts, each.day, self.kept(person, each.event)) for each in life.applied
            ]
            self.evaluate(person, life, cause, and_profile=False)
        if person.lives:
            at = max(life.clock for life in person.lives.values())
            for tag in gone:
                if tag.domain == PROFILE and tag.name in person.tags:
                    value = person.tags[tag.name][0]
                    self.change(person, PROFILE, tag, unset(tag), value, at, cause, {})
            self.evaluate_profile(person, at, cause)

    def _carry_over(self, life: Life, before: Any, after: Any) -> None:
        """How far things have come with the present silence stays, whenever it is said to begin."""
        if after is None:
            life.course = churn.Course()  # nobody is warned, and nothing is open
            return
        times, course = [each.ts for each in life.orders], life.course
        old, new = churn.silence(before, times), churn.silence(after, times)
        if old is None or new is None or old.last == new.last:
            return
        raised, was_churned = course.warning_of(old.last), old.last in course.churned_for
        for warning in course.warnings:
            if warning.last == new.last:
                warning.last = BEFORE_ALL
        course.churned_for.discard(new.last)
        if raised is not None:
            raised.last = new.last
        if was_churned:
            course.churned_for.add(new.last)

    # -- time

    def day(self, ts: int) -> Any:
        """The local date of an instant."""
        return local_date(self.zone, ts)

    def note(self, domain: str, partition: int, ts: int) -> None:
        """An event of this time was applied."""
        place = domain, partition
        self.newest[place] = max(self.newest.get(place, BEFORE_ALL), ts)

    def move(self, domain: str, partition: int, time: int) -> None:
        """Time has come at least so far."""
        place = domain, partition
        self.reached[place] = max(self.reached.get(place, BEFORE_ALL), time)

    def time(self, domain: str, partition: int) -> int:
        """How far time has come in a domain and partition."""
        place = domain, partition
        rules = self.rules_in.get(partition, self.rules)
        newest = self.newest.get(place, BEFORE_ALL) - int(rules.allowed_delay_ms)
        return max(newest, self.reached.get(place, BEFORE_ALL))

    def pass_time(self, person: Person, domain: str, reached: int) -> None:
        """Fire the user's deadlines in a domain up to ``reached``, in order."""
        life = person.lives.get(domain)
        if life is None:
            return
        walked = life.clock  # instants up to here are behind us
        features = None
        while True:
            midnight = first_instant(self.zone, self.day(walked) + timedelta(days=1))
            past = self.past(life, walked)
            due = min(
                [
                    midnight,
                    *domains.instants_to_come(domain, past),
                    *self.churn_instants(person, life),
                ]
            )
            if due > reached:
                return
            if features is None:
                features = self.features(person, life)
            walked = max(walked, due)
            struck = self.churn_at(person, life, due)
            before, features = features, self.features(person, life, walked)
            if features == before and not struck:
                continue  # nothing changes by itself here
            life.clock = walked
            self.evaluate(person, life, {"kind": "time"})

    # -- features

    def past(self, life: Life, clock: int) -> Past:
        """What the domain knows, as of an instant."""
        return Past(life.applied, clock, self.day(clock))

    def features(self, person: Person, life: Life, clock: int | None = None) -> Record:
        """Every feature of the domain, as of the user's clock or a later instant."""
        past = self.past(life, life.clock if clock is None else clock)
        found = domains.features(life.domain, past)
        if life.domain == "purchases":
            found["churn_state"] = life.course.state
            found |= domains.attributes(past, self.rules_of(person).attributes)
        return found

    # -- tags

    def evaluate(
        self, person: Person, life: Life, cause: Record, *, and_profile: bool = True
    ) -> list[Record]:
        """All tags of the domain as of the clock, a change for each that differs.

        Then once those made of tags, where any did.
        """
        features = self.features(person, life)
        changed = []
        for tag in self.tags(person, life.domain):
            value, evidence = judged(tag, features)
            previous = life.values.get(tag.name, unset(tag))
            if value != previous:
                life.values[tag.name] = value
                changed.append(
                    self.change(
                        person, life.domain, tag, value, previous, life.clock, cause, evidence
                    )
                )
        if changed and and_profile:
            self.evaluate_profile(person, life.clock, self.because_of(changed))
        return changed

    def evaluate_profile(self, person: Person, at: int, cause: Record) -> None:
        """Tags made of tags, in order, each seeing those above it as they have just become."""
        values: Record = {
            tag.name: person.tags[tag.name][0] if tag.name in person.tags else unset(tag)
            for tag in self.rules_of(person).tags
        }
        for tag in self.tags(person, PROFILE):
            value, evidence = judged(tag, values)
            previous = values[tag.name]
            if value != previous and person.may_only_leave:
                value = unset(tag)
            if value != previous:
                values[tag.name] = value
                self.change(person, PROFILE, tag, value, previous, at, cause, evidence)

    def because_of(self, changed: list[Record]) -> Record:
        """The cause of what follows from these."""
        return {"kind": "tag", "change_id": changed[-1]["change_id"]}

    def change(
        self,
        person: Person,
        domain: str,
        tag: Any,
        value: Any,
        previous: Any,
        at: int,
        cause: Record,
        evidence: Record,
    ) -> Record:
        """A tag changes: its record, and what the user's tags are now."""
        if value in UNSET:
            person.tags.pop(tag.name, None)
        else:
            person.tags[tag.name] = value, at
        person.told = at if person.told is None else max(person.told, at)
        change = {
            "change_id": len(self.changes),
            "user_id": person.user_id,
            "domain": domain,
            "tag": tag.name,
            "value": value,
            "previous": previous,
            "effective_at": self.iso(at),
            "cause": cause,
            "features": {name: finite(value) for name, value in evidence.items()},
            "rules_version": self.rules_of(person).version,
        }
        if drawn(tag.name, person.user_id) < (tag.control or 0):
            change["control"] = True
        self.changes.append(change)
        return change

    def iso(self, ts: int) -> str:
        """Local time with milliseconds."""
        return local(self.zone, ts).isoformat(timespec="milliseconds")

    # -- all tags together

    def user_tags(self) -> dict[str, Record]:
        """What ``user-tags`` has to hold in the end, compacted."""
        return {
            person.user_id: {
                "user_id": person.user_id,
                "tags": {
                    name: {"value": value, "since": self.iso(since)}
                    for name, (value, since) in person.tags.items()
                },
                "updated_at": self.iso(person.told),
            }
            for person in self.people.values()
            if person.lives and person.told is not None
        }

    def population(self) -> Counter[tuple[str, Any]]:
        """How many users have each value of each tag."""
        return Counter(
            (name, value)
            for person in self.people.values()
            for name, (value, _) in person.tags.items()
        )

    # -- churn

    def silence(self, person: Person, life: Life) -> churn.Warning | None:
        """The warning that the user's present silence leads to."""
        if life.domain != "purchases":
            return None
        return churn.silence(self.rules_of(person).churn, [each.ts for each in life.orders])

    def churn_instants(self, person: Person, life: Life) -> list[int]:
        """Every churn deadline to come, or missed."""
        if life.domain != "purchases" or self.rules_of(person).churn is None:
            return []
        instants = [each.matures for each in life.course.warnings if not each.scored]
        silence = self.silence(person, life)
        if silence is not None:
            raised = life.course.warning_of(silence.last)
            if raised is None:
                instants.append(silence.raised)
            elif silence.last not in life.course.churned_for:
                instants.append(raised.matures)
        return instants

    def churn_at(self, person: Person, life: Life, due: int) -> bool:
        """What churn has to say at this very instant: raised, churned, scored."""
        if due not in self.churn_instants(person, life):
            return False
        # What a record says is as of this instant, its tags those from before it.
        life.clock = max(life.clock, due)
        course, silence = life.course, self.silence(person, life)
        if silence is not None:
            raised = course.warning_of(silence.last)
            if raised is None and due == silence.raised:
                raised = silence
                course.state = "warned"
                course.warnings.append(raised)
                self.warn("raised", person, raised, due)
            if raised and silence.last not in course.churned_for and due == raised.matures:
                course.churned_for.add(silence.last)
                course.state = "churned"
                self.warn("churned", person, raised, due)
        for warning in course.warnings:
            if not warning.scored and warning.matures == due:
                warning.scored = True
                self.warn("scored", person, warning, due)
        return True

    def welcome_back(self, person: Person, life: Life) -> None:
        """An order was applied: the first after a raised warning is the user's return."""
        course = life.course
        if course.warnings and course.warnings[-1].returned is None:
            warning = course.warnings[-1]
            warning.returned = life.clock
            warning.returned_from = course.state
            self.warn("returned", person, warning, life.clock)
        course.state = "none"

    def warn(self, status: str, person: Person, warning: churn.Warning, at: int) -> None:
        """A record of a warning."""
        life, definition = person.lives["purchases"], self.rules_of(person).churn
        times = [each.ts for each in life.orders]
        probability, right = warning.probability, None
        if status == "scored":
            right = not any(warning.raised < ts < warning.matures for ts in times)
        self.warnings.append(
            {
                "status": status,
                "user_id": person.user_id,
                "at": self.iso(at),
                "raised_at": self.iso(warning.raised),
                "churn_at": self.iso(warning.churn),
                "matures_at": self.iso(warning.matures),
                # Its own, whatever has been switched to since.
                "mode": "silence" if probability is None else "predicted",
                "probability": probability,
                "level": "yellow" if probability is not None and probability < 0.6 else "red",
                "control": drawn("churn", person.user_id) < definition.control,
                "tags": {name: value for name, (value, _) in person.tags.items()},
                "evidence": {
                    "last_order_at": self.iso(max(times)),
                    "first_order_at": self.iso(min(times)),
                    "orders_total": len(times),
                    "spend_total": self.features(person, life)["spend_total"],
                },
                "returned_at": None if warning.returned is None else self.iso(warning.returned),
                "returned_from": warning.returned_from,
                "right": right,
            }
        )


def run(rules: Any, events: Iterable[tuple[Any, ...]], until_ms: int | None = None) -> Reference:
    """A reference that has seen all of ``events``."""
    reference = Reference(rules)
    reference.run(events, until_ms)
    return reference


def unset(tag: Any) -> Any:
    """What a tag is to somebody who does not have it."""
    return False if tag.kind == "when" else None


def judged(tag: Any, values: Record) -> tuple[Any, Record]:
    """The value of a tag, and all that its conditions read."""
    texts = [condition.text for _, condition in tag.cases]
    value = next((value for value, case in tag.cases if holds(case.text, values)), unset(tag))
    return value, {name: values[name] for text in texts for name in names_in(text)}


def finite(value: Any) -> Any:
    """Infinity is null in JSON."""
    return None if value == float("inf") else value


def drawn(purpose: str, user_id: str) -> float:
    """A user's number in [0, 1) for a control group."""
    digest = blake2b(f"{purpose}:{user_id}".encode(), digest_size=8).digest()
    return float(Fraction(int.from_bytes(digest, "big"), 2**64))
