"""Options and error reporting that several commands share. Imports typer only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hftitan_operator.cli.job_file import JobFile

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

JobArgument = Annotated[str, typer.Argument(metavar="FILE", help="A job as YAML or JSON; - reads standard input.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, e.g. spec.training.steps=5. May be repeated."),
]

DefaultsOption = Annotated[
    str | None,
    typer.Option("--job-defaults", metavar="FILE", help="YAML file with defaults for fields of spec.pod."),
]


class TextOrJson(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class YamlOrJson(StrEnum):
    YAML = "yaml"
    JSON = "json"


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Print bad input to stderr, one line per problem, and exit with code 2."""
    from hftitan_operator.cli.job_file import BadInput

    try:
        yield
    except BadInput as bad:
        for line in bad.lines:
            typer.echo(line, err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None


def print_notes(file: JobFile) -> None:
    for note in file.notes:
        typer.echo(f"{file.source}: note: {note}", err=True)
