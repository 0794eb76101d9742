"""``tagstream replay``: the same agents over files of events, in event time only."""

import asyncio
import dataclasses
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from stream import lines
from stream.commands.feeding import EmbeddedFeed, Output
from stream.commands.options import instant, takes
from stream.commands.service import running
from stream.domains import discover
from stream.errors import UsageError
from stream.lines import Router
from stream.settings import Settings, make_directory

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
    until_ms = None if until is None else instant(until)
    asked = zip(EMITTED, (changes, warnings, dead_letters), strict=True)
    outputs = {name: path for name, path in asked if path is not None}
    _check(events, list(outputs.values()))
    if state_dir is not None:
        make_directory(state_dir, "--state-dir")
    console = Console(stderr=True)
    began = time.monotonic()
    with ExitStack() as stack:
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
    settings: Settings, read: Iterator[bytes], until_ms: int | None, paths: dict[str, Path]
) -> Counter[str]:
    router = Router(discover())
    counts: Counter[str] = Counter()
    topics = {settings.topic(name): name for name in EMITTED}
    # Outputs are emptied only once nothing stands in the way of filling them.
    async with running(settings, web=False, follow=True) as service, AsyncExitStack() as stack:
        opened = {path: stack.enter_context(Output(path)) for path in set(paths.values())}
        outputs = {name: opened[path] for name, path in paths.items()}
        feed = EmbeddedFeed(settings, service.broker)
        emitted = service.broker.subscribe(topics)
        service.lead()

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


def _check(events: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raises UsageError where a file cannot be read, or would be overwritten that must not be."""
    inputs = [path for path in events if path != lines.STANDARD_INPUT]
    for path in inputs:
        if path.is_dir():
            raise UsageError(f"{path}: is a directory")
        path.stat()
        if not os.access(path, os.R_OK):
            raise UsageError(f"{path}: may not be read")
    taken = list(inputs)
    for path in outputs:
        if path.exists() and not path.is_file() or str(path) == "-":
            continue  # a pipe or a device is not overwritten, and may be shared
        for other in taken:
            if _same(path, other):
                raise UsageError(
                    f"{path} is an output, and {'an input' if other in inputs else 'another'}"
                    " too: each needs a file of its own"
                )
        taken.append(path)


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()
