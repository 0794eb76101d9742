"""Kafka: the Faust driver ``tagstream-kafka://``.

Promise: sources are read read-committed, by partition number (``stream.assignor``), in chunks
(``stream.chunks``) that begin where the owner of a partition says and nowhere else: a position
outside its partition stops the worker with the remedy, and never becomes another position.

Boundary: nothing is produced through Faust; outputs leave in the partitions' own transactions.
Rebalances, heartbeats and fetches run in Faust's consumer thread, which has its own event loop.
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    OffsetOutOfRangeError,
)
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest
from faust.transport import producer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.threads import WorkerThread

from stream.chunks import Backlog, ChunkDelivery, Fetched, Start, chunk_topics
from stream.errors import SourceRemade, SourceTrimmed
from stream.log import Record

FETCH_WAIT_S = 1.0
"""How long a fetch that finds nothing waits, here, for records of any partition."""

FETCH_FEW, FETCH_PACE_S = 500, 0.01
"""After a fetch of fewer records than that, how long the next one waits for some more to come.

On its way through threads and tasks a handful costs as much as thousands. The first after a while
waits for nothing.
"""

FETCH_MAX_WAIT_MS = 100
"""How long a broker keeps a fetch request that it has no record for.

A partition that is released, or has room again, is asked for in the next request to its broker:
this is what it waits at most. While a source is idle, one of a millisecond's work follows another.
"""

FETCH_BYTES = (64 << 10, 1 << 20)
"""Least and most bytes of one partition per fetch request (a larger batch comes whole)."""

ANSWER_S = 5.0
"""How long a commit may take, and then the farewell to the group. aiokafka tries for ever, but
nobody goes on from these offsets: neither a rebalance nor the end of a worker waits for a broker
that does not answer. What was not committed is committed later; who left unheard is missed."""

SESSION_BEGINS = (HeartbeatRequest, SyncGroupRequest)
"""Requests after which the group's broker waits a whole session for the next."""

FOREVER_MS = 10 * 365 * 24 * 3_600_000
"""aiokafka's patience with a consumer that does not poll; a member that it dismisses for that can
never join again, and a worker that has no partition, or no room, does not poll."""


class RebalanceListener(driver.ConsumerRebalanceListener):
    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> Awaitable[None]:
        self._thread.forget()
        return super().on_partitions_revoked(revoked)  # type: ignore[no-any-return]

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._thread.park(assigned)
        await super().on_partitions_assigned(assigned)


class _QuietThread(WorkerThread):
    def run(self) -> None:
        # What ends it early has crashed the app, and is the app's to tell.
        with contextlib.suppress(Exception):
            super().run()


class _PlainRecords(PartitionRecords):
    """Fetched records with what chunks have of them: aiokafka's have twelve fields."""

    def __init__(self, fetched: PartitionRecords) -> None:
        super().__init__(
            *(fetched._tp, fetched._records, fetched._aborted_transactions),
            *(fetched.next_fetch_offset, None, None),
            *(fetched._check_crcs, fetched._isolation_level),
        )

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Record:
        return Record(record.offset, record.timestamp, record.key, record.value)


def _is_unread(records: PartitionRecords) -> bool:
    state = inspect.getgeneratorstate(records._records_iterator)
    return bool(state == inspect.GEN_CREATED)


