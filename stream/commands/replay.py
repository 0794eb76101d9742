"""``tagstream replay``: the same agents over files of events, in event time only."""

import asyncio
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from stream import lines, timestamps
from stream.commands.feeding import EmbeddedFeed, Output, output
from stream.commands.options import takes
from stream.commands.service import running
from stream.domains import discover
from stream.errors import UsageError
from stream.lines import Router
from stream.settings import Settings

AHEAD = 50_000  # lines appended before all of them have to be applied

EMITTED = ("tag-changes", "churn-warnings", "dead-letters")
TO_FILE = {"metavar": "FILE", "show_default": False}


@takes("tags", "partitions", "partitioner", "user_id_pattern", "memory_mb")
def replay(
    settings: Settings,
    events: lines.Files,
    until: Annotated[
        str | None,
        typer.Option(
            help="After the last line, let time pass to this instant: RFC 3339, or epoch"
            " milliseconds.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        Path | None, typer.Option(help="Write tag changes to this file.", **TO_FILE)
    ] = None,
    warnings: Annotated[
        Path | None, typer.Option(help="Write churn warnings to this file.", **TO_FILE)
    ] = None,
    dead_letters: Annotated[
        Path | None, typer.Option(help="Write unusable events to this file.", **TO_FILE)
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Keep state here, and go on from what is there: a data directory, as"
            " 'worker --data-dir' and 'user --data-dir' use it. Unset: none is kept.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run files of events through the same agents, in event time, with nothing else installed.

    Lines are taken in their order, file after file; the type of each decides its domain.
    Outputs are JSON Lines, .gz compresses, and - is standard output (or input).

    [dim]tagstream replay events.jsonl.gz --until 2025-07-01T00:00:00+08:00 --changes -[/dim]
    """
    until_ms = None if until is None else _instant(until)
    asked = dict(zip(EMITTED, (changes, warnings, dead_letters), strict=True))
    console = Console(stderr=True)
    began = time.monotonic()
    with ExitStack() as stack:
        opened: dict[Path, Output] = {}
        outputs: dict[str, Output] = {}
        for name, path in asked.items():
            if path is not None:
                file = opened.get(path) or stack.enter_context(output(path))
                outputs[name] = opened[path] = file
        data_dir = state_dir or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tagstream-replay-"))
        )
        settings = dataclasses.replace(settings, broker=None, time="events", data_dir=data_dir)
        progress = stack.enter_context(Progress(console=console, disable=not console.is_terminal))
        task = progress.add_task("replaying", total=lines.size(events))
        read = (
            line
            for path in events
            for line in lines.read(path, lambda many: progress.advance(task, many))
        )
        counts = asyncio.run(_replay(settings, read, until_ms, outputs))
    seconds = time.monotonic() - began
    console.print(
        f"{counts['lines']:,} events: {counts['tag-changes']:,} tag changes,"
        f" {counts['churn-warnings']:,} churn warnings, {counts['dead-letters']:,} dead letters;"
        f" {seconds:.1f} s",
        highlight=False,
    )


async def _replay(
    settings: Settings, read: Iterator[bytes], until_ms: int | None, outputs: dict[str, Output]
) -> Counter[str]:
    router = Router(discover())
    counts: Counter[str] = Counter()
    topics = {settings.topic(name): name for name in EMITTED}
    async with running(settings, web=False) as service:
        feed = EmbeddedFeed(settings, service.broker)
        emitted = service.broker.subscribe(topics)

        async def settle() -> None:
            await service.drained()
            for topic, _, records in emitted.poll():
                name = topics[topic]
                counts[name] += len(records)
                if name in outputs:
                    outputs[name].write(b"".join(record.value + b"\n" for record in records))

        ahead = 0
        for batch in lines.batches(read):
            await feed.send(list(router.items(batch)))
            counts["lines"] += len(batch)
            ahead += len(batch)
            if ahead >= AHEAD:
                await settle()
                ahead = 0
            await asyncio.sleep(0)  # let the agents work on what is there
        await settle()
        if until_ms is not None:
            await service.advance(until_ms)
            await settle()
    return counts


def _instant(text: str) -> int:
    try:
        return timestamps.check(int(text)) if text.isdecimal() else timestamps.parse(text)
    except ValueError as error:
        raise UsageError(
            f"--until holds {text!r}: {error}; allowed: a time as 2025-07-01T00:00:00+08:00, or"
            " epoch milliseconds"
        ) from None
