"""``tagstream demo``: the service on real orders, with nothing else installed.

The orders of 23,570 customers of a real shop (CDNOW, 1997 and 1998), moved to the eighteen
months up to yesterday, and a made-up shop beside them, go into an embedded broker; the
service works them off as fast as it can. Then the made-up shop goes on live, on the wall
clock.
"""

import asyncio
import contextlib
import csv
import dataclasses
import gzip
import heapq
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator
from datetime import date, datetime, timedelta
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import orjson
import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stream import data, garbage
from stream.app import Tagstream
from stream.broker import LocalBroker
from stream.commands import synthetic
from stream.commands.feeding import EmbeddedFeed, paced
from stream.commands.options import takes
from stream.commands.service import running
from stream.commands.synthetic import DAY_MS, GOLDEN, Arrival
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings

SHOP_USERS, SHOP_DAYS = 500, 120
LAST_DAY = date(1998, 6, 30)  # of the real orders
YUAN_PER_DOLLAR = 7
SCREEN_S, REPORT_S = 0.25, 2.0  # how often a terminal and a file are told
BATCH = 5_000
LATEST = 6


@takes("tags", "memory_mb", "web_host", "web_port")
def demo(
    settings: Settings,
    rate: Annotated[
        float,
        typer.Option(
            min=0.1, max=10_000, metavar="NUMBER", help="Live events a second, after the history."
        ),
    ] = 20.0,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="Stop so long after the history; unset: at Ctrl-C."
        ),
    ] = None,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample",
            metavar="",
            help="Take the usual tenth of the real customers, and a smaller shop.",
        ),
    ] = False,
) -> None:
    """See it work: real orders replayed fast, then live ones, with HTTP and metrics up.

    Everything happens in a temporary directory and is gone afterwards.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="tagstream-demo-") as folder:
        settings = dataclasses.replace(
            settings, broker=None, data_dir=Path(folder), time="wall", topic_prefix=""
        )
        garbage.relax()
        orders = cdnow(_zone(settings), sample=sample)
        users = SHOP_USERS // 5 if sample else SHOP_USERS
        asyncio.run(_demo(settings, console, orders, users, rate, seconds))


def _zone(settings: Settings) -> ZoneInfo:
    return ZoneInfo(load(settings.tags, discover()).timezone)


async def _demo(
    settings: Settings,
    console: Console,
    orders: list[Arrival],
    users: int,
    rate: float,
    seconds: float | None,
) -> None:
    latest = orders[-1].event["user_id"]
    now_ms = time.time_ns() // 1_000_000
    shop = synthetic.everything(
        seed=1, users=users, start_ms=now_ms - SHOP_DAYS * DAY_MS, days=SHOP_DAYS
    )
    past = takewhile(lambda arrival: arrival.at_ms < now_ms, shop)
    history = heapq.merge(orders, past, key=lambda arrival: arrival.at_ms)
    with LocalBroker.at(settings.faust_broker) as broker:
        # All of it before the service starts: while records wait, time is the events'.
        for name in discover():
            broker.create_topic(name, settings.partitions)
        feed = EmbeddedFeed(settings, broker)
        count = 0
        while batch := list(islice(history, BATCH)):
            await feed.send([arrival.item() for arrival in batch])
            count += len(batch)
        began = time.monotonic()
        async with running(settings, web=True) as service:
            screen = Screen(service, count)
            console.print(_welcome(count, service.web.port, latest), highlight=False)
            # Closed before the next begins: a terminal has room for one live screen.
            async with contextlib.aclosing(_ticks(console, screen)) as ticks:
                async for _ in ticks:
                    if screen.applied >= count:
                        break
            console.print(_through(count, time.monotonic() - began), highlight=False)
            await _live(console, screen, feed, synthetic.live(shop), rate, seconds)


async def _live(
    console: Console,
    screen: "Screen",
    feed: EmbeddedFeed,
    arrivals: Iterator[Arrival],
    rate: float,
    seconds: float | None,
) -> None:
    async def go_on() -> None:
        async for batch in paced(arrivals, rate, seconds):
            await feed.send([arrival.item() for arrival in batch])
            screen.live += len(batch)

    feeding = asyncio.create_task(go_on())
    try:
        async with contextlib.aclosing(_ticks(console, screen)) as ticks:
            async for _ in ticks:
                if feeding.done():
                    await feeding
                    break
    finally:
        feeding.cancel()


async def _ticks(console: Console, screen: "Screen") -> AsyncGenerator[None, None]:
    """Show how things stand: redrawn on a terminal, else a line now and then."""
    if console.is_terminal:
        with Live(screen.render(), console=console, auto_refresh=False, transient=True) as live:
            while True:
                screen.look()
                live.update(screen.render(), refresh=True)
                yield
                await asyncio.sleep(SCREEN_S)
    while True:
        screen.look()
        console.print(screen.line(), highlight=False, soft_wrap=True)
        yield
        await asyncio.sleep(REPORT_S)


class Screen:
    """What the service has done so far, for people to look at."""

    def __init__(self, service: Tagstream, history: int) -> None:
        self.applied = 0
        self.live = 0
        self._service = service
        self._history = history
        self._emitted = service.broker.subscribe(["tag-changes", "churn-warnings"], since="start")
        self._counts: Counter[str] = Counter()
        self._latest: dict[str, deque[dict[str, Any]]] = {
            name: deque(maxlen=LATEST) for name in ("tag-changes", "churn-warnings")
        }
        self._rate = 0.0
        self._looked = time.monotonic()

    def look(self) -> None:
        """Take in what happened since the last look.

        Raises:
            Exception: what stopped the service, if something did.
        """
        service = self._service
        if service.error is not None:
            raise service.error
        for topic, _, records in self._emitted.poll():
            self._counts[topic] += len(records)
            self._latest[topic].extend(
                orjson.loads(record.value or b"null") for record in records[-LATEST:]
            )
        applied = sum(
            feed.place.offset for item in service.partitions for feed in item.feeds.values()
        )
        now = time.monotonic()
        self._rate = (applied - self.applied) / max(now - self._looked, SCREEN_S)
        self.applied, self._looked = applied, now

    def line(self) -> str:
        """All of it in one line."""
        return (
            f"{self.applied:,} of {self._history + self.live:,} events"
            f" · {self._rate:,.0f} a second"
            f" · {self._counts['tag-changes']:,} tag changes"
            f" · {self._counts['churn-warnings']:,} churn warnings"
        )

    def render(self) -> Group:
        """All of it as a screen."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(self._population(), Group(self._changes(), self._churn()))
        return Group(Text(self.line(), "bold"), grid)

    def _population(self) -> Table:
        users: Counter[tuple[str, str]] = Counter()
        for partition in self._service.partitions:
            users.update(partition.population)
        table = Table("tag", "value", box=box.SIMPLE_HEAD)
        table.add_column("users", justify="right")
        for (tag, value), number in sorted(users.items()):
            if number and value != "false":
                table.add_row(tag, _shown(value), f"{number:,}")
        return table

    def _changes(self) -> Table:
        table = Table("changes", "tag", "from", "to", "cause", box=box.SIMPLE_HEAD)
        for change in self._latest["tag-changes"]:
            table.add_row(
                _user(change),
                change["tag"],
                _shown(change["previous"]),
                _shown(change["value"]),
                change["cause"]["kind"],
            )
        return table

    def _churn(self) -> Table:
        table = Table("warnings", "status", "at", "last order", box=box.SIMPLE_HEAD)
        for warning in self._latest["churn-warnings"]:
            last = warning["evidence"]["last_order_at"]
            table.add_row(_user(warning), warning["status"], warning["at"][:10], last[:10])
        return table


