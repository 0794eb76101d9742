"""``tagstream tags``: definitions checked and shown, without a broker or any state."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from stream import data
from stream.domains import discover
from stream.errors import RulesError
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
    """Say whether a file of definitions can be used: every problem, a line each (exit 2)."""
    rules = _load(file)
    for warning in rules.warnings:
        typer.echo(f"warning: {warning}", err=True)
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
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for heading in ("tag", "title", "domain", "owner"):
        table.add_column(heading, overflow="fold")
    table.add_column("condition", overflow="fold")
    for tag in _load(file).tags:
        titles = "\n".join(tag.titles.values()) or tag.title
        table.add_row(tag.name, titles, tag.domain, tag.owner, _conditions(tag))
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
