import click
import pytest
import typer

from d2nwg_init.cli import app
from tests.cli.conftest import run, succeed


def commands(command, path=()):
    """Every command, by its words."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield path
    for name, child in inner.items():
        yield from commands(child, (*path, name))


COMMANDS = sorted(commands(typer.main.get_command(app)))


def test_commands_are_the_documented_ones():
    documented = {("zoo", "base"), ("zoo", "build"), ("generator", "train"), ("init",), ("demo",), ("bench", "zoo")}
    documented |= {("zoo", name) for name in ("verify", "merge", "export", "show", "stats")}
    documented |= {("bundle", name) for name in ("list", "show", "pull", "push", "verify", "card", "diff")}
    assert documented <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_that_very_command(words):
    text = " ".join(succeed(*words, "--help").split())
    assert f"Example: d2nwg-init {' '.join(words)}" in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_explained(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("words", [(), ("zoo",), ("generator",), ("bundle",), ("bench",)], ids=" ".join)
def test_group_without_a_command_shows_its_commands(words):
    text = run(*words).output
    assert "Usage" in text
    inner = {path[len(words)] for path in COMMANDS if path[: len(words)] == words}
    assert all(name in text for name in inner)


@pytest.mark.parametrize("arguments", [("inti",), ("init",), ("demo", "--seeds", "0"), ("demo", "--colour", "red")])
def test_wrong_usage_is_exit_code_two(arguments):
    result = run(*arguments)
    assert result.exit_code == click.UsageError.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("words", [("init",), ("zoo", "base"), ("zoo", "build")], ids=" ".join)
def test_models_of_both_libraries_are_told(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    (model,) = (p for p in command.params if p.name == "model")
    assert model.help == "timm model name, or torchvision:NAME."
