"""The service put together: Faust, ownership, journals, HTTP, metrics. One object, `Tagstream`.

    service = Tagstream(settings, rules, domains)
    await service.start()      # answers HTTP at once; owns partitions soon after
    await service.stop()       # commits what has gathered, then lets go

The same object runs on Kafka and on the embedded broker, in a worker, a replay and a test.
`until_stopped` returns the error that stopped it, if one did.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import faust
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from stream import garbage
from stream.assignor import NumberAssignor
from stream.audience import Cursor, holders
from stream.chunks import chunk_topic
from stream.describe import describe_audience, describe_tag, describe_user
from stream.domains import Domain
from stream.errors import RulesError, UsageError
from stream.events import Decoder, Rejected, future, optional_fields, types_of
from stream.journal import Journal, KafkaJournal, Row
from stream.lines import Router
from stream.local import LocalJournal
from stream.membership import Membership
from stream.metrics import Metrics, value_label
from stream.ownership import Ownership
from stream.partition import Partition
from stream.partitioner import partition_for
from stream.reload import Watch
from stream.rules import Rules, load
from stream.settings import Settings
from stream.store import Budget
from stream.topics import CHANGELOG, DAY_MS, wanted
from stream.watchdog import Watchdog
from stream.web import Local, Moving, Part, Refusal, Remote, WebServer

log = logging.getLogger(__name__)

GROUP = "tagstream"
#: What the embedded broker can be told of a topic.
KEPT = {"cleanup.policy", "retention.ms"}


class App(faust.App):
    """Faust's app with the places that our transport and membership look for."""

    ownership: Ownership
    buffer_bytes: int
    settings: Settings


