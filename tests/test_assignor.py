"""Partition numbers to workers: even, steady, the same for every source topic."""

import logging
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.protocol.metadata import MetadataResponse_v0
from hypothesis import given
from hypothesis import strategies as st

from stream.assignor import Member, NumberAssignor, spread

SOURCES = ["engagement", "outreach", "purchases", "service"]


def cluster(**partitions: int) -> ClusterMetadata:
    """A cluster's metadata with these topics."""
    metadata = ClusterMetadata()
    topics = [(0, name, [(0, p, 0, [0], [0]) for p in range(n)]) for name, n in partitions.items()]
    metadata.update_metadata(MetadataResponse_v0([(0, "127.0.0.1", 9092)], topics))
    return metadata


class Group:
    """Members that join, and hear what the leader says, as aiokafka has them do it."""

    def __init__(self, topics: list[str] = SOURCES) -> None:
        self.topics = topics
        self.read: dict[str, list[str]] = {}
        self.members: dict[str, NumberAssignor] = {}
        self.assigned: dict[str, Any] = {}

    def join(self, *urls: str, topics: list[str] | None = None) -> None:
        for url in urls:
            app = SimpleNamespace(conf=SimpleNamespace(canonical_url=url))
            self.members[url] = NumberAssignor(app)
            self.read[url] = topics or self.topics

    def rebalance(self, metadata: ClusterMetadata) -> None:
        said = {url: member.metadata(self.read[url]) for url, member in self.members.items()}
        leader = next(iter(self.members.values()))
        self.assigned = leader.assign(metadata, said)
        for url, member in self.members.items():
            answer = self.assigned[url]
            member.on_assignment(type(answer).decode(answer.encode()))

    def numbers(self, url: str) -> dict[str, set[int]]:
        """What this member got, by topic."""
        return {topic: set(numbers) for topic, numbers in self.assigned[url].assignment}


def test_stock_faust_splits_the_partition_numbers_of_three_workers():
    """Without tables it takes aiokafka's round robin: one user's events meet two owners."""
    members = {id: RoundRobinPartitionAssignor.metadata(SOURCES) for id in "abc"}
    assigned = RoundRobinPartitionAssignor.assign(cluster(**dict.fromkeys(SOURCES, 8)), members)
    owners = {(id, p) for id in "abc" for _, numbers in assigned[id].assignment for p in numbers}
    assert len(owners) > 8


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 11])
def test_a_number_has_one_owner_over_all_topics_and_everyone_knows_it(workers):
    urls = [f"http://w{i}:6066" for i in range(workers)]
    group = Group()
    group.join(*urls)
    group.rebalance(cluster(**dict.fromkeys(SOURCES, 8)))
    owners = {}
    for url in urls:
        by_topic = group.numbers(url)
        assert set(by_topic) == set(SOURCES)
        assert len(set(map(frozenset, by_topic.values()))) == 1
        member = group.members[url]
        assert member.numbers == by_topic["purchases"]
        owners.update(dict.fromkeys(member.numbers, url))
    assert set(owners) == set(range(8))
    assert all(member.owners == owners for member in group.members.values())


