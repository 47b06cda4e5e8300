"""Configurations of all networks: files, command lines, what follows from them, what is refused."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.losses import LossesConfig
from finetune.models import NETWORKS, build, start
from finetune.models.configs import read_config
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from finetune.outputs import HeadsConfig, Outputs
from finetune.predictor import PredictorConfig, save_predictor
from finetune.recipes import RECIPES
from launch.config import ConfigError, from_dict, parse, to_dict
from launch.job import agreement
from mira.encoder import EncoderConfig
from mira.weights import save_artifact
from pretrain.recipes import RECIPES as PRETRAINING
from shards.augment import ViewConfig
from shards.ingest.settings import IngestSettings

KINDS = {"debug": EncoderConfig, "hsta_debug": HstaConfig, "facesleuth_debug": FaceSleuthConfig}


def from_line(*argv: str) -> FinetuneConfig:
    return parse(RECIPES, argv, prog="finetune", description="Fine-tunes a network.")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    config = RECIPES[name]()
    data = json.loads(json.dumps(to_dict(config), allow_nan=False))
    assert from_dict(FinetuneConfig, data) == config
    assert read_config(data["encoder"]) == config.encoder


@pytest.mark.parametrize("name", [*RECIPES, *(f"pretrain {name}" for name in PRETRAINING)])
def test_a_worker_and_the_line_that_is_given_again_agree(name):
    """A worker knows the configuration from JSON, where a whole number is none in a float field."""
    config = (RECIPES | {f"pretrain {n}": made for n, made in PRETRAINING.items()})[name]()
    worker = to_dict(from_dict(type(config), to_dict(config)))
    ours, theirs = (agreement(values, {}, {}) for values in (to_dict(config), worker))
    assert len(ours.recipe) > 20 and ours.recipe == theirs.recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_the_network_of_its_configuration(name):
    config = RECIPES[name]()
    with torch.device("meta"):
        network = build(config.encoder, config.outputs(("a", "b", "c")))
    assert network.num_classes == 3 and network.config is config.encoder
    assert set(network.layer_ids()) == {n for n, _ in network.named_parameters()}
    assert set(network.rate_scales()) <= set(network.layer_ids())


def test_the_published_numbers_of_hsta_stand_in_its_recipe():
    config = RECIPES["hsta"]()
    assert (config.encoder.frames, config.encoder.image_size) == (6, 224)
    assert (config.encoder.dropout, config.encoder.drop_path) == (0.2, 0.2)
    run = config.run
    assert (run.base_lr, run.global_batch, run.epochs) == (5e-4, 32, 150)
    assert run.warmup * run.epochs == pytest.approx(5)
    assert (config.layer_decay, config.data.balance, config.mixing.enabled) == (0.9, 1.0, False)


@pytest.mark.parametrize("name", KINDS)
def test_a_command_line_changes_the_kind_that_the_recipe_has(name):
    line = (name, "--encoder.drop_path", "0.3", "--heads.units", "1", "12", "--identity.weight=1")
    config = from_line(*line)
    assert type(config.encoder) is KINDS[name] and config.encoder.drop_path == 0.3
    assert config.heads.units == ("1", "12") and config.identity.weight == 1.0


def test_a_command_line_reaches_the_sizes_of_a_kind():
    assert from_line("hsta", "--encoder.stages", "2").encoder.stages == 2
    mira = from_line("hsta", "--encoder.attention", "mira_flashlite")
    assert mira.encoder.attention == "mira_flashlite"
    config = from_line(
        "facesleuth", "--encoder.soa.theta", "1.5", "--encoder.depths", "1", "1", "2"
    )
    assert config.encoder.soa.theta == 1.5 and config.encoder.depths == (1, 1, 2)


@pytest.mark.parametrize(
    "argv", [("hsta", "--encoder.window", "7"), ("vit_b", "--encoder.stages", "2")]
)
def test_a_field_of_another_kind_is_refused(argv, capsys):
    with pytest.raises(SystemExit):
        from_line(*argv)
    assert argv[1] in capsys.readouterr().err


def test_help_of_a_recipe_tells_its_kind_s_fields(capsys):
    with pytest.raises(SystemExit):
        from_line("hsta", "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Stages of special blocks, video blocks and CSTA." in said
    assert "--encoder.depth " not in said and "SUBCOMMAND" not in said.upper()
    assert "Binary" not in said and "Action units, such as 1 4 12" in said


@pytest.mark.parametrize("name", KINDS)
def test_a_mistyped_key_in_a_file_is_told_for_the_kind_that_is_meant(name):
    data = to_dict(RECIPES[name]())
    data["encoder"]["drop_pth"] = data["encoder"].pop("drop_path")
    with pytest.raises(ConfigError, match=r"encoder\.drop_pth: no such key; .*encoder\.drop_path"):
        from_dict(FinetuneConfig, data)


def test_data_follows_from_network_and_outputs():
    plain = RECIPES["debug"]()
    assert plain.data_for() == plain.data, "nothing beside the clips"
    config = replace(
        RECIPES["facesleuth_debug"](), heads=HeadsConfig(units=("1", "12"), affect=True)
    )
    config = replace(
        config,
        encoder=replace(config.encoder, motion="flow"),
        losses=replace(config.losses, votes=True),
        identity=replace(config.identity, weight=1.0),
    )
    data = config.data_for()
    assert data.pair and data.frames == 0 and data.units == ("1", "12")
    assert set(data.extra) == {"subject", "votes", "units", "affect", "flow"}
    assert not replace(config, data=replace(config.data, extra=("marks",))).data.units
    pair = replace(RECIPES["hsta_debug"]().data, pair=False)
    assert replace(RECIPES["hsta_debug"](), data=pair).data_for().pair, "the network needs it"


def oracle(**values):
    config = RECIPES["facesleuth_debug"]()
    units = {"action_units": "oracle", "units": ("1", "4")}
    return replace(config, encoder=replace(config.encoder, **units), **values)


def test_annotated_units_as_an_input_are_carried_and_not_told():
    config = oracle()
    assert config.data_for().units == ("1", "4") and config.outputs(("a", "b")).units == ()


def predicted(**values):
    config = RECIPES["facesleuth_debug"]()
    units = {"action_units": "predicted", "units": ("1", "4")}
    return replace(config, encoder=replace(config.encoder, **units), **values)


def test_predicted_units_are_outputs_like_others():
    assert predicted().outputs(("a", "b")) == Outputs(("a", "b"), units=("1", "4"))
    assert predicted().data_for().units == ("1", "4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oracle(heads=HeadsConfig(units=("1",))), "leave heads.units out"),
        (lambda: predicted(heads=HeadsConfig(units=("1",))), "predicts encoder.units"),
        (lambda: predicted(heads=HeadsConfig(labels=False)), "with the help of action units"),
        (lambda: replace(RECIPES["debug"](), heads=HeadsConfig(labels=False)), "nothing to learn"),
        (
            lambda: replace(
                RECIPES["debug"](),
                heads=HeadsConfig(labels=False, affect=True),
                losses=LossesConfig(votes=True),
            ),
            "are of classes, which heads.labels False leaves out",
        ),
        (
            lambda: replace(oracle(), mixing=replace(oracle().mixing, mixup=0.8)),
            "takes units beside the clip",
        ),
        (
            lambda: replace(RECIPES["hsta_debug"](), heads=HeadsConfig(soa=True)),
            "heads.soa is for video transformers, this network has a HstaConfig",
        ),
        (
            lambda: replace(
                RECIPES["facesleuth_debug"](), data=RECIPES["hsta_debug"]().data
            ),
            "encoder.frames is 0 but data.frames is 6",
        ),
        (
            lambda: replace(
                RECIPES["hsta_debug"](),
                encoder=replace(RECIPES["hsta_debug"]().encoder, statistics="batch_ema"),
            ),
            "batch_ema, which is for pretraining",
        ),
    ],
)  # fmt: skip
def test_an_impossible_combination_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def saved(folder, config, outputs, **values):
    """A predictor's folder with a fresh network."""
    torch.manual_seed(1)
    network = build(config, outputs)
    described = PredictorConfig(
        config, outputs.labels, stride=None, views=ViewConfig(), face=IngestSettings(), **values
    )
    return save_predictor(folder, network.state_dict(), described, {}), network


