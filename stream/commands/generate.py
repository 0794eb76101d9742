"""``tagstream generate``: synthetic events, to a file, a broker or a running worker."""

import asyncio
import secrets
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stream import timestamps
from stream.commands import feeding, synthetic
from stream.commands.options import BROKER, takes
from stream.commands.synthetic import DAY_MS, Arrival
from stream.errors import UsageError
from stream.settings import Settings

START = "2025-01-01T00:00:00+08:00"
DAYS = 90.0


@takes(*BROKER, "url")
def generate(
    settings: Settings,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write JSON Lines to this file: .gz compresses, - is standard output.",
            metavar="FILE",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="NUMBER", help="Stop after so many events.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="NUMBER", help="Events a second; unset: as fast as they are taken."
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SECONDS", help="Stop after so many seconds, with --rate."),
    ] = None,
    users: Annotated[
        int, typer.Option(min=1, max=100_000_000, metavar="NUMBER", help="Customers.")
    ] = 1_000,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help=f"Where event time begins, RFC 3339; without --rate {START}."
        ),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100_000,
            metavar="DAYS",
            help=f"Span of event time; with --count, rhythms are paced to about fill it."
            f" Without --rate and --count {DAYS:g}.",
        ),
    ] = None,
    late: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, metavar="SHARE", help="Share of events that arrive hours late."
        ),
    ] = 0.0,
    repeats: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Share of events that arrive twice."),
    ] = 0.0,
    all_domains: Annotated[
        bool,
        typer.Option(
            "--all-domains",
            metavar="",
            help="Engagement, service and outreach of the same customers too, not purchases alone.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="The same seed gives the same events. Unset: 0; random for live ones.",
        ),
    ] = None,
) -> None:
    """Make up events: customers with rhythms of their own, coupons, refunds, streaks, silence.

    They go to [bold]--output[/bold], else to the Kafka broker of the settings, else to the
    worker that runs here on the embedded broker. With [bold]--rate[/bold] and neither --start
    nor --days they are live: their times are the wall clock's, until you stop it.

    [dim]tagstream generate --count 100000 --users 5000 -o events.jsonl.gz[/dim]
    [dim]tagstream generate --rate 200 --broker kafka://localhost:9092[/dim]
    """
    if duration is not None and rate is None:
        raise UsageError("--duration needs --rate; without a rate, --days or --count end it")
    live = rate is not None and start is None and days is None
    if days is None and count is None and rate is None:
        days = DAYS
    arrivals = _arrivals(
        seed=seed if seed is not None else secrets.randbelow(2**31) if live else 0,
        users=users,
        start_ms=_instant(start or START),
        days=days,
        count=count,
        late=late,
        repeats=repeats,
        all_domains=all_domains,
    )
    if live:
        arrivals = synthetic.live(arrivals)
    asyncio.run(_run(settings, output, arrivals, rate, duration))


def _instant(text: str) -> int:
    try:
        return timestamps.parse(text)
    except ValueError as error:
        raise UsageError(f"--start holds {text!r}: {error}; allowed: {START}") from None


def _arrivals(
    *,
    seed: int,
    users: int,
    start_ms: int,
    days: float | None,
    count: int | None,
    late: float,
    repeats: float,
    all_domains: bool,
) -> Iterator[Arrival]:
    """Every event that was asked for; without a count, those that arrive within the span."""
    make = synthetic.everything if all_domains else synthetic.purchases
    endless = make(
        seed=seed,
        users=users,
        start_ms=start_ms,
        days=days,
        events=count,
        late=late,
        repeats=repeats,
    )
    if count is not None:
        return islice(endless, count)
    if days is None:
        return endless
    end_ms = start_ms + int(days * DAY_MS)
    return takewhile(lambda arrival: arrival.at_ms < end_ms, endless)


async def _run(
    settings: Settings,
    output: Path | None,
    arrivals: Iterator[Arrival],
    rate: float | None,
    duration: float | None,
) -> None:
    console = Console(stderr=True)
    sent, newest_ms = 0, 0
    async with feeding.feed(settings, output) as feed:
        with console.status("") as status:
            async for batch in feeding.paced(arrivals, rate, duration):
                await feed.send([arrival.item() for arrival in batch])
                sent += len(batch)
                newest_ms = batch[-1].at_ms
                status.update(f"{sent:,} events, up to {timestamps.iso_utc(newest_ms)}")
    console.print(
        f"{sent:,} events, up to {timestamps.iso_utc(newest_ms)}" if sent else "no events"
    )
