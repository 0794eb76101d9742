"""Ways for events to leave a command: a file, a Kafka broker, a running worker's HTTP.

All take batches of ``Item`` and return once they are safe there: written, acknowledged,
accepted. A failure is one line with the remedy.
"""

import asyncio
import contextlib
import gzip
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, Self, TypeVar

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stream.broker import LocalBroker
from stream.errors import TagstreamError, UsageError
from stream.log import Row
from stream.partitioner import partition_for
from stream.settings import Settings

REQUEST_BYTES, REQUEST_EVENTS = 1 << 20, 5_000  # of one POST; a worker takes four times as much
BATCH_BYTES = 256 << 10
BATCH = 2_000
TICK_S = 0.05  # what leaves at a rate leaves in batches this far apart

Thing = TypeVar("Thing")


class Item(NamedTuple):
    """One event on its way: the domain whose topic takes it, its record key, its JSON."""

    domain: str
    key: bytes | None
    value: bytes


class Feed(Protocol):
    """Where events go."""

    async def send(self, items: Sequence[Item]) -> None:
        """Hand over a batch, in order; safe there on return."""


class BrokerError(TagstreamError):
    """A broker or worker that events were to be sent to does not take them."""


class OutputError(TagstreamError):
    """An output takes no more, on a full disk say."""


class Output:
    """A file to write to; ``-`` is standard output, and ``.gz`` compresses.

    Raises:
        OSError: it cannot be opened.
        OutputError (later): it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | gzip.GzipFile
        self._closing = contextlib.ExitStack()
        if self._standard:
            self._file = sys.stdout.buffer
            self._closing.callback(self._file.flush)
            return
        self._file = self._closing.enter_context(path.open("wb"))
        if path.suffix == ".gz":
            # Without a time in its header, the same events are the same file.
            packed = gzip.GzipFile("", "wb", 6, self._file, mtime=0)
            self._file = self._closing.enter_context(packed)

    def write(self, data: bytes) -> None:
        """All of it, some of which may wait in buffers."""
        with self._named():
            self._file.write(data)

    def flush(self) -> None:
        """Hand what waits to the system."""
        with self._named():
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._named():
            self._closing.close()

    @property
    def _standard(self) -> bool:
        return str(self._path) == "-"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise  # the reader has had enough: no failure to speak of
        except OSError as error:
            if self._standard:  # what waits would fail once more when Python ends
                with Path(os.devnull).open("wb") as nothing:
                    os.dup2(nothing.fileno(), sys.stdout.fileno())
            name = "standard output" if self._standard else self._path
            raise OutputError(f"{name} cannot be written: {error.strerror or error}") from error


class FileFeed:
    """Events as JSON Lines."""

    def __init__(self, file: Output) -> None:
        self._file = file

    async def send(self, items: Sequence[Item]) -> None:
        self._file.write(b"".join(item.value + b"\n" for item in items))
        self._file.flush()


def place_of(settings: Settings, item: Item) -> tuple[str, int]:
    """The topic of an item, and the partition that the setting gives its key; 0 without one."""
    key = item.key
    number = 0 if key is None else partition_for(key, settings.partitions, settings.partitioner)
    return settings.topic(item.domain), number


class EmbeddedFeed:
    """Events into the source topics of the embedded broker in this process."""

    def __init__(self, settings: Settings, broker: LocalBroker) -> None:
        self._settings = settings
        self._broker = broker

    async def send(self, items: Sequence[Item]) -> None:
        rows: dict[tuple[str, int], list[Row]] = {}
        for item in items:
            rows.setdefault(place_of(self._settings, item), []).append((item.key, item.value))
        self._broker.append_many(rows)


class KafkaFeed:
    """Events into the source topics of a Kafka broker."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._producer = producer

    async def send(self, items: Sequence[Item]) -> None:
        producer = self._producer
        builders: dict[tuple[str, int], Any] = {}
        sent: list[asyncio.Future[Any]] = []

        async def finish(place: tuple[str, int]) -> None:
            batch = builders.pop(place)
            sent.append(await producer.send_batch(batch, place[0], partition=place[1]))

        try:
            for item in items:
                place, (_, key, value) = place_of(self._settings, item), item
                batch = builders.get(place) or builders.setdefault(place, producer.create_batch())
                if batch.append(key=key, value=value, timestamp=None) is None:
                    await finish(place)
                    batch = builders[place] = producer.create_batch()
                    batch.append(key=key, value=value, timestamp=None)
            for place in list(builders):
                await finish(place)
            for acknowledged in sent:
                await acknowledged
        except KafkaError as error:
            raise BrokerError(f"the broker took not all events: {_reason(error)}") from error


