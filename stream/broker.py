"""The embedded broker: topics, their settings, and who may write to them, in one process.

Promise: what an append reports is there after a kill -9, for all its topics or for none; a topic
keeps its partition count; a directory belongs to one process, and a partition that was fenced to
whoever fenced it last.

Boundary: how records lie on the disk is ``stream/log.py``'s business; Faust, and the journal of a
partition, are ``stream/local.py``'s. Everything here is called from one thread, the event loop's.
Compaction and retention run beside it in a thread of the broker's own, which sleeps while there
is nothing to do.

A broker without a path is a temporary one: the same in all, but its directory goes with it.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, NamedTuple, Self, TextIO
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from stream.errors import (
    Fenced,
    SettingError,
    SourceRemade,
    SourceTrimmed,
    TagstreamError,
    TopicError,
    UsageError,
)
from stream.log import Log, LogStore, Record, Row
from stream.partitioner import PARTITIONERS, partition_for

TOMBSTONES_MS = 7 * 24 * 3_600_000
"""How long compaction keeps a tombstone: a reader no further behind still learns of it."""

COMPACT_RECORDS = 10_000
"""A partition is compacted once it has gained this many records, and as many as it had left."""

FREE_RECORDS = 100_000
"""Applied records go at once where there are this many in a partition, else within a minute."""

UPKEEP_S = 60.0
READ_RECORDS = 2_000
READ_BYTES = 1 << 20

Partition = tuple[str, int]  # topic and number, as Faust's TP


class TopicConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a topic, by Kafka's names and with Kafka's meaning.

    Retention goes by the newest record of each run that was appended at once, and leaves the
    last run. It does not apply to compacted topics.
    """

    policy: Literal["delete", "compact"] = msgspec.field(default="delete", name="cleanup.policy")
    retention_ms: int = msgspec.field(default=-1, name="retention.ms")  # -1: for ever


class _Topic(msgspec.Struct, array_like=True):
    """What is stored of a topic. Partition p is log ``number << 16 | p``."""

    number: int
    partitions: int
    config: TopicConfig


class Fence(NamedTuple):
    """The right to write to a partition, until somebody fences it again."""

    topic: str
    partition: int
    generation: int


