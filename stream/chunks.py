"""Delivery in chunks: one Faust event per run of records of one partition.

Promise: every record of a released partition reaches its agent once, in order, in chunks that
join without a gap (``chunk.start`` is the end of the chunk before); what was fetched before a
``hold`` or ``release`` never reaches it afterwards; a commit never passes a chunk that is not
acknowledged. Whatever Faust costs per event it costs per chunk of up to 2,000 records.

Boundary: no broker and no domain in this file. ``ChunkDelivery`` is mixed into the consumer of a
driver, which fills in four hooks::

    class Consumer(ChunkDelivery):             # or (ChunkDelivery, another driver's Consumer)
        async def _start(self, starts):        # {tp: Start(position, epoch)}: fetch from there
        async def _fetch(self, tps, limit):    # wait for records of tps: {tp: Fetched(...)}
        def _interrupt(self):                  # a _fetch under way returns soon, even with nothing
        async def backlog(self, tps):          # {tp: Backlog(...)}

besides what Faust itself asks of a consumer (``_commit``, ``assignment``, ``subscribe`` ...). Each
says in its docstring what it has to keep.

Who takes part: agents take events from ``events(stream)`` and call ``event.ack()`` once what the
chunk led to is durable. Whoever owns partitions calls ``release`` to open and ``hold`` to close
them; after every assignment all are held. The app's setting ``TableManager`` is
``stream.membership:Membership``, which tells the owner what was assigned and revoked.

Chunk topics are the only ones such a consumer may subscribe to.
"""

import abc
from asyncio import CancelledError, Event
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol

from faust.exceptions import ImproperlyConfigured
from faust.serializers.schemas import Schema
from faust.transport.consumer import Consumer
from faust.types import TP, ConsumerMessage
from mode.utils.futures import notify

CHUNK_RECORDS = 2_000
CHUNK_BYTES = 1 << 20
BUFFER_BYTES = 32 << 20

FETCH_RECORDS = 2 * CHUNK_RECORDS
"""Most records asked of a driver at once: few hops between threads, little beyond the bound."""

RECORD_COST = 300
CHUNK_COST = 1_000
"""What Python needs beside the bytes of keys and values, for a record and for a chunk of them."""

_NEVER = -1
"""The generation of a withdrawn chunk: Faust's streams skip events of a generation not theirs."""


class Record(Protocol):
    """One record as it was read; ``timestamp`` in ms, the broker's append or create time."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(slots=True)
class Chunk:
    """The value of one Faust event: consecutive records of one partition.

    ``[start, end)`` are positions: ``start`` is the end of the chunk before, or where the
    partition was released; ``end`` follows the last record. Offsets in between that hold no
    record (transaction markers, aborted records) are in no chunk or in any. ``size`` is the
    bytes of keys and values. At most 2,000 records or 1 MiB, but never less than one record. At
    least ``behind`` offsets follow ``end``, as was known when it was read. Whoever has done with
    the records calls ``drop``, long before what they led to is durable: ``dropped`` is told.
    """

    topic: str
    partition: int
    start: int
    end: int
    records: list[Record]
    size: int
    behind: int = 0
    dropped: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def drop(self) -> None:
        """Let go of the records; where they lie, the chunk still says."""
        self.records = []
        dropped, self.dropped = self.dropped, None
        if dropped is not None:
            dropped()

    def split(self, count: int) -> "tuple[Chunk, Chunk]":
        """The first ``count`` records, and the rest, with which ``size`` and ``dropped`` stay."""
        border = self.records[count].offset
        first, rest = self.records[:count], self.records[count:]
        return (
            Chunk(self.topic, self.partition, self.start, border, first, 0, self.end - border),
            Chunk(
                *(self.topic, self.partition, border, self.end, rest),
                *(self.size, self.behind, self.dropped),
            ),
        )


class Start(NamedTuple):
    """Where to fetch a partition from, and the mark that its records carry from then on."""

    position: int
    epoch: int


class Fetched(NamedTuple):
    """Records of one partition, in order and not empty, read after the ``Start`` of ``epoch``."""

    epoch: int
    records: list[Record]
    end: int | None
    """The partition's end as far as the driver knows it without asking."""


