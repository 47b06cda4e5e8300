"""The command lines of README and docs, as their programs read them."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOLES = ("RECIPE", "…", "[")
"""Of lines that are no command as they stand."""


def mains() -> dict[str, str]:
    """The module of each program in launch/, as its script names it."""
    found = {}
    for script in sorted((ROOT / "launch").glob("*.py")):
        if module := re.search(r"^from (\S+) import main$", script.read_text(), re.MULTILINE):
            found[f"launch/{script.name}"] = module[1]
    return found


def lines(pattern: str) -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(pattern, text, re.MULTILINE)
    return [line for line in found if not any(hole in line for hole in HOLES)]


COMMANDS = lines(r"(?:^|`| -- )(?:.*-- )?python (launch/[^`\n]+)")
OPTIONS = sorted({line for line in lines(r"`(--(?:heads|losses|run|mixing|identity)\.[^`\n]+)`")})


def parsed(monkeypatch, script: str, words: list[str]) -> list:
    module, configs = importlib.import_module(mains()[script]), []
    monkeypatch.setattr(module, "run", configs.append)
    assert module.main(words) == 0
    return configs


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_is_understood(line, monkeypatch):
    script, *words = shlex.split(line, comments=True)
    assert len(parsed(monkeypatch, script, words)) == 1


@pytest.mark.parametrize("option", OPTIONS)
def test_a_documented_option_is_understood(option, monkeypatch):
    words = ["vit_s", "--data.shards", "x", *shlex.split(option)]
    try:
        found = parsed(monkeypatch, "launch/finetune.py", words)
    except SystemExit:  # a field that is named without its value
        found = parsed(monkeypatch, "launch/finetune.py", [*words, "1"])
    assert len(found) == 1


def test_there_are_commands_and_options():
    assert {line.split()[0] for line in COMMANDS} >= set(mains()) - {"launch/demo.py"}
    assert len(OPTIONS) > 5
