"""Frozen evaluation: nearest neighbours and the linear layer, tables of features, any encoder, and
the command from shards to figures."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import multiprocessing

from finetune.models import Classifier, build
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.outputs import Outputs
from finetune.predictor_config import PredictorConfig, save_predictor
from finetune.predictor_package import package
from finetune.probes import driver, frozen
from finetune.probes.driver import ProbeConfig
from finetune.probes.features import Features, FeatureTask, joined
from finetune.probes.figures import probe
from finetune.probes.frozen import Standard, choose_penalty, fit_linear, held_out, nearest
from finetune.probes.networks import MeanToken, Sizes, open_network
from launch import registry
from launch.cluster import ClusterConfig
from launch.record import create_run
from launch.store import connect
from launch.tracking import TrackingConfig
from mira.encoder import EncoderConfig
from mira.layouts import to_hugging_face
from mira.marlin import to_marlin
from mira.tubelets import normalise
from mira.weights import save_artifact, save_public
from pretrain.model import DecoderConfig, VideoMAE
from shards.augment import ViewConfig
from shards.batch import ClipBatch
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest
from shards.stream import ClipStream, TooManyFailures
from tests.finetune.marked import write_marked
from tests.finetune.probe_ranks import judged_by_rank, table_of_rank
from tests.finetune.rendered import LABELS
from tests.runs import ROOT, ledger, logged, looks_at_files, spoil, tree
from tests.shards.make import write_folder

TINY = EncoderConfig(image_size=32, frames=4, patch_size=16, dim=24, depth=2, heads=3)
FACE = FaceSleuthConfig(image_size=32, dims=(8, 8, 16), depths=(1, 1, 1), heads=(2, 2, 2), window=2)
SETTINGS = {"neighbours": (1, 3, 5), "seed": 0, "device": torch.device("cpu")}
SIZES = Sizes(frames=4, image_size=32, heads=3)


def blobs(n: int, *, classes: int = 3, dim: int = 8, apart: float = 1.0, seed: int = 0):
    """Features float64 [n, dim] around a centre a class, and labels int64 [n]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)).double()
    labels = torch.randint(classes, (n,), generator=generator)
    return apart * centres[labels] + torch.randn(n, dim, generator=generator).double(), labels


def test_neighbours_vote_as_a_slow_count_does():
    train, labels = blobs(40)
    asked, _ = blobs(25, seed=1)
    found = nearest(train, labels, asked, ks=(1, 3, 5), classes=3)
    for k in (1, 3, 5):
        for x, answer in zip(asked, found[k].tolist(), strict=True):
            near = sorted(
                (
                    (float(x @ t / x.norm() / t.norm()), int(y))
                    for t, y in zip(train, labels, strict=True)
                ),
                reverse=True,
            )[:k]
            votes = {
                c: (sum(y == c for _, y in near), sum(s for s, y in near if y == c))
                for c in range(3)
            }
            assert answer == max(votes, key=votes.__getitem__)


def test_neighbours_are_compared_by_direction_and_equal_votes_by_similarity():
    train = torch.tensor([[10.0, 0.0], [0.0, 1.0]]).double()
    labels = torch.tensor([0, 1])
    asked = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()  # nearer in angle, farther in length
    found = nearest(train, labels, asked, ks=(1, 2), classes=2)
    assert found[1].tolist() == found[2].tolist() == [1, 0]
    with pytest.raises(ValueError, match="3 neighbours are asked for and 2 labelled"):
        nearest(train, labels, asked, ks=(3,), classes=2)


def test_two_far_neighbours_outvote_a_near_one():
    train = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.1, -1.0]]).double()
    asked = torch.tensor([[1.0, 0.0]]).double()
    found = nearest(train, torch.tensor([0, 1, 1]), asked, ks=(1, 3), classes=2)
    assert (found[1].item(), found[3].item()) == (0, 1)


def test_neighbours_are_found_in_parts_as_at_once(monkeypatch):
    train, labels = blobs(30)
    asked, _ = blobs(20, seed=1)
    whole = nearest(train, labels, asked, ks=(5,), classes=3)[5]
    monkeypatch.setattr(frozen, "QUERIES", 7)
    assert nearest(train, labels, asked, ks=(5,), classes=3)[5].equal(whole)


@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_the_linear_probe_is_scikit_learns(penalty):
    features, labels = blobs(60, apart=0.5)
    ours = fit_linear(features, labels, classes=3, penalty=penalty)
    theirs = LogisticRegression(C=1 / (penalty * 60), tol=1e-10, max_iter=10000)
    theirs.fit(features.numpy(), labels.numpy())
    assert torch.allclose(ours.weight, torch.from_numpy(theirs.coef_), atol=1e-4)
    shift = ours.bias - torch.from_numpy(theirs.intercept_)  # a common constant changes nothing
    assert torch.allclose(shift, shift.mean().expand(3), atol=1e-3)
    asked, _ = blobs(50, seed=2)
    assert ours.predict(asked).tolist() == theirs.predict(asked.numpy()).tolist()


def test_a_class_that_training_lacks_is_never_answered():
    features, labels = blobs(30)
    kept = labels != 1
    model = fit_linear(features[kept], labels[kept], classes=3, penalty=1e-2)
    assert set(model.predict(blobs(100, seed=3)[0]).tolist()) <= {0, 2}


def test_an_earlier_solution_changes_the_way_not_the_result():
    features, labels = blobs(60, apart=0.5)
    strong = fit_linear(features, labels, classes=3, penalty=10.0)
    cold = fit_linear(features, labels, classes=3, penalty=0.1)
    warm = fit_linear(features, labels, classes=3, penalty=0.1, start=strong)
    assert torch.allclose(cold.weight, warm.weight, atol=1e-4)


def test_whole_subjects_are_held_out_at_least_one_and_never_all():
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    for seed in range(20):
        aside = held_out(groups, share=0.25, seed=seed)
        for group in range(4):
            assert len(aside[groups == group].unique()) == 1
        assert 0.25 * 10 <= aside.sum() < 10
    assert held_out(torch.tensor([0, 1]), share=0.99, seed=0).sum() == 1


def test_the_penalty_is_chosen_on_people_it_has_not_seen():
    """A feature that names the person tells the label of people who were trained on, and nothing
    about others: a split by clips would prefer it with next to no penalty."""
    people = 24
    who = torch.arange(people).repeat_interleave(6)
    labels = torch.arange(people).remainder(2).repeat_interleave(6)
    generator = torch.Generator().manual_seed(0)
    general = labels.double() + 1.2 * torch.randn(len(who), generator=generator).double()
    names = torch.nn.functional.one_hot(who, people).double() * 3
    features = torch.cat([general[:, None], names], 1)
    standard = Standard.of(features)(features)
    chosen = choose_penalty(standard, labels, [f"p{i}" for i in who.tolist()], classes=2, seed=0)
    assert chosen.held_out == "subjects"
    leaky = choose_penalty(standard, labels, [None] * len(who), classes=2, seed=0)
    assert leaky.held_out == "clips"
    assert leaky.uar > chosen.uar + 0.1
    alone = choose_penalty(standard, labels, ["one"] * len(who), classes=2, seed=0)
    assert alone.held_out == "clips"


def test_features_are_standardised_by_training_and_a_constant_one_stays_finite():
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scale = Standard.of(train)
    assert scale(train).tolist() == [[-1, 0], [1, 0]]
    assert scale(torch.tensor([[5.0, 6.0]])).tolist() == [[3, 1]]


def table(rows: int = 5, dim: int = 3) -> Features:
    values = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    named = [("b", "k1", "s", "glad", "test"), ("a", "k2", None, None, None)]
    many = named + [("a", f"k{i}", f"s{i}", "calm", "train") for i in range(3, rows + 1)]
    return Features.of(many[:rows], values)


def test_a_table_keeps_every_column_through_parquet(tmp_path):
    made = table()
    made.write(tmp_path / "f.parquet")
    back = Features.read(tmp_path / "f.parquet")
    assert np.array_equal(made.values, back.values) and back.values.dtype == np.float32
    for name in ("keys", "datasets", "subjects", "labels", "splits"):
        assert getattr(back, name) == getattr(made, name)
    assert tree(tmp_path) == {"f.parquet"}


def test_pandas_reads_the_table(tmp_path):
    made = table()
    made.write(tmp_path / "f.parquet")
    frame = pandas.read_parquet(tmp_path / "f.parquet")
    assert list(frame.columns) == [
        "key",
        "dataset",
        "subject_id",
        "label",
        "split",
        "f0",
        "f1",
        "f2",
    ]
    assert frame["key"].tolist() == ["k2", "k3", "k4", "k5", "k1"]
    assert frame["subject_id"].isna().tolist() == [True, False, False, False, False]
    assert np.array_equal(frame.filter(regex="^f[0-9]+$").to_numpy(), made.values)


def test_people_of_two_data_sets_are_two_and_the_unknown_are_nobody():
    made = table()
    assert made.people == [None, "a/s3", "a/s4", "a/s5", "b/s"]
    assert made.classes(("calm", "glad")).tolist() == [-1, 0, 0, 0, 1]
    kept = made.where(made.classes(("calm", "glad")) == 0)
    assert kept.keys == ["k3", "k4", "k5"]
    assert joined([kept, made]).keys == kept.keys + made.keys


def encoder_of(config: EncoderConfig = TINY, seed: int = 0) -> MeanToken:
    torch.manual_seed(seed)
    return MeanToken(config).eval()


def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def artifact(folder: Path, network: MeanToken) -> Path:
    return save_artifact(
        folder, network.encoder.state_dict(), asdict(network.config), {"seed": "0"}
    )


def same(found, expected, *, within: float = 1e-5) -> None:
    x = clips()
    with torch.no_grad():
        assert torch.allclose(found.features(x), expected.features(x), atol=within)
    assert not found.training and not any(p.requires_grad for p in found.parameters())


def test_a_pretrained_folder_gives_the_mean_of_its_normalised_tokens(tmp_path):
    network = encoder_of(replace(TINY, attention="mira_flashlite", statistics="batch_ema"))
    found = open_network(artifact(tmp_path / "encoder", network), Sizes())
    same(found, network)
    with torch.no_grad():
        tokens = network.encoder(clips())
    assert torch.allclose(found.features(clips()), tokens.mean(1), atol=1e-6)