def _keep_plain(fetcher: Fetcher) -> None:
    """Have what was fetched, and nobody has begun to read, read so."""
    for result in fetcher._records.values():
        if type(result) is not FetchResult:
            continue
        records = result._partition_records
        if type(records) is PartitionRecords and _is_unread(records):
            result._partition_records = _PlainRecords(result._partition_records)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with an aiokafka consumer of our own making.

    Methods not said to be the thread's own are called from the worker's loop.
    """

    Worker = _QuietThread

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Nothing: see ``Worker``. Faust prints a traceback, past every log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The thread's own; one step with the consumer's positions.
        self._epochs: dict[TP, int] = {}
        self._fetched: dict[TP, int] = {}
        self._interrupted = False
        self._fetch_after = 0.0  # monotonic
        self._arrival: asyncio.Future[None] | None = None
        self._committing: asyncio.Task[None] | None = None
        #: Until then (monotonic) the group cannot have taken us for dead. Read from both threads.
        self.member_until = 0.0

    async def on_start(self) -> None:
        """The thread's own."""
        await super().on_start()
        # The consumer makes its coordinator itself, so this is where its requests can be heard.
        coordinator = self._ensure_consumer()._coordinator
        coordinator._send_req = self._noting(coordinator._send_req)

    def _noting(self, send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """``send`` that notes when the group's broker last began a new session for us.

        From the beginning of the request: the broker had it no earlier.
        """
        session_s = self.app.conf.broker_session_timeout

        async def noted(request: Any) -> Any:
            began = time.monotonic()
            response = await send(request)
            if isinstance(request, SESSION_BEGINS) and response.error_code == 0:
                self.member_until = began + session_s
            return response

        return noted

    def _create_worker_consumer(self, transport: "Transport") -> AIOKafkaConsumer:
        conf = self.app.conf
        partitions = sum(chunk_topics(self.app).values())
        least, most = FETCH_BYTES
        return AIOKafkaConsumer(
            **transport.client_options(),
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            check_crcs=conf.broker_check_crcs,
            fetch_min_bytes=1,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            max_partition_fetch_bytes=min(
                most, max(least, self.consumer.buffer_bytes // max(1, partitions))
            ),
            fetch_max_bytes=max(most, self.consumer.buffer_bytes // 2),
            max_poll_interval_ms=FOREVER_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
        )

    async def on_thread_stop(self) -> None:
        """The thread's own."""
        try:
            await asyncio.wait_for(super().on_thread_stop(), ANSWER_S)
        except TimeoutError:
            await self._ensure_consumer()._client.close()

    def close(self) -> None:
        """Nothing: the thread closes its consumer when it stops, in its own loop."""

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """The thread's own. False if the group has moved on, or its broker does not answer."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        ours = {TopicPartition(*tp): offset for tp, offset in offsets.items() if tp in assigned}
        if not ours or (self._committing is not None and not await self._answered()):
            return False
        self._committing = asyncio.create_task(consumer.commit(ours))
        return await self._answered()

    async def _answered(self) -> bool:
        """Whether the commit under way has succeeded; it goes on where nobody answers in time."""
        assert self._committing is not None
        await asyncio.wait([self._committing], timeout=ANSWER_S)
        if not self._committing.done():
            return False
        commit, self._committing = self._committing, None
        try:
            commit.result()
        except (CommitFailedError, IllegalStateError):
            return False
        return True

    # Chunks

    async def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the thread, beside whatever else runs there."""
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(coroutine, self.thread_loop)
        )

    def forget(self) -> None:
        """The thread's own. What was released is so no more."""
        self._epochs.clear()
        self._fetched.clear()

    def park(self, assigned: Iterable[TopicPartition]) -> None:
        """The thread's own. Keep what was just assigned from being fetched until it is released.

        A partition that has some position, and is paused, makes aiokafka do nothing: neither look
        for a committed offset, nor complain that there is none, nor fetch from it.
        """
        consumer = self._ensure_consumer()
        for tp in assigned:
            consumer.seek(tp, 0)
            consumer.pause(tp)

    async def start_at(self, starts: Mapping[TP, Start]) -> None:
        """The thread's own; in one step for all partitions."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        for tp, (position, epoch) in starts.items():
            if tp in assigned:
                consumer.seek(tp, position)
                consumer.resume(TopicPartition(*tp))
                self._epochs[tp] = epoch
                self._fetched[tp] = position

    def pause(self, tps: Iterable[TP]) -> None:
        """The thread's own."""
        consumer = self._ensure_consumer()
        consumer.pause(*(TopicPartition(*tp) for tp in consumer.assignment().intersection(tps)))

    async def fetch(self, tps: Collection[TP], limit: int) -> dict[TP, Fetched]:
        """The thread's own; see ``ChunkDelivery._fetch``."""
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        await asyncio.sleep(self._fetch_after - time.monotonic())
        while True:
            if consumer._closed:
                raise ConsumerStoppedError
            consumer._coordinator.check_errors()
            if fetcher.error_future.done():
                fetcher.error_future.result()
            _keep_plain(fetcher)
            try:
                records = await fetcher.fetched_records(tps, max_records=limit)
            except OffsetOutOfRangeError as exc:
                raise await self._out_of_range(*exc.args) from exc
            if records or self._interrupted:
                break
            self._arrival = fetcher._create_fetch_waiter()
            arrived, _ = await asyncio.wait([self._arrival], timeout=FETCH_WAIT_S)
            if not arrived:
                self._arrival.cancel()
                break
            self._arrival.result()  # the group's errors come this way too
        # Not before: an interrupt may arrive between the call of a fetch and its first step.
        self._interrupted = False
        is_few = 0 < sum(map(len, records.values())) < FETCH_FEW
        self._fetch_after = time.monotonic() + FETCH_PACE_S * is_few
        fetched = {}
        for tp, run in records.items():
            tp = TP(*tp)
            self._fetched[tp] = run[-1].offset + 1
            fetched[tp] = Fetched(self._epochs.get(tp, 0), run, consumer.last_stable_offset(tp))
        return fetched

    def interrupt(self) -> None:
        """The thread's own."""
        self._interrupted = True
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def backlog(self, tps: Iterable[TP]) -> dict[TP, Backlog]:
        """The thread's own; see ``ChunkDelivery.backlog``."""
        consumer = self._ensure_consumer()
        ends = await consumer.end_offsets([TopicPartition(*tp) for tp in tps])
        known = self._fetched.keys() & consumer.assignment()
        # Nothing waits in here: aiokafka knows the position of what was released.
        return {
            TP(*tp): Backlog(end, await consumer.position(tp), self._fetched[tp])
            for tp, end in ends.items()
            if tp in known
        }

    async def _out_of_range(self, positions: Mapping[TP, int]) -> Exception:
        (tp, position), *_ = positions.items()
        consumer = self._ensure_consumer()
        first = (await consumer.beginning_offsets([tp]))[tp]
        end = (await consumer.end_offsets([tp]))[tp]
        where = f"{tp.topic}[{tp.partition}]: position {position} is outside [{first}, {end}]"
        if position < first:
            return SourceTrimmed(
                f"{where}: records were deleted before they were read. Either accept their loss by"
                " rebuilding the state from what is left, or restore the topic from a copy."
            )
        return SourceRemade(
            f"{where}: the topic was deleted and made anew, or cut. Either restore it from a copy,"
            " or rebuild the state from it."
        )


class Consumer(ChunkDelivery, driver.Consumer):
    """Faust's Kafka consumer, delivering chunks."""

    RebalanceListener = RebalanceListener

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _start(self, starts: Mapping[TP, Start]) -> None:
        await self._thread.call(self._thread.start_at(starts))

    async def _fetch(self, tps: Collection[TP], limit: int) -> Mapping[TP, Fetched]:
        return await self._thread.call(self._thread.fetch(tps, limit))  # type: ignore[no-any-return]

    def _interrupt(self) -> None:
        self._thread.thread_loop.call_soon_threadsafe(self._thread.interrupt)

    def hold(self, tps: Iterable[TP]) -> None:
        held = set(tps)
        super().hold(held)
        if self._thread.started and not self._thread.should_stop:
            self._thread.thread_loop.call_soon_threadsafe(self._thread.pause, held)

    @property
    def is_member(self) -> bool:
        return time.monotonic() < self._thread.member_until  # type: ignore[no-any-return]

    async def backlog(self, tps: Iterable[TP]) -> dict[TP, Backlog]:
        return await self._thread.call(self._thread.backlog(tps))  # type: ignore[no-any-return]


class Producer(producer.Producer):
    """What Faust asks of a producer, without a connection: nothing is produced through Faust."""

    async def flush(self) -> None:
        """Nothing is ever pending."""

    def send(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        raise NotImplementedError("outputs leave in their partition's transaction")


class Transport(driver.Transport):
    """The driver, found by Faust through the entry point ``tagstream-kafka``."""

    Consumer = Consumer
    Producer = Producer

    def client_options(self) -> dict[str, Any]:
        """Where the brokers are and how to log in, as the app's ``settings`` say.

        An app without those has Faust's broker URL, ``broker_credentials`` and ``ssl_context``.
        """
        if settings := getattr(self.app, "settings", None):
            return settings.client_options()  # type: ignore[no-any-return]
        conf = self.app.conf
        return {
            "bootstrap_servers": driver.server_list(self.url, self.default_port),
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        }
