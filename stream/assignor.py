"""Who owns which partition number: one worker per number, the same for every source topic.

Promise: an assignment is a function of what the members say; numbers are spread evenly, to within
one; as few as possible change hands; every worker learns who is reached where.

Boundary: this is aiokafka's assignor interface and no more. The group's leader calls ``assign``,
every member the rest, in the consumer's thread. What an owner does with its numbers is not decided
here.

Members say ``{"url", "had", "round"}``: where they are reached, which numbers they had, and in
which round of assignments (0: none, but their state may lie on the disk). The leader answers
``{"round", "owners": [[url, numbers], ...], "problem"}``.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """What one member of the group says when it joins."""

    id: str
    url: str
    had: tuple[int, ...]
    round: int


def spread(numbers: Iterable[int], members: Iterable[Member]) -> dict[str, list[int]]:
    """Give each number to one member: evenly, to within one, moving as few as possible.

    A number that several members say they had goes to the one of the latest round, since the
    others slept through what came after. Equal input gives equal output, whatever its order.
    """
    free = set(numbers)
    claims: dict[str, list[int]] = {}
    for member in sorted(members, key=lambda m: (-m.round, m.url, m.id)):
        claims[member.id] = sorted(free.intersection(member.had))
        free.difference_update(member.had)
    # Who has most keeps most: the larger shares go where fewest numbers would have to leave.
    order = sorted(claims, key=lambda id: -len(claims[id]))
    share, larger = divmod(len(free) + sum(map(len, claims.values())), len(order) or 1)
    owned = {}
    for i, id in enumerate(order):
        quota = share + (i < larger)
        owned[id] = claims[id][:quota]
        free.update(claims[id][quota:])
    left = iter(sorted(free))
    for i, id in enumerate(order):
        quota = share + (i < larger)
        owned[id] = sorted(owned[id] + [next(left) for _ in range(quota - len(owned[id]))])
    return owned


class NumberAssignor(AbstractPartitionAssignor):
    """Faust setting ``PartitionAssignor``.

    Attributes:
        numbers: ours. Set before the start to those whose state lies on this worker's disk, it
            is what this worker asks for when it first joins.
        owners: each number's owner, by the URL at which it is reached.
        problem: why nothing is assigned to anyone, or None.
    """

    name = "tagstream-numbers"
    version = 1

    def __init__(self, app: Any, replicas: int = 0) -> None:
        self.app = app
        self.replicas = replicas
        self.numbers: frozenset[int] = frozenset()
        self.owners: Mapping[int, str] = {}
        self.problem: str | None = None
        self._round = 0

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        said = {
            "url": str(self.app.conf.canonical_url),
            "had": sorted(self.numbers),
            "round": self._round,
        }
        return ConsumerProtocolMemberMetadata(self.version, sorted(topics), orjson.dumps(said))

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        joined = []
        for id, metadata in members.items():
            said = orjson.loads(metadata.user_data)
            joined.append(Member(id, said["url"], tuple(said["had"]), said["round"]))
        problem, numbers = _layout(cluster, members)
        owned = spread(numbers, joined)
        answer = orjson.dumps(
            {
                "round": 1 + max(member.round for member in joined),
                "owners": [(member.url, owned[member.id]) for member in joined],
                "problem": problem,
            }
        )
        return {
            id: ConsumerProtocolMemberAssignment(
                self.version, [(topic, owned[id]) for topic in metadata.subscription], answer
            )
            for id, metadata in members.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        answer = orjson.loads(assignment.user_data)
        self.numbers = frozenset(p for _, numbers in assignment.assignment for p in numbers)
        self.owners = {p: url for url, numbers in answer["owners"] for p in numbers}
        self.problem = answer["problem"]
        self._round = answer["round"]
        if self.problem:
            log.error("no partition is assigned to any worker: %s", self.problem)


def _layout(
    cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
) -> tuple[str | None, range]:
    """Why nothing can be assigned, or None and the numbers that all source topics have."""
    read = {tuple(sorted(metadata.subscription)) for metadata in members.values()}
    topics = sorted({topic for topics in read for topic in topics})
    if len(read) > 1:
        unlike = [topic for topic in topics if not all(topic in one for one in read)]
        return (
            f"workers differ in the source topics they read ({', '.join(unlike)}); stop them all"
            " before a version with other sources is started",
            range(0),
        )
    counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
    if missing := [topic for topic, n in counts.items() if not n]:
        return f"source topics do not exist: {', '.join(missing)}; create them", range(0)
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{topic} {n}" for topic, n in counts.items())
        return f"source topics must have equal partition counts, but have: {found}", range(0)
    return None, range(min(counts.values(), default=0))
