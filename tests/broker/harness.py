"""Runs the service on a broker, feeds it, and judges it from outside.

Events go in and outputs come out through confluent-kafka, a client of another make. What
should have come out is what the naive reference makes of the source topics as they lie on
the broker: nothing here knows what the workers went through meanwhile. Domains are read by
workers at a pace of their own, so what depends on how they interleave is not compared: what
tags made of tags were in between. Where they end is.
"""

import contextlib
import itertools
import json
import operator
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from stream.definitions import RULES, decode_switch
from stream.domains import discover
from stream.rules import Rules, load
from stream.topics import CHANGELOG
from tests.broker.cluster import PASSWORD, USER, Cluster, Listener
from tests.broker.everything import To, farewells, is_farewell, unusable
from tests.broker.purchases import DAY_MS, TAGS, Sent
from tests.broker.worker import DEADLINE_S, Worker, tagstream, wait_until
from tests.reference import (
    DOMAINS,
    Reference,
    by_domain,
    by_user,
    instant,
    settled,
    telling,
    values,
)

SESSION_S = 6.0  # the shortest session that brokers allow by default
QUIET_MS = 6 * DAY_MS  # before the farewells: long enough for every churn deadline

Letter = tuple[str, str, int, int]  # code, domain, partition and offset of a dead letter
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
PARTITIONERS = {"murmur2": "murmur2_random", "crc32": "consistent_random"}  # librdkafka's names