@pytest.mark.parametrize("name", ["hsta_debug", "facesleuth_debug"])
def test_a_network_starts_from_one_of_its_kind_with_a_fresh_head(name, tmp_path):
    config = RECIPES[name]().encoder
    folder, theirs = saved(tmp_path / "theirs", config, Outputs(("a", "b", "c")))
    torch.manual_seed(2)
    ours, report = start(folder, config, Outputs(("a", "b")))
    assert set(report.new) == {"head.weight", "head.bias"}
    for key, value in theirs.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(ours.state_dict()[key], value), key


def test_a_network_of_another_kind_is_no_start(tmp_path):
    hsta, facesleuth = (RECIPES[n]().encoder for n in ("hsta_debug", "facesleuth_debug"))
    outputs = Outputs(("a", "b"))
    folder, _ = saved(tmp_path / "hsta", hsta, outputs)
    with pytest.raises(ValueError, match="a network of HstaConfig, this run trains one of FaceSl"):
        start(folder, facesleuth, outputs)
    with pytest.raises(
        ValueError, match="trained with heads=2, this run has 4: set --encoder.heads"
    ):
        start(folder, replace(hsta, heads=4), outputs)
    encoder = save_artifact(tmp_path / "encoder", {}, asdict(RECIPES["debug"]().encoder), {})
    with pytest.raises(ValueError, match="holds a network of another kind"):
        start(encoder, hsta, outputs)
    with pytest.raises(ValueError, match="no folder that fine-tuning wrote"):
        start(tmp_path, hsta, outputs)


def test_orientation_attention_is_an_add_on_of_video_transformers():
    config, outputs = RECIPES["debug"]().encoder, Outputs(("a", "b"))
    torch.manual_seed(0)
    plain, added = build(config, outputs), build(config, outputs, soa=True)
    more = set(added.state_dict()) - set(plain.state_dict())
    assert more and all(name.startswith("orientation.soa.") for name in more)
    assert added.rate_scales() == {"orientation.soa.theta": 10.0}
    added.train()
    x = torch.randn(2, 3, config.frames, config.image_size, config.image_size)
    added.classify(added.features(x)).square().sum().backward()
    assert added.orientation.soa.theta.grad.abs() > 0
    assert added.flops() > plain.flops()
    logits, importance = added.eval().explain(x)
    torch.testing.assert_close(logits, added(x))
    assert importance.shape == (2, config.grid.frames)


def test_the_table_knows_every_kind():
    assert set(NETWORKS) == set(KINDS.values())
    with pytest.raises(ValueError, match="not the fields of a network"):
        read_config({"dim": 3})
