"""`run.compile`: the same numbers from compiled blocks, and few compilations."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from finetune import job as finetune_job
from kernels.marginals import MiraConstants
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
    ("attention", "recompute", "statistics"),
    [
        ("sdpa", True, "instance"),
        ("mira_flashlite", False, "instance"),
        ("mira_exact", True, "instance"),
        ("mira_exact", True, "batch_ema"),
        ("mira_flashlite", True, "batch_ema"),
    ],
)
def test_blocks_of_all_depths_and_rates_share_their_programs(attention, recompute, statistics):
    config = EncoderConfig(
        image_size=32,
        frames=4,
        dim=24,
        depth=10,  # more than the programs that torch keeps of one function,
        heads=3,
        attention=attention,
        statistics=statistics,
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


@pytest.mark.parametrize("attention", ["mira_exact", "mira_flashlite"])
def test_compiled_blocks_that_are_recomputed_move_their_average_once(attention):
    """What the backward keeps is chosen as Inductor chooses it; only the code is not generated."""
    config = EncoderConfig(
        image_size=32,
        frames=4,
        dim=24,
        depth=2,
        heads=3,
        attention=attention,
        statistics="batch_ema",
        constants=MiraConstants(alpha_min=0.01, alpha_max=100.0),
    )
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(replace(config, checkpoint_blocks=compiled))
        if compiled:
            compile_blocks(encoder, backend="aot_eager_decomp_partition")
        outs = []
        for clip in torch.randn(2, 2, 3, 4, 32, 32):  # two steps: the second average must be right
            outs.append(encoder(clip))
            outs[-1].square().mul(torch.arange(24)).mean().backward()
        averages = [block.attn.c_buf for block in encoder.blocks]
        found.append(outs + averages + [p.grad for p in encoder.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


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
