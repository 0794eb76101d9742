"""Which partitions this worker owns, and how it comes to own them and lets them go.

The unit is the partition *number*: partition p of every source, one journal, one store, one
writer. Opening is not done in the rebalance callback (the consumer's heartbeats stop until
that returns): the callback closes what left and pauses the rest; fencing, recovery and seeking
run in a task per partition outside it, and its sources flow once it is open.

From a revocation until the next assignment is known nothing is applied, fired or written.
Partitions stay open only over consecutive generations of the group: a worker that missed one
reopens all, for somebody else may have owned them meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from aiokafka.errors import KafkaError
from faust.types import TP

from stream.applying import Feed, Metrics
from stream.definitions import Definitions, objections
from stream.domains import Domain
from stream.errors import Fenced, RulesError, StateError
from stream.events import Decoder, optional_fields
from stream.journal import Journal, Said
from stream.partition import Partition
from stream.profiles import Profiles
from stream.recovery import check_source, is_corruption, recover
from stream.rows import Pool
from stream.rules import Rules, parse
from stream.settings import Settings
from stream.store import Budget, Store
from stream.users import Users

log = logging.getLogger(__name__)

BROKER_ANSWERS_S = 5.0  # what takes longer is no answer: time stands still
PACE_S = 0.01  # of a second's transactions, for each partition: a hundred a second in all
WALL_EVERY_S = 0.5  # how often the wall clock is compared with the broker


class Backlog(Protocol):
    """What a consumer says of a source partition (see `stream/chunks.py`)."""

    end: int
    position: int
    fetched: int


class Consumer(Protocol):
    """The part of the chunk consumer that ownership steers."""

    @property
    def is_member(self) -> bool:
        """Whether the group cannot have given our partitions away without our knowing."""

    async def release(self, positions: Mapping[TP, int]) -> None: ...
    async def backlog(self, tps: Iterable[TP]) -> dict[TP, Backlog]: ...


class OwnershipMetrics(Metrics, Protocol):
    """What ownership counts besides its partitions."""

    def recovered(self, records: int) -> None: ...
    def rebalanced(self, seconds: float) -> None: ...
    def background_failed(self, task: str) -> None: ...


class Ownership:
    """The partitions of one worker.

    ``journal(number)`` makes the journal of a partition, ``consumer()`` is the running chunk
    consumer; ``stop(error)`` is called once when the worker must stop. ``committed(changes,
    warnings)`` hears what every transaction said, after its commit. ``rules`` are those of our
    file: a partition that follows older ones is switched to them, unless ``follow`` says that it
    is only to be looked at. ``refused(problems)`` is told why one cannot be.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        rules: Rules,
        domains: Mapping[str, Domain],
        metrics: OwnershipMetrics,
        journal: Callable[[int], Journal],
        consumer: Callable[[], Consumer],
        stop: Callable[[BaseException], None],
        tombstones_ms: int,
        now_ms: Callable[[], int],
        refused: Callable[[list[str]], None],
        follow: bool = False,
        committed: Callable[[Said, Said], None] = lambda changes, warnings: None,
    ) -> None:
        self.budget = Budget(settings.memory_mb)
        self.partitions: dict[int, Partition] = {}
        self.numbers: frozenset[int] = frozenset()
        self.recovery_started_ms: int | None = None
        self.recovery_seconds: float | None = None
        self._settings = settings
        self._paced = not settings.embedded  # a transaction of the embedded broker costs little
        self._rules = rules
        self._parsed = {rules.source: rules}
        self._follow = follow
        self._refused = refused
        self._erase_key = settings.erase_key()
        self._domains = domains
        self._metrics = metrics
        self._journal = journal
        self._consumer = consumer
        self._stop = stop
        self._tombstones_ms = tombstones_ms
        self._now_ms = now_ms
        self._committed = committed
        self._generation: int | None = None
        self._assigned = False
        self._revoked_at = time.monotonic()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._remaining: dict[int, int] = {}
        self._closing: dict[int, asyncio.Task[None]] = {}
        self._fenced: set[int] = set()
        self._stopping = False
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._pool = Pool(self.budget.users_bytes)

    # -- what the group says

    async def revoked(self, numbers: set[int]) -> None:
        """The group rebalances: until it has, we cannot know what is ours."""
        self._assigned = False
        self._revoked_at = time.monotonic()
        for partition in self.partitions.values():
            partition.suspend()

    def assigned(self, numbers: set[int], generation: int) -> None:
        """These are ours now; open, keep and close accordingly, in tasks of their own."""
        if self._stopping:
            return
        missed = self._generation is not None and generation - self._generation not in (0, 1)
        self._generation, self.numbers, self._assigned = generation, frozenset(numbers), True
        self._metrics.rebalanced(time.monotonic() - self._revoked_at)
        for number in [*self.partitions, *self._opening]:
            if missed or number not in numbers:
                self._close_soon(number)
        for number in self.partitions.keys() & self._fenced:
            self.fail(Fenced(f"partition {number} was opened by another worker"))
            return
        kept = [self.partitions[number] for number in self.partitions.keys() & numbers]
        for partition in kept:
            partition.resume()
        if kept:
            self.soon(partial(self._release, kept), "release")
        fresh = numbers - self.partitions.keys() - self._opening.keys()
        if fresh:
            self.recovery_started_ms = self._now_ms()
        for number in sorted(fresh):
            self._opening[number] = self.soon(partial(self._open, number), f"open-{number}")
        log.info(
            "generation %d: owns partitions %s (%d kept, %d to open)",
            generation,
            sorted(numbers),
            len(kept),
            len(fresh),
        )
        self._changed.set()

    def deliver(self, name: str, event: Any, generation: int) -> None:
        """A chunk from an agent; ``generation`` is the group's now."""
        message = event.message
        partition = self.partitions.get(message.partition)
        if partition is not None and message.generation_id == generation:
            partition.offer(name, event.value, event.ack)

    # -- opening and closing

    async def _open(self, number: int) -> None:
        if closing := self._closing.get(number):
            await asyncio.wait([closing])  # which goes on if this opening is given up
        started = time.monotonic()
        settings = self._settings
        journal = self._journal(number)
        store = partition = None
        try:
            await journal.open()
            recovered = await recover(
                journal,
                self._path(number),
                number=number,
                budget=self.budget,
                settings=settings,
                timezone=self._rules.timezone,
                follow=self._follow,
                tombstones_ms=self._tombstones_ms,
                progress=partial(self._recovered, number),
            )
            store = recovered.store
            definitions = self._definitions(store)
            partition = Partition(
                number,
                feeds=[
                    self._feed(domain, definitions.tables[domain.name], store)
                    for domain in self._domains.values()
                ],
                profiles=self._profiles(definitions.profiles, store),
                store=store,
                journal=journal,
                position=recovered.position,
                settings=settings,
                allowed_delay_ms=definitions.rules.allowed_delay_ms,
                breakdown=definitions.rules.breakdown,
                definitions=definitions,
                metrics=self._metrics,
                failed=lambda error: self._partition_failed(number, error),
                now_ms=self._now_ms,
                turn=self._turn,
                pace_s=lambda: PACE_S * len(self.partitions) if self._paced else 0.0,
                committed=self._committed,
            )
            for feed in partition.feeds.values():
                await check_source(journal, feed.topic, number, feed.place)
            self._offer(partition)
            if self._opening.get(number) is not asyncio.current_task():
                # Given up, which some of what was waited for may not have passed on.
                raise asyncio.CancelledError
        except BaseException:
            await journal.close()
            if partition is not None:
                partition.let_go()
            elif store is not None:
                store.close()
            raise
        partition.start()
        self.partitions[number] = partition
        del self._opening[number]
        seconds = time.monotonic() - started
        log.debug("partition %d open after %.2f s", number, seconds)
        if not self._opening:
            self.recovery_seconds = seconds
            self.recovery_started_ms = None
            log.info("ready: %d partitions open after %.2f s", len(self.partitions), seconds)
        if self._assigned:
            await self._release([partition])
        else:
            partition.suspend()
        self._changed.set()

    def _recovered(self, number: int, read: int, remaining: int) -> None:
        self._metrics.recovered(read)
        self._remaining[number] = remaining

    @property
    def recovery_remaining(self) -> int:
        """Changelog records still to be read, of all partitions that are being opened."""
        return sum(self._remaining.get(number, 0) for number in self._opening)

    def _path(self, number: int) -> Path:
        return self._settings.data_dir / "state" / f"{self._settings.topic('p')}{number}"

    def _definitions(self, store: Store) -> Definitions:
        """What the partition follows: what its changelog says, ours where it says nothing yet."""
        found = Definitions.read(store, self._domains, self._parse)
        return Definitions(self._rules, self._domains) if found is None else found

    def _parse(self, source: str) -> Rules:
        if source not in self._parsed:
            self._parsed[source] = parse(source, "the definitions in force", self._domains)
        return self._parsed[source]

    @property
    def rules(self) -> Rules:
        """The newest definitions in force in any partition; those of our file without any."""
        in_force = [partition.rules for partition in self.partitions.values()]
        return max(in_force, key=lambda rules: rules.version, default=self._rules)

    def reload(self, rules: Rules) -> None:
        """Our file has other definitions now: every partition that follows older ones takes them.

        Raises:
            RulesError: they cannot follow those before; all stays as it is.
        """
        problems = objections(self._rules, rules)
        for partition in self.partitions.values():
            if rules.version >= partition.rules.version:
                problems += objections(partition.rules, rules)
        if rules.version < self._rules.version:
            problems.append(
                f"version: is {rules.version}, but {self._rules.version} was in force: raise it"
            )
        if problems:
            raise RulesError(list(dict.fromkeys(problems)))
        self._rules = rules
        self._parsed = {rules.source: rules}
        for partition in self.partitions.values():
            self._offer(partition)

    def lead(self) -> None:
        """From now on have partitions follow our file, where it is newer."""
        self._follow = False
        for partition in self.partitions.values():
            self._offer(partition)

    def _offer(self, partition: Partition) -> None:
        """Have a partition follow our file, where that is newer than what it follows."""
        ours, theirs = self._rules, partition.rules
        if self._follow or ours.source == theirs.source:
            return
        if ours.version < theirs.version:
            log.info(
                "partition %d follows tags version %d; our file has version %d",
                *(partition.number, theirs.version, ours.version),
            )
        elif problems := objections(theirs, ours):
            self._refused(problems)
        else:
            partition.switch(ours)

    def _feed(self, domain: Domain, table: Any, store: Store) -> Feed:
        users = Users(domain.code, table, store, self._pool, self._erase_key)
        decoder = Decoder(domain.events, self._settings.user_id_pattern)
        topic = self._settings.topic(domain.name)
        optional = optional_fields(domain.events)
        return Feed(domain.name, topic, domain.code, table, decoder, users, optional)

    def _profiles(self, table: Any, store: Store) -> Profiles:
        return Profiles(table, store, self._pool)

    async def _release(self, partitions: Iterable[Partition]) -> None:
        positions = {
            TP(feed.topic, partition.number): feed.place.offset
            for partition in partitions
            for feed in partition.feeds.values()
        }
        await self._consumer().release(positions)

    def _close_soon(self, number: int) -> None:
        self._fenced.discard(number)
        opening = self._opening.pop(number, None)
        partition = self.partitions.pop(number, None)
        if opening is None and partition is None:
            return

        if opening is not None:
            opening.cancel()  # here and now: what it waits for may be there already
        before = self._closing.get(number)

        async def close() -> None:
            if before is not None:
                await asyncio.wait([before])
            if opening is not None:
                await asyncio.gather(opening, return_exceptions=True)
            if partition is not None:
                await partition.close()
            if self._closing.get(number) is asyncio.current_task():
                del self._closing[number]

        if partition is not None:
            partition.suspend()
        self._closing[number] = self.soon(close, f"close-{number}")

    def _partition_failed(self, number: int, error: BaseException) -> None:
        if isinstance(error, Fenced):
            if self._assigned and number not in self.numbers:
                self._close_soon(number)
                return
            if not self._assigned:
                # Whether it is still ours is what the rebalance will say.
                self._fenced.add(number)
                return
        if is_corruption(error):
            path = self._path(number)
            Store.condemn(path)
            error = StateError(
                f"{path}: RocksDB is corrupt ({error}); restart the worker: it is rebuilt from"
                " the changelog, nothing is lost"
            )
        self.fail(error)

    def soon(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
        """Do some work beside everything else; what it raises stops the worker."""

        async def guarded() -> None:
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, it stops the worker
                self.fail(error)

        return asyncio.create_task(guarded(), name=name)

    def fail(self, error: BaseException) -> None:
        """Something broke: write nothing more, and have the worker stopped, once."""
        self._changed.set()
        for partition in self.partitions.values():
            partition.suspend()
        if not self._stopping:
            self._stopping = True
            self._stop(error)

    async def close(self) -> None:
        """Let all go; what has gathered is committed first, unless the worker failed."""
        if not self._stopping and self._assigned:
            drains = [partition.flush_now() for partition in self.partitions.values()]
            await asyncio.gather(*drains)
        self._stopping = True
        for number in [*self.partitions, *self._opening]:
            self._close_soon(number)
        await asyncio.gather(*self._closing.values(), return_exceptions=True)

    # -- the state of things

    @property
    def is_recovering(self) -> bool:
        """Whether a partition of ours is not open yet."""
        return bool(self._opening)

    @property
    def is_ready(self) -> bool:
        """Whether the assignment is known and every partition of it is open."""
        return self._assigned and not self._stopping and self.numbers <= self.partitions.keys()

    def is_answering(self, number: int) -> bool:
        """Whether look-ups of this partition's users are answered here, now."""
        known = self._assigned and not self._stopping
        ours = known and number in self.numbers and number in self.partitions
        # One who slept through the session, or is cut off, may not know yet that he lost it.
        return ours and self._consumer().is_member

    async def until_ready(self) -> None:
        """Wait for `is_ready`."""
        while not self.is_ready:
            self._changed.clear()
            await self._changed.wait()

    async def follow_wall_clock(self) -> None:
        """For ever: let idle sources follow the wall clock, once they are proven to have no lag.

        Wall time w counts only once an answer to a request made at or after w showed that the
        consumer's position is the end of the source, and all before it is applied. While the
        broker does not answer, or records wait, time stands still.
        """
        while True:
            await asyncio.sleep(WALL_EVERY_S)
            try:
                await self._follow_wall_clock_once()
            except (KafkaError, TimeoutError, OSError) as error:
                for partition in self.partitions.values():
                    partition.lag_unknown()
                self._metrics.background_failed("wall-clock")
                log.info(
                    "the wall clock waits: the broker does not answer (%s)", type(error).__name__
                )

    async def _follow_wall_clock_once(self) -> None:
        if not self._assigned:
            return
        wanted = {
            TP(feed.topic, partition.number): (partition, feed)
            for partition in self.partitions.values()
            for feed in partition.feeds.values()
        }
        if not wanted:
            return
        wall_ms = self._now_ms()
        generation = self._generation
        async with asyncio.timeout(BROKER_ANSWERS_S):
            backlog = await self._consumer().backlog(list(wanted))
        if not self._assigned or self._generation != generation:
            return
        for tp, (partition, feed) in wanted.items():
            heard = backlog.get(tp)
            if heard is None or self.partitions.get(partition.number) is not partition:
                continue
            if heard.position == heard.end and feed.place.offset >= heard.fetched:
                partition.caught_up(feed.name, heard.end, wall_ms)
            else:
                feed.lag = max(1, heard.end - feed.place.offset)
