"""``tagstream tags``: definitions checked and shown, without a broker or any state."""

from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import orjson
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stream import data
from stream.comparison import Comparison, Move, compare, stores_in
from stream.definitions import objections
from stream.describe import local_iso
from stream.domains import discover
from stream.errors import RulesError
from stream.metrics import value_label
from stream.rules import PROFILE, Definition, Rules, load

app = typer.Typer(no_args_is_help=True, help="Check and show the definitions of tags.")

CheckedFile = Annotated[Path, typer.Argument(metavar="FILE", help="The definitions to check.")]
ListedFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="The definitions to show.",
        envvar="TAGSTREAM_TAGS",
        show_default="the packaged ones",
    ),
]


@app.command()
def check(file: CheckedFile) -> None:
    """Say whether a file of definitions can be used: every problem, a line each (exit 2).

    Warnings are of what is probably not meant, notes of what whoever governs tags will miss.
    """
    rules = _load(file)
    for kind, lines in (("warning", rules.warnings), ("note", rules.notes)):
        for line in lines:
            typer.echo(f"{kind}: {line}", err=True)
    counts = {name: len(domain.tags) for name, domain in rules.domains.items()}
    if rules.profile.tags:
        counts[PROFILE] = len(rules.profile.tags)
    of_domains = ", ".join(f"{name} {count}" for name, count in counts.items())
    typer.echo(
        f"{file}: {_plural(len(rules.tags), 'tag')} ({of_domains}), version {rules.version}, "
        f"{_plural(len(rules.warnings), 'warning')}"
    )


@app.command(name="list")
def list_tags(
    file: ListedFile = data.TAGS,
    templates: Annotated[
        bool,
        typer.Option(
            "--templates", metavar="", help="Show what there is to start from, besides the shipped."
        ),
    ] = False,
) -> None:
    """Show a file of definitions as a table.

    [dim]tagstream tags list --templates[/dim]
    """
    if templates:
        _list_templates()
        return
    rules = _load(file)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_lines=True,
        title=f"version {rules.version}",
        title_justify="left",
    )
    for heading in ("tag", "title", "domain", "owner", "version"):
        table.add_column(heading, overflow="fold")
    table.add_column("condition", overflow="fold")
    for tag in rules.tags:
        titles = "\n".join(tag.titles.values()) or tag.title
        version = str(tag.version)
        table.add_row(tag.name, titles, tag.domain, tag.owner, version, _conditions(tag))
    # Definitions are text, not markup: a list in a condition is no style.
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a file or a pipe has no width to keep to
        unbounded = console.options.update(max_width=1_000_000)
        console.width = console.measure(table, options=unbounded).maximum
    console.print(table)


def _list_templates() -> None:
    """Each template: its file, to copy and change, and its tags."""
    for name, path in {"shipped": data.TAGS, **data.TEMPLATES}.items():
        rules = load(path, discover())
        typer.echo(f"{name}: {path}")
        for tag in rules.tags:
            typer.echo(f"  {tag.name:24} {' / '.join(tag.titles.values())}")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The definitions in force.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Those that are to follow them.")],
    state_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Whose users: the data directory of a stopped worker, or what replay --state-dir"
            " kept. It is only read.",
        ),
    ],
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show so many users of each change, and why.")
    ] = 3,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="As one JSON object; always so where no terminal reads."
        ),
    ] = False,
) -> None:
    """Say how many users would enter and leave each tag and value under other definitions.

    [dim]tagstream tags diff tags.yaml tags.new.yaml --state-dir data[/dim]
    """
    before, after = _load(old), _load(new)
    for reason in objections(before, after):
        typer.echo(f"warning: {new}: would be refused: {reason}", err=True)
    paths = stores_in(state_dir)
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("comparing", total=None)
        found = compare(
            paths,
            before,
            after,
            discover(),
            sample=sample,
            progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
    console = Console(markup=False, highlight=False, emoji=False)
    if as_json or not console.is_terminal:
        described = _described(found, before, after)
        typer.echo(orjson.dumps(described, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table("tag", "value", "users", "enter", "leave", "then", box=box.SIMPLE_HEAD)
    for (tag, value), numbers in _rows(found, before, after).items():
        table.add_row(tag, value, *(f"{number:,}" for number in numbers))
    console.print(table)
    for (held, way), moves in sorted(found.samples.items()):
        for move in moves:
            read = ", ".join(f"{name} {value}" for name, value in move.features.items())
            console.print(f"{held[0]}: {way} {held[1]}: {move.user_id} ({read or 'not defined'})")
    console.print(f"{found.users:,} users, as of {_as_of(found, before)}")


def _rows(found: Comparison, *rules: Rules) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """Users now, who enter, who leave, and users then, of every tag and value."""
    defined = dict.fromkeys(
        (tag.name, value_label(value))
        for each in rules
        for tag in each.tags
        for value in tag.values[1:]
    )
    return {
        held: (found.before[held], found.enter[held], found.leave[held], found.after[held])
        for held in defined
    }


def _as_of(found: Comparison, rules: Rules) -> str:
    zone = ZoneInfo(rules.timezone)
    return ", ".join(
        f"{name} {local_iso(ms, zone)}" for name, ms in sorted(found.reached_ms.items())
    )


def _described(found: Comparison, before: Rules, after: Rules) -> dict[str, Any]:
    zone = ZoneInfo(before.timezone)

    def sample(moves: list[Move]) -> list[dict[str, Any]]:
        return [
            {
                "user_id": move.user_id,
                "before": move.before,
                "after": move.after,
                "features": move.features,
            }
            for move in moves
        ]

    return {
        "users": found.users,
        "as_of": {name: local_iso(ms, zone) for name, ms in sorted(found.reached_ms.items())},
        "tags": [
            {
                "tag": held[0],
                "value": held[1],
                "users": users,
                "enter": enter,
                "leave": leave,
                "then": then,
                "entering": sample(found.samples.get((held, "enter"), [])),
                "leaving": sample(found.samples.get((held, "leave"), [])),
            }
            for held, (users, enter, leave, then) in _rows(found, before, after).items()
        ],
    }


def _load(file: Path) -> Rules:
    try:
        return load(file, discover())
    except RulesError as error:
        for problem in error.problems:
            typer.echo(problem, err=True)
        raise typer.Exit(error.exit_code) from error


def _conditions(tag: Definition) -> str:
    if tag.kind == "when":
        return "\n".join(condition.text for _, condition in tag.cases)
    return "\n".join(f"{value}: {condition.text}" for value, condition in tag.cases)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
