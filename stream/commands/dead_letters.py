"""``tagstream dead-letters``: what could not be used, why, and another try after a fix."""

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stream.commands.feeding import EmbeddedFeed, Feed, Item, kafka_feed
from stream.commands.options import BROKER, takes
from stream.commands.reading import EmbeddedReader, Reader, embedded, reader
from stream.domains import discover
from stream.errors import UsageError
from stream.events import CODES, MAX_BYTES
from stream.lines import Router
from stream.settings import Settings
from stream.timestamps import iso_utc
from stream.topics import DEAD_LETTERS

app = typer.Typer(no_args_is_help=True, help="List, explain and send again what could not be used.")

REMEDIES = {
    "too_large": "Shorten it at the producer: 64 KiB at most. The record here is cut off.",
    "malformed": "Mend the producer: one JSON object in UTF-8.",
    "unknown_type": "A type this version does not know, or one of another topic.",
    "invalid": "The field that the detail names is missing, of another type, or out of range.",
    "key_mismatch": "The record's key has to be the user_id; sent again, it is.",
    "wrong_partition": "The producer's partitioner is not TAGSTREAM_PARTITIONER; sent again, the"
    " setting's is used.",
    "future": "A clock that is more than 5 minutes ahead; sent again, it may be in the past.",
    "too_late": "Older than max_lateness behind the user's newest event: only a new state, fed in"
    " order of time, can take it.",
}


