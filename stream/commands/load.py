"""``tagstream load``: history, merged by time, into a broker's topics before the first event."""

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.progress import Progress

from stream import lines
from stream.commands import history
from stream.commands.feeding import BrokerError, connected, kafka_feed, need_kafka
from stream.commands.options import BROKER, takes
from stream.commands.topics import refuse_loss
from stream.domains import discover
from stream.errors import StateError
from stream.lines import Router
from stream.position import POSITION, decode_position
from stream.settings import Settings
from stream.timestamps import iso_utc
from stream.topics import CHANGELOG

LOOK_BACK = 100  # records at the end of a partition that are looked at first


@takes(*BROKER)
def load(settings: Settings, events: lines.Files) -> None:
    """Load history into the source topics of a Kafka broker, before the first live event.

    Files are merged by their events' ts. Refused where the topics or the state already hold
    later events than the first one of the history, which would come late then. Let workers run
    with TAGSTREAM_TIME=events until they are through with it.

    [dim]tagstream load 2023.jsonl.gz 2024.jsonl.gz --broker kafka://localhost:9092[/dim]
    """
    need_kafka(settings, "load")
    refuse_loss(settings)
    domains = discover()
    router = Router(domains)
    console = Console(stderr=True)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=console, disable=not console.is_terminal))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tagstream-load-")))
        looking = progress.add_task("looking at the files", total=lines.size(events))
        found = history.examine(
            events, router, folder, lambda _, many: progress.advance(looking, many)
        )
        if found.begins_ms is not None:
            asyncio.run(_refuse_late(settings, list(domains), found.begins_ms))
        loading = progress.add_task("loading", total=found.count)
        asyncio.run(_send(settings, router, found, lambda many: progress.advance(loading, many)))
    span = "" if found.begins_ms is None else f", the first of {iso_utc(found.begins_ms)}"
    console.print(f"{found.count:,} events{span}")


async def _send(
    settings: Settings, router: Router, events: Iterable[bytes], sent: Callable[[int], object]
) -> None:
    async with kafka_feed(settings) as feed:
        for batch in lines.batches(events):
            await feed.send(list(router.items(batch)))
            sent(len(batch))


async def _refuse_late(settings: Settings, domains: Iterable[str], begins_ms: int) -> None:
    """Raises StateError where the broker is already past the time at which history begins."""
    consumer = AIOKafkaConsumer(
        **settings.client_options(),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    numbers = range(settings.partitions)
    async with connected(settings, consumer):
        try:
            for number in numbers:
                tp = TopicPartition(settings.topic(CHANGELOG), number)
                rows = await _last(consumer, tp, lambda row: row.key == POSITION)
                for row in rows[-1:]:
                    places = decode_position(row.value).places.values()
                    reached = [max(place.newest_ms, place.time_ms) for place in places]
                    _compare(begins_ms, max(reached, default=-1), "the state has reached")
            for tp in [TopicPartition(settings.topic(d), n) for d in domains for n in numbers]:
                dated = (lines.instant(row.value) for row in await _last(consumer, tp))
                newest_ms = max((ts for ts in dated if ts is not None), default=-1)
                _compare(begins_ms, newest_ms, f"{tp.topic} already holds an event of")
        except KafkaError as error:
            raise BrokerError(f"the broker does not say what it holds: {error}") from error


def _compare(begins_ms: int, newest_ms: int, what: str) -> None:
    if newest_ms > begins_ms:
        raise StateError(
            f"{what} {iso_utc(newest_ms)}, and this history begins at {iso_utc(begins_ms)}: it"
            " would come late. Load it into new topics (another TAGSTREAM_TOPIC_PREFIX) before any"
            " live event, or leave out what is older"
        )


async def _last(
    consumer: Any, tp: TopicPartition, wanted: Callable[[Any], bool] = lambda _: True
) -> list[Any]:
    """Some of the last wanted records of a partition; none only where there is none."""
    first = (await consumer.beginning_offsets([tp]))[tp]
    end = (await consumer.end_offsets([tp]))[tp]
    consumer.assign([tp])
    start, back = end, LOOK_BACK
    while start > first:
        start = max(first, end - back)
        back *= 10
        consumer.seek(tp, start)
        found: list[Any] = []
        while await consumer.position(tp) < end:
            records = (await consumer.getmany(tp, timeout_ms=200)).get(tp, ())
            found += [record for record in records if wanted(record)]
        if found:
            return found
    return []