class LocalBroker:
    """A broker in this process.

    Args:
        path: the directory that holds it, made if it is missing; None for a temporary broker.
        name: by which ``at`` finds a temporary broker; lower case, as in a host's name.
        sync: whether an append has reached the disk when it returns, which saves it from power
            loss too.
        free: whether records of deletable topics may go once all groups have committed an
            offset beyond them.
        partitioner: by which ``produce`` spreads keys.
        memory_mb: of RocksDB's buffers and cache, in MiB.

    Attributes:
        path: where it is.
        url: by which ``at``, and so a Faust app, finds it.

    Raises:
        UsageError: another process has the directory.
        StateError: what the directory holds is damaged.
        JournalLost (appends): the write failed, nothing of it is kept.
        TopicError (wherever a topic or partition is named): there is none.
    """

    _running: ClassVar[dict[str, "LocalBroker"]] = {}  # by url
    _unnamed: ClassVar[Iterator[int]] = count(1)

    def __init__(
        self,
        path: Path | None = None,
        *,
        name: str | None = None,
        sync: bool = False,
        free: bool = False,
        partitioner: str = "murmur2",
        memory_mb: int = 48,
    ) -> None:
        self._temporary = TemporaryDirectory(prefix="tagstream-") if path is None else None
        self.path = Path(self._temporary.name) if self._temporary else Path(path or "").absolute()
        if path is None:
            name = name or f"temporary-{next(self._unnamed)}"
            self.url = f"local://{name}"
        else:
            self.url = f"local://{quote(str(self.path))}"
        self._lock = _lock(self.path)
        try:
            self._store = LogStore(self.path / "rocksdb", sync=sync, memory=memory_mb << 20)
            self._topics = {
                name.decode(): msgspec.msgpack.decode(topic, type=_Topic)
                for name, topic in self._store.entries(b"t").items()
            }
            self._logs = {
                (name, p): self._store.log(topic.number << 16 | p)
                for name, topic in self._topics.items()
                for p in range(topic.partitions)
            }
            self._committed = {
                msgspec.msgpack.decode(key, type=tuple[str, str, int]): int(offset)
                for key, offset in self._store.entries(b"o").items()
            }
        except BaseException:
            self._lock.close()
            raise
        self._free = free
        self._partitioner = partitioner
        self._generations: dict[Partition, int] = {}
        self._turns = count()
        self._waiting: set[asyncio.Future[None]] = set()
        self._users = 1
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._due = threading.Event()
        self._upkeep = threading.Thread(target=self._keep_up, name="broker-upkeep", daemon=True)
        self._upkeep.start()
        self._running[self.url] = self

    # Sharing and closing

    @classmethod
    def at(cls, url: str) -> "LocalBroker":
        """The broker at ``local:///DIRECTORY``, or the temporary one ``local://NAME``.

        One that runs in this process is shared. Options, which count where it does not yet run,
        follow a question mark: ``sync=commit``, ``free=applied``, ``partitioner=crc32``,
        ``memory_mb=48``. Everyone who was given it calls ``release``.

        Raises:
            SettingError: no such URL.
        """
        parts = urlsplit(url)
        if parts.scheme != "local" or bool(parts.netloc) is bool(parts.path):
            raise SettingError(
                f"{url}: an embedded broker is local:///DIRECTORY, or local://NAME for a"
                " temporary one"
            )
        options = _options(url, parts.query)
        path = Path(unquote(parts.path)) if parts.path else None
        broker = cls._running.get(f"local://{quote(str(path)) if path else parts.netloc}")
        return broker.share() if broker else cls(path, name=parts.netloc, **options)

    def share(self) -> Self:
        """Have it too, until ``release``."""
        self._users += 1
        return self

    def release(self) -> None:
        """Let go of it; the last one to do so closes it. Its maker is the first to have it."""
        self._users -= 1
        if self._users:
            return
        del self._running[self.url]
        self._closing.set()
        self._due.set()
        self._upkeep.join()
        self._store.close()
        self._lock.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # Topics

    @property
    def topics(self) -> dict[str, TopicConfig]:
        """Every topic's settings."""
        return {name: topic.config for name, topic in self._topics.items()}

    def create_topic(
        self, name: str, partitions: int, config: Mapping[str, Any] | None = None
    ) -> None:
        """See to it that a topic exists with this many partitions.

        ``config`` (``cleanup.policy``, ``retention.ms``) replaces the settings of a topic that
        exists, unless it is empty.

        Raises:
            TopicError: it exists with another count, or there are no such settings.
        """
        there = self._topics.get(name)
        if there is not None and there.partitions != partitions:
            raise TopicError(
                f"topic {name} on {self.url} has {there.partitions} partitions, not {partitions}:"
                f" set TAGSTREAM_PARTITIONS={there.partitions}, or feed a new topic"
            )
        settings = there.config if there else TopicConfig()
        if config:
            try:
                settings = msgspec.convert(config, TopicConfig, strict=False)
            except msgspec.ValidationError as error:
                raise TopicError(f"topic {name}: {error}") from error
        unused = max((topic.number for topic in self._topics.values()), default=-1) + 1
        topic = _Topic(there.number if there else unused, partitions, settings)
        if topic == there:
            return
        self._store.put({b"t" + name.encode(): msgspec.msgpack.encode(topic)})
        self._topics[name] = topic
        for p in range(partitions):
            if (name, p) not in self._logs:
                self._logs[name, p] = self._store.log(topic.number << 16 | p)
        self._due.set()

    def partitions_for_topic(self, name: str) -> set[int] | None:
        """The partition numbers of a topic, None if there is none (what assignors ask)."""
        topic = self._topics.get(name)
        return set(range(topic.partitions)) if topic else None

    def _log(self, topic: str, partition: int) -> Log:
        log = self._logs.get((topic, partition))
        if log is None:
            raise self._no(f"{topic}[{partition}]")
        return log

    def _no(self, what: str) -> TopicError:
        return TopicError(f"there is no {what} on {self.url}: create the topic")

    # Writing

    def append_many(
        self,
        rows: Mapping[Partition, Sequence[Row]],
        timestamp: int | None = None,
        *,
        fence: Fence | None = None,
    ) -> dict[Partition, int]:
        """Append rows to all of these partitions or to none; return their first offsets.

        ``timestamp`` in ms, by default now.

        Raises:
            Fenced: ``fence`` does not hold any more.
        """
        if self._failure is not None:
            raise self._failure
        if fence is not None:
            self.require(fence)
        logs = {self._log(*place): items for place, items in rows.items()}
        firsts = {place: self._log(*place).end for place in rows}
        self._store.append(logs, timestamp)
        self.wake()
        if any(self._may_compact(topic) and _is_dirty(self._log(topic, p)) for topic, p in rows):
            self._due.set()
        return firsts

    def produce_to(
        self, topic: str, partition: int, rows: Sequence[Row], timestamp: int | None = None
    ) -> int:
        """Append rows to one partition; return the first one's offset."""
        return self.append_many({(topic, partition): rows}, timestamp)[topic, partition]

    def produce(self, topic: str, rows: Iterable[Row], timestamp: int | None = None) -> None:
        """Append rows, each to the partition of its key, all or none.

        They pass through memory together: some thousands at a time are best.
        """
        spread: dict[Partition, list[Row]] = {}
        for row in rows:
            spread.setdefault((topic, self.partition_for(topic, row[0])), []).append(row)
        self.append_many(spread, timestamp)

    def partition_for(self, topic: str, key: bytes | None) -> int:
        """Where ``produce`` puts a key; records without one take turns."""
        stored = self._topics.get(topic)
        if stored is None:
            raise self._no(topic)
        if key is None:
            return next(self._turns) % stored.partitions
        return partition_for(key, stored.partitions, self._partitioner)

    # Reading

    def start(self, topic: str, partition: int) -> int:
        """The first offset that has not been deleted."""
        return self._log(topic, partition).start

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next record will have."""
        return self._log(topic, partition).end

    def fetch(
        self,
        topic: str,
        partition: int,
        offset: int,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
        *,
        end: int | None = None,
    ) -> tuple[list[Record], int]:
        """Records from ``offset`` on (and below ``end``), and the position after them.

        The position also passes offsets whose records compaction took: reading on from it
        reaches the end. At least one record if there is one, however large it is.

        Raises:
            SourceTrimmed, SourceRemade: ``offset`` is below the first one, or beyond the end.
        """
        log = self._log(topic, partition)
        until = log.end if end is None else min(end, log.end)
        try:
            return self._store.read(
                log, offset, max(offset, until), max_records=max_records, max_bytes=max_bytes
            )
        except IndexError:
            where = f"{topic}[{partition}]: offset {offset} is not within {log.start} to {log.end}"
            if offset < log.start:
                raise SourceTrimmed(
                    f"{where}: records were deleted before they were read; raise the topic's"
                    " retention.ms, and feed them again"
                ) from None
            raise SourceRemade(
                f"{where}: the log at {self.path} is not the one that was read before; restore"
                " it from a copy, or rebuild the state from it"
            ) from None

    def read(
        self,
        topic: str,
        partition: int,
        offset: int,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Record]:
        """``fetch``, without the position."""
        return self.fetch(topic, partition, offset, max_records, max_bytes)[0]

    def subscribe(
        self, topics: Iterable[str], since: Literal["start", "end"] = "end"
    ) -> "Subscription":
        """Follow topics, all partitions of each, from their start or from now on."""
        edge = self.start if since == "start" else self.end
        places = [(t, p) for t in topics for p in self.partitions_for_topic(t) or [0]]
        return Subscription(self, {place: edge(*place) for place in places})

    async def wait(self, timeout: float | None = None) -> None:
        """Until something is appended after the call, or ``wake``, or ``timeout`` seconds."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await asyncio.wait((woken,), timeout=timeout)
        finally:
            self._waiting.discard(woken)

    def wake(self) -> None:
        """Make every ``wait`` return."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    # Owners and groups

    def fence(self, topic: str, partition: int) -> Fence:
        """Take over the writing to a partition: every fence of it given before is void."""
        self._log(topic, partition)
        place = (topic, partition)
        generation = self._generations[place] = self._generations.get(place, 0) + 1
        return Fence(topic, partition, generation)

    def require(self, fence: Fence) -> None:
        """Raise ``Fenced`` if ``fence`` is void."""
        if self._generations[fence[:2]] != fence.generation:
            raise Fenced(f"partition {fence.partition} was opened by another owner")

    def commit_offsets(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Note how far a group has come, for people and their tools."""
        entries = {}
        for place, offset in offsets.items():
            key = (group, *place)
            self._committed[key] = offset
            entries[b"o" + msgspec.msgpack.encode(key)] = str(offset).encode()
        self._store.put(entries)
        if self._free:
            applied = self._applied()
            if any(applied[p] - self._log(*p).start > FREE_RECORDS for p in offsets):
                self._due.set()

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        """The offset that a group has committed, if it has."""
        return self._committed.get((group, topic, partition))

    def _applied(self) -> dict[Partition, int]:
        """For partitions with committed offsets: the lowest that any group has committed."""
        applied: dict[Partition, int] = {}
        for (_, topic, p), offset in list(self._committed.items()):
            applied[topic, p] = min(offset, applied.get((topic, p), offset))
        return applied

    # Upkeep, in a thread of its own

    def _may_compact(self, topic: str) -> bool:
        return self._topics[topic].config.policy == "compact"

    def _keep_up(self) -> None:
        try:
            while not self._closing.is_set():
                self._due.wait(UPKEEP_S)
                self._due.clear()
                self._clean()
        except TagstreamError as error:
            self._failure = error  # and the next append raises it
        except BaseException as error:
            self._failure = error
            raise

    def _clean(self) -> None:
        now = time.time_ns() // 1_000_000
        applied = self._applied() if self._free else {}
        for (topic, p), log in list(self._logs.items()):
            if self._closing.is_set():
                return
            retention = self._topics[topic].config.retention_ms
            if self._may_compact(topic):
                if _is_dirty(log):
                    self._store.compact(
                        log, tombstones_ms=now - TOMBSTONES_MS, stopped=self._closing.is_set
                    )
            elif retention >= 0 or (topic, p) in applied:
                self._store.trim(
                    log,
                    below=applied.get((topic, p), 0),
                    before_ms=now - retention if retention >= 0 else 0,
                )


