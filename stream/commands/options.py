"""Command options made from the declarations in ``stream/settings.py``.

A command says which settings it takes and receives them as one argument ``settings``; name,
help, default and check of each option come from the setting itself.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

from stream import data, timestamps
from stream.errors import UsageError
from stream.settings import Settings, option_of, variable_of

Result = TypeVar("Result")

_DECLARED = {declared.name: declared for declared in fields(Settings)}

#: Settings by what they are about, as ``@takes(*BROKER, "tags")`` uses them.
BROKER, STATE, TAGS, WORKER = (
    tuple(name for name, declared in _DECLARED.items() if declared.metadata["panel"] in panels)
    for panels in (("Broker", "Broker security"), ("State",), ("Tags",), ("Worker",))
)


def takes(*names: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command the options of the settings ``names``, and it one ``settings``."""
    options = [_option(name) for name in names if not _DECLARED[name].metadata["secret"]]

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [item for item in own if item.name != "settings"] + options

        @functools.wraps(command)
        def run(**values: Any) -> Result:
            given = {option.name: values.pop(option.name) for option in options}
            return command(settings=Settings.load(given), **values)

        # What typer reads a command's options from.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def instant(text: str) -> int:
    """What ``--until`` holds, in epoch milliseconds.

    Raises:
        UsageError: it holds no time.
    """
    try:
        return timestamps.check(int(text)) if text.isdecimal() else timestamps.parse(text)
    except ValueError as error:
        raise UsageError(
            f"--until holds {text!r}: {error}; allowed: a time as 2025-07-01T00:00:00+08:00, or"
            " epoch milliseconds"
        ) from None


def _option(name: str) -> inspect.Parameter:
    metadata = _DECLARED[name].metadata
    default = _DECLARED[name].default
    note = variable_of(name)
    if default not in (None, "", data.TAGS):
        note += f", default {default}"
    option = typer.Option(
        option_of(name),
        help=f"{metadata['doc']} [dim]{note}[/dim]",
        metavar=metadata["kind"].metavar,
        rich_help_panel=metadata["panel"],
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )
