"""docs/commands.md is what the commands are, and names every one of them with every option."""

import pytest
import typer
from paths import ROOT

from hftitan_operator.cli import reference
from hftitan_operator.cli.main import app

COMMANDS = typer.main.get_command(app).commands
DOCUMENT = ROOT / "docs" / "commands.md"


def test_the_document_is_the_commands():
    assert DOCUMENT.read_text() == reference.markdown(), "run `make generate`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_has_words(name):
    section = DOCUMENT.read_text().split(f"### hftitan {name}\n")[1].split("\n### ")[0]
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name} {parameter.name}"
        for word in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
            assert word in section, f"{name} {word}"


def test_completion_is_on():
    options = {word for parameter in typer.main.get_command(app).params for word in parameter.opts}
    assert {"--install-completion", "--show-completion"} <= options
