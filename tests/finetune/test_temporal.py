"""Temporal probes: what is done to frames, who is fooled by it, and where attention lies."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.bootstrap import figures_of, mean_interval, numbered, paired_differences
from finetune.inputs import inputs_of
from finetune.metrics import figures
from finetune.models import build
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from finetune.outputs import Outputs
from finetune.predictor_config import PredictorConfig, save_predictor
from finetune.probes import temporal
from finetune.probes.apex import (
    Looked,
    apex_place,
    apex_tubelets,
    framed,
    looked,
    read,
    within,
    won,
)
from finetune.probes.frozen import fit_linear
from finetune.probes.manipulations import AS_IS, manipulated, names, without_apex
from finetune.probes.report import attention_on, cost_of
from finetune.probes.task import Attention, Row, TemporalTask
from finetune.probes.temporal import TemporalConfig
from launch.cluster import ClusterConfig
from launch.tracking import TrackingConfig
from mira.encoder import EncoderConfig
from mira.tubelets import normalise
from shards.augment import ViewConfig
from shards.batch import ClipBatch
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest
from shards.stream import DataConfig, open_clips
from tests.finetune.marked import write_marked
from tests.finetune.rendered import LABELS
from tests.runs import logged, spoil, tree

T = 8
TINY = EncoderConfig(image_size=32, frames=T, patch_size=16, dim=24, depth=2, heads=3)


def batch_of(clip: Tensor, *, frames=None, marks=(2, 4, 6), views: int = 1, flow=None) -> ClipBatch:
    """`clip` uint8 [B · views, T (+ 2)] of brightness as 8 by 8 pixels; frames as sampled."""
    pixels = clip[:, None, :, None, None].expand(-1, 3, -1, 8, 8).contiguous()
    count = len(clip) // views
    at = torch.arange(T).expand(len(clip), -1) if frames is None else frames
    extra = {"marks": torch.tensor([marks] * count), "frames": at.clone()}
    return ClipBatch(
        pixels=pixels,
        labels=torch.zeros(count, dtype=torch.int64),
        weights=torch.ones(count),
        seeds=torch.zeros(count, dtype=torch.int64),
        keys=[f"clip{i}" for i in range(count)],
        views=views,
        extra=extra if flow is None else extra | {"flow": flow},
    )


def ramps(count: int = 6) -> Tensor:
    """[count, T]: every other one rises, the others fall; all have the same frames."""
    up = (torch.arange(T) * 20 + 30).to(torch.uint8)
    return torch.stack([up if i % 2 else up.flip(0) for i in range(count)])


def shown(batch: ClipBatch) -> list[list[int]]:
    return batch.pixels[:, 0, :, 0, 0].tolist()


def test_reversed_and_frozen_show_what_they_say():
    clip = torch.arange(T, dtype=torch.uint8)[None]
    back = manipulated("reversed", batch_of(clip), frames=T, seed=0)
    assert shown(back.batch) == [[*range(T)][::-1]] and back.changed.tolist() == [True]
    assert shown(manipulated("frozen", batch_of(clip), frames=T, seed=0).batch) == [[T // 2] * T]
    whole = manipulated(AS_IS, batch_of(clip), frames=T, seed=0)
    assert shown(whole.batch) == [[*range(T)]] and whole.changed.tolist() == [False]


def test_shuffling_depends_on_the_key_and_the_seed_alone():
    clip = torch.arange(T, dtype=torch.uint8).expand(4, -1)
    batch = batch_of(clip, views=2)
    made = shown(manipulated("shuffled", batch, frames=T, seed=0).batch)
    assert made[0] == made[1] != made[2] == made[3]  # a clip's views alike
    assert all(sorted(order) == [*range(T)] != order for order in made)
    alone = batch_of(clip[:1])
    alone.keys = ["clip1"]
    assert shown(manipulated("shuffled", alone, frames=T, seed=0).batch) == [made[2]]
    assert shown(manipulated("shuffled", alone, frames=T, seed=1).batch) != [made[2]]


def test_two_frames_are_always_shuffled():
    clip = torch.arange(2, dtype=torch.uint8).expand(20, -1)
    batch = batch_of(clip, frames=torch.arange(2).expand(20, -1))
    assert shown(manipulated("shuffled", batch, frames=2, seed=3).batch) == [[1, 0]] * 20


@pytest.mark.parametrize(
    ("frames", "marks", "seen"),
    [
        # half-way 3 … 5 of onset 2, apex 4, offset 6; the middle has two nearest: the earlier
        ([0, 1, 2, 3, 4, 5, 6, 7], (2, 4, 6), [0, 1, 2, 2, 2, 6, 6, 7]),
        ([0, 10, 20, 30], (5, 18, 28), [0, 10, 10, 30]),  # 11.5 … 23
        ([0, 1, 2, 3], (0, 0, 3), [2, 2, 2, 3]),  # 0 … 1.5
        ([0, 4, 8, 12], (9, 10, 11), [0, 4, 8, 12]),  # no frame lies inside
    ],
)
def test_the_apex_gives_way_to_the_nearest_frame_outside(frames, marks, seen):
    found, possible = without_apex(np.array(frames), np.array(marks))
    assert [frames[place] for place in found] == seen and possible


def test_a_clip_without_marks_or_without_a_frame_outside_keeps_its_frames():
    clip = torch.arange(T, dtype=torch.uint8).expand(3, -1)
    batch = batch_of(clip)
    batch.extra["marks"] = torch.tensor([[2, 4, 6], [2, -1, 6], [-20, 4, 30]])
    batch.extra["marks"][2, 0] = 0
    batch.extra["frames"][2] = 4  # a clip of one frame, seen again and again
    found = manipulated("apex_removed", batch, frames=T, seed=0)
    assert found.possible.tolist() == [True, False, False]
    assert found.changed.tolist() == [True, False, False]
    assert shown(found.batch)[1:] == [[*range(T)]] * 2
    assert shown(batch) == [[*range(T)]] * 3  # what was given stays


def test_the_pair_loses_its_apex_with_the_apex_alone():
    clip = torch.arange(T + 2, dtype=torch.uint8).expand(2, -1)  # onset is 8, apex 9
    batch = batch_of(clip, flow=torch.ones(2, 3, 8, 8))
    for name in ("shuffled", "reversed", "frozen"):
        found = manipulated(name, batch, frames=T, seed=0).batch
        assert [row[T:] for row in shown(found)] == [[8, 9]] * 2 and found.extra["flow"].all()
    for name in ("apex_removed", "pair_removed"):
        found = manipulated(name, batch, frames=T, seed=0)
        assert [row[T:] for row in shown(found.batch)] == [[8, 8]] * 2
        assert not found.batch.extra["flow"].any() and found.changed.all()
    assert shown(found.batch)[0][:T] == [*range(T)]
    assert batch.extra["flow"].all()
    only = replace(batch_of(clip[:, T:]), extra={})
    assert shown(manipulated("pair_removed", only, frames=0, seed=0).batch) == [[8, 8]] * 2


def test_a_network_is_asked_what_it_can_be_asked():
    assert names(frames=16, pair=False) == [AS_IS, "shuffled", "reversed", "frozen", "apex_removed"]
    assert names(frames=6, pair=True)[-1] == "pair_removed"
    assert names(frames=0, pair=True) == [AS_IS, "pair_removed"]


class Reads(nn.Module):
    """Tells two classes from one number of a clip's frames."""

    def __init__(self, number, frames: int = T):
        super().__init__()
        self.number = number
        self.config = SimpleNamespace(frames=frames, pair=False, inputs=())

    def forward(self, x: Tensor) -> Tensor:
        score = self.number(x.mean((1, 3, 4)))
        return torch.stack([-score, score], 1)


