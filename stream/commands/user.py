"""``tagstream user``: one user's current tags and features, from a worker or the embedded data."""

import asyncio
import dataclasses
from typing import Annotated, Any
from urllib.parse import quote

import aiohttp
import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from yarl import URL

from stream.broker import LocalBroker
from stream.commands.feeding import BrokerError
from stream.commands.options import BROKER, takes
from stream.commands.service import running
from stream.describe import describe_user
from stream.errors import TagstreamError, UsageError
from stream.partitioner import partition_for
from stream.settings import Settings


class UnknownUserError(TagstreamError):
    """No event of the user was ever applied."""


class NoWorkerError(BrokerError):
    """Nobody answers where a worker may be, or somebody who is none."""


UNNAMED = (Settings().broker, Settings().data_dir)


@takes(*BROKER, "data_dir", "tags", "url")
def user(
    settings: Settings,
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user's id.")],
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="As one JSON object; always so where no terminal reads."
        ),
    ] = False,
) -> None:
    """Show one user's current tags, since when, and every feature.

    A running worker is asked, any of them. Where none answers, the embedded data are read; a data
    directory that is named, without a --url, is read at once if no worker runs on it.

    [dim]tagstream user user-000042[/dim]
    """
    try:
        user_id.encode()
    except UnicodeEncodeError:
        raise UsageError("the ID is not UTF-8") from None
    found, place = asyncio.run(_find(settings, user_id))
    if found is None:
        raise UnknownUserError(f"no event of this user was ever applied, says {place}")
    console = Console(highlight=False, markup=False)
    if as_json or not console.is_terminal:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(_tags(found["tags"]))
        for domain, features in found["features"].items():
            console.print(_features(domain, features))


Found = tuple[dict[str, Any] | None, str]  # the user, and the place that was asked


async def _find(settings: Settings, user_id: str) -> Found:
    at_hand = settings.embedded and settings.broker_dir.exists()
    named = settings.url is None and (settings.broker, settings.data_dir) != UNNAMED
    if not (at_hand and named):
        try:
            return await _ask(settings, user_id)
        except NoWorkerError:
            if not at_hand:
                raise
    try:
        broker = LocalBroker.at(settings.faust_broker)
    except UsageError:
        return await _ask(settings, user_id)  # the worker that has it
    with broker:
        return await _read(settings, user_id), f"the data in {settings.broker_dir}"


async def _read(settings: Settings, user_id: str) -> dict[str, Any] | None:
    """From the data directory. Nothing but events moves time, so nobody's state changes."""
    key = user_id.encode()
    settings = dataclasses.replace(settings, time="events")
    async with running(settings, web=False, follow=True) as service:
        await service.drained()  # what was sent since the last worker left, as an erasure
        number = partition_for(key, settings.partitions, settings.partitioner)
        known = service.ownership.partitions[number].lookup(key)
        return describe_user(*known, service.domains, service.rules)


async def _ask(settings: Settings, user_id: str) -> Found:
    place = f"the worker at {settings.worker_url}"
    url = URL(f"{settings.worker_url}/users/{quote(user_id, safe='')}", encoded=True)
    timeout = aiohttp.ClientTimeout(total=10.0)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            content: dict[str, Any] = orjson.loads(await answer.read())
    except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
        raise NoWorkerError(
            f"no worker answers at {settings.worker_url} ({type(error).__name__}); TAGSTREAM_URL"
            " (--url) says where one is, TAGSTREAM_DATA_DIR where embedded data are"
        ) from error
    if answer.status == 404:
        return None, place
    if answer.status == 200:
        return content, place
    said = content.get("detail", answer.status)
    raise BrokerError(f"{place} cannot say now: {said}; try again")


def _tags(tags: dict[str, Any]) -> Table:
    table = Table("tag", "value", "since", box=box.SIMPLE_HEAD)
    for name, state in sorted(tags.items()):
        value = "yes" if state["value"] is True else str(state["value"])
        table.add_row(name, value, state["since"])
    return table


def _features(domain: str, features: dict[str, Any]) -> Table:
    table = Table("feature", domain, box=box.SIMPLE_HEAD)
    for name, value in features.items():
        table.add_row(name, _shown(value))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    # Shares keep their digits, money is read to the fen.
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}".removesuffix(".00")