class Backlog(NamedTuple):
    """How far one partition has been read, and how far it goes.

    The caller is caught up exactly if ``position == end`` and it has applied everything up to
    ``fetched``: ``end`` is the read-committed end, learnt from the broker after the call;
    ``position`` is the consumer's, which also passes what holds no record; ``fetched`` is the end
    of the last records handed out (or where the partition was released).
    """

    end: int
    position: int
    fetched: int


class ChunkSchema(Schema):
    """Marks a topic as delivered in chunks, and passes the chunk through undecoded."""

    def compile(self, app: Any, **_: Any) -> Any:
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, None, message)

        return decode


def chunk_topic(app: Any, name: str, partitions: int) -> Any:
    """Declare source topic ``name``, which has ``partitions`` partitions, delivered in chunks."""
    topic = app.topic(name, schema=ChunkSchema(), partitions=partitions)
    # The consumer bounds what is buffered, in bytes and for all topics together. A stream's own
    # bound must never be met first: at it one slow topic stops the delivery of all others.
    topic.maxsize = 1 << 30
    return topic


def chunk_topics(app: Any) -> dict[str, int]:
    """Names of the chunk topics that the app's agents read, with their partition counts."""
    channels = [agent.channel for agent in app.agents.values()]
    return {
        name: channel.partitions or app.conf.topic_partitions
        for channel in channels
        if isinstance(channel.schema, ChunkSchema)
        for name in channel.topics
    }


def events(stream: Any) -> AsyncIterator[Any]:
    """Events of a stream of chunks (``event.value`` is the chunk), acknowledged by the caller.

    A plain ``async for`` over the stream acknowledges a chunk as soon as the next is asked for,
    and also when the agent raised.
    """
    return stream.noack().events()  # type: ignore[no-any-return]


@dataclass(slots=True, eq=False)
class _Source:
    """Delivery of one assigned partition."""

    tp: TP
    epoch: int = 0
    held: bool = True
    revoked: bool = False
    next: int = 0  # start of the next chunk
    under_way: deque[Any] = field(default_factory=deque)  # messages delivered, not acknowledged
    acked: int | None = None  # end of the last chunk before which all are acknowledged
    cost: int = 0  # of what is under way
    costs: dict[Any, int] = field(default_factory=dict)  # the same by message


