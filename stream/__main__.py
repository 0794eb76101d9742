"""``tagstream``, the command: also ``python -m stream``.

Every failure that has a name ends in one line on standard error, ``tagstream: …``, and its
exit code: 2 for bad usage and bad settings, 1 for the rest; Ctrl-C ends quietly with 130, and
so does SIGTERM with 143.
Anything else is a fault of the program and shows its traceback.
"""

import logging
import signal
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stream.commands import (
    audience,
    churn,
    dead_letters,
    demo,
    erase,
    generate,
    load,
    replay,
    tags,
    topics,
    user,
    worker,
)
from stream.errors import TagstreamError
from stream.settings import unknown_variables

REMIND_S = 20  # after SIGTERM: longer than anything takes to end


class Commands(TyperGroup):
    """The commands, with the way that all of them fail."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except TagstreamError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.filename is None:
                raise
            _complain(f"{error.filename}: {error.strerror}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    name="tagstream",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"tagstream {version('tagstream')}")
        raise typer.Exit


@app.callback()
def tagstream(
    *,
    shown: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Live user tags from a stream of events: exact, exactly once, explainable.

    Start with [bold]tagstream demo[/bold]: real orders, nothing else to install. Every setting
    is an environment variable and an option; with no broker set, an embedded one is used.
    """
    for line in unknown_variables():
        _complain(f"warning: {line}")
    # What clients of the broker log is not for people, unless a worker says so.
    logging.getLogger().addHandler(logging.NullHandler())


app.command(rich_help_panel="Service")(demo.demo)
app.command(rich_help_panel="Service")(worker.worker)
app.command(rich_help_panel="Service")(replay.replay)
app.command(rich_help_panel="Data")(generate.generate)
app.command(rich_help_panel="Data")(load.load)
app.command(rich_help_panel="Data")(topics.topics)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel="Data")
app.command(rich_help_panel="Definitions and users")(user.user)
app.command(rich_help_panel="Definitions and users")(audience.audience)
app.command(rich_help_panel="Definitions and users")(erase.erase)
app.add_typer(churn.app, name="churn", rich_help_panel="Definitions and users")
app.add_typer(tags.app, name="tags", rich_help_panel="Definitions and users")


def _complain(text: str) -> None:
    for line in text.splitlines():
        typer.echo(f"tagstream: {line}", err=True)


def main() -> None:
    """The entry point of the command ``tagstream``."""
    terminated = False

    def end(*_: object) -> None:
        nonlocal terminated
        terminated = True
        # A shell that starts a job in the background has it ignore Ctrl-C.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # It falls wherever the program is, and something there may swallow it.
        signal.alarm(REMIND_S)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    try:
        app()
    except SystemExit as stopped:
        raise SystemExit(143 if terminated and stopped.code == 130 else stopped.code) from None


if __name__ == "__main__":
    main()