@pytest.mark.parametrize("layout", ["videomae", "huggingface", "marlin", "encoder"])
def test_public_files_give_the_features_of_the_network_that_was_saved(tmp_path, layout):
    eps = 1e-5 if layout == "marlin" else 1e-6
    torch.manual_seed(1)
    whole = VideoMAE(replace(TINY, layer_norm_eps=eps), DecoderConfig(dim=16, depth=1, heads=2))
    for name, parameter in whole.named_parameters():
        if name.endswith("_bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # all zero they would be refused as lost
    if layout == "marlin":
        state = to_marlin(whole.state_dict(), tokens=TINY.grid.tokens)
    elif layout == "huggingface":
        state = to_hugging_face(whole.state_dict())
    else:
        state = whole.state_dict() if layout == "videomae" else whole.encoder.state_dict()
    save_public(tmp_path / "weights.pth", state)
    expected = encoder_of(replace(TINY, layer_norm_eps=eps))
    expected.encoder.load_state_dict(whole.encoder.state_dict())
    same(open_network(tmp_path / "weights.pth", SIZES), expected)


def test_a_public_classifier_gives_what_its_head_sees(tmp_path):
    torch.manual_seed(2)
    network = Classifier(TINY, 5).eval()
    save_public(tmp_path / "weights.safetensors", network.state_dict())
    same(open_network(tmp_path / "weights.safetensors", SIZES), network)


def test_what_a_public_file_does_not_tell_is_asked_for_or_read_beside_it(tmp_path):
    state = encoder_of().encoder.state_dict()
    save_public(tmp_path / "model.safetensors", state)
    with pytest.raises(ValueError, match=r"--sizes.heads .*dim 24"):
        open_network(tmp_path, Sizes(frames=4, image_size=32))
    told = {"num_attention_heads": 3, "num_frames": 4, "image_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(told))
    same(open_network(tmp_path, Sizes()), encoder_of())


@pytest.mark.parametrize("kind", ["classifier", "facesleuth"])
def test_a_fine_tuned_folder_gives_what_its_head_sees(tmp_path, kind):
    config = TINY if kind == "classifier" else FACE
    network = build(config, Outputs(LABELS)).eval()
    known = PredictorConfig(config, LABELS, None, ViewConfig(), IngestSettings())
    folder = save_predictor(tmp_path / "best", network.state_dict(), known, {"seed": "0"})
    found, fresh = open_network(folder, Sizes()), open_network(folder, Sizes(), random=1)
    x = clips()
    with torch.no_grad():
        assert torch.allclose(found.features(x), network.features(x), atol=1e-6)
        assert not torch.allclose(fresh.features(x), network.features(x), atol=1e-2)
    with pytest.raises(ValueError, match="frames: .* is a fine-tuned network, which has its own"):
        open_network(folder, Sizes(frames=8))


def test_a_random_control_has_the_sizes_and_not_the_weights(tmp_path):
    folder = artifact(tmp_path / "encoder", encoder_of())
    one, same_seed, other = (open_network(folder, Sizes(), random=seed) for seed in (7, 7, 8))
    x = clips()
    assert one.config == open_network(folder, Sizes()).config
    assert one.features(x).equal(same_seed.features(x))
    assert not torch.allclose(one.features(x), other.features(x))
    assert not torch.allclose(one.features(x), encoder_of().features(x))


def test_the_attention_core_can_be_changed_and_heads_cannot(tmp_path):
    folder = artifact(tmp_path / "encoder", encoder_of())
    changed = open_network(folder, Sizes(attention="mira_exact", mira_layers=1))
    assert [changed.config.core_of(i) for i in (0, 1)] == ["sdpa", "mira_exact"]
    with pytest.raises(ValueError, match="heads=4, but the encoder was trained with 3"):
        open_network(folder, Sizes(heads=4))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    write_marked(folder / "shards")
    artifact(folder / "encoder", encoder_of(replace(TINY, attention="mira_flashlite")))
    return folder


def probed(place: Path, output: Path, **changes) -> ProbeConfig:
    config = ProbeConfig(
        model=str(place / "encoder"),
        shards=(str(place / "shards"),),
        batch=3,
        loader_workers=0,
        cluster=ClusterConfig(workers=0, output=str(output)),
        tracking=TrackingConfig(uri=f"sqlite:///{place / 'mlflow.db'}", experiment="probe"),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def result(place):
    return driver.run(probed(place, place / "out"))


def test_the_command_writes_features_figures_and_a_run(result, place):
    made = Features.read(place / "out/features.parquet")
    assert sorted(made.keys) == sorted(f"clip{i}" for i in range(12))
    assert {s: made.splits.count(s) for s in ("train", "test")} == {"train": 8, "test": 4}
    assert set(made.datasets) == {"rendered"} and set(made.labels) == set(LABELS)
    assert made.values.shape == (12, 24)
    written = json.loads((place / "out/metrics.json").read_text())
    assert set(written["probes"]) == {"knn_1", "knn_3", "knn_5", "linear"}
    for name, found in written["probes"].items():
        confusion = np.array(found["confusion"])
        assert confusion.sum() == found["clips"] == 4
        assert found["war"] == pytest.approx(confusion.trace() / 4)
        assert logged(result, f"{name}/war") == {0: found["war"]}
    assert written["linear"]["held_out"] == "subjects" and written["shared_subjects"] == 0
    assert written["read"]["test"] == {"clips": 4.0, "unread": 0.0, "coverage": 1.0}
    assert tree(place / "out") == {"features.parquet", "metrics.json", "summary.json"}


def test_a_probe_says_that_its_encoder_knows_labels_of_the_measured_clips(place, tmp_path, capsys):
    model = shutil.copytree(place / "encoder", tmp_path / "model")
    origin = Manifest.open(place / "shards").origin[1]
    known = {"selection": "last", "input.manifest_0.sha256": origin}
    for learnt, told in (("train", []), ("test", ["some of these clips were trained on"])):
        (model / "provenance.json").write_text(json.dumps(known | {"train_split": learnt}))
        found = driver.run(probed(place, tmp_path / learnt, model=str(model)))
        assert found["leaks"] == told
        assert ("LEAKS: some of these" in capsys.readouterr().out) == bool(told)
    assert driver.run(probed(place, tmp_path / "r", model=str(model), random=True))["leaks"] == []


def test_files_are_looked_at_once_by_the_driver_alone(place, tmp_path, monkeypatch):
    looks = looks_at_files(monkeypatch)
    driver.run(probed(place, tmp_path / "out"))
    assert looks == [place / "shards"]


def test_the_figures_follow_from_the_features_alone(result, place):
    made = Features.read(place / "out/features.parquet")
    train, test = (
        made.where(torch.tensor([s == w for s in made.splits])) for w in ("train", "test")
    )
    again = probe(train, test, result["labels"], **SETTINGS)
    assert again["probes"] == result["probes"]


def test_features_of_two_ranks_are_those_of_one(result, place, tmp_path):
    config = str(tmp_path), str(place / "shards"), str(place / "encoder")
    multiprocessing.spawn(table_of_rank, args=config, nprocs=2)
    made = Features.read(tmp_path / "table.parquet")
    whole = Features.read(place / "out/features.parquet")
    test = whole.where(torch.tensor([split == "test" for split in whole.splits]))
    assert made.keys == test.keys and made.subjects == test.subjects
    assert np.allclose(made.values, test.values, atol=1e-5)


def test_what_two_ranks_cannot_read_counts_together(tmp_path):
    """Each of them may fail as often as all: together that is more than the share."""
    write_folder(tmp_path / "set", [2, 2], replaced={"s0_1": b"no video", "s1_0": b"no video"})
    multiprocessing.spawn(judged_by_rank, args=(str(tmp_path), str(tmp_path / "set")), nprocs=2)
    first, second = (Path(tmp_path, f"told-{rank}").read_text() for rank in (0, 1))
    assert first == second and first.startswith("2 of 4 samples") and "s0_1" in first


def test_features_are_the_mean_over_a_clips_views():
    pixels = torch.randint(256, (6, 3, 4, 32, 32), dtype=torch.uint8)
    batch = ClipBatch(pixels, torch.zeros(3).long(), torch.ones(3), torch.zeros(3), ["a"] * 3, 2)
    network = encoder_of()
    with torch.no_grad():
        each = network.features(normalise(pixels))
        found = FeatureTask(network).predict(batch)
    assert torch.allclose(found, (each[0::2] + each[1::2]) / 2, atol=1e-6)


def test_features_alone_are_written_of_every_clip(place, tmp_path):
    config = probed(place, tmp_path / "out", train_split=None, split=None)
    found = driver.run(replace(config, views=ViewConfig(temporal=2), stride=1))
    assert found["probes"] == {} and found["read"]["all"]["clips"] == 12
    made = Features.read(tmp_path / "out/features.parquet")
    assert (len(made), made.splits.count("train"), made.splits.count("test")) == (12, 8, 4)


def test_features_that_hold_the_label_are_read_out_and_noise_is_not():
    generator = np.random.default_rng(0)

    def drawn(split: str, n: int, told: float) -> Features:
        rows = [
            ("d", f"{split}{i:03d}", f"{split}{i // 4}", LABELS[i % 2], split) for i in range(n)
        ]
        values = generator.normal(size=(n, 16)).astype(np.float32)
        values[:, 3:9] += told * (np.arange(n) % 2)[:, None]
        return Features.of(rows, values)

    for told, low, high in ((0.0, 0.35, 0.65), (12.0, 0.97, 1.0)):
        train, test = drawn("train", 200, told), drawn("test", 200, told)
        found = probe(train, test, LABELS, **SETTINGS)["probes"]
        assert all(low <= judged["uar"] <= high for judged in found.values()), found


def test_people_in_both_splits_are_told(place, capsys):
    train, test = table(), table()
    found = probe(train, test, ("calm", "glad"), **SETTINGS | {"neighbours": (1,)})
    assert found["shared_subjects"] == 4
    known = {"labels": ["calm", "glad"], "read": {}, "leaks": [], **found}
    driver.tell({**known, "privileged": []}, place)
    told = capsys.readouterr().out
    assert "4 subjects are in both splits" in told and "PRIVILEGED" not in told
    driver.tell({**known, "privileged": ["onset and apex"]}, place)
    assert "PRIVILEGED: told onset and apex" in capsys.readouterr().out


def test_a_split_file_takes_the_place_of_the_stored_splits(place, tmp_path):
    lines = ["dataset,key,split"] + [
        f"rendered,clip{i},{'val' if i < 4 else 'fit'}" for i in range(10)
    ]
    (tmp_path / "fold.csv").write_text("\n".join(lines) + "\n")
    config = probed(place, tmp_path / "out", splits=str(tmp_path / "fold.csv"), neighbours=(1,))
    found = driver.run(replace(config, train_split="fit", split="val"))
    assert (found["train_clips"], found["test_clips"]) == (6, 4)
    made = Features.read(tmp_path / "out/features.parquet")
    assert made.splits.count("fit") == 6 and made.splits.count("val") == 4


def test_a_clip_that_cannot_be_read_has_no_row_and_is_told(place, tmp_path, monkeypatch):
    write_marked(tmp_path / "shards")
    spoil(tmp_path / "shards", "clip9")
    config = probed(place, tmp_path / "out", shards=(str(tmp_path / "shards"),), neighbours=(1,))
    with monkeypatch.context() as patch:  # of several ranks, each lets pass what is not its share
        patch.setattr(ClipStream, "_tolerated", lambda _: 9)
        with pytest.raises(TooManyFailures, match="1 of 4 samples"):
            driver.run(config)
    found = driver.run(replace(config, max_failed_share=0.5))
    assert found["read"]["test"] == {"clips": 3.0, "unread": 1.0, "coverage": 0.75}
    assert "clip9" not in Features.read(tmp_path / "out/features.parquet").keys
    assert {line["key"] for line in ledger(tmp_path / "out")} == {"clip9"}


def test_too_few_labelled_clips_are_told_before_any_is_read(place, tmp_path):
    config = probed(place, tmp_path / "out", neighbours=(1, 9))
    with pytest.raises(ValueError, match="has 8 labelled clips of 2 classes: the probes need 9"):
        driver.run(config)
    lines = "".join(f"rendered,clip{i},{'a' if i % 2 else 'b'}\n" for i in range(12))
    (tmp_path / "one.csv").write_text("dataset,key,split\n" + lines)
    config = replace(config, neighbours=(1,), splits=str(tmp_path / "one.csv"))
    with pytest.raises(ValueError, match="has 6 labelled clips of 1 classes"):
        driver.run(replace(config, train_split="a", split="b"))
    assert not (tmp_path / "out/features.parquet").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "split is train and train_split 'train'"),
        ({"split": None}, "split is None and train_split"),
        ({"neighbours": ()}, "neighbours is"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_a_configuration_that_cannot_mean_anything_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**changes)


def test_it_runs_from_the_command_line(place, tmp_path):
    line = [
        *(sys.executable, "launch/probe.py", "--shards", str(place / "shards")),
        *("--model", str(place / "encoder"), "--random", "--neighbours", "1", "--batch", "4"),
        *("--loader_workers", "0", "--cluster.output", str(tmp_path / "out")),
        *("--tracking.uri", f"sqlite:///{place / 'mlflow.db'}"),
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "knn_1: accuracy" in done.stdout and "chance 50.0%" in done.stdout
    assert (tmp_path / "out/features.parquet").is_file()


def test_a_packaged_model_is_probed_and_its_weights_are_on_record(place, tmp_path):
    network = build(TINY, Outputs(LABELS)).eval()
    known = PredictorConfig(TINY, LABELS, None, ViewConfig(), IngestSettings())
    saved = save_predictor(tmp_path / "best", network.state_dict(), known, {"seed": "0"})
    packed = package(saved, tmp_path / "model")
    assert not (packed / "model.safetensors").exists()
    config = probed(place, tmp_path / "out", model=str(packed), train_split=None)
    assert hash_on_record(driver.run(config)) == hash_of(saved / "model.safetensors")


def test_a_folder_of_others_is_probed_and_its_weights_are_on_record(place, tmp_path):
    state = encoder_of().encoder.state_dict()
    save_public(tmp_path / "model.pth", state)
    (tmp_path / "theirs").mkdir()
    file = (tmp_path / "model.pth").rename(tmp_path / "theirs/pytorch_model.bin")
    config = probed(place, tmp_path / "out", model=str(file.parent), train_split=None, sizes=SIZES)
    assert hash_on_record(driver.run(config)) == hash_of(file)


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def hash_on_record(result) -> str:
    run = connect(result["tracking_uri"]).get_run(result["run_id"])
    return run.data.tags["input.model.sha256"]


def test_a_registered_encoder_is_found_by_its_alias(place, tmp_path, capsys):
    tracking = probed(place, tmp_path).tracking
    run = create_run(tracking, output=str(tmp_path), config={}, origin={})
    how = {"kind": "encoder", "weights": place / "encoder/model.safetensors"}
    registry.publish(run, place / "encoder", **how, name="tiny", alias="champion")
    line = [
        *("--model", "models:/tiny@champion", "--shards", str(place / "shards")),
        *("--tracking.uri", tracking.uri, "--cluster.output", str(tmp_path / "out")),
        *("--loader_workers", "0", "--train_split", "None"),
    ]
    assert driver.main(line) == 0, capsys.readouterr().err
    found = Features.read(tmp_path / "out/features.parquet")
    network = open_network(place / "encoder", Sizes())
    assert found.values.shape == (4, network.config.dim)
    assert driver.main([*line, "--model", "models:/tiny@nobody"]) == 1
    assert "has no alias @nobody" in capsys.readouterr().err
