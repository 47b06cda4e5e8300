from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from launch.cluster import ClusterConfig
from launch.config import ConfigError, absolute_paths, from_dict, parse, to_dict
from launch.engine import RunConfig


@dataclass(frozen=True)
class Views:
    temporal: int = 1
    spatial: int = 1


@dataclass(frozen=True)
class Data:
    shards: tuple[str, ...] = ("a", "b")
    """Folders of shards."""
    stride: int | None = 4
    """Frames from one to the next."""
    size: tuple[int, int] = (2, 3)
    flip: bool = True
    views: Views = Views()

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride {self.stride} must be at least 1")


@dataclass(frozen=True)
class App:
    name: str = "x"
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"
    data: Data = Data()
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=3))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def changed(path: str, value: object) -> dict:
    data = to_dict(App())
    *sections, key = path.split(".")
    section = data
    for name in sections:
        section = section[name]
    section[key] = value
    return data


def test_json_and_back_gives_the_same_config():
    cfg = App(data=Data(shards=(), stride=None), rate=2.0, run=RunConfig(epochs=1.5))
    assert from_dict(App, json.loads(json.dumps(to_dict(cfg), allow_nan=False))) == cfg


def test_whole_number_is_read_as_a_float_where_one_is_meant():
    cfg = from_dict(App, changed("rate", 2))
    assert cfg.rate == 2.0 and isinstance(cfg.rate, float)


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("data.strid", 3, ["data.strid", "data.stride"]),
        ("data.views.temporl", 3, ["data.views.temporl", "data.views.temporal"]),
        ("data.stride", "4", ["data.stride", "int", "'4'"]),
        ("data.stride", 4.0, ["data.stride", "int", "4.0"]),
        ("data.stride", True, ["data.stride", "bool"]),
        ("data.shards", "a", ["data.shards", "list"]),
        ("data.shards", ["a", 1], ["data.shards[1]", "str"]),
        ("data.size", [1], ["data.size", "2 values"]),
        ("data.flip", 1, ["data.flip", "bool"]),
        ("data.views", None, ["data.views", "section"]),
        ("mode", "fats", ["mode", "'fats'", "'fast'"]),
        ("rate", None, ["rate", "float"]),
        ("data.stride", 0, ["data:", "stride 0"]),
        ("run.steps", None, ["run:", "exactly one of epochs and steps"]),
        ("run.warmup", 1.5, ["run:", "warmup 1.5"]),
    ],
)
def test_wrong_value_is_named_with_its_dotted_key(path, value, told):
    with pytest.raises(ConfigError) as error:
        from_dict(App, changed(path, value))
    assert all(word in str(error.value) for word in told), str(error.value)


def test_missing_key_is_named_and_not_assumed():
    data = to_dict(App())
    del data["data"]["stride"]
    with pytest.raises(ConfigError, match=r"^data\.stride: missing"):
        from_dict(App, data)


def test_number_that_json_lacks_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"rate"):
        to_dict(App(rate=float("nan")))


def test_paths_become_absolute_where_the_command_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = absolute_paths(App(name="~/m"), "data.shards", "name", "cluster.output")
    assert cfg.data.shards == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert cfg.name == os.path.expanduser("~/m")
    assert cfg.cluster.output == ""


def test_unknown_path_field_is_refused():
    with pytest.raises(ConfigError, match="shards"):
        absolute_paths(App(), "data.shard")


@dataclass(frozen=True)
class Round:
    radius: float = 1.0
    colour: str = "red"


@dataclass(frozen=True)
class Square:
    side: float = 1.0
    colour: str = "red"
    views: Views = Views()


@dataclass(frozen=True)
class Picture:
    shape: Round | Square = Round()
    frame: Square | None = None


@pytest.mark.parametrize("shape", [Round(2.0), Square(3.0, views=Views(2))])
def test_of_several_kinds_of_section_the_one_that_was_written_comes_back(shape):
    cfg = Picture(shape=shape)
    assert from_dict(Picture, json.loads(json.dumps(to_dict(cfg)))) == cfg


@pytest.mark.parametrize(
    "section, told",
    [
        ({"radius": 1.0, "color": "red"}, r"shape\.color: no such key; .*shape\.colour"),
        ({"side": 1.0, "colour": "red"}, r"shape\.views: missing"),
        ({"side": 1.0, "colour": 3, "views": to_dict(Views())}, r"shape\.colour: expected str"),
        (3, r"shape: expected Round or Square, got int 3"),
        (None, r"shape: expected Round or Square, got NoneType None"),
    ],
)
def test_a_fault_in_such_a_section_is_told_for_the_nearest_kind(section, told):
    with pytest.raises(ConfigError, match=told):
        from_dict(Picture, to_dict(Picture()) | {"shape": section})


def square() -> Picture:
    """A square one."""
    return Picture(shape=Square())


def test_a_command_line_keeps_the_kind_of_the_recipe(capsys):
    recipes = {"square": square, "round": Picture}
    cfg = parse(recipes, ("square", "--shape.side", "4"), prog="draw", description="Draws.")
    assert cfg == Picture(shape=Square(4.0))
    with pytest.raises(SystemExit):
        parse(recipes, ("square", "--shape.radius", "4"), prog="draw", description="Draws.")
    assert "--shape.radius" in capsys.readouterr().err


def debug() -> App:
    """Three steps.

    Hardware: any. Expected: seconds.
    """
    return App()


def big() -> App:
    """A larger one."""
    return replace(App(), rate=9.0)


RECIPES = {"debug": debug, "big": big}


def from_line(*argv: str) -> App:
    return parse(RECIPES, argv, prog="pretrain", description="Pretrains a model.")


def test_recipe_with_typed_overrides():
    cfg = from_line(
        "big", "--data.shards", "x", "y", "--data.stride", "None", "--run.zero_stage", "2"
    )
    assert cfg.rate == 9.0
    assert cfg.data == Data(shards=("x", "y"), stride=None)
    assert cfg.run == RunConfig(steps=3, zero_stage=2)


@pytest.mark.parametrize(
    "argv, told",
    [
        ([], ["debug", "big"]),
        (["debgu"], ["debgu", "debug"]),
        (["debug", "--data.strid", "3"], ["--data.strid", "--data.stride"]),
        (["debug", "--data.stride", "x"], ["--data.stride", "x"]),
        (["debug", "--mode", "fats"], ["fats", "fast"]),
        (["debug", "--data.stride", "0"], ["data", "stride 0"]),
    ],
)
def test_mistyped_command_leaves_with_an_error_that_names_it(argv, told, capsys):
    with pytest.raises(SystemExit) as leaving:
        from_line(*argv)
    assert leaving.value.code == 2
    said = capsys.readouterr()
    assert all(word in said.out + said.err for word in told)


def test_help_shows_recipes_and_the_docs_of_fields(capsys):
    with pytest.raises(SystemExit) as leaving:
        from_line("--help")
    assert leaving.value.code == 0
    assert "Hardware: any" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        from_line("debug", "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Folders of shards." in said
    assert "Largest global L2 norm of the gradient." in said