class ChunkDelivery(Consumer):
    """A Faust consumer that delivers chunks and commits soundly, whatever it reads from.

    Attributes:
        buffer_bytes: bound on what is fetched and not dropped, of all topics together, Python's
            own needs included. A partition is fetched while it has less of it than is
            free: so those that are busy share it evenly, and as much is left for another. None is
            from the moment that all of it is used until half is free. One fetch may go beyond.
            Taken from the app's attribute of this name where it has one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sources: dict[TP, _Source] = {}
        self._epochs = count(1)
        self._buffered = 0
        self._full = False
        self._asked: set[TP] | None = None  # by the fetch that is under way
        self._fetchable = Event()
        super().__init__(*args, **kwargs)
        self.buffer_bytes: int = getattr(self.app, "buffer_bytes", BUFFER_BYTES)

    # What a driver fills in

    @abc.abstractmethod
    async def _start(self, starts: Mapping[TP, Start]) -> None:
        """Set each partition's position, and mark what is fetched from now on with its epoch.

        Position and epoch change in one step, so that no fetched record carries the wrong mark.
        A partition that is not assigned any more is passed over.
        """

    @abc.abstractmethod
    async def _fetch(self, tps: Collection[TP], limit: int) -> Mapping[TP, Fetched]:
        """Wait until some of ``tps`` have records and return at most ``limit`` of them.

        Returns nothing after a second or so without any, or soon after ``_interrupt``. Positions
        move past what is returned, and only past that.

        Raises:
            SourceTrimmed, SourceRemade: a position lies outside its partition.
        """

    @abc.abstractmethod
    def _interrupt(self) -> None:
        """Make a ``_fetch`` return that was called before: there is more to ask for. Never blocks.

        It may end the next one instead, but must not be lost.
        """

    @abc.abstractmethod
    async def backlog(self, tps: Iterable[TP]) -> dict[TP, Backlog]:
        """How far the partitions among ``tps`` that are released have been read.

        One request to the broker, made after the call began; ``position`` and ``fetched`` are
        taken together, after its answer. Partitions not assigned any more are left out.
        """

    # What the owner of partitions calls

    async def release(self, positions: Mapping[TP, int]) -> None:
        """Deliver these partitions from these positions on, replacing whatever was under way.

        A partition that is not assigned, or is being revoked, is passed over.
        """
        starts = {}
        for tp, position in positions.items():
            source = self._sources.get(tp)
            if source is None or source.revoked:
                continue
            self.hold([tp])
            self._forget(source)
            source.next = position
            starts[source.tp] = Start(position, source.epoch)
        await self._start(starts)
        for tp, start in starts.items():
            source = self._sources.get(tp)
            if source is not None and source.epoch == start.epoch:  # not held meanwhile
                source.held = False
        self._refill()

    def hold(self, tps: Iterable[TP]) -> None:
        """Deliver nothing more of these partitions; chunks that no agent has taken are dropped.

        Chunks that an agent has taken can still be acknowledged, until the next ``release``.
        """
        for tp in tps:
            source = self._sources.get(tp)
            if source is not None:
                source.held, source.epoch = True, next(self._epochs)
                if self._asked:
                    self._asked.discard(tp)
                while source.under_way and not source.under_way[-1].tracked:
                    self._drop(source, source.under_way.pop())

    # Delivery

    async def _drain_messages(self, fetcher: Any) -> None:
        """Deliver chunks until the consumer or its fetcher stops."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                await self._deliver_next()
        except CancelledError:
            if not self.app.should_stop:
                raise

    async def _deliver_next(self) -> None:
        wanted = self._wanted()
        if not wanted:
            self._fetchable.clear()
            await self._fetchable.wait()
            return
        self._asked = set(wanted)
        try:
            fetched = await self._fetch(wanted, FETCH_RECORDS)
        finally:
            self._asked = None
        for tp, (epoch, records, end) in fetched.items():
            source = self._sources.get(tp)
            if source is None:
                continue
            if end is not None:
                self.app.monitor.track_tp_end_offset(source.tp, end)
            for run, size in _runs(records):
                if source.epoch != epoch:
                    break
                await self._deliver(source, run, size, end)

    async def _deliver(
        self, source: _Source, records: list[Record], size: int, end: int | None
    ) -> None:
        tp, last = source.tp, records[-1]
        after = last.offset + 1
        behind = 0 if end is None else max(0, end - after)
        chunk = Chunk(tp.topic, tp.partition, source.next, after, records, size, behind)
        message = ConsumerMessage(
            tp.topic,
            tp.partition,
            offset=last.offset,
            timestamp=last.timestamp / 1000,
            timestamp_type=0,
            headers=None,
            key=None,
            value=chunk,
            checksum=None,
            serialized_key_size=0,
            serialized_value_size=size,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )
        source.next = chunk.end
        source.under_way.append(message)
        chunk.dropped = partial(self._shrink, source, message, CHUNK_COST)
        source.costs[message] = cost = _cost(chunk)
        source.cost += cost
        self._buffered += cost
        await self.callback(message)

    def _wanted(self) -> set[TP]:
        """The partitions to fetch: released, and with room left in their share."""
        self._full = self._buffered * (2 if self._full else 1) >= self.buffer_bytes
        if self._full:
            return set()
        # Dynamic thresholds, as switches share their memory (Choudhury and Hahne, 1998).
        free = self.buffer_bytes - self._buffered
        return {s.tp for s in self._sources.values() if not s.held and s.cost < free}

    def _refill(self) -> None:
        """Ask anew, if there is now something to fetch that is not being asked for."""
        wanted = self._wanted()
        if self._asked is None:
            if wanted:
                self._fetchable.set()
        elif not wanted <= self._asked:
            self._interrupt()

    # Acknowledgement and commit

    def ack(self, message: Any) -> bool:
        """Take note that everything a chunk led to is durable."""
        if message.acked:
            return False
        message.acked = True
        source = self._sources.get(message.tp)
        if source is not None:
            self._settle(source)
            self._refill()
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    def _settle(self, source: _Source) -> None:
        while source.under_way and source.under_way[0].acked:
            message = source.under_way.popleft()
            source.acked = message.value.end
            self._shrink(source, message, 0)

    def _shrink(self, source: _Source, message: Any, rest: int) -> None:
        """A chunk costs no more than the ``rest`` from now on: its records are not needed."""
        chunk: Chunk = message.value
        chunk.dropped = None
        cost = source.costs.pop(message, 0)  # 0: it is gone already
        freed = cost - min(cost, rest)
        source.cost -= freed
        self._buffered -= freed
        if cost and rest:
            chunk.records = []
            source.costs[message] = cost - freed
            self._refill()

    def _drop(self, source: _Source, message: Any) -> None:
        message.generation_id = _NEVER
        self._unacked_messages.discard(message)
        self._shrink(source, message, 0)

    def _forget(self, source: _Source) -> None:
        """Drop all that is under way, taken by an agent or not: it will be delivered again."""
        while source.under_way:
            self._drop(source, source.under_way.pop())
        source.acked = None
        self._committed_offset.pop(source.tp, None)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self._sources if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        """The position before which every chunk delivered is acknowledged, if any is."""
        source = self._sources.get(tp)
        if source is None:
            return None
        self._settle(source)
        return source.acked

    async def _commit_offsets(
        self,
        offsets: Mapping[TP, int],
        start_new_transaction: bool = True,  # noqa: FBT001, FBT002 (Faust's signature)
    ) -> bool:
        assigned = self.assignment()
        ours = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        if not ours or not await self._commit(ours):
            return False
        self._committed_offset.update(ours)
        self.app.monitor.on_tp_commit(ours)
        return True

    # Rebalances

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop delivering, let the owner finish, commit what it finished, and only then let go.

        Kafka revokes everything in every rebalance, and waits for this to return.
        """
        self.hold(list(self._sources))
        for source in self._sources.values():
            source.revoked = True
        await self._or_crash(self._finish(revoked))
        await super().on_partitions_revoked(revoked)
        for source in self._sources.values():
            self._forget(source)
        self._sources.clear()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Take note of what is ours now, all of it held, before anyone can release it."""
        self._sources = {tp: _Source(tp) for tp in assigned}
        await super().on_partitions_assigned(assigned, generation_id)
        await self._or_crash(self.app.tables.assign(assigned, generation_id))

    async def _finish(self, revoked: set[TP]) -> None:
        await self.app.tables.revoke(revoked)
        while await self.maybe_wait_for_commit_to_finish():
            pass  # it may have begun before the last chunk was acknowledged
        await self.commit()

    async def _or_crash(self, step: Awaitable[None]) -> None:
        """Take a step of a rebalance; what it raises must stop the worker.

        The clients that call us only log what their callbacks raise.
        """
        try:
            await step
        except Exception as exc:
            await self.crash(exc)
            raise

    async def subscribe(self, topics: Iterable[str]) -> None:
        topics = set(topics)
        if others := topics - set(chunk_topics(self.app)):
            raise ImproperlyConfigured(
                f"not declared with chunk_topic: {', '.join(sorted(others))}"
            )
        await super().subscribe(topics)

    # What Faust would do on its own, and may not

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        self.hold(tps)

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Nothing: only ``release`` opens a partition, since only its owner knows from where."""

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: the consumer knows what is buffered."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Nothing: see ``on_buffer_full``."""

    async def perform_seek(self) -> None:
        """Nothing: what the group has committed is not where a partition goes on."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """The positions of the released partitions; none is moved."""
        return {tp: source.next for tp, source in self._sources.items() if not source.held}

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust's check crashes where no fetch has answered, and cries where none need."""


def _cost(chunk: Chunk) -> int:
    return CHUNK_COST + chunk.size + RECORD_COST * len(chunk.records)


def _runs(records: list[Record]) -> Iterator[tuple[list[Record], int]]:
    """Cut records into runs for chunks, each with its bytes of keys and values."""
    sizes = [len(r.value or b"") + len(r.key or b"") for r in records]
    if len(records) <= CHUNK_RECORDS and (total := sum(sizes)) <= CHUNK_BYTES:
        yield records, total
        return
    first = size = 0
    for i, more in enumerate(sizes):
        if i > first and (i - first == CHUNK_RECORDS or size + more > CHUNK_BYTES):
            yield records[first:i], size
            first, size = i, 0
        size += more
    yield records[first:], size
