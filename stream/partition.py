"""A partition while this worker owns it: state, time, deadlines, and one transaction per flush.

Two tasks share a partition on the event loop. The *applier* takes chunks in order, applies
them to the users in memory and fires deadlines that are due, in bounded slices between the
chunks. The *writer* commits what has gathered: while one transaction is under way the next
one gathers (group commit), so an idle partition answers in milliseconds and a busy one
writes rarely, at the latest `flush_ms` after the first thing that waits.

A flush is one transaction of outputs, rows and source positions; RocksDB is written after
it, chunks are acknowledged after that. Whatever fails in between leaves nothing visible,
and the next owner goes on from the last position committed.

This file knows no feature, no Kafka and no Faust.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from stream.applying import Applying, Feed, Gathered, Metrics
from stream.definitions import Definitions
from stream.describe import local_iso
from stream.errors import Fenced, JournalLost, SourceTrimmed
from stream.journal import Journal, Said
from stream.metrics import ALL, Transition, value_label
from stream.position import POSITION, Place, Position, encode_position
from stream.profiles import Profiles, Survey, Surveyor
from stream.settings import Settings
from stream.store import DEADLINE_BYTES, IndexChange, Store, deadline_in
from stream.store import Row as StoreRow
from stream.topics import CHANGELOG
from tables.calendar import NEVER
from tables.outputs import Outputs

SLICE = 50  # deadlines fired at a time: some milliseconds
SWEPT = 20  # users looked at at a time after a switch of definitions: a millisecond or two
FIRED_USERS = 200  # users that deadlines may change in one transaction: live events wait for it
PERSIST_SWEEP_S = 1.0  # a sweep that finds nothing to say is written down this often
PERSIST_TIME_S = 60.0  # time that moved while nothing happened is written this often
BACKLOG = 2_000  # so many records that wait are more than what a moment brings
SAID_SHARE = 128  # of the memory: what one transaction may say of changes, beside its rows
PIECE = 400  # records applied at a time: some milliseconds, after which the network has its turn


class Chunk(Protocol):
    """What is delivered (see `stream/chunks.py`)."""

    topic: str
    partition: int
    start: int
    end: int
    records: list[Any]
    size: int
    behind: int

    def split(self, count: int) -> "tuple[Chunk, Chunk]": ...
    def drop(self) -> None: ...


class Partition:
    """One open partition. Make it with everything recovered; then `start`.

    ``pace_s()`` is the least time between the beginnings of two transactions: each costs the
    broker and us some milliseconds however little it says. ``turn`` is shared by the partitions of
    a worker: one of them applies a piece at a time, and then whatever the network brought is heard.
    ``definitions`` are what the feeds' tables were made of; without them nothing can be switched.
    ``failed`` is called once with the exception when a task of the partition dies: the worker
    must stop, and nothing more of this partition becomes visible.
    ``committed(changes, warnings)`` hears what every transaction said, after its commit.
    """

    def __init__(
        self,
        number: int,
        *,
        feeds: Sequence[Feed],
        profiles: Profiles,
        store: Store,
        journal: Journal,
        position: Position,
        settings: Settings,
        allowed_delay_ms: int,
        breakdown: str | None = None,
        definitions: Definitions | None = None,
        metrics: Metrics,
        failed: Callable[[BaseException], None],
        now_ms: Callable[[], int],
        pace_s: Callable[[], float] = lambda: 0.0,
        turn: asyncio.Lock | None = None,
        committed: Callable[[Said, Said], None] = lambda changes, warnings: None,
    ) -> None:
        self.number = number
        self.feeds = {feed.name: feed for feed in feeds}
        self.profiles = profiles
        self.store = store
        self.journal = journal
        self.position = position
        self.population = {(tag, value): n for tag, value, n in position.population}
        self._settings = settings
        self._delay_ms = allowed_delay_ms
        self._definitions = definitions
        self._next_rules: Any = None  # what to switch to once nobody waits
        self._metrics = metrics
        self._failed = failed
        self._now_ms = now_ms
        self._pace_s = pace_s
        self._turn = turn or asyncio.Lock()
        self._committed = committed
        self._flushed_at = 0.0  # when the last transaction began
        self._zone = ZoneInfo(position.timezone)
        self._wall = settings.time == "wall"
        self._flush_s = settings.flush_ms / 1000
        self._most_said = (settings.memory_mb << 20) // SAID_SHARE
        self._changelog = settings.topic(CHANGELOG)
        self._topics = {
            name: settings.topic(name)
            for name in ("tag-changes", "churn-warnings", "dead-letters", "user-tags")
        }
        self._gathered = Gathered()
        self._applying = Applying(
            number, self.feeds, profiles, position, settings, metrics, breakdown
        )
        self._out = self._applying.out  # of the user at hand
        self._surveyor = Surveyor(self._zone)
        self._waiting: deque[tuple[str, Chunk, Callable[[], object]]] = deque()
        self._backlog = False  # many records wait, from the last chunk on
        self._apply_soon = asyncio.Event()
        self._write_soon = asyncio.Event()
        self._idle = asyncio.Event()
        self._written = asyncio.Event()
        self._suspended = False
        self._leaving = False
        self._writing = False
        self._time_persisted_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        for feed in feeds:
            feed.place = position.places.setdefault(feed.name, Place())
            feed.committed_offset = feed.place.offset
            feed.floor_ms = store.first_due(feed.code, feed.cursor)

    @property
    def domains(self) -> Mapping[str, Feed]:
        """The feeds by name, as a scrape reads them."""
        return self.feeds

    @property
    def users(self) -> int:
        """Users of whom anything is known."""
        return self.position.users

    @property
    def tagged(self) -> int:
        """Those among them with at least one tag."""
        return self.position.tagged

    @property
    def survey(self) -> Survey | None:
        """What the last look at every profile found; None before the first."""
        return self._surveyor.found

    # -- definitions

    @property
    def rules(self) -> Any:
        """The definitions in force; None where they cannot be switched."""
        return self._definitions and self._definitions.rules

    @property
    def sweep_remaining(self) -> int:
        """About how many users' records are still to be looked at after a switch: as many as if
        every user had one in every domain.
        """
        definitions = self._definitions
        if definitions is None or not definitions.is_sweeping:
            return 0
        return max(1, self.position.users * len(self.feeds) - definitions.looked_at)

    def switch(self, rules: Any) -> None:
        """Follow other definitions from here on, or as soon as all users follow the last ones."""
        self._next_rules = rules
        self._idle.clear()
        self._begin_switch()
        self._apply_soon.set()

    def _begin_switch(self) -> None:
        definitions, rules = self._definitions, self._next_rules
        if definitions is None or rules is None or definitions.is_sweeping:
            return
        self._next_rules = None
        definitions.begin(rules, {name: feed.place for name, feed in self.feeds.items()})
        self._follow(definitions)
        self._gather()

    def _follow(self, definitions: Definitions) -> None:
        rules = definitions.rules
        self._applying.breakdown, self._delay_ms = rules.breakdown, rules.allowed_delay_ms
        self.profiles.table = definitions.profiles
        latest_ms = self._now_ms() if self._wall else NEVER
        for name, feed in self.feeds.items():
            feed.follow(definitions.tables[name])
            if feed.place.newest_ms >= 0:
                self._move_time(feed, min(feed.place.newest_ms, latest_ms) - self._delay_ms)

    def _sweep(self) -> bool:
        """Take up some users after a switch; whether there was anything to do."""
        definitions = self._definitions
        if definitions is None or not definitions.may_go_on:
            return False
        if any(feed.users.waiting >= FIRED_USERS for feed in self.feeds.values()):
            return False
        found = definitions.some(self.store, SWEPT)
        if found is None:
            definitions.end()
            self.population = {key: users for key, users in self.population.items() if users}
            self._gather()
            self._begin_switch()
            return True
        name, rows = found
        feed = self.feeds[name]
        for key in rows:
            self._take_up(feed, key[2:])
        definitions.passed(rows)
        if feed.users.waiting or time.monotonic() - self._time_persisted_at > PERSIST_SWEEP_S:
            self._gather()
        return True

    def _take_up(self, feed: Feed, key: bytes) -> None:
        users, table, out = feed.users, feed.table, self._out
        user = users.peek(key)
        if user is None or table.is_current(user):
            return
        table.take_up(user, out)
        is_said = bool(out.changes or out.warnings)
        if is_said or self._concerns_profile(feed, key, user):
            self._applying.settle(feed, key, user, None, self._gather_now())
        out.clear()
        if is_said or not table.stands(user, users.peek(key)):
            users.put(key, user)

    def _concerns_profile(self, feed: Feed, key: bytes, user: Any) -> bool:
        """Whether tags made of tags change although no tag of the domain did."""
        out, copy = self._out, self.profiles.peek(key) if self._out.steps else None
        if copy is None:
            return False
        told = self.profiles.table.follow(copy, feed.name, out, user.clock_ms, None)
        out.dwelt.clear()
        return bool(told)

    # -- life cycle

    def start(self) -> None:
        """Begin to apply and to write."""
        self._tasks = [
            asyncio.create_task(self._guard(self._applier), name=f"apply-{self.number}"),
            asyncio.create_task(self._guard(self._writer), name=f"write-{self.number}"),
        ]

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it stops the worker
            # Nothing that gathered may become visible after this.
            self.suspend()
            self._failed(error)

    def suspend(self) -> None:
        """Apply, fire and write nothing until `resume`: we may not be the owner any more."""
        self._suspended = True
        self._waiting.clear()
        self._written.set()
        self._idle.set()
        self.lag_unknown()

    def lag_unknown(self) -> None:
        """The broker has not said lately how far the sources go."""
        for feed in self.feeds.values():
            feed.lag = None

    def resume(self) -> None:
        """Go on where we were."""
        self._suspended = False
        self._apply_soon.set()
        self._write_soon.set()

    async def close(self) -> None:
        """Let go at once. What has gathered but not been committed is for the next owner."""
        self.suspend()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.journal.close()
        self.let_go()

    def let_go(self) -> None:
        """Give memory and disk back: nothing runs any more."""
        for rows in (self.profiles.rows, *(feed.users.rows for feed in self.feeds.values())):
            rows.clear()
        self.store.close()

    async def flush_now(self) -> None:
        """Commit what has gathered, take no more; for a worker that leaves in good order."""
        self._leaving = True
        self._waiting.clear()
        while not self._suspended and (self._writing or self._gathered.since is not None):
            self._written.clear()
            self._write_soon.set()
            await self._written.wait()

    async def drain(self) -> None:
        """Wait until all that was handed over is applied, fired and committed."""
        while not self._suspended and not self.is_idle:
            self._idle.clear()
            if self.is_idle:
                return
            await self._idle.wait()

    @property
    def is_idle(self) -> bool:
        """Nothing waits: no chunk, no deadline that is due, nothing to commit."""
        return not (
            self._waiting
            or self._writing
            or self._gathered.since is not None
            or any(feed.is_due for feed in self.feeds.values())
            or self._next_rules is not None
            or (self._definitions is not None and self._definitions.is_sweeping)
        )

    def lookup(self, key: bytes) -> tuple[Any | None, dict[str, Any]]:
        """The user's profile, and records by domain, as of the time reached: copies, for reading.

        No profile: nothing is known of the user.
        """
        records: dict[str, Any] = {}
        profile, follow = self.profiles.peek(key), self.profiles.table.follow
        if profile is None:
            return None, records
        for feed in self.feeds.values():
            user, out = feed.users.peek(key), Outputs()
            if user is not None:
                feed.table.reach(user, feed.place.time_ms, out)
                follow(profile, feed.name, out, user.clock_ms, None)
                records[feed.name] = user
        return profile, records

    # -- what comes in

    def offer(self, name: str, chunk: Chunk, ack: Callable[[], object]) -> None:
        """Take a chunk; ``ack`` is called once all that follows from it is committed."""
        if self._suspended or self._leaving:
            return  # fetched under an ownership that has ended: it will be delivered again
        self._waiting.append((name, chunk, ack))
        self._backlog = chunk.behind + len(chunk.records) >= BACKLOG
        self._apply_soon.set()

    def caught_up(self, name: str, end: int, wall_ms: int) -> None:
        """At ``wall_ms`` the source ended at ``end``, and all before it is applied."""
        if not self._suspended:
            feed = self.feeds[name]
            feed.lag = 0
            feed.place.end = end
            self._no_backlog()
            if self._wall:
                self._move_time(feed, wall_ms - self._delay_ms)

    def advance(self, until_ms: int) -> None:
        """Let event time pass to ``until_ms`` in every domain (the end of a replay)."""
        self._no_backlog()
        for feed in self.feeds.values():
            self._move_time(feed, until_ms)
        self._gather()  # it is written down even where nothing is due

    def _no_backlog(self) -> None:
        """Whatever the last chunk said, nothing waits behind it."""
        if self._backlog and not self._waiting:
            self._backlog = False
            self._apply_soon.set()
            self._write_soon.set()

    def _move_time(self, feed: Feed, time_ms: int) -> None:
        if time_ms > feed.place.time_ms:
            feed.place.time_ms = time_ms
            if feed.is_due:
                self._apply_soon.set()
            elif time.monotonic() - self._time_persisted_at > PERSIST_TIME_S:
                self._gather()

    async def _applier(self) -> None:
        while True:
            if self._suspended or self._leaving or not self._has_room():
                pass
            elif self._waiting:
                async with self._turn:
                    if self._apply_some():
                        self._fire_slice()
                        self._sweep()
                        self._survey()
                    await asyncio.sleep(0)
                continue
            elif self._fire_slice() or self._sweep() or self._survey():
                await asyncio.sleep(0)
                continue
            if self.is_idle:
                self._idle.set()
            self._apply_soon.clear()
            await self._apply_soon.wait()

    def _apply_some(self) -> bool:
        """Apply what waits next, about `PIECE` records; whether no chunk is left half applied.

        As many chunks as that takes: live events come a handful at a time, and would wait for each
        other's deadlines.
        """
        room = PIECE
        while self._waiting and room * 2 > PIECE and not self._suspended:
            name, chunk, ack = self._waiting.popleft()
            if len(chunk.records) > room:
                piece, rest = chunk.split(room)
                self._waiting.appendleft((name, rest, ack))
                self._apply(self.feeds[name], piece)
                return False
            self._apply(self.feeds[name], chunk)
            room -= len(chunk.records)
            chunk.drop()
            if self._gathered.since is None:
                ack()  # nothing follows from it: it was applied before
            else:
                self._gathered.chunks.append(ack)
        return True

    def _has_room(self) -> bool:
        if self._gathered.changes.size > self._most_said:
            return False
        crowded = any(feed.users.rows.is_crowded for feed in self.feeds.values())
        return not crowded and not self.profiles.rows.is_crowded

    def _apply(self, feed: Feed, chunk: Chunk) -> None:
        place, records = feed.place, chunk.records
        if chunk.start > place.offset:
            raise SourceTrimmed(
                f"{feed.topic}[{self.number}]: records {place.offset} to {chunk.start - 1} were"
                " never delivered; restart the worker, which checks the topic and goes on"
                " from its own position"
            )
        if records and records[0].offset < place.offset:  # delivered again
            records = [record for record in records if record.offset >= place.offset]
        if not records:
            place.offset = max(place.offset, chunk.end)
            return
        gathered, now_ms = self._gather_now(), self._now_ms()
        wall_ms = now_ms if self._wall else NEVER
        self._applying.apply(feed, records, chunk.end, wall_ms, self._delay_ms, gathered)

    # -- time passing

    def _fire_slice(self) -> bool:
        """Fire a bounded number of deadlines that are due; whether there were any."""
        fired = False
        for feed in self.feeds.values():
            if feed.is_due and feed.users.waiting < FIRED_USERS:
                fired |= self._fire(feed)
        return fired

    def _fire(self, feed: Feed) -> bool:
        users, time_ms = feed.users, feed.place.time_ms
        due = self.store.due(feed.code, feed.cursor, time_ms, SLICE)
        if not due:
            feed.floor_ms = self.store.first_due(feed.code, feed.cursor)
            return False
        rows: list[StoreRow] = []
        index: list[IndexChange] = []
        for entry in due:
            key = entry[2 + DEADLINE_BYTES :]
            user = users.get(key)
            # What the disk says of a user who waits goes with his flush, or not at all.
            waits = users.is_waiting(key)
            if user is None or user.deadline_ms != deadline_in(entry):  # erased, or has another
                if waits:
                    users.spend(entry)
                else:
                    index.append((entry, False))
                continue
            if feed.table.fire(user, time_ms, self._out) or waits:
                users.put(key, user, fired=True)
            else:  # no transaction
                row, moved = users.moved(key, user)
                rows += row
                index += moved
            if not self._out.is_silent:
                self._applying.settle(feed, key, user, None, self._gather_now())
        if index:
            self.store.move(rows, index)
        feed.cursor = due[-1] + b"\0"
        if users.waiting:
            self._gather()
        self._metrics.deadlines_fired(feed.name, len(due))
        return True

    def _survey(self) -> bool:
        """Look at some profiles, all of them once a day: who has had which tag for long.

        Days that pass while more and more events wait are passed over.
        """
        if self._backlog and self.survey is not None:
            return False
        time_ms = max(feed.place.time_ms for feed in self.feeds.values())
        return self._surveyor.look(self.store, self.profiles.table, time_ms)

    # -- committing

    def _gather(self) -> Gathered:
        gathered = self._gathered
        if gathered.since is None:
            gathered.since = time.monotonic()
        self._write_soon.set()
        return gathered

    def _gather_now(self) -> Gathered:
        """`_gather`, for what is said from now on."""
        gathered = self._gather()
        gathered.emitted_at = local_iso(self._now_ms(), self._zone)
        return gathered

    async def _writer(self) -> None:
        while True:
            wait_s = self._wait_s()
            if wait_s is None:
                self._write_soon.clear()
                await self._write_soon.wait()
            elif wait_s > 0:
                self._write_soon.clear()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._write_soon.wait()
                except TimeoutError:
                    continue
            else:
                await self._flush()

    def _wait_s(self) -> float | None:
        """Seconds until the next transaction should start; None: nothing to write."""
        gathered = self._gathered
        if self._suspended or gathered.since is None:
            return None
        if self._backlog and self._has_room() and not self._leaving:
            return gathered.since + self._flush_s - time.monotonic()
        if self._leaving:
            return 0.0
        pace_s = min(self._pace_s(), self._flush_s)
        return self._flushed_at + pace_s - time.monotonic()

    async def _flush(self) -> None:
        gathered, self._gathered = self._gathered, Gathered()
        self._writing = True
        self._flushed_at = time.monotonic()
        started = time.perf_counter()
        changelog: list[tuple[bytes, bytes | None]] = []
        index: list[IndexChange] = []
        for feed in self.feeds.values():
            records, entries = feed.users.take()
            changelog += records
            index += entries
        profiles, told = self.profiles.take()
        changelog += profiles
        definitions = self._definitions
        if definitions is not None:
            changelog += definitions.take()
        self._count_population(gathered.transitions)
        self.position.population = [(t, v, n) for (t, v), n in self.population.items()]
        changelog.append((POSITION, encode_position(self.position)))
        committed_at = {feed.name: feed.place.offset for feed in self.feeds.values()}
        outputs: dict[str, Said] = {}
        said: tuple[tuple[str, Said], ...] = (
            ("tag-changes", gathered.changes),
            ("churn-warnings", gathered.warnings),
            ("user-tags", told),
            ("dead-letters", gathered.dead),
        )
        for topic, rows in said:
            if rows:
                outputs[self._topics[topic]] = rows
        outputs[self._changelog] = changelog
        encoded = time.perf_counter()
        try:
            applied = await self.journal.commit(outputs)
        except Fenced:
            raise  # nothing failed: the partition is somebody else's
        except JournalLost as error:
            if error.in_commit:
                self._metrics.commit_failed()
            else:
                self._metrics.produce_failed()
            raise
        committed = time.perf_counter()
        self.store.write(changelog, index, applied)
        self.profiles.written()
        if definitions is not None:
            definitions.written()
        for feed in self.feeds.values():
            feed.users.written()
            if (first := _first_put(feed.code, index)) is not None:
                feed.cursor = min(feed.cursor, first)
                feed.floor_ms = min(feed.floor_ms, deadline_in(first))
            feed.committed_offset = committed_at[feed.name]
        self._writing = False
        self._time_persisted_at = time.monotonic()
        for ack in gathered.chunks:
            ack()
        self._committed(gathered.changes, gathered.warnings)
        self._count(
            gathered, encoded - started, committed - encoded, time.perf_counter() - committed
        )
        self._written.set()
        self._apply_soon.set()

    def _count(
        self, gathered: Gathered, encode_s: float, commit_s: float, persist_s: float
    ) -> None:
        metrics, now_ms = self._metrics, self._now_ms()
        metrics.batch(ALL, "encode", encode_s)
        if (produced_s := self.journal.produced_s) is not None:
            metrics.batch(ALL, "produce", produced_s)
            commit_s -= produced_s
        metrics.batch(ALL, "commit", commit_s)
        metrics.batch(ALL, "persist", persist_s)
        metrics.transitions(gathered.transitions)
        metrics.warnings(gathered.warned)
        metrics.figures(gathered.figures)
        metrics.dwelt(gathered.dwelt)
        waits: dict[str, list[tuple[float, int]]] = {}
        for (name, appended_ms), events in Counter(gathered.causes).items():
            waits.setdefault(name, []).append((max(0, now_ms - appended_ms) / 1000, events))
        for name, weighted in waits.items():
            metrics.event_to_change(name, weighted)

    def _count_population(self, transitions: Mapping[Transition, int]) -> None:
        population = self.population
        for (tag, previous, value, _), times in transitions.items():
            for held, step in ((previous, -times), (value, times)):
                if held is not None and held is not False:
                    key = (tag, value_label(held))
                    population[key] = population.get(key, 0) + step


def _first_put(code: bytes, index: Sequence[IndexChange]) -> bytes | None:
    """The earliest entry of this domain that is put into the index."""
    return min((key for key, kept in index if kept and key[1:2] == code), default=None)