MEMBERS = st.lists(
    st.builds(
        Member,
        id=st.uuids().map(str),
        url=st.sampled_from(["http://a", "http://b", "http://c"]),
        had=st.lists(st.integers(0, 12), unique=True).map(tuple),
        round=st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda member: member.id,
)


@given(MEMBERS, st.integers(0, 12), st.randoms())
def test_spread_is_complete_even_steady_and_deterministic(members, partitions, random):
    owned = spread(range(partitions), members)
    assert sorted(p for numbers in owned.values() for p in numbers) == list(range(partitions))
    sizes = [len(numbers) for numbers in owned.values()]
    assert max(sizes) - min(sizes) <= 1

    last: dict[str, set[int]] = {member.id: set() for member in members}
    for p in range(partitions):
        if had := [member for member in members if p in member.had]:
            last[min(had, key=lambda m: (-m.round, m.url, m.id)).id].add(p)
    share, larger = divmod(partitions, len(members))
    most = sum(min(len(had), share) for had in last.values())
    most += min(larger, sum(len(had) > share for had in last.values()))
    assert sum(len(last[id].intersection(numbers)) for id, numbers in owned.items()) == most

    random.shuffle(members)
    assert spread(reversed(range(partitions)), members) == owned


@pytest.mark.parametrize(
    ("before", "after", "taken"), [(2, 3, 4), (3, 4, 3), (3, 2, 0), (4, 3, 0), (5, 1, 0)]
)
def test_joining_takes_its_share_from_those_who_stay_and_leaving_nothing(before, after, taken):
    group, metadata = Group(), cluster(**dict.fromkeys(SOURCES, 12))
    urls = [f"http://w{i}" for i in range(5)]
    group.join(*urls[:before])
    group.rebalance(metadata)
    had = {url: member.numbers for url, member in group.members.items()}
    for url in urls[after:before]:
        del group.members[url]
    group.join(*urls[before:after])
    group.rebalance(metadata)
    stayed = had.keys() & group.members.keys()
    assert sum(len(had[url] - group.members[url].numbers) for url in stayed) == taken


def test_a_worker_that_slept_through_a_round_does_not_take_back_what_it_had():
    metadata = cluster(purchases=5)
    group = Group(topics=["purchases"])
    group.join("http://a", "http://b")
    group.rebalance(metadata)
    asleep = group.members.pop("http://a")
    had = asleep.numbers
    group.join("http://c")
    group.rebalance(metadata)
    awake = {url: member.numbers for url, member in group.members.items()}

    group.members["http://a"] = asleep
    group.rebalance(metadata)
    for url, numbers in awake.items():
        assert len(numbers - group.members[url].numbers) <= 1
    assert len(had) > len(asleep.numbers) == 1


def test_a_worker_gets_back_the_numbers_on_its_disk():
    """It says before it starts which those are."""
    group = Group()
    group.join("http://a", "http://b")
    group.members["http://a"].numbers = frozenset({1, 3, 5})
    group.rebalance(cluster(**dict.fromkeys(SOURCES, 6)))
    assert group.members["http://a"].numbers == {1, 3, 5}


def test_a_static_member_may_be_told_the_same_answer_again():
    """The broker answers a worker that returns in time from what the leader said before."""
    group = Group()
    group.join("http://a", "http://b")
    group.rebalance(cluster(**dict.fromkeys(SOURCES, 4)))
    before = group.members["http://a"]
    group.join("http://a")
    again = group.members["http://a"]
    again.on_assignment(group.assigned["http://a"])
    assert (again.numbers, again.owners) == (before.numbers, before.owners)


@pytest.mark.parametrize(
    ("partitions", "problem"),
    [
        ({"purchases": 4, "service": 8}, "equal partition counts, but have: purchases 4, servic"),
        ({"purchases": 4}, "source topics do not exist: service; create them"),
    ],
)
def test_nothing_is_assigned_and_every_worker_says_why(caplog, partitions, problem):
    group = Group(topics=["purchases", "service"])
    group.join("http://a", "http://b")
    with caplog.at_level(logging.ERROR):
        group.rebalance(cluster(**partitions))
    assert [problem in record.getMessage() for record in caplog.records] == [True, True]
    for member in group.members.values():
        assert problem in str(member.problem)
        assert (member.numbers, member.owners) == (frozenset(), {})

    group.rebalance(cluster(purchases=8, service=8))
    assert Counter(len(m.numbers) for m in group.members.values()) == {4: 2}
    assert all(member.problem is None for member in group.members.values())


def test_workers_that_read_different_sources_get_nothing():
    group = Group(topics=["purchases", "service"])
    group.join("http://a")
    group.join("http://b", topics=["purchases"])
    group.rebalance(cluster(purchases=4, service=4))
    assert {m.problem for m in group.members.values()} == {
        "workers differ in the source topics they read (service); stop them all before a version"
        " with other sources is started"
    }
    assert group.numbers("http://b") == {"purchases": set()}