class Letter(msgspec.Struct):
    """A dead letter, as far as these commands read it."""

    code: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    value: str | None

    @property
    def original(self) -> bytes:
        """What was received, at most its first 64 KiB."""
        return base64.b64decode(self.value or "")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which of them are meant."""

    code: str | None
    topic: str | None

    def __post_init__(self) -> None:
        if self.code is not None and self.code not in CODES:
            raise UsageError(f"--code holds '{self.code}'; allowed: {', '.join(CODES)}")
        if self.topic is not None and self.topic not in discover():
            raise UsageError(f"--topic holds '{self.topic}'; allowed: {', '.join(discover())}")

    def takes(self, letter: Letter, settings: Settings) -> bool:
        """Whether a letter is one of them."""
        return self.code in (None, letter.code) and (
            self.topic is None or settings.topic(self.topic) == letter.topic
        )


Code = Annotated[str | None, typer.Option(metavar="CODE", help="Only those with this code.")]
Source = Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this topic.")]

_decode = msgspec.json.Decoder(Letter).decode


@app.command(name="list")
@takes(*BROKER, "data_dir")
def list_letters(settings: Settings, code: Code = None, topic: Source = None) -> None:
    """Count them by code, topic and detail, with the remedy.

    [dim]tagstream dead-letters list --broker kafka://localhost:9092[/dim]
    """
    chosen = Chosen(code, topic)
    counts: Counter[tuple[str, str, str]] = Counter()
    times: dict[tuple[str, str, str], list[int]] = {}

    def count(letter: Letter) -> None:
        kind = letter.code, letter.topic, letter.detail
        counts[kind] += 1
        first_last = times.setdefault(kind, [letter.timestamp, letter.timestamp])
        first_last[0] = min(first_last[0], letter.timestamp)
        first_last[1] = max(first_last[1], letter.timestamp)

    asyncio.run(_each(settings, chosen, count))
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("code", "topic", "detail"):
        table.add_column(heading, overflow="fold")
    for heading in ("letters", "first", "last"):
        table.add_column(heading, justify="right")
    for kind, many in counts.most_common():
        table.add_row(*kind, f"{many:,}", *map(iso_utc, times[kind]))
    console = _console(table)
    if counts:
        console.print(table)
        for each in sorted({kind[0] for kind in counts}, key=_order):
            console.print(f"{each}: {REMEDIES[each]}" if each in REMEDIES else each)
    else:
        console.print("no dead letters")


@app.command()
@takes(*BROKER, "data_dir")
def show(
    settings: Settings,
    code: Code = None,
    topic: Source = None,
    limit: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="How many, the newest first.")
    ] = 10,
) -> None:
    """Show the newest ones whole: place, reason, and what was received.

    [dim]tagstream dead-letters show --code invalid --limit 3[/dim]
    """
    letters: list[Letter] = []
    asyncio.run(_each(settings, Chosen(code, topic), letters.append))
    letters.sort(key=lambda letter: letter.timestamp, reverse=True)
    for letter in letters[:limit]:
        place = f"{letter.topic}[{letter.partition}]@{letter.offset}"
        typer.echo(f"{place}: {letter.code}: {letter.detail} ({iso_utc(letter.timestamp)})")
        typer.echo(f"  {letter.original[:2_000].decode(errors='backslashreplace')}")
    typer.echo(f"{min(limit, len(letters)):,} of {len(letters):,}", err=True)


@app.command()
@takes(*BROKER, "data_dir")
def redrive(
    settings: Settings,
    code: Code = None,
    topic: Source = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only say how many there are.")
    ] = False,
) -> None:
    """Send them to their topics again, after a fix, keyed by their user_id.

    What was applied meanwhile is known by its event_id and changes nothing. What still cannot be
    used becomes a dead letter once more. Those that were cut off, being too large, are left out.

    [dim]tagstream dead-letters redrive --code unknown_type --broker kafka://localhost:9092[/dim]
    """
    sent, left_out = asyncio.run(_redrive(settings, Chosen(code, topic), send=not dry_run))
    done = "would be sent" if dry_run else "sent"
    typer.echo(f"{sent:,} {done} again, {left_out:,} left out: cut off, or without a user_id")


async def _redrive(settings: Settings, chosen: Chosen, *, send: bool) -> tuple[int, int]:
    router = Router(discover())
    domains = {settings.topic(name): name for name in discover()}
    seen: set[bytes] = set()  # one that failed again is there twice
    sent = left_out = 0
    async with _both(settings) as (source, feed):
        async for letters in _letters(settings, source, chosen):
            items = []
            for letter in letters:
                value = letter.original
                key = router.route(value).key
                if key is None or len(value) >= MAX_BYTES or letter.topic not in domains:
                    left_out += 1
                elif value not in seen:
                    items.append(Item(domains[letter.topic], key, value))
                    seen.add(value)
            if send and items:
                await feed.send(items)
            sent += len(items)
    return sent, left_out


@contextlib.asynccontextmanager
async def _both(settings: Settings) -> AsyncIterator[tuple[Reader, Feed]]:
    """Where letters are read, and where events go again."""
    if settings.embedded:
        with embedded(settings) as broker:
            yield EmbeddedReader(settings, broker), EmbeddedFeed(settings, broker)
        return
    async with reader(settings) as source, kafka_feed(settings) as feed:
        yield source, feed


async def _each(settings: Settings, chosen: Chosen, take: Callable[[Letter], object]) -> None:
    async with reader(settings) as source:
        async for letters in _letters(settings, source, chosen):
            for letter in letters:
                take(letter)


async def _letters(
    settings: Settings, source: Reader, chosen: Chosen
) -> AsyncIterator[Sequence[Letter]]:
    console = Console(stderr=True)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=console, disable=not console.is_terminal))
        reading = progress.add_task("reading", total=await source.total(DEAD_LETTERS))
        async for records in source.read(DEAD_LETTERS):
            yield [letter for letter in _decoded(records) if chosen.takes(letter, settings)]
            progress.advance(reading, len(records))


def _decoded(records: Sequence[Any]) -> Iterator[Letter]:
    for record in records:
        if record.value is not None:
            yield _decode(record.value)


def _order(code: str) -> int:
    return list(REMEDIES).index(code) if code in REMEDIES else len(REMEDIES)


def _console(table: Table) -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a file or a pipe has no width to keep to
        unbounded = console.options.update(max_width=1_000_000)
        console.width = max(200, console.measure(table, options=unbounded).maximum)
    return console
