"""``tagstream erase``: forget a user, in all domains."""

import asyncio
import contextlib
import time
import uuid
from typing import Annotated

import aiohttp
import orjson
import typer

from stream import timestamps
from stream.commands.feeding import EmbeddedFeed, WorkerFeed, kafka_feed
from stream.commands.options import BROKER, takes
from stream.commands.reading import embedded
from stream.domains import discover
from stream.errors import UsageError
from stream.lines import Router
from stream.settings import Settings


@takes(*BROKER, "data_dir", "url")
def erase(
    settings: Settings,
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user's id.")],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="What happened up to then is to be forgotten: RFC 3339, or epoch milliseconds."
            " Unset: now.",
        ),
    ] = None,
) -> None:
    """Erase a user: an event to every source topic, which removes all that is kept of him.

    Tags leave, the profile goes, and what he did up to then is dropped wherever it comes from
    again: late, repeated, or from a replay of everything. What was said of him before stays on
    tag-changes and churn-warnings for as long as they keep records.

    [dim]tagstream erase user-000042 --broker kafka://localhost:9092[/dim]
    """
    asyncio.run(_send(settings, event_of(user_id, at)))
    typer.echo("erased: the event is in all source topics")


def event_of(user_id: str, at: str | None) -> bytes:
    """The event that erases a user.

    Raises:
        UsageError: the id or the time is none.
    """
    if not 1 <= len(user_id) <= 128:
        raise UsageError("the ID has to have 1 to 128 characters")
    try:
        user_id.encode()
        ts_ms = (
            time.time_ns() // 1_000_000
            if at is None
            else timestamps.check(int(at))
            if at.isdecimal()
            else timestamps.parse(at)
        )
    except UnicodeEncodeError:
        raise UsageError("the ID is not UTF-8") from None
    except ValueError as error:
        raise UsageError(f"--at holds '{at}': {error}") from None
    event = {"event_id": f"erase-{uuid.uuid4()}", "user_id": user_id, "type": "erase", "ts": ts_ms}
    return orjson.dumps(event)


async def _send(settings: Settings, event: bytes) -> None:
    items = list(Router(discover()).items([event]))
    if not settings.embedded:
        async with kafka_feed(settings) as feed:
            await feed.send(items)
        return
    if settings.broker_dir.exists():
        with contextlib.suppress(UsageError):  # a running worker has the data
            with embedded(settings) as broker:
                await EmbeddedFeed(settings, broker).send(items)
            return
    async with aiohttp.ClientSession() as session:
        # A worker puts an erasure into every topic by itself: it is told once.
        await WorkerFeed(settings.worker_url, session).send(items[:1])