class Tagstream:
    """One worker. ``rules`` are loaded definitions; ``domains`` the sources it reads.

    ``tombstones_ms`` is how long the changelog keeps markers of deletion: a disk unused for
    longer is not trusted. Where there is a state already, what it follows is what the state says;
    newer ``rules`` are switched to, and those that cannot be stop the worker. With ``watch`` they
    do not, and their file is followed; with ``follow`` nothing is switched.
    """

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        domains: Mapping[str, Domain],
        *,
        tombstones_ms: int = 7 * DAY_MS,
        watch: bool = False,
        follow: bool = False,
    ) -> None:
        self.settings = settings
        self.domains = dict(domains)
        self.metrics = Metrics(
            CollectorRegistry(),
            types={name: types_of(domain.events) for name, domain in self.domains.items()},
            optional={
                name: {field for each in optional_fields(domain.events).values() for field in each}
                for name, domain in self.domains.items()
            },
            partitions=settings.partitions,
        )
        self._own_rules = rules
        self._define(rules)
        self._watches = watch
        self._watch = Watch(
            settings.tags,
            rules.source,
            read=lambda: load(settings.tags, self.domains),
            take=self.reload,
            failed=self.metrics.reload_failed,
        )
        self.error: BaseException | None = None
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.app = self._faust()
        self.ownership = self.app.ownership = Ownership(
            settings=settings,
            rules=rules,
            domains=self.domains,
            metrics=self.metrics,
            journal=self._journal,
            consumer=lambda: self.app.consumer,
            stop=self._stop_for,
            committed=lambda changes, warnings: self.web.live.committed(changes, warnings),
            tombstones_ms=tombstones_ms,
            now_ms=lambda: time.time_ns() // 1_000_000,
            follow=follow,
            refused=self._refused,
        )
        self.app.buffer_bytes = self.ownership.budget.buffer_bytes
        self.watchdog = Watchdog(self)
        self.metrics.watch(self, loop_lag=self.watchdog.loop_lag)
        self.web = WebServer(
            _Front(self),
            self.metrics,
            host=settings.web_host,
            port=settings.web_port,
            metrics_port=settings.metrics_port,
        )

    def _faust(self) -> App:
        settings = self.settings
        app = App(
            settings.topic(GROUP),
            broker=settings.faust_broker,
            store="memory://",
            datadir=settings.data_dir / "faust",
            topic_partitions=settings.partitions,
            topic_disable_leader=True,
            topic_allow_declare=False,
            web_enabled=False,
            canonical_url=settings.worker_url,
            stream_wait_empty=False,  # what was not committed is delivered again
            consumer_group_instance_id=settings.instance_id,
            broker_session_timeout=settings.session_timeout_ms / 1000,
            broker_request_timeout=max(90.0, settings.session_timeout_ms / 1000 + 30),
            broker_heartbeat_interval=min(3.0, settings.session_timeout_ms / 10_000),
            broker_rebalance_timeout=60.0,
            broker_max_poll_interval=86_400.0,
            broker_commit_interval=1.0,
            TableManager=Membership,
            PartitionAssignor=NumberAssignor,
        )
        app.settings = settings
        for domain in self.domains.values():
            topic = chunk_topic(app, settings.topic(domain.name), settings.partitions)
            domain.attach(app, topic, partial(self._deliver, domain.name))
        return app

    def _deliver(self, name: str, event: Any) -> None:
        try:
            self.ownership.deliver(name, event, self.app.consumer_generation_id)
        except Exception as error:
            # Faust would start the agent again, without the chunk.
            self.ownership.fail(error)
            raise

    def _journal(self, number: int) -> Journal:
        settings = self.settings
        changelog = settings.topic(CHANGELOG)
        if settings.embedded:
            return LocalJournal(
                self.broker, partition=number, changelog=changelog, group=settings.topic(GROUP)
            )
        return KafkaJournal(
            settings.client_options(),
            group=settings.topic(GROUP),
            changelog=changelog,
            partition=number,
        )

    # -- life cycle

    @property
    def broker(self) -> Any:
        """The embedded broker."""
        if not self.settings.embedded:
            raise UsageError("there is no embedded broker here: TAGSTREAM_BROKER names a Kafka")
        return self.app.transport.broker

    async def start(self, *, web: bool = True) -> None:
        """Start everything. Partitions are opened in the background: see `until_ready`."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        if web:
            await self.web.start()
        await self.watchdog.start()
        if self.settings.embedded:
            self._make_topics()
        await self.app.start()
        self._tasks = [
            self.ownership.soon(self.ownership.follow_wall_clock, "wall-clock"),
            asyncio.create_task(self._follow_faust(), name="faust"),
            asyncio.create_task(garbage.give_back(), name="memory"),
        ]
        if self._watches:
            self._tasks.append(self.ownership.soon(self._watch.run, "tags"))

    def _make_topics(self) -> None:
        for topic in wanted(self.settings, self.domains):
            configs = {name: topic.configs[name] for name in KEPT & topic.configs.keys()}
            self.broker.create_topic(topic.name, topic.partitions, configs)

    # -- definitions

    @property
    def rules(self) -> Rules:
        """The newest definitions in force here."""
        return self.ownership.rules

    def reload(self, rules: Rules) -> None:
        """Have every partition follow newer definitions.

        Raises:
            RulesError: they cannot follow those in force; all stays as it is.
        """
        try:
            self.ownership.reload(rules)
        except RulesError as error:
            raise RulesError(self._located(error.problems)) from None
        self._define(rules)

    def lead(self) -> None:
        """After ``follow``: have our own definitions come into force, now that one may listen.

        Raises:
            RulesError: they cannot follow those in force, or are older.
        """
        rules = self._own_rules
        if self.rules.version > rules.version:
            raise RulesError(
                self._located(
                    [
                        f"version: is {rules.version}, but the state follows version"
                        f" {self.rules.version}: use that file, or raise it"
                    ]
                )
            )
        self.ownership.lead()

    def _define(self, rules: Rules) -> None:
        self.metrics.define(
            rules.version, rules.tags, churn_mode=rules.churn.mode if rules.churn else None
        )

    def _refused(self, problems: list[str]) -> None:
        """Our file cannot follow what a partition follows, which stays as it is."""
        problems = self._located(problems)
        if not self._watches:
            raise RulesError(problems)
        self.metrics.reload_failed()
        for problem in problems:
            log.error("definitions refused: %s", problem)

    def _located(self, problems: list[str]) -> list[str]:
        return [f"{self.settings.tags}: {problem}" for problem in problems]

    # -- the end

    async def _follow_faust(self) -> None:
        """Stop when one of Faust's services crashes: the consumer, say, on a trimmed source."""
        await self.app.wait_until_stopped()
        if self.app.crash_reason is not None:
            self.ownership.fail(self.app.crash_reason)

    async def stop(self) -> None:
        """Commit what has gathered (not after an error), then let everything go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ownership.close()
        await self.app.stop()
        await self.watchdog.stop()
        await self.web.stop()
        self._stopped.set()

    def _stop_for(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self._stopped.set()

    async def until_stopped(self) -> BaseException | None:
        """Wait until the worker has to stop; the error that says why, if one does."""
        await self._stopped.wait()
        return self.error

    async def _unless_stopped(self, work: Any) -> None:
        """Wait for ``work``, or raise the error that stops the worker before it is done."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            if self.error is not None:
                raise self.error
            await task
        finally:
            for pending in (task, stopped):
                pending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(task, stopped, return_exceptions=True)

    async def until_ready(self) -> None:
        """Wait until every partition is assigned, open and recovered."""
        await self._unless_stopped(self.ownership.until_ready())

    async def drained(self) -> None:
        """Wait until everything in the sources is applied and committed (embedded broker)."""
        await self._unless_stopped(self._drained())

    async def _drained(self) -> None:
        while True:
            await self.ownership.until_ready()
            for partition in list(self.ownership.partitions.values()):
                await partition.drain()
            if all(
                feed.place.offset >= self.broker.end(feed.topic, partition.number)
                and partition.is_idle
                for partition in self.ownership.partitions.values()
                for feed in partition.feeds.values()
            ):
                return
            await asyncio.sleep(0.002)  # a chunk is on its way to its partition

    async def advance(self, until_ms: int) -> None:
        """Let event time pass to ``until_ms`` in every partition, and wait for what follows."""
        for partition in self.ownership.partitions.values():
            partition.advance(until_ms)
        await self.drained()

    # -- what a scrape and the watchdog read (`stream/metrics.py`, WorkerView)

    @property
    def rules_versions(self) -> Collection[int]:
        partitions = self.ownership.partitions.values()
        return {partition.rules.version for partition in partitions} or {self.rules.version}

    @property
    def partitions(self) -> Iterable[Partition]:
        return list(self.ownership.partitions.values())

    @property
    def memory(self) -> Budget:
        return self.ownership.budget

    @property
    def ready(self) -> bool:
        return self.ownership.is_ready

    @property
    def recovering(self) -> bool:
        return self.ownership.is_recovering

    @property
    def recovery_started_ms(self) -> int | None:
        return self.ownership.recovery_started_ms

    @property
    def recovery_seconds(self) -> float | None:
        return self.ownership.recovery_seconds

    @property
    def recovery_remaining(self) -> int:
        return self.ownership.recovery_remaining