def answers_of(network: nn.Module, batch: ClipBatch) -> list[Row]:
    task = TemporalTask(network, Outputs(("falls", "rises")), seed=0)
    asked = task.predict(batch)
    rows = []
    for i, key in enumerate(batch.keys):
        able = [(m, n) for m, n in enumerate(task.names) if asked.possible[i, m]]
        given = {n: int(asked.answers[i, m]) for m, n in able}
        moved = {n: bool(asked.changed[i, m]) for m, n in able}
        rows.append(Row("d", key, f"p{i // 2}", i % 2, given, moved, None))
    return rows


def test_reversal_fools_who_reads_order_and_nobody_else():
    batch = batch_of(ramps())
    order = answers_of(Reads(lambda frames: frames[:, -1] - frames[:, 0]), batch)
    found = cost_of(order, "reversed", classes=2, seed=0)
    assert (found[AS_IS]["war"], found["war"], found["flipped"]) == (1, 0, 1)
    assert found["change"]["uar"] == {"value": -1, "low": -1, "high": -1}
    blind = Reads(lambda frames: frames.mean(1) - 1e-3)
    for name in ("shuffled", "reversed"):
        found = cost_of(answers_of(blind, batch), name, classes=2, seed=0)
        assert found["flipped"] == 0 and found["change"]["war"]["value"] == 0
        assert found["changed"] == found["clips"] == 6


