"""`run.compile`: the same numbers from compiled blocks, and few compilations."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from finetune import job as finetune_job
from mira.blocks import compile_blocks
from mira.encoder import Encoder, EncoderConfig
from pretrain import job as pretrain_job
from tests.runs import finetuning, pretraining, write_stripes

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile on a CPU needs g++"
)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("attention", "recompute"),
    [("sdpa", True), ("mira_flashlite", False), ("mira_exact", True)],
)
def test_blocks_of_all_depths_and_rates_share_their_programs(attention, recompute):
    config = EncoderConfig(
        image_size=32,
        frames=4,
        dim=24,
        depth=10,  # more than the programs that torch keeps of one function,
        heads=3,
        attention=attention,
        drop_path=0.2,
        checkpoint_blocks=recompute,
    )
    encoder = Encoder(config)
    compile_blocks(encoder, backend="aot_eager")
    for training in (True, False, True):
        encoder.train(training)
        encoder(torch.randn(2, 3, 4, 32, 32)).square().mean().backward()
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 3, "training with and without a rate, and evaluation"
    assert not counters["graph_break"]


@needs_compiler
@pytest.mark.parametrize(
    ("job", "configured"), [(pretrain_job, pretraining), (finetune_job, finetuning)]
)
def test_a_compiled_training_has_the_losses_of_a_plain_one(job, configured, tmp_path):
    write_stripes(tmp_path / "shards", [7, 5], test_every=5)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found, programs = [], []
    for compiled in (False, True):
        config = configured(tmp_path / "shards", tmp_path / str(compiled), uri, compile=compiled)
        found.append(job.run(config))
        programs.append(counters["stats"]["unique_graphs"])
    assert programs[0] == 0 < programs[1]
    assert found[1]["loss_last"] == pytest.approx(found[0]["loss_last"], rel=1e-4)
    assert found[1]["metrics"] == pytest.approx(found[0]["metrics"], rel=1e-3)
    plain, other = (sorted(p.name for p in (tmp_path / str(c)).rglob("*")) for c in (False, True))
    assert plain == other