class Subscription:
    """New records of some partitions, for readers in this process; see ``subscribe``.

    ``async for topic, partition, records in subscription`` goes on for ever. Records that are
    deleted before they are read are passed over.
    """

    def __init__(self, broker: LocalBroker, positions: dict[Partition, int]) -> None:
        self._broker = broker
        self._positions = positions

    def poll(self) -> Iterator[tuple[str, int, list[Record]]]:
        """What there is now."""
        broker = self._broker
        for place in self._positions:
            offset = max(self._positions[place], broker.start(*place))
            while offset < broker.end(*place):
                records, offset = broker.fetch(*place, offset)
                self._positions[place] = offset
                if records:
                    yield (*place, records)

    async def __aiter__(self) -> AsyncIterator[tuple[str, int, list[Record]]]:
        while True:
            idle = True
            for found in self.poll():
                yield found
                idle = False
            if idle:  # else more may have come to what was polled first
                await self._broker.wait()


def _is_dirty(log: Log) -> bool:
    return log.end - log.cleaned >= max(log.kept, COMPACT_RECORDS)


def _lock(directory: Path) -> TextIO:
    """Take a directory for this process, until the file returned is closed."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a+")
    try:
        flock(lock, LOCK_EX | LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise UsageError(
            f"{directory} is in use by process {holder}: one process at a time can have an"
            " embedded broker. Stop that one, or set another TAGSTREAM_DATA_DIR"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _options(url: str, query: str) -> dict[str, Any]:
    """The keyword arguments of ``LocalBroker`` that a URL's query stands for."""
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        match name, value:
            case "sync", "commit":
                options["sync"] = True
            case "free", "applied":
                options["free"] = True
            case "partitioner", _ if value in PARTITIONERS:
                options["partitioner"] = value
            case "memory_mb", _ if value.isdecimal() and int(value):
                options["memory_mb"] = int(value)
            case _:
                raise SettingError(
                    f"{url}: {name}={value}: allowed are sync=commit, free=applied,"
                    f" partitioner={'|'.join(PARTITIONERS)} and memory_mb=N"
                )
    return options
