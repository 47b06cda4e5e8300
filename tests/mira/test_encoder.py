"""The encoder: configuration, frame structure, moving average, checkpointing, importance."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from mira.blocks import Attention, Block, moved_average, replaying
from mira.encoder import Encoder, EncoderConfig
from mira.tubelets import (
    from_tubelets,
    normalise,
    sinusoids,
    to_pixels,
    token_positions,
    tubelets,
)
from tests.mira.ranks import average_of_rank, module_and_clips

SMALL = EncoderConfig(image_size=32, patch_size=8, frames=8, dim=24, depth=3, heads=3)
MIRA = ["mira_exact", "mira_flashlite"]


def small(**changes):
    torch.manual_seed(0)
    return Encoder(dataclasses.replace(SMALL, **changes))


def clips(batch=2, seed=1):
    return torch.randn(batch, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed))


def tube(batch=2, shown=3):
    places = torch.stack([torch.randperm(16)[:shown].sort().values for _ in range(batch)])
    return (torch.arange(4)[:, None] * 16 + places[:, None]).flatten(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 33}, "image_size=33 must be a positive multiple of patch_size=8"),
        ({"frames": 7}, "frames=7 must be a positive multiple of tubelet=2"),
        ({"heads": 5}, "dim=24 must be a positive multiple of heads=5"),
        ({"attention": "flash"}, "choose one of sdpa, mira_exact, mira_flashlite"),
        ({"statistics": "ema"}, "choose instance, batch or batch_ema"),
        ({"eval_statistics": "batch_ema"}, "choose instance or batch"),
        ({"mira_layers": 4}, "mira_layers=4 must lie in 0 … depth=3"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"depth": 0}, "must be positive"),
    ],
)
def test_an_impossible_configuration_names_field_and_fix(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_mira_replaces_attention_in_the_last_layers_only():
    model = small(attention="mira_exact", mira_layers=1)
    assert [block.attn.core.framewise for block in model.blocks] == [False, False, True]
    assert [name for name in model.state_dict() if name.endswith("c_buf")] == [
        "blocks.2.attn.c_buf"
    ]


def test_encoding_visible_tokens_equals_encoding_a_clip_of_them():
    model = small().eval()
    x, everything = clips(), torch.arange(64).expand(2, -1)
    torch.testing.assert_close(model(x, everything), model(x))
    visible = tube()
    mask = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, visible, True)
    torch.testing.assert_close(model(x, mask), model(x, visible))
    changed = from_tubelets(
        torch.where(mask[..., None, None, None, None], tubelets(x, SMALL.grid), 9.0), SMALL.grid
    )
    torch.testing.assert_close(model(changed, visible), model(x, visible))


@pytest.mark.parametrize("attention", MIRA)
def test_mira_refuses_masks_that_break_the_frames(attention):
    model, x = small(attention=attention), clips()
    assert model(x, tube()).shape == (2, 12, 24)
    uneven = tube()
    uneven[1, 2] = 20  # frame 0 keeps two tokens, frame 1 four
    with pytest.raises(ValueError, match="tube mask"):
        model(x, uneven.sort(1).values)
    with pytest.raises(ValueError, match="tube mask"):
        model(x, tube()[:, :-1])
    small()(x, uneven.sort(1).values)


def test_a_mask_of_unequal_clips_is_refused():
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, :3], mask[1, :4] = True, True
    with pytest.raises(ValueError, match="3 to 4"):
        small()(clips(), mask)


def test_a_clip_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 40, 32\).*\[B, 3, 8, 32, 32\]"):
        small()(torch.randn(2, 3, 8, 40, 32))


@pytest.mark.parametrize("statistics", ["batch", "batch_ema"])
@pytest.mark.parametrize("attention", MIRA)
def test_evaluation_does_not_depend_on_neighbours_unless_asked(attention, statistics):
    x = clips(3)
    alone = small(attention=attention, statistics=statistics).eval()
    torch.testing.assert_close(alone(x)[:1], alone(x[:1]))
    published = small(attention=attention, statistics=statistics, eval_statistics="batch").eval()
    assert (published(x)[:1] - published(x[:1])).abs().max() > 1e-6


def test_the_moving_average_moves_in_training_only():
    model = small(attention="mira_exact", statistics="batch_ema")
    start = model.blocks[0].attn.c_buf.clone()
    model.eval()(clips())
    assert torch.equal(model.blocks[0].attn.c_buf, start)
    model.train()(clips())
    moved = model.blocks[0].attn.c_buf
    assert not torch.equal(moved, start)
    assert moved.sum() == pytest.approx(1, abs=1e-6)


def test_the_moving_average_is_an_operator_as_compilers_need_it():
    average, mean = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16)
    torch.library.opcheck(moved_average, (average.clone(), mean))
    used = moved_average(average, mean)
    torch.testing.assert_close(used, torch.tensor([[0.68, 0.32]]))
    assert torch.equal(used, average)
    with replaying([torch.zeros(1, 2), torch.ones(1, 2)]):
        assert torch.equal(moved_average(average, mean), torch.ones(1, 2))
    assert torch.equal(used, average), "nothing moves while it is replayed"
    assert not torch.equal(moved_average(average, mean), used)


def test_the_moving_average_stays_float32_in_a_half_model():
    model = small(attention="mira_flashlite", statistics="batch_ema").bfloat16()
    assert model.blocks[0].attn.c_buf.dtype == torch.float32
    assert model.positions.dtype == torch.bfloat16
    model(clips().bfloat16()).float().mean().backward()
    assert model.double().blocks[0].attn.c_buf.dtype == torch.float64


def test_the_moving_average_is_that_of_all_ranks(tmp_path):
    torch.multiprocessing.spawn(average_of_rank, args=(str(tmp_path),), nprocs=2)
    averages = [torch.load(tmp_path / f"average_{rank}.pt") for rank in range(2)]
    module, x = module_and_clips()
    module(x)  # one process with both clips
    torch.testing.assert_close(averages[0], averages[1])
    torch.testing.assert_close(averages[0], module.c_buf)


@pytest.mark.parametrize("attention", ["sdpa", *MIRA])
def test_recomputed_blocks_give_the_same_gradients_and_average(attention):
    found = {}
    for recompute in (False, True):
        model = small(
            attention=attention, statistics="batch_ema", drop_path=0.3, checkpoint_blocks=recompute
        ).double()
        torch.manual_seed(3)
        for seed in (1, 2):  # two micro-batches, so that a second update precedes nothing stale
            model(clips(seed=seed).double()).square().sum().backward()
        found[recompute] = {n: p.grad for n, p in model.named_parameters()} | dict(
            model.named_buffers()
        )
    for name, value in found[False].items():
        torch.testing.assert_close(found[True][name], value, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", *MIRA])
def test_frame_importance_is_a_distribution_over_frames(attention):
    model = small(attention=attention, mira_layers=2).eval()
    importance = model.frame_importance(clips(3))
    assert importance.shape == (3, 4) and importance.dtype == torch.float32
    torch.testing.assert_close(importance.sum(1), torch.ones(3))
    assert (importance > 0).all() and not importance.requires_grad
    torch.testing.assert_close(model.frame_importance(clips(3)[:1]), importance[:1])


def test_asking_with_the_last_tokens_equals_cutting_the_whole():
    torch.manual_seed(0)
    block = Block(24, Attention(24, 3))
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    x = torch.randn(2, 10, 24)
    torch.testing.assert_close(block(x, asking=7), block(x)[:, -7:])
    torch.testing.assert_close(block.pooled(x), block(x).mean(1))


def test_drop_path_drops_whole_clips_keeps_the_mean_and_rests_in_evaluation():
    torch.manual_seed(0)
    block = Block(24, Attention(24, 3), drop_path=0.5)
    branch = torch.ones(4000, 2, 3)
    dropped = block._dropped(branch)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped.flatten(1).std(1) == 0).all()
    assert dropped.mean() == pytest.approx(1, abs=0.1)
    assert block.eval()._dropped(branch) is branch
    keeps = [block.keep for block in small(drop_path=0.2).blocks]
    rates = [0.0 if keep is None else 1 - float(keep) for keep in keeps]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_tubelets_are_the_patches_of_a_convolution_and_invert():
    x, model = clips(), small()
    embedded = model.patch_embed(x)
    convolved = model.patch_embed.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedded, convolved, rtol=1e-4, atol=1e-5)
    pieces = tubelets(x, SMALL.grid)
    assert torch.equal(from_tubelets(pieces, SMALL.grid), x)
    for shown in (2, 15):  # few and most tokens take different roads
        tokens = tube(shown=shown)
        picked = tubelets(x, SMALL.grid, tokens)
        assert torch.equal(picked[1], pieces[1, tokens[1]])


def test_normalisation_inverts_and_refuses_what_is_not_rgb_bytes():
    pixels = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8)
    x = normalise(pixels)
    assert x.dtype == torch.float32
    torch.testing.assert_close(to_pixels(x), pixels / 255)
    black = normalise(torch.zeros(1, 3, 1, 1, 1, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(black, -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
    with pytest.raises(ValueError, match="uint8"):
        normalise(pixels.float())


def test_positions_interleave_sine_and_cosine():
    table = sinusoids(50, 8)
    assert table[0].tolist() == [0.0, 1.0] * 4
    assert table[7, 2].item() == pytest.approx(torch.tensor(7 / 10000 ** (2 / 8)).sin().item())
    assert table[7, 3].item() == pytest.approx(torch.tensor(7 / 10000 ** (2 / 8)).cos().item())


def test_token_positions_of_a_mask():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert token_positions(mask).tolist() == [[0, 2], [1, 2]]


def test_mira_imports_with_torch_numpy_and_safetensors_alone():
    code = (
        "import sys, mira, mira.encoder, mira.weights\n"
        "heavy = {'ray', 'mlflow', 'deepspeed', 'transformers', 'decord', 'av', 'cv2', 'tyro'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_encoder_that_recomputes_its_blocks_compiles():
    config = EncoderConfig(
        image_size=32, frames=4, dim=24, depth=2, heads=3, checkpoint_blocks=True,
        attention="mira_flashlite",
    )  # fmt: skip
    torch.manual_seed(0)
    encoder, x = Encoder(config), torch.randn(2, 3, 4, 32, 32)
    compiled = torch.compile(encoder, backend="aot_eager")
    grads = []
    for run in (encoder, compiled):
        encoder.zero_grad()
        run(x).square().mean().backward()
        grads.append(encoder.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*grads)