def test_removing_the_apex_fools_who_needs_it():
    """A brightness that shows at the apex alone, in clips of class 1."""
    clip = torch.full((6, T), 60, dtype=torch.uint8)
    clip[1::2, 4] = 200
    peak = Reads(lambda frames: frames.max(1).values - frames[:, 0] - 0.1)
    rows = answers_of(peak, batch_of(clip))
    found = cost_of(rows, "apex_removed", classes=2, seed=0)
    assert (found[AS_IS]["uar"], found["uar"]) == (1, 0.5)
    assert cost_of(rows, "shuffled", classes=2, seed=0)["uar"] == 1


def test_a_clip_that_does_not_allow_a_manipulation_is_compared_with_nothing():
    batch = batch_of(ramps())
    batch.extra["marks"][:2] = -1
    rows = answers_of(Reads(lambda frames: frames[:, -1] - frames[:, 0]), batch)
    assert cost_of(rows, "apex_removed", classes=2, seed=0)["clips"] == 4
    assert cost_of(rows, "reversed", classes=2, seed=0)["clips"] == 6
    assert cost_of(rows[:2], "apex_removed", classes=2, seed=0) == {"clips": 0}
    unlabelled = [replace(row, label=-1) for row in rows[:3]] + rows[3:]
    assert cost_of(unlabelled, "reversed", classes=2, seed=0)["clips"] == 3


def test_figures_of_many_matrices_are_those_of_each():
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 4, size=(40, 3, 3)).astype(float)
    matrices[:10, 1] = 0  # a class that does not occur
    matrices[:5, :, 1] = 0  # and is not answered
    matrices[:, 0, 0] += 1
    found = figures_of(matrices)
    for i, matrix in enumerate(matrices):
        expected = figures(torch.from_numpy(matrix), ("a", "b", "c"))
        for name in ("war", "uar", "f1"):
            assert found[name][i] == pytest.approx(expected[name])


def test_intervals_are_wide_where_people_differ_and_none_for_one_person():
    values = np.repeat(np.arange(8) % 2, 25).astype(float)  # 8 people, all of whose clips agree
    people = np.repeat(np.arange(8), 25).tolist()
    by_person = mean_interval(values.tolist(), people, seed=0)
    by_clip = mean_interval(values.tolist(), [None] * 200, seed=0)
    assert by_person.value == by_clip.value == 0.5
    assert by_person.high - by_person.low > 3 * (by_clip.high - by_clip.low)
    assert mean_interval([1.0, 0.0], ["a", "a"], seed=0) == (0.5, None, None)
    assert len(set(numbered([None, None, "x", "x", 0]).tolist())) == 4


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        offsets = np.repeat(rng.normal(size=30), 4)
        values = offsets + rng.normal(size=120)
        found = mean_interval(values.tolist(), np.repeat(np.arange(30), 4).tolist(), seed=trial)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.98


