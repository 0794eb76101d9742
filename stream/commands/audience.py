"""``tagstream audience``: who has a tag now."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import aiohttp
import orjson
import typer
from rich.console import Console
from rich.progress import Progress

from stream.commands.feeding import BrokerError, Output
from stream.commands.options import BROKER, takes
from stream.commands.reading import Reader, embedded, reader
from stream.domains import discover
from stream.errors import UsageError
from stream.metrics import value_label
from stream.rules import load
from stream.settings import Settings, choice
from stream.topics import USER_TAGS

COLUMNS = ("user_id", "value", "since")
FORMAT = choice("jsonl", "csv")
RETRIES = 30  # of a page that no worker gives while partitions move

User = dict[str, Any]


@takes(*BROKER, "data_dir", "tags", "url")
def audience(
    settings: Settings,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The tag's name.")],
    value: Annotated[
        str | None, typer.Option(metavar="VALUE", help="Only those with this value.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="jsonl, or csv with a heading.")
    ] = "jsonl",
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to; .gz compresses, - is standard output.")
    ] = Path("-"),
) -> None:
    """List the users who have a tag now: id, value, and since when.

    Read from the broker's topic user-tags; embedded, from a running worker or its data.

    [dim]tagstream audience value_tier --value super_vip --format csv --output vip.csv[/dim]
    """
    try:
        form = FORMAT.parse(form)
    except ValueError:
        raise UsageError(f"--format holds '{form}'; allowed: {FORMAT.allowed}") from None
    _check(settings, tag, value)
    asyncio.run(_write(settings, tag, value, form, output))


def _check(settings: Settings, tag: str, value: str | None) -> None:
    """Raises UsageError where nobody can have that."""
    defined = {each.name: each for each in load(settings.tags, discover()).tags}
    if tag not in defined:
        raise UsageError(
            f"no tag '{tag}' is defined in {settings.tags}: see 'tagstream tags list'; where the"
            " service follows another file, give it as TAGSTREAM_TAGS (--tags)"
        )
    values = [value_label(each) for each in defined[tag].values[1:]]
    if value is not None and value not in values:
        raise UsageError(f"--value holds '{value}'; '{tag}' has {', '.join(values)}")


async def _write(settings: Settings, tag: str, value: str | None, form: str, output: Path) -> None:
    console = Console(stderr=True)
    count = 0
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=console, disable=not console.is_terminal))
        file = stack.enter_context(Output(output))
        if form == "csv":
            file.write(_csv([COLUMNS]))
        async for users in _found(settings, tag, value, progress):
            count += len(users)
            if form == "csv":
                file.write(_csv([value_label(user[name]) for name in COLUMNS] for user in users))
            else:
                file.write(b"".join(orjson.dumps(user) + b"\n" for user in users))
    console.print(f"users: {count:,}")


def _csv(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


async def _found(
    settings: Settings, tag: str, value: str | None, progress: Progress
) -> AsyncIterator[list[User]]:
    if settings.embedded and not _at_hand(settings):
        async for users in _asked(settings, tag, value):
            yield users
        return
    async with reader(settings) as source:
        yield await _read(source, tag, value, progress)


def _at_hand(settings: Settings) -> bool:
    """Whether the embedded data are there and no worker has them."""
    if not settings.broker_dir.exists():
        return False
    try:
        with embedded(settings):
            return True
    except UsageError:
        return False


async def _read(source: Reader, tag: str, value: str | None, progress: Progress) -> list[User]:
    """From the compacted topic: the last record of each user counts."""
    reading = progress.add_task("reading user-tags", total=await source.total(USER_TAGS))
    held: dict[bytes, User] = {}
    async for records in source.read(USER_TAGS):
        for record in records:
            key = record.key or b""
            held.pop(key, None)
            if record.value is None:
                continue
            content = orjson.loads(record.value)
            state = content["tags"].get(tag)
            if state is not None and (value is None or value_label(state["value"]) == value):
                held[key] = {"user_id": content["user_id"], **state}
        progress.advance(reading, len(records))
    return list(held.values())


async def _asked(settings: Settings, tag: str, value: str | None) -> AsyncIterator[list[User]]:
    """From a running worker, page by page."""
    url = f"{settings.worker_url}/tags/{quote(tag, safe='')}/users"
    asked = {"limit": "1000"} | ({} if value is None else {"value": value})
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        cursor: str | None = ""
        while cursor is not None:
            page = await _page(session, url, asked | ({"cursor": cursor} if cursor else {}))
            yield page["users"]
            cursor = page["cursor"]


async def _page(session: aiohttp.ClientSession, url: str, asked: dict[str, str]) -> Any:
    for _ in range(RETRIES):
        try:
            async with session.get(url, params=asked) as answer:
                content = orjson.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            raise BrokerError(
                f"no worker answers at {url} ({type(error).__name__}); TAGSTREAM_URL (--url) says"
                " where one is, TAGSTREAM_DATA_DIR where embedded data are"
            ) from error
        if answer.status == 200:
            return content
        if answer.status != 503:
            raise BrokerError(f"the worker refused: {content.get('detail', answer.status)}")
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    raise BrokerError(f"the worker cannot say now: {content.get('detail')}; try again")
