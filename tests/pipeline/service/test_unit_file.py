"""The example of a systemd unit: its command line and its preset are what the program takes."""

import configparser
import shlex
from pathlib import Path

import typer

from pipeline.cli import app
from pipeline.config import load_config
from tests.support import REPOSITORY

UNIT = REPOSITORY / "configs" / "xpose-stream.service"


def command_line() -> list[str]:
    """Words of ExecStart, its continued lines joined."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text().replace("\\\n", " "))
    return shlex.split(parser["Service"]["ExecStart"])


def test_command_line_of_the_unit_has_known_options_and_a_valid_configuration() -> None:
    program, command, *arguments = command_line()
    assert (Path(program).name, command) == ("xpose-stream", "run")
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    with run.make_context("run", arguments) as context:
        given = context.params
    flags = {
        "--publish": ("publish.endpoint", given["publish"]),
        "--control": ("control.endpoint", given["control"]),
        "--monitor": ("monitor.address", given["monitor"]),
    }
    config = load_config(given["config"], flags=flags)
    assert config.is_steered
    assert config.flow.age_budget_s == 0.5
    assert given["source"] == ["${CAMERA}"]
