"""Live events at a steady rate, and how long each probe among them takes to its output.

A probe is the first order of a new user, whose first tag changes for certain. Its latency
runs from the broker's append time to the moment when a read-committed consumer, on the
same machine and clock, holds the change.
"""

import itertools
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from tests.bench import rig
from tests.broker.harness import PARTITIONERS, Service
from tests.broker.purchases import Sent

PROBES_PER_S = 200
USERS = 20_000  # among whom the events that are no probes fall
PATIENCE_S = 60.0  # for outputs, after the last event


@dataclass(slots=True)
class Latencies:
    """``waits`` holds one ``(append time in epoch ms, latency in ms)`` per probe, by append time.

    ``others`` holds when changes of other users came, epoch ms, as far as ``counted`` chose them.
    """

    sent: int
    waits: list[tuple[float, float]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def cells(self, *, after_ms: float = 0, before_ms: float = float("inf")) -> list[str]:
        """Number of probes appended in ``[after_ms, before_ms)``, then p50, p99 and maximum."""
        waits = sorted(wait for at, wait in self.waits if after_ms <= at < before_ms)
        if not waits:
            return ["0", "-", "-", "-"]
        p50, p99 = (waits[int(len(waits) * share)] for share in (0.50, 0.99))
        return [f"{len(waits):,}", *(f"{wait:,.0f} ms" for wait in (p50, p99, waits[-1]))]


def measure(
    service: Service,
    *,
    per_s: float,
    seconds: float,
    name: str,
    first_ts_ms: int,
    counted: Callable[[bytes], bool] = lambda _: False,
) -> Latencies:
    """Send ``per_s`` events a second from a process of its own, and read every probe's change.

    Event time begins at ``first_ts_ms`` and runs like the clock; ``name`` begins every new
    user's id. ``counted`` chooses the keys of further changes to note.

    Raises:
        AssertionError: a probe's change is not out a minute after the last event.
    """
    changes = Consumer(
        {**service.client, "group.id": "unused", "isolation.level": "read_committed"}
    )
    changes.assign(
        [
            TopicPartition(service.changes.name, number, end)
            for number, end in enumerate(service.changes.ends())
        ]
    )
    received: dict[bytes, float] = {}
    others: list[float] = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        sending = other.submit(
            _send,
            service.client,
            service.settings["TAGSTREAM_PARTITIONER"],
            service.source.name,
            name,
            per_s,
            seconds,
            first_ts_ms,
        )
        deadline = time.monotonic() + seconds + PATIENCE_S
        while not sending.done() or len(received) < len(sending.result().appended):
            assert time.monotonic() < deadline, "changes of probes are missing"
            message = changes.poll(0.1)
            if message is None or message.error():
                continue
            key, now_ms = message.key() or b"", time.time() * 1000
            if key.startswith(name.encode()):
                received.setdefault(key, now_ms)
            elif counted(key):
                others.append(now_ms)
    changes.close()
    sent = sending.result()
    waits = [(at, received[user] - at) for user, at in sent.appended.items()]
    return Latencies(sent.count, sorted(waits), others)


@dataclass(frozen=True, slots=True)
class _Sent:
    count: int
    appended: dict[bytes, int]  # probe's user to append time, epoch ms


def _send(
    client: Mapping[str, str | int | float | bool],
    partitioner: str,
    topic: str,
    name: str,
    per_s: float,
    seconds: float,
    first_ts_ms: int,
) -> _Sent:
    """Send events in step with the clock; runs in a process of its own."""
    producer = Producer({**client, "partitioner": PARTITIONERS[partitioner], "linger.ms": 1})
    appended: dict[bytes, int] = {}

    def note(error: object, message: Message) -> None:
        assert error is None, error
        appended[message.key() or b""] = message.timestamp()[1]

    began, count = time.monotonic(), 0
    events = _events(name, per_s, first_ts_ms)
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * per_s) - count
        for user, value in itertools.islice(events, due):
            if user.startswith(name):
                producer.produce(topic, value, user, on_delivery=note)
            else:
                producer.produce(topic, value, user)
        count += due
        producer.poll(0)
        time.sleep(0.002)  # the pace: a handful of events at a time
    producer.flush(PATIENCE_S)
    return _Sent(count, appended)


def _events(name: str, per_s: float, first_ts_ms: int) -> Iterator[Sent]:
    """Orders without end, a probe every so often."""
    rng = random.Random(2)
    every = max(1, round(per_s / PROBES_PER_S))
    for number in itertools.count():
        probe = number % every == 0
        user = f"{name}{number}" if probe else f"u{rng.randrange(USERS):07d}"
        ts_ms = first_ts_ms + int(number / per_s * 1000)
        yield user, rig.order(f"{name}{number}", user, ts_ms)
