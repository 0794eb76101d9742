"""``tagstream churn``: predictions of churn made to fit one's own customers."""

import importlib
import math
import time
from array import array
from collections.abc import Iterable, Mapping, MutableSequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.progress import Progress

from stream import lines
from stream.commands.options import instant, takes
from stream.describe import local_iso
from stream.document import DURATION_MS
from stream.domains import discover
from stream.errors import UsageError
from stream.events import Decoder, Rejected
from stream.lines import Router
from stream.rules import PARAMETERS, PROBABILITY, Churn, load
from stream.settings import Settings
from tables.events import Erase
from tables.events.purchases import Order
from tables.rhythm import GENERIC, Parameters

DOMAIN: Final = "purchases"
USUAL: Final = Churn(
    mode="silence", after_ms=30 * DURATION_MS["d"], lead_ms=3 * DURATION_MS["d"], control=0.1
)
"""What is proposed where the definitions in force warn of nothing."""

LONG: Final = 0.95
"""A user is not called lost for a gap that is not among the longest 5 %."""

HEADING: Final = "# Fitted by `tagstream churn fit`"

Instants = MutableSequence[int]  # an array of 8 bytes each

app = typer.Typer(no_args_is_help=True, help="Fit predictions of churn to your own orders.")


@app.command()
@takes("tags", "user_id_pattern")
def fit(
    settings: Settings,
    events: lines.Files,
    until: Annotated[
        str | None,
        typer.Option(
            help="Learn from what was known at this instant, RFC 3339 or epoch milliseconds;"
            " unset: at the newest order.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(help="Write the churn block here; - is standard output.", metavar="FILE"),
    ] = lines.STANDARD_INPUT,
) -> None:
    """Find the parameters of predicted churn that make the orders in these files likeliest.

    They come out as a churn block for tags.yaml, all else in it as in the definitions in force.
    Files are read as 'replay' reads them; all but the orders (and erasures) is passed over.

    [dim]tagstream churn fit events.jsonl.gz --until 2025-07-01T00:00:00+08:00[/dim]
    """
    fitting = _fitting()
    until_ms = None if until is None else instant(until)
    rules = load(settings.tags, discover())
    _check(output)
    console = Console(stderr=True)
    began = time.monotonic()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=lines.size(events))
        read = (
            line
            for path in events
            for line in lines.read(path, lambda many: progress.advance(task, many))
        )
        orders, unusable = _orders(read, settings)
        if until_ms is None:
            until_ms = max((history[-1] for history in orders.values()), default=0)
        found = fitting.rows(orders.values(), until_ms)
        task = progress.add_task("fitting", total=None)
        try:
            best = fitting.fit(found, lambda: progress.advance(task))
        except fitting.TooLittleError:
            raise UsageError(
                "nobody has ordered twice, a day or more apart"
                + (f", before {until}" if until else "")
                + ": there is no gap to learn from"
            ) from None
    proposed = rules.churn or USUAL
    users = sum(history[0] <= until_ms for history in orders.values())
    learned = (
        f"from {len(found):,} orders of {users:,} users, until"
        f" {local_iso(until_ms, ZoneInfo(rules.timezone))};"
        f" log-likelihood {best.log_likelihood:.1f}"
    )
    _write(output, f"{HEADING} {learned}.\n{_block(proposed, best.parameters)}")
    generic = fitting.log_likelihood(found, GENERIC)
    closed = int(found.closed.sum())
    console.print(
        f"learned {learned} (generic parameters: {generic:.1f}); {closed:,} gaps closed,"
        f" {len(found) - closed:,} open; {unusable:,} unusable lines;"
        f" {time.monotonic() - began:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    long_days = fitting.quantile(found, LONG)
    if proposed.after_ms < long_days * DURATION_MS["d"]:
        console.print(
            f"warning: 'after' is {_duration(proposed.after_ms)}, but one gap in"
            f" {round(1 / (1 - LONG))} that ended with an order was longer than"
            f" {long_days:.0f} days: many of those warned of will only be slow. Set 'after' to"
            f" {math.ceil(long_days)}d or more where churn is to mean lost",
            highlight=False,
            soft_wrap=True,
        )


def _fitting() -> ModuleType:
    """What needs libraries that nothing else does."""
    try:
        return importlib.import_module("tables.fitting")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "scipy"):
            raise
        raise UsageError(
            "'churn fit' needs numpy and scipy: pip install 'tagstream[fit]'"
        ) from error


def _check(output: Path) -> None:
    """Raises UsageError where the output would overwrite what did not come from here."""
    if output.is_file():
        with output.open(encoding="utf-8", errors="replace") as file:
            if not file.readline().startswith(HEADING):
                raise UsageError(
                    f"--output: {output} exists, and is not from 'churn fit': name another file,"
                    " and copy the block from it"
                )


def _orders(read: Iterable[bytes], settings: Settings) -> tuple[dict[str, Instants], int]:
    """The instants of every user's orders, ascending; and how many lines were no events."""
    domains = discover()
    router, decoder = Router(domains), Decoder(domains[DOMAIN].events, settings.user_id_pattern)
    orders: dict[str, Instants] = {}
    erased: dict[str, int] = {}
    unusable = 0
    for batch in lines.batches(read):
        # What is no event at all goes to whatever domain comes first, and has no key.
        items = [item for item in router.items(batch) if item.domain == DOMAIN or not item.key]
        for event in decoder.decode_chunk(items):
            if isinstance(event, Order):
                history = orders.get(event.user_id)
                if history is None:
                    orders[event.user_id] = array("q", (event.ts,))
                else:
                    history.append(event.ts)
            elif isinstance(event, Erase):
                erased[event.user_id] = max(event.ts, erased.get(event.user_id, event.ts))
            elif isinstance(event, Rejected):
                unusable += 1
    return dict(_known(orders, erased)), unusable


def _known(
    orders: Mapping[str, Instants], erased: Mapping[str, int]
) -> Iterable[tuple[str, Instants]]:
    """What erasures left, in order of time; users in an order that no file decides.

    The last bits of a sum do depend on it, and with them where the search for a summit ends.
    """
    for user_id, history in sorted(orders.items()):
        since_ms = erased.get(user_id, -1)
        left = array("q", sorted(ts_ms for ts_ms in history if ts_ms > since_ms))
        if left:
            yield user_id, left


def _block(churn: Churn, parameters: Parameters) -> str:
    """The ``churn`` of a file of definitions."""
    probability = churn.probability if churn.mode == "predicted" else PROBABILITY
    values = ", ".join(f"{name}: {getattr(parameters, name):.6g}" for name in PARAMETERS)
    return (
        "churn:\n"
        "  mode: predicted\n"
        f"  after: {_duration(churn.after_ms)}\n"
        f"  lead: {_duration(churn.lead_ms)}\n"
        f"  probability: {probability:g}\n"
        f"  control: {churn.control:g}\n"
        f"  parameters: {{{values}}}\n"
    )


def _duration(duration_ms: int) -> str:
    """As a file of definitions says it."""
    unit_ms, unit = max((ms, unit) for unit, ms in DURATION_MS.items() if duration_ms % ms == 0)
    return f"{duration_ms // unit_ms}{unit}"


def _write(output: Path, text: str) -> None:
    if output == lines.STANDARD_INPUT:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
