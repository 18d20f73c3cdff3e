"""docs/commands.md is up to date and documents every command and option."""

import pytest
import typer
from paths import ROOT

from hftitan_operator.cli import reference
from hftitan_operator.cli.main import app

COMMANDS = typer.main.get_command(app).commands
DOCUMENT = ROOT / "docs" / "commands.md"


def test_document_is_up_to_date():
    assert DOCUMENT.read_text() == reference.markdown(), "run `make generate`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_has_help(name):
    section = DOCUMENT.read_text().split(f"### hftitan {name}\n")[1].split("\n### ")[0]
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name} {parameter.name}"
        for word in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
            assert word in section, f"{name} {word}"


def test_shell_completion_is_available():
    options = {word for parameter in typer.main.get_command(app).params for word in parameter.opts}
    assert {"--install-completion", "--show-completion"} <= options