@contextlib.asynccontextmanager
async def kafka_feed(settings: Settings) -> AsyncIterator[KafkaFeed]:
    """A feed into the broker of the settings, for as long as the block lasts."""
    producer = AIOKafkaProducer(
        **settings.client_options(),
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES,
        max_request_size=4 << 20,
    )
    async with connected(settings, producer):
        yield KafkaFeed(settings, producer)


@contextlib.asynccontextmanager
async def connected(settings: Settings, *clients: Any) -> AsyncIterator[None]:
    """aiokafka clients, started and stopped.

    Raises:
        BrokerError: nobody answers at the broker's address.
    """
    started = []
    try:
        for client in clients:
            started.append(client)
            try:
                await client.start()
            except KafkaError as error:
                raise BrokerError(
                    f"no broker answers at {settings.broker}: {_reason(error)}; check"
                    " TAGSTREAM_BROKER, and the TLS and SASL settings beside it"
                ) from error
        yield
    finally:
        for client in started:
            await (client.close() if hasattr(client, "close") else client.stop())


class WorkerFeed:
    """Events to a running worker on the embedded broker, by ``POST /events``."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def send(self, items: Sequence[Item]) -> None:
        while items:
            size, many = 0, 0
            for item in items[:REQUEST_EVENTS]:
                size += len(item.value) + 1
                if size > REQUEST_BYTES and many:
                    break
                many += 1
            await self._post(b"[" + b",".join(item.value for item in items[:many]) + b"]")
            items = items[many:]

    async def _post(self, body: bytes) -> None:
        try:
            async with self._session.post(f"{self._url}/events", data=body) as answer:
                if answer.status == 202:
                    return
                said = (await answer.text())[:300]
        except aiohttp.ClientError as error:
            raise BrokerError(
                f"no worker answers at {self._url} ({type(error).__name__}); start"
                " 'tagstream worker', or give --output FILE or --broker"
            ) from error
        raise BrokerError(f"the worker at {self._url} refused events: {answer.status} {said}")


@contextlib.asynccontextmanager
async def feed(settings: Settings, path: Path | None = None) -> AsyncIterator[Feed]:
    """Where the settings say: ``path`` if there is one, else the broker, else the worker."""
    if path is not None:
        with Output(path) as file:
            yield FileFeed(file)
    elif settings.embedded:
        async with aiohttp.ClientSession() as session:
            yield WorkerFeed(settings.worker_url, session)
    else:
        async with kafka_feed(settings) as feeding:
            yield feeding


async def paced(
    things: Iterator[Thing], rate: float | None, duration: float | None
) -> AsyncIterator[list[Thing]]:
    """Batches of things: at once, or as many as are due at ``rate`` a second."""
    began = time.monotonic()
    taken = 0
    while True:
        due = BATCH
        if rate is not None:
            elapsed = time.monotonic() - began
            if duration is not None:
                elapsed = min(elapsed, duration)
            due = min(int(elapsed * rate) - taken, BATCH)
            if due <= 0:
                if duration is not None and elapsed >= duration:
                    return
                await asyncio.sleep(max(TICK_S, (taken + 1) / rate - elapsed))
                continue
        batch = list(islice(things, due))
        if not batch:
            return
        taken += len(batch)
        yield batch


def need_kafka(settings: Settings, command: str) -> None:
    """Raises UsageError where the settings name no Kafka broker."""
    if settings.embedded:
        raise UsageError(
            f"'{command}' works on a Kafka broker: set TAGSTREAM_BROKER (--broker) to"
            " kafka://HOST:PORT"
        )


def _reason(error: KafkaError) -> str:
    return str(error) or type(error).__name__