def test_answers_that_do_not_change_differ_by_nothing():
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(3, size=60), rng.integers(3, size=60)
    people = (np.arange(60) // 5).tolist()
    same = paired_differences(truth, answers, answers, people, classes=3, seed=0)
    assert set(same.values()) == {(0.0, 0.0, 0.0)}
    better = paired_differences(truth, answers, truth, people, classes=3, seed=0)
    wrong = (answers != truth).mean()
    assert better["war"].value == pytest.approx(wrong)
    assert better["war"].low < wrong < better["war"].high


def test_importance_inside_the_marks_is_added_up_by_frames():
    frames, marks = np.array([[0, 2, 4, 6, 8, 10, 12, 14]]), np.array([3, 6, 9])  # inside: 4, 6, 8
    assert within(frames, marks).sum() == 3
    importance = np.array([[[0.1, 0.2, 0.6, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]]])
    found = looked(importance, frames, marks)
    assert found.inside == pytest.approx([0.2 + 0.3, 0.375, 1.0])
    assert found.hit.tolist() == [0, 0.25, 1]  # frame 6 is in the second tubelet


def test_views_that_do_not_reach_the_apex_have_no_say_in_hits():
    frames = np.array([[0, 1, 2, 3], [10, 11, 12, 13]])
    importance = np.array([[[0.9, 0.1]], [[0.2, 0.8]]])
    found = looked(importance, frames, np.array([9, 13, 20]))
    assert found.hit.tolist() == [1] and found.inside == pytest.approx([0.5])
    assert np.isnan(looked(importance, frames, np.array([20, 30, 40])).hit).all()


def test_the_apex_stands_where_its_nearest_frame_does():
    frames = np.array([2, 6, 10])
    assert [apex_place(frames, apex) for apex in (0, 2, 4, 5, 9, 12)] == [0, 0, 0, 1, 2, 2]
    assert apex_place(frames, 13) is None and apex_place(np.array([5]), 5) == 0
    assert won(np.array([[0.4, 0.4, 0.2]]), 0).tolist() == [0.5]


@pytest.mark.parametrize("attention", ["sdpa", "mira_exact", "mira_flashlite"])
def test_readings_are_the_networks_own_importance_and_the_maps_column_sums(attention):
    torch.manual_seed(0)
    config = replace(TINY, attention=attention, mira_layers=1)
    network = build(config, Outputs(LABELS)).eval()
    x = torch.randn(2, 3, T, 32, 32)
    layers = framed(network)
    assert [layer.name for layer in layers] == ["blocks.0.attn", "blocks.1.attn"]
    with torch.no_grad():
        features, found = read(network, x, layers)
        assert torch.allclose(features, network.features(x), atol=1e-5)
        importance = network.explain(x)[1]
        tokens = network.blocks[0].norm1(network.embed(x))
        q, k, _ = layers[0].attention.project(tokens)
        maps = (q @ k.transpose(2, 3) * layers[0].attention.scale).softmax(-1)  # [B, H, N, N]
    slow = maps.mean((1, 2)).unflatten(1, (T // 2, -1)).sum(2)
    assert torch.allclose(found.received[:, 0], slow, atol=1e-5)
    assert torch.allclose(found.received.sum(2), torch.ones(2, 2), atol=1e-5)
    if attention == "sdpa":
        assert found.importance.shape == (2, 0, T // 2)
        assert torch.allclose(found.received[:, -1], importance, atol=1e-5)
    else:
        assert torch.allclose(found.importance.mean(1), importance, atol=1e-5)
    assert not network.blocks[0].attn._forward_pre_hooks


def test_a_class_token_is_no_frame():
    torch.manual_seed(0)
    config = HstaConfig(
        image_size=24, frames=4, patch_size=8, dim=24, special_dim=12, heads=2, stages=1,
        attention="mira_flashlite",
    )  # fmt: skip
    network = build(config, Outputs(LABELS)).eval()
    layers = framed(network)
    assert len(layers) == config.video_blocks
    with torch.no_grad():
        _, found = read(network, torch.randn(2, 3, 6, 24, 24), layers)
    assert found.importance.shape == found.received.shape == (2, 2, 2)
    assert torch.allclose(found.received.sum(2), torch.ones(2, 2), atol=1e-5)


def looking(
    uniform: float, own: list[float], shares: list[float], *, person: str, hit=1.0, apex=(2,)
) -> Row:
    """A row whose layers have these shares inside; each with the mean behind, as the meter has."""
    ours = [*own, np.mean(own)] if own else []
    plain = [*shares, np.mean(shares), *([np.mean(shares[-len(own) :])] if own else [])]
    found = Attention(
        uniform,
        Looked(np.array(ours), np.full(len(ours), hit)),
        Looked(np.array(plain), np.zeros(len(plain))),
        apex,
    )
    return Row("d", person, person, 0, {AS_IS: 0}, {AS_IS: False}, found)


def test_shares_count_clips_with_frames_on_both_sides():
    rows = [
        looking(0.5, [0.8], [0.4, 0.6], person="a"),
        looking(0.25, [0.45], [0.2, 0.3], person="b", hit=float("nan"), apex=()),
        looking(1.0, [1.0], [1.0, 1.0], person="c", hit=0.0),  # all frames inside
        Row("d", "k", "d", 0, {AS_IS: 0}, {AS_IS: False}, None),
    ]
    found = attention_on(rows, ["one", "two"], [False, True], frames=4, seed=0)
    assert (found["clips"], found["informative"], found["without_marks"]) == (3, 2, 1)
    assert (found["equal_hit"], found["constant_hit"]) == (0.25, 1)
    assert found["uniform"]["value"] == pytest.approx(0.375)
    assert found["importance"]["inside"]["value"] == pytest.approx(0.625)
    assert found["importance"]["over_uniform"]["value"] == pytest.approx(0.25)
    assert found["importance"]["hit"]["value"] == pytest.approx(0.5)  # of a and c
    assert found["received"]["inside"]["value"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["received_there"]["inside"]["value"] == pytest.approx((0.6 + 0.3) / 2)
    assert found["importance_over_received"]["inside"]["value"] == pytest.approx(0.175)
    assert "importance" not in found["layers"][0]
    assert found["layers"][1]["importance"]["inside"]["value"] == pytest.approx(0.625)
    nobody = attention_on(rows[3:], ["one"], [True], frames=4, seed=0)
    assert nobody["clips"] == 0 and nobody["constant_hit"] is None
    inside = attention_on(rows[2:3], ["one", "two"], [False, True], frames=4, seed=0)
    assert inside["importance"]["inside"] is None


def test_the_best_constant_guess_is_the_commonest_place_of_apexes():
    """Over the clips that hits are counted of; views of a clip share one vote."""
    places = [(1,), (1,), (1, 2), (3,), ()]
    rows = [looking(0.5, [], [0.5], person=str(i), apex=at) for i, at in enumerate(places)]
    found = attention_on(rows, ["one"], [False], frames=4, seed=0)
    assert (found["equal_hit"], found["constant_hit"]) == (0.25, 2.5 / 4)


def test_a_constant_guess_hits_as_often_as_its_share_of_places():
    """Against importance that always names one tubelet, in views that reach the apex or not."""
    views = np.stack([np.arange(8), np.arange(4, 12), np.arange(20, 28)])
    rng, guessed, places = np.random.default_rng(0), [], []
    for apex in rng.integers(0, 12, 30):
        marks = np.array([0, apex, 30])
        always = np.broadcast_to(np.eye(4), (3, 4, 4))  # the guesses as layers
        guessed.append(looked(always, views, marks).hit)
        places.append(tuple(at for at in apex_tubelets(views, apex, 4) if at is not None))
    rows = [looking(0.5, [], [0.5], person=str(i), apex=at) for i, at in enumerate(places)]
    found = attention_on(rows, ["one"], [False], frames=4, seed=0)
    assert found["constant_hit"] == pytest.approx(np.mean(guessed, axis=0).max())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("temporal")
    write_marked(folder / "shards")
    return folder


def model_of(place: Path, name: str, config) -> str:
    """A network with random weights whose head fits the clips of `place` one by one."""
    torch.manual_seed(0)
    network = build(config, Outputs(LABELS)).eval()
    data = DataConfig(
        shards=(str(place / "shards"),), streams=1, frames=config.frames, stride=None,
        size=config.image_size, loader_workers=0, pair=config.pair, extra=config.inputs,
    )  # fmt: skip
    with open_clips(
        data, global_batch=12, micro_batch=12, rank=0, world=1, train=False, ledger=None
    ) as stream:
        [batch] = list(stream)
    with torch.no_grad():
        features = network.features(normalise(batch.pixels), **inputs_of(network, batch))
        head = fit_linear(features.double(), batch.labels, classes=2, penalty=1e-7)
        network.head.weight.copy_(head.weight)
        network.head.bias.copy_(head.bias)
    known = PredictorConfig(config, LABELS, None, ViewConfig(), IngestSettings())
    return str(save_predictor(place / name, network.state_dict(), known, {"seed": "0"}))


def asking(place: Path, output: Path, model: str, **changes) -> TemporalConfig:
    config = TemporalConfig(
        model=model,
        shards=(str(place / "shards"),),
        split=None,
        batch=4,
        loader_workers=0,
        cluster=ClusterConfig(workers=0, output=str(output)),
        tracking=TrackingConfig(uri=f"sqlite:///{place / 'mlflow.db'}", experiment="temporal"),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def model(place) -> str:
    return model_of(place, "flashlite", replace(TINY, attention="mira_flashlite", mira_layers=1))


@pytest.fixture(scope="module")
def result(place, model):
    return temporal.run(asking(place, place / "out", model))


def clips_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "clips.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_figures_a_row_a_clip_and_a_picture(result, place):
    written = json.loads((place / "out/metrics.json").read_text())
    assert (written["clips"], written["coverage"]) == (12, 1)
    assert list(written["manipulations"]) == ["shuffled", "reversed", "frozen", "apex_removed"]
    assert written["manipulations"]["apex_removed"]["changed"] == 12
    rows = clips_of(place / "out")
    assert [row["key"] for row in rows] == sorted(f"clip{i}" for i in range(12))
    right = sum(row["label"] == row["as_is"] for row in rows) / 12
    assert written["as_is"]["war"] == result["as_is"]["war"] == pytest.approx(right)
    assert right > 0.9
    assert any(cost["flipped"] > 0 for cost in written["manipulations"].values())
    for name, cost in written["manipulations"].items():
        flipped = sum(row[name] != row["as_is"] for row in rows) / 12
        assert cost["flipped"] == pytest.approx(flipped)
        assert cost["war"] == pytest.approx(sum(row["label"] == row[name] for row in rows) / 12)
        assert logged(result, f"{name}/uar") == {0: cost["uar"]}
    files = {"metrics.json", "clips.csv", "temporal.png", "summary.json"}
    assert tree(place / "out") == files
    assert (place / "out/temporal.png").read_bytes()[:4] == b"\x89PNG"


def test_equal_importance_is_the_share_of_sampled_frames_inside(result, place):
    """12 frames in 8 segments; marks 3, 6, 9."""
    at = ((np.arange(T) + 0.5) * 12 / T).astype(int)
    expected = ((at >= 3) & (at <= 9)).mean()
    found = result["attention"]
    assert found["clips"] == found["informative"] == 12
    assert found["uniform"] == {"value": expected, "low": expected, "high": expected}
    assert [layer["name"] for layer in found["layers"]] == ["blocks.0.attn", "blocks.1.attn"]
    assert ["importance" in layer for layer in found["layers"]] == [False, True]
    rows = clips_of(place / "out")
    mean = np.mean([float(row["inside"]) for row in rows])
    assert found["importance"]["inside"]["value"] == pytest.approx(mean, abs=1e-4)


def test_the_place_of_the_apex_is_written_and_what_naming_it_always_would_hit(
    result, place, capsys
):
    """Frame 6 is the fifth of eight; all clips have it there."""
    assert {row["apex_place"] for row in clips_of(place / "out")} == {"2"}
    assert result["attention"]["constant_hit"] == 1 and result["attention"]["equal_hit"] == 0.25
    assert logged(result, "constant_hit") == {0: 1}
    temporal.tell(result)
    told = capsys.readouterr().out
    assert "hit the apex 25.0%" in told
    assert "always the same tubelet, the best one, hits the apex 100.0%" in told


@pytest.mark.parametrize("kind", ["plain", "facesleuth"])
def test_a_plain_network_and_one_without_frames_are_asked_what_they_can_be(
    place, tmp_path, kind, capsys
):
    face = FaceSleuthConfig(
        image_size=32, dims=(8, 8, 16), depths=(1, 1, 1), heads=(2, 2, 2), window=2, motion="flow"
    )
    config = TINY if kind == "plain" else face
    found = temporal.run(asking(place, tmp_path / "out", model_of(place, kind, config)))
    told = "PRIVILEGED: told onset and apex" in capsys.readouterr().out
    assert told == (kind == "facesleuth")
    if kind == "plain":
        assert "importance" not in found["attention"] and found["attention"]["received"]["inside"]
    else:
        assert list(found["manipulations"]) == ["pair_removed"] and "attention" not in found
        assert found["manipulations"]["pair_removed"]["changed"] == 12


def test_an_apex_that_nobody_saw_is_not_removed_and_not_looked_for(place, model, tmp_path):
    write_marked(tmp_path / "shards", source="middle")
    config = asking(place, tmp_path / "out", model, shards=(str(tmp_path / "shards"),))
    found = temporal.run(config)
    assert found["manipulations"]["apex_removed"] == {"clips": 0}
    assert found["attention"]["clips"] == 0 and found["attention"]["without_marks"] == 12
    assert {row["apex_place"] for row in clips_of(tmp_path / "out")} == {""}
    assert found["manipulations"]["reversed"]["clips"] == 12


def test_a_clip_that_cannot_be_read_is_told_and_has_no_row(place, model, tmp_path):
    write_marked(tmp_path / "shards")
    spoil(tmp_path / "shards", "clip3")
    shards = (str(tmp_path / "shards"),)
    config = asking(place, tmp_path / "out", model, shards=shards, max_failed_share=0.2)
    found = temporal.run(config)
    assert (found["clips"], found["unread"]) == (11, 1)
    assert "clip3" not in {row["key"] for row in clips_of(tmp_path / "out")}
    assert Manifest.open(shards[0]).samples == 12


def test_the_command_line_says_what_is_missing(place, model, capsys):
    assert temporal.main(["--shards", str(place / "shards")]) == 1
    assert "model is empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="tells no classes"):
        TemporalTask(Reads(lambda frames: frames[:, 0]), Outputs(units=("1",)), seed=0)