def _user(record: dict[str, Any]) -> str:
    user_id: str = record["user_id"]
    return user_id


def _shown(value: object) -> str:
    named = {True: "yes", False: "no", None: "–", "true": "yes", "null": "–"}
    return named.get(value, str(value)) if isinstance(value, str | bool | None) else str(value)


def _welcome(count: int, port: int, user_id: str) -> str:
    return (
        f"{count:,} events of eighteen months wait in an embedded broker.\n"
        f"HTTP is up. Open the page: http://127.0.0.1:{port}/\n"
        f"One user: http://127.0.0.1:{port}/users/{user_id} · also /tags · /metrics"
    )


def _through(count: int, seconds: float) -> str:
    return f"{count:,} events of history in {seconds:.1f} s. Live events from now on."


def cdnow(zone: ZoneInfo, *, sample: bool) -> list[Arrival]:
    """The real orders, or a tenth of them, in order of time, moved to end yesterday.

    Days are the data's; times of day, which they have not, spread over shop hours. The first
    order of a customer is preceded by a registration.
    """
    with gzip.open(data.CDNOW, "rt", encoding="ascii") as file:
        rows = [
            (row["date"], row["user"], float(row["value"]))
            for row in csv.DictReader(file)
            if not sample or row["sample"] == "1"
        ]
    rows.sort()
    shift = datetime.now(zone).date() - timedelta(days=1) - LAST_DAY
    arrivals: list[Arrival] = []
    known: set[str] = set()
    for number, (day, user, dollars) in enumerate(rows):
        minutes = int(number * GOLDEN % 1 * 14 * 60)
        opening = datetime.combine(date.fromisoformat(day) + shift, datetime.min.time(), zone)
        ts_ms = int((opening.timestamp() + (8 * 60 + minutes) * 60) * 1000)
        shared = {"user_id": f"cdnow-{int(user):05d}"}
        if user not in known:
            known.add(user)
            registered = {"event_id": f"r{number}", **shared, "type": "registered"}
            arrivals.append(_arrival(ts_ms - 60_000, registered))
        amount = round(dollars * YUAN_PER_DOLLAR, 2)
        order = {"event_id": f"o{number}", **shared, "type": "order", "amount": amount}
        arrivals.append(_arrival(ts_ms, order))
    arrivals.sort(key=lambda arrival: arrival.at_ms)
    return arrivals


def _arrival(ts_ms: int, event: dict[str, Any]) -> Arrival:
    return Arrival(ts_ms, "purchases", {**event, "ts": ts_ms})
