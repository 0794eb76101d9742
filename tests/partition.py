"""One partition with everything real but Faust: for tests of what a worker does with it."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from stream import recovery
from stream.applying import Feed
from stream.broker import LocalBroker
from stream.chunks import Chunk, Record
from stream.definitions import Definitions
from stream.domains import discover
from stream.errors import JournalLost
from stream.events import Decoder, types_of
from stream.journal import Said
from stream.local import LocalJournal
from stream.metrics import Metrics
from stream.partition import Partition
from stream.profiles import Profiles
from stream.rows import Pool
from stream.rules import parse
from stream.settings import Settings
from stream.store import Budget
from stream.users import Users

CHANGELOG = "tagstream-state-changelog"
OUTPUTS = ("tag-changes", "churn-warnings", "dead-letters", "user-tags")


def broker_with_topics() -> LocalBroker:
    """A broker in memory with one partition of every topic."""
    broker = LocalBroker(None)
    for topic in (*discover(), *OUTPUTS):
        broker.create_topic(topic, 1)
    broker.create_topic(CHANGELOG, 1, {"cleanup.policy": "compact"})
    return broker


def produce(broker: LocalBroker, events: list[dict[str, Any]], topic: str = "purchases") -> None:
    """Append events to a source."""
    rows = [(event["user_id"].encode(), orjson.dumps(event)) for event in events]
    broker.produce_to(topic, 0, rows)


def committed(broker: LocalBroker, topic: str) -> list[dict[str, Any]]:
    """What a topic without tombstones holds."""
    records = broker.read(topic, 0, 0, max_records=1_000_000)
    return [orjson.loads(record.value or b"") for record in records]


def folded(broker: LocalBroker, topic: str) -> dict[str, dict[str, Any]]:
    """What a compacted topic comes to: the last value of each key that is not gone."""
    last = {r.key: r.value for r in broker.read(topic, 0, 0, max_records=1_000_000)}
    return {(key or b"").decode(): orjson.loads(value) for key, value in last.items() if value}


class Unreliable(LocalJournal):
    """A journal that takes its time to commit, as a real broker does, and may give up."""

    chance = Random(0)
    failures = 0.0

    async def commit(self, rows: Mapping[str, Said]) -> int:
        for _ in range(self.chance.randint(0, 8)):
            await asyncio.sleep(0)
        if self.chance.random() < self.failures:
            raise JournalLost("given up")
        applied = await super().commit(rows)
        for _ in range(self.chance.randint(0, 8)):
            await asyncio.sleep(0)
        return applied


class Worker:
    """Opens partition 0 again and again, as a worker would, and feeds it chunks."""

    def __init__(self, broker: LocalBroker, rules: Any, disk: Path, *, allowance: int) -> None:
        self.broker = broker
        self.rules = rules
        self.disk = disk
        self.pool = Pool(allowance)
        self.budget = Budget(16)
        options = {"partitions": "1", "time": "events", "flush_ms": "250"}
        self.settings = Settings.load({**options, "data_dir": str(disk)}, {})
        self.errors: list[BaseException] = []
        self.chance = Random(0)
        self.failures = 0.0
        types = {name: types_of(domain.events) for name, domain in discover().items()}
        self.metrics = Metrics(CollectorRegistry(), types=types, partitions=1)

    async def open(self) -> Partition:
        journal = Unreliable(self.broker, changelog=CHANGELOG, partition=0)
        journal.chance, journal.failures = self.chance, self.failures
        await journal.open()
        recovered = await recovery.recover(
            journal,
            self.disk / "state",
            number=0,
            budget=self.budget,
            settings=self.settings,
            timezone=self.rules.timezone,
            tombstones_ms=7 * 86_400_000,
            progress=lambda *_: None,
        )
        definitions = Definitions.read(
            recovered.store, discover(), lambda text: parse(text, "tags.yaml", discover())
        ) or Definitions(self.rules, discover())
        feeds = []
        for name, domain in discover().items():
            table = definitions.tables[name]
            users = Users(domain.code, table, recovered.store, self.pool, b"secret")
            feeds.append(Feed(name, name, domain.code, table, Decoder(domain.events), users))
        partition = Partition(
            0,
            feeds=feeds,
            profiles=Profiles(definitions.profiles, recovered.store, self.pool),
            store=recovered.store,
            journal=journal,
            position=recovered.position,
            settings=self.settings,
            allowed_delay_ms=definitions.rules.allowed_delay_ms,
            definitions=definitions,
            metrics=self.metrics,
            failed=self.errors.append,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )
        partition.start()
        return partition

    def offer(self, partition: Partition, start: int, size: int, domain: str = "purchases") -> int:
        """Hand over the chunk of at most ``size`` records from ``start`` on; return its end."""
        records: list[Record] = list(self.broker.read(domain, 0, start, max_records=size))
        end = records[-1].offset + 1
        partition.offer(domain, Chunk(domain, 0, start, end, records, 0), lambda: None)
        return end