class _Front:
    """What HTTP asks of the worker (`stream/web.py`, Worker)."""

    def __init__(self, service: Tagstream) -> None:
        self._service = service
        pattern = service.settings.user_id_pattern
        domains = service.domains
        everywhere = [kind for domain in domains.values() for kind in types_of(domain.events)]
        self._decoders = {
            name: Decoder(domain.events, pattern, everywhere=everywhere)
            for name, domain in domains.items()
        }
        self._router = Router(service.domains)

    def ready(self) -> tuple[bool, str]:
        ownership, problem = self._service.ownership, self._service.app.assignor.problem
        if problem:
            return False, problem
        if ownership.is_ready:
            return True, ""
        if ownership.is_recovering:
            return False, "recovering state"
        return False, "waiting for partitions"

    def alive(self) -> tuple[bool, str]:
        return self._service.watchdog.alive()

    def owner_of(self, user_id: str) -> Local | Remote | Moving:
        return self.owner(self._number(user_id.encode()))

    def _number(self, key: bytes) -> int:
        settings = self._service.settings
        return partition_for(key, settings.partitions, settings.partitioner)

    def owner(self, number: int) -> Local | Remote | Moving:
        service = self._service
        settings, ownership = service.settings, service.ownership
        if ownership.is_answering(number):
            return Local()
        if number in ownership.numbers:
            return Moving("the partition is being recovered, or the group is not heard")
        url = service.app.assignor.owners.get(number)
        return (
            Remote(url)
            if url and url != settings.worker_url
            else Moving("partitions are being assigned")
        )

    def user(self, user_id: str) -> dict[str, Any] | None:
        service, key = self._service, user_id.encode()
        partition = service.ownership.partitions[self._number(key)]
        return describe_user(*partition.lookup(key), service.domains, service.rules)

    @property
    def partition_count(self) -> int:
        return self._service.settings.partitions

    def values(self, tag: str) -> Collection[str] | None:
        for definition in self._service.rules.tags:
            if definition.name == tag:
                return [value_label(value) for value in definition.values[1:]]
        return None

    async def audience(self, cursor: Cursor, limit: int) -> Part | None:
        service, number = self._service, cursor.partition
        ownership, partition = service.ownership, service.ownership.partitions[number]

        def still_ours() -> bool:
            return ownership.is_answering(number) and ownership.partitions[number] is partition

        found = await holders(partition, cursor, limit, still_ours=still_ours)
        if found is None:
            return None
        held, after = found
        users = describe_audience(cursor.tag, held, service.rules)
        if after is not None:
            return users, replace(cursor, after=after)
        if number + 1 == self.partition_count:
            return users, None
        return users, replace(cursor, partition=number + 1, after=b"")

    def definitions(self) -> dict[str, Any]:
        rules = self._service.rules
        return {"version": rules.version, "tags": [describe_tag(tag) for tag in rules.tags]}

    # -- what those who watch are told (`stream/live.py`, Source)

    def state(self) -> dict[str, Any]:
        service = self._service
        ready, reason = self.ready()
        changed, seconds = service.metrics.to_change()
        return {
            "worker": service.settings.worker_url,
            "at": time.time_ns() // 1_000_000,
            "ready": ready,
            "reason": reason,
            "recovering_records": service.recovery_remaining,
            "partition_count": service.settings.partitions,
            "timezone": service.rules.timezone,
            "rules_version": service.rules.version,
            **service.metrics.totals(),
            "changing_events": changed,
            "changing_seconds": round(seconds, 3),
            "users": sum(partition.position.users for partition in service.partitions),
            "tagged": sum(partition.position.tagged for partition in service.partitions),
            "partitions": [_stand(partition) for partition in service.partitions],
        }

    def others(self) -> Iterable[str]:
        ours = self._service.settings.worker_url
        return {url for url in self._service.app.assignor.owners.values() if url != ours}

    def knows(self, user_id: str) -> bool:
        key = user_id.encode()
        number, ownership = self._number(key), self._service.ownership
        if not ownership.is_answering(number):
            return False
        return ownership.partitions[number].profiles.peek(key) is not None

    async def submit(self, events: Sequence[bytes]) -> Sequence[Refusal | None] | None:
        service = self._service
        settings = service.settings
        if not settings.embedded:
            return None
        latest_ms = time.time_ns() // 1_000_000 if settings.time == "wall" else None
        refusals: list[Refusal | None] = []
        rows: dict[tuple[str, int], list[Row]] = {}
        for raw in events:
            routed = self._router.route(raw)
            refusal: Refusal | None = None
            for name in routed.domains:
                event = self._decoders[name].decode(raw, routed.key)
                if isinstance(event, Rejected):
                    refusal = event
                elif latest_ms is not None and future(event.ts, latest_ms):
                    refusal = Rejected("future", "ts: more than 5 minutes ahead of the clock")
                else:
                    key = event.user_id.encode()
                    number = partition_for(key, settings.partitions, settings.partitioner)
                    rows.setdefault((settings.topic(name), number), []).append((key, raw))
            refusals.append(refusal)
        if rows and not any(refusals):
            service.broker.append_many(rows)
        return refusals


def _stand(partition: Partition) -> dict[str, Any]:
    """How a partition stands, for those who watch."""
    return {
        "number": partition.number,
        "population": [(tag, value, n) for (tag, value), n in partition.population.items() if n],
        "domains": {
            name: {"lag": feed.lag, "time_ms": feed.time_ms, "deadlines": feed.deadlines_pending}
            for name, feed in partition.feeds.items()
        },
    }