#: How a transaction of events ends, and how often in 100; None: sent outside of one.
ENDINGS: dict[Callable[[Producer], None] | None, int] = {
    None: 70,
    Producer.commit_transaction: 20,
    Producer.abort_transaction: 10,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies on the broker; ``timestamp`` in epoch ms."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None

    def decoded(self) -> Any:
        """The value, which has to be JSON."""
        assert self.value is not None
        return json.loads(self.value)


class Topic:
    """One topic, read committed and from its beginning, as far as it has been read.

    ``partitions`` holds the records of each partition, in order of offset.
    """

    def __init__(self, name: str, client: Mapping[str, Any], partitions: int) -> None:
        self.name = name
        self.partitions: list[list[Record]] = [[] for _ in range(partitions)]
        self._settings = {
            **client,
            "group.id": "unused",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
        }

    def ends(self) -> list[int]:
        """The end offset of each partition now, markers of transactions counted."""
        consumer = Consumer(self._settings)
        try:
            return [
                consumer.get_watermark_offsets(TopicPartition(self.name, number), DEADLINE_S)[1]
                for number in range(len(self.partitions))
            ]
        finally:
            consumer.close()

    def read(self) -> int:
        """Read on to the end that the broker tells now; returns how many records there are."""
        consumer = Consumer(self._settings)
        try:
            consumer.assign(
                [
                    TopicPartition(self.name, number, read[-1].offset + 1 if read else 0)
                    for number, read in enumerate(self.partitions)
                ]
            )
            unread = set(range(len(self.partitions)))
            deadline = time.monotonic() + DEADLINE_S
            trouble = None
            while unread:
                assert time.monotonic() < deadline, f"{self.name}: cannot be read: {trouble}"
                for message in consumer.consume(10_000, timeout=0.2):
                    number, error = message.partition(), message.error()
                    if error is None:
                        self._keep(message)
                    elif error.code() == KafkaError._PARTITION_EOF and number is not None:
                        unread.discard(number)
                    else:
                        trouble = error  # a broker that is away comes back
        finally:
            consumer.close()
        return sum(map(len, self.partitions))

    def records(self) -> Iterator[Record]:
        """All records read so far, partition by partition."""
        return itertools.chain.from_iterable(self.partitions)

    def newest_ms(self) -> int:
        """The largest timestamp of the records read so far, epoch ms."""
        return max(record.timestamp for record in self.records())

    def _keep(self, message: Message) -> None:
        number, offset = message.partition(), message.offset()
        assert number is not None and offset is not None
        timestamp = message.timestamp()[1]
        self.partitions[number].append(Record(offset, timestamp, message.key(), message.value()))


class Service:
    """One deployment: its topics under a prefix of its own, its workers, what goes in and out.

    ``with`` makes the topics by `tagstream topics` and kills the workers at the end.
    ``tags`` are the definitions as YAML, None the packaged ones; ``settings`` are further
    environment variables.
    """

    def __init__(
        self,
        cluster: Cluster,
        prefix: str,
        directory: Path,
        *,
        listener: Listener = "PLAIN",
        partitions: int = 4,
        partitioner: str = "murmur2",
        tags: str | None = TAGS,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.settings = {
            "TAGSTREAM_BROKER": f"kafka://{cluster.servers(listener).replace(',', ';')}",
            "TAGSTREAM_TOPIC_PREFIX": prefix,
            "TAGSTREAM_PARTITIONS": str(partitions),
            "TAGSTREAM_PARTITIONER": partitioner,
            "TAGSTREAM_TIME": "events",
            "TAGSTREAM_SESSION_TIMEOUT_MS": f"{SESSION_S * 1000:.0f}",
            **_security(cluster, listener),
            **(settings or {}),
        }
        if tags is not None:
            definitions = directory / "tags.yaml"
            definitions.write_text(tags)
            self.settings["TAGSTREAM_TAGS"] = str(definitions)
        self.workers: dict[str, Worker] = {}
        self.client: dict[str, str | int | float | bool] = {
            "bootstrap.servers": cluster.bootstrap,
            "log_level": 0,  # librdkafka writes to standard error by itself
        }
        self._partitioner = PARTITIONERS[partitioner]
        self._producers: dict[tuple[str, bool], Producer] = {}
        self.prefix = prefix
        self.sources = {name: Topic(prefix + name, self.client, partitions) for name in DOMAINS}
        self.source = self.sources["purchases"]
        self.changes, self.warnings, self.dead_letters, self.user_tags, self.changelog = (
            Topic(prefix + name, self.client, partitions)
            for name in ("tag-changes", "churn-warnings", "dead-letters", "user-tags", CHANGELOG)
        )
        self._rules_before: Rules | None = None

    def __enter__(self) -> Self:
        made = tagstream("topics", settings=self.settings)
        assert made.returncode == 0, made.stdout + made.stderr
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            if worker.running:
                worker.kill()

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        """As `worker.wait_until`, starting again what ends meanwhile; a failure shows the logs."""

        def holds_at_last() -> object:
            self.tend()
            return holds()

        try:
            wait_until(holds_at_last, what)
        except AssertionError as error:
            for name, worker in self.workers.items():
                error.add_note(f"-- the end of {name}'s log:\n{worker.tail()}")
            raise

    # -- workers

    def start(self, *names: str) -> None:
        """Start workers, new ones or again, and wait until each is ready."""
        for name in names:
            self.workers.setdefault(name, Worker(self.directory / name, self.settings)).start()
        for name in names:
            self.workers[name].wait_ready()

    def tend(self) -> None:
        """Start again every worker that ended by itself, as any deployment would."""
        for worker in self.workers.values():
            if worker.ended() is not None:
                worker.start()

    def wait_whole(self) -> None:
        """Start every worker that is not there; return once all are ready."""
        for worker in self.workers.values():
            if not worker.running:
                worker.start()
        self.wait_until(
            lambda: all(worker.ready() for worker in self.workers.values()), "all workers ready"
        )

    def wait_shares(self, *shares: int) -> None:
        """Return once the workers that are there own so many partitions, the fewest first."""

        def owned() -> list[int]:
            there = [worker for worker in self.workers.values() if worker.running]
            return sorted(worker.partitions() for worker in there)

        self.wait_until(lambda: owned() == list(shares), f"shares of {shares} partitions")

    # -- definitions

    def rules(self) -> Rules:
        """The definitions in the workers' file."""
        return load(Path(self.settings["TAGSTREAM_TAGS"]), discover())

    def change_tags(self, tags: str) -> None:
        """Other definitions for all workers, once in a service's life."""
        assert self._rules_before is None
        self._rules_before = self.rules()
        fresh = self.directory / "fresh.yaml"
        fresh.write_text(tags)
        fresh.replace(self.settings["TAGSTREAM_TAGS"])

    def wait_switched(self) -> None:
        """Return once they are in force in every partition."""
        self.wait_until(lambda: all(self._switches()), "the definitions switched")

    # -- input

    def send(
        self,
        events: Iterable[Sent | To],
        *,
        topic: str | None = None,
        codec: str = "none",
        ending: Callable[[Producer], None] | None = None,
    ) -> int:
        """Append ``events`` to their sources, or another topic; returns how many, all acknowledged.

        ``ending`` (one of `ENDINGS`) ends the transaction that they are sent in.
        """
        count = 0
        producer = self._producer(codec, transactional=ending is not None)
        if ending is not None:
            producer.begin_transaction()
        for key, value, *domain in events:
            place = topic or self.prefix + (domain[0] if domain else "purchases")
            producer.produce(place, value, key)
            producer.poll(0)
            count += 1
        assert producer.flush(DEADLINE_S) == 0, "the broker did not take the events"
        if ending is not None:
            ending(producer)
        return count

    def _producer(self, codec: str, *, transactional: bool) -> Producer:
        producer = self._producers.get((codec, transactional))
        if producer is None:
            settings = {
                **self.client,
                "partitioner": self._partitioner,
                "compression.type": codec,
                "enable.idempotence": True,  # a broker's restart repeats and reorders nothing
                "linger.ms": 5,
                "queue.buffering.max.messages": 10_000_000,
            }
            if transactional:
                settings["transactional.id"] = f"{self.source.name}-{codec}"
            producer = self._producers[codec, transactional] = Producer(settings)
            if transactional:
                producer.init_transactions(DEADLINE_S)
        return producer

    @contextlib.contextmanager
    def feeding(self, events: Iterator[Sent | To], *, per_s: int = 600) -> Iterator[None]:
        """Send ``events`` for as long as the block runs: slices of every size and codec, plain
        or in transactions, some of which are aborted.
        """
        over = threading.Event()

        def feed() -> None:
            rng = random.Random(0)
            while not over.is_set():
                slice_ = list(itertools.islice(events, rng.randint(1, 200)))
                # Who is forgotten in some domains only may end up with other tags made of tags,
                # depending on which domain was read first: all of it, or none, is aborted.
                while b'"erase"' in (slice_[-1][1] or b""):
                    slice_.append(next(events))
                (ending,) = rng.choices(list(ENDINGS), list(ENDINGS.values()))
                self.send(slice_, codec=rng.choice(CODECS), ending=ending)
                over.wait(len(slice_) / per_s)

        with ThreadPoolExecutor(1) as thread:
            fed = thread.submit(feed)
            try:
                yield
            finally:
                over.set()
                fed.result()

    # -- output

    def wait_progress(self, changes: int = 100) -> None:
        """Return once ``changes`` more tag changes are committed than now."""
        enough = self.changes.read() + changes
        self.wait_until(lambda: self.changes.read() >= enough, f"{changes} more tag changes")

    def wait_idle(self) -> None:
        """Return once all of the sources is committed; they hold no transactions."""
        end = sum(sum(source.ends()) for source in self.sources.values())
        workers = self.workers.values()
        self.wait_until(
            lambda: end == sum(worker.metric("tagstream_committed_offset") for worker in workers),
            "all events committed",
        )

    def check(self) -> None:
        """Say farewell, wait for the end, stop the workers, and compare everything with the
        reference: nothing missing, nothing wrong, nothing twice, in order.
        """
        self._read_sources()
        records = itertools.chain.from_iterable(map(Topic.records, self.sources.values()))
        usable = [record.decoded() for record in records if not unusable(record.value)]
        newest_ms = max(instant(event["ts"]) for event in usable)
        self.send(farewells(newest_ms + QUIET_MS))
        self._read_sources()
        expected = self._expected()

        enough = [expected.changes_of_domains, len(expected.warnings), len(expected.dead)]
        out = [0, 0, 0]

        def arrived() -> bool:
            self.changes.read()
            out[0] = sum(1 for record in self.changes.records() if _of_domain(record))
            out[1:] = self.warnings.read(), self.dead_letters.read()
            return all(map(operator.ge, out, enough)) and self._all_gone()

        try:
            wait_until(arrived, "as many records as expected")
        except AssertionError as error:
            error.add_note(f"-- changes, warnings and dead letters: {out} of {enough}")
            raise
        for worker in self.workers.values():
            if worker.running:
                worker.stop()
        for topic in (self.changes, self.warnings, self.dead_letters, self.user_tags):
            topic.read()
        changes = [record.decoded() for record in self.changes.records()]
        warnings = [record.decoded() for record in self.warnings.records()]
        _compare(by_domain(expected.changes), by_domain(changes), "changes")
        _compare(settled(expected.changes), settled(changes), "where tags end")
        _compare(expected.user_tags, self._user_tags(), "user-tags")
        rules = [*self.rules().tags, *(self._rules_before.tags if self._rules_before else ())]
        own = {tag.name for tag in rules if tag.domain == "purchases"}
        wanted, found = (telling(own, records) for records in (expected.warnings, warnings))
        _compare(by_user(wanted), by_user(found), "churn-warnings")
        _unique(changes, "change_id")
        _unique(warnings, "warning_id", "status")
        letters = [record.decoded() for record in self.dead_letters.records()]
        dead = [
            (each["code"], each["topic"].removeprefix(self.prefix), *_place(each))
            for each in letters
        ]
        assert sorted(dead) == sorted(expected.dead)

    def _read_sources(self) -> None:
        for source in self.sources.values():
            source.read()

    def _expected(self) -> "Expected":
        """What has to follow from the sources as they have been read."""
        reference = Reference(self._rules_before or self.rules(), len(self.source.partitions))
        dead: list[Letter] = []
        for number, switched_at in enumerate(self._switches()):
            for domain, source in self.sources.items():
                end = switched_at.get(domain, 0) if switched_at else None
                dead += _apply(reference, domain, number, source.partitions[number], 0, end)
            if switched_at:
                reference.switch(self.rules(), number)
                for domain, source in self.sources.items():
                    start = switched_at.get(domain, 0)
                    dead += _apply(reference, domain, number, source.partitions[number], start)
        reference.finish()
        return Expected(reference.changes, reference.warnings, dead, values(reference.user_tags()))

    def _switches(self) -> list[Mapping[str, int]]:
        """Where in its sources each partition took up other definitions; empty: it has not."""
        self.changelog.read()
        rows = [
            {record.key: record.value for record in records}.get(RULES)
            for records in self.changelog.partitions
        ]
        return [decode_switch(row).offsets if row else {} for row in rows]

    def _user_tags(self) -> dict[str, Any]:
        """What ``user-tags`` comes to: the values of each user's tags."""
        last = {record.key: record for record in self.user_tags.records()}
        return values(
            {
                (key or b"").decode(): record.decoded()
                for key, record in last.items()
                if record.value is not None
            }
        )

    def _all_gone(self) -> bool:
        """Whether changes of the last users are out on every partition, in every domain."""
        domains = {tag.domain for tag in self.rules().tags} - {"profile"}
        return all(
            domains <= {record.decoded()["domain"] for record in records if is_farewell(record.key)}
            for records in self.changes.partitions
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What the reference makes of the sources: decoded records, dead letters as ``Letter``, and
    the values of each user's tags in the end.
    """

    changes: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    dead: list[Letter]
    user_tags: dict[str, Any]

    @property
    def changes_of_domains(self) -> int:
        """How many changes there have to be but those of tags made of tags."""
        return sum(1 for change in self.changes if change["domain"] != "profile")


def _apply(
    reference: Reference,
    domain: str,
    number: int,
    records: Iterable[Record],
    start: int,
    end: int | None = None,
) -> Iterator[Letter]:
    """Have the reference apply the records from ``start`` to ``end``; what it refuses."""
    for record in records:
        if record.offset >= start and (end is None or record.offset < end):
            code = unusable(record.value)
            code = code or reference.apply(number, record.decoded(), domain)
            if code in ("malformed", "invalid", "too_late"):
                yield code, domain, number, record.offset


def _compare(wanted: Mapping[Any, Any], found: Mapping[Any, Any], what: str) -> None:
    """Equal, user by user; a failure shows the first who differs."""
    for user in sorted(wanted.keys() | found.keys()):
        mine, its = found.get(user, []), wanted.get(user, [])
        assert mine == its, f"{what}: {user}: {mine} instead of {its}"


def _unique(records: list[dict[str, Any]], *identity: str) -> None:
    """No record has the identity of another."""
    ids = {tuple(record[part] for part in identity) for record in records}
    assert len(ids) == len(records), f"{identity[0]}: one is there twice"


def _of_domain(record: Record) -> bool:
    """Whether a change is of a tag that is not made of tags."""
    return b'"domain":"profile"' not in (record.value or b"")


def _place(letter: Mapping[str, Any]) -> tuple[int, int]:
    return letter["partition"], letter["offset"]


def _security(cluster: Cluster, listener: Listener) -> dict[str, str]:
    match listener:
        case "PLAIN":
            return {}
        case "SASL":
            return {
                "TAGSTREAM_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "TAGSTREAM_SASL_USERNAME": USER,
                "TAGSTREAM_SASL_PASSWORD": PASSWORD,
            }
        case "TLS":
            return {
                "TAGSTREAM_SECURITY_PROTOCOL": "SSL",
                "TAGSTREAM_SSL_CAFILE": str(cluster.certificate),
            }
