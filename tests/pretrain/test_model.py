"""The autoencoder: golden tensors, transformers parity, target, loss, sizes."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from mira.encoder import EncoderConfig
from mira.layouts import to_hugging_face
from mira.tubelets import from_tubelets, normalise, to_pixels, token_positions, tubelets
from pretrain.masking import MaskConfig, make_masks
from pretrain.model import DecoderConfig, VideoMAE
from pretrain.target import reconstruction_target, token_errors
from tests.mira.golden import attention_of, load, names, relative_error, state_of

ENCODER = EncoderConfig(image_size=32, patch_size=8, frames=8, dim=24, depth=2, heads=3)
DECODER = DecoderConfig(dim=16, depth=2, heads=2)
SEEDS = torch.tensor([5, 6, 7])


def model_and_clips(**changes):
    torch.manual_seed(0)
    model = VideoMAE(EncoderConfig(**vars(ENCODER) | changes), DECODER)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model, torch.randn(3, 3, 8, 32, 32)


@pytest.mark.parametrize("name", names("pretrain"))
def test_a_public_checkpoint_reproduces_prediction_target_and_loss(name):
    case, golden = load(name)
    model = VideoMAE.from_public(
        state_of(golden),
        heads=case["heads"],
        decoder_heads=case["decoder_heads"],
        frames=case["frames"],
        image_size=case["image"],
        attention=attention_of(case),
        statistics="batch_ema",
        eval_statistics="batch",
    ).eval()
    x, mask = golden["x"], golden["mask"].bool()
    prediction = model(x, mask)
    target = reconstruction_target(x, model.grid, token_positions(mask))
    assert relative_error(prediction, golden["prediction"]) < 1e-6
    assert relative_error(target, golden["target"]) < 1e-6
    assert model.loss(prediction, x, mask).item() == pytest.approx(golden["loss"].item(), rel=1e-6)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        use_mean_pooling=False,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    model = transformers.VideoMAEForPreTraining(config).eval()
    model.decoder.norm.eps = 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def from_theirs(model):
    return VideoMAE.from_public(
        model.state_dict(), heads=3, decoder_heads=2, frames=8, image_size=32
    )


def test_transformers_gives_the_same_prediction_loss_and_gradients(theirs):
    ours, x = from_theirs(theirs), torch.randn(3, 3, 8, 32, 32)
    (mask,) = make_masks(MaskConfig(0.75), ENCODER, SEEDS)
    expected = theirs(x.transpose(1, 2), bool_masked_pos=mask)
    prediction = ours(x, mask)
    assert relative_error(prediction, expected.logits) < 1e-5
    loss = ours.loss(prediction, x, mask)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    theirs.zero_grad()
    expected.loss.backward()
    loss.backward()
    grads = to_hugging_face({n: p.grad for n, p in ours.named_parameters()}, biases="in_memory")
    for name, parameter in theirs.named_parameters():
        assert relative_error(grads[name], parameter.grad) < 1e-4, name


def test_transformers_loads_what_we_write(theirs):
    ours = from_theirs(theirs)
    written = to_hugging_face(ours.state_dict(), biases="in_memory")
    theirs.load_state_dict(written, strict=True)
    assert ours.load_report.dropped == ours.load_report.new == ()


def test_transformers_works_beside_our_package_of_kernels():
    pytest.importorskip("transformers")
    code = (
        "import kernels; from transformers import VideoMAEForPreTraining; print(kernels.__file__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("kernels/__init__.py")


def test_the_target_is_made_of_unnormalised_pixels():
    pixels = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    pixels[0, :, :2, :8, :8] = 7  # a constant tubelet
    x = normalise(pixels)
    tokens = torch.arange(64).expand(2, -1)
    found = reconstruction_target(x, ENCODER.grid, tokens)
    frames = tubelets(to_pixels(x), ENCODER.grid).flatten(3)  # [B, N, C, values], in [0, 1]
    expected = (frames - frames.mean(3, keepdim=True)) / (frames.std(3, keepdim=True) + 1e-6)
    expected = expected.transpose(2, 3).flatten(2)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert found[0, 0].abs().max() < 1


def test_token_errors_are_the_mean_squares_with_their_gradient():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    tokens = torch.tensor([[0, 5, 63], [1, 2, 3]])
    prediction = torch.randn(2, 3, 384, dtype=torch.float64, requires_grad=True)
    found = token_errors(prediction, x, ENCODER.grid, tokens)
    target = reconstruction_target(x, ENCODER.grid, tokens)
    torch.testing.assert_close(found, (prediction - target).square().mean(2))
    assert torch.autograd.gradcheck(
        lambda p: token_errors(p, x, ENCODER.grid, tokens), prediction, fast_mode=True
    )


@pytest.mark.parametrize("decoder_ratio", [0.0, 0.5])
def test_a_clip_s_loss_does_not_depend_on_its_batch(decoder_ratio):
    model, x = model_and_clips()
    masks = make_masks(MaskConfig(0.75, decoder_ratio), ENCODER, SEEDS)
    together = model.losses(model(x, *masks), x, *masks)
    assert together.shape == (3,) and together.dtype == torch.float32
    for index in range(3):
        own = [mask[index : index + 1] for mask in masks]
        clip = x[index : index + 1]
        alone = model.losses(model(clip, *own), clip, *own)
        torch.testing.assert_close(alone[0], together[index])
    assert model.loss(model(x, *masks), x, *masks).item() == pytest.approx(together.mean().item())


def test_with_a_decoder_mask_only_hidden_and_decoded_tokens_count():
    model, x = model_and_clips()
    mask, decoder = make_masks(MaskConfig(0.75, 0.5), ENCODER, SEEDS)
    prediction = model(x, mask, decoder)
    assert prediction.shape == (3, 32, 384)
    decoded = token_positions(~decoder)
    target = reconstruction_target(x, ENCODER.grid, decoded)
    for clip in range(3):
        counted = mask[clip, decoded[clip]]
        assert 0 < counted.sum() < 32
        expected = (prediction - target)[clip, counted].square().mean()
        torch.testing.assert_close(model.losses(prediction, x, mask, decoder)[clip], expected)


def test_predictions_do_not_see_hidden_pixels():
    model, x = model_and_clips()
    (mask,) = make_masks(MaskConfig(0.75), ENCODER, SEEDS)
    pieces = tubelets(x, ENCODER.grid)
    other = from_tubelets(
        torch.where(mask[..., None, None, None, None], pieces + 3, pieces), ENCODER.grid
    )
    torch.testing.assert_close(model(other, mask), model(x, mask))


@pytest.mark.parametrize("attention", ["sdpa", "mira_exact", "mira_flashlite"])
def test_it_learns_one_batch(attention):
    model, noise = model_and_clips(attention=attention, statistics="batch_ema")
    x = functional.interpolate(noise[..., ::8, ::8], size=(8, 32, 32), mode="trilinear")
    (mask,) = make_masks(MaskConfig(0.75), ENCODER, SEEDS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        loss = model.loss(model(x, mask), x, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_stays_close_to_float32():
    model, x = model_and_clips()
    (mask,) = make_masks(MaskConfig(0.75), ENCODER, SEEDS)
    expected = model.loss(model(x, mask), x, mask).item()
    half, clips = model.bfloat16(), x.bfloat16()
    losses = half.losses(half(clips, mask), clips, mask)
    assert losses.dtype == torch.float32
    assert losses.mean().item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"dim": 100, "heads": 6}, "dim=100 must be a positive multiple"), ({"depth": 0}, "positive")],
)
def test_an_impossible_decoder_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**values)


# dim, depth, heads, decoder dim, depth, heads; millions of parameters in all and in the encoder;
# forward GFLOP a clip at mask 0.9, and with half the decoder's tokens.
TABLE = {
    "S": ((384, 12, 6), (192, 4, 3), (24.0, 21.9), (23.1, 15.7)),
    "B": ((768, 12, 12), (384, 4, 6), (94.2, 86.2), (70.9, 51.7)),
    "L": ((1024, 24, 16), (512, 12, 8), (343, 304), (285, 199)),
    "H": ((1280, 32, 16), (640, 12, 8), (692, 632), (475, 352)),
}


@pytest.mark.parametrize("size", TABLE)
def test_parameters_and_operations_are_the_published_ones(size):
    (dim, depth, heads), (ddim, ddepth, dheads), parameters, operations = TABLE[size]
    with torch.device("meta"):
        model = VideoMAE(
            EncoderConfig(dim=dim, depth=depth, heads=heads),
            DecoderConfig(dim=ddim, depth=ddepth, heads=dheads),
        )
    counts = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (model, model.encoder)]
    assert counts == pytest.approx(parameters, abs=0.05 if parameters[0] < 100 else 0.5)
    flops = [model.flops(MaskConfig(0.9, ratio), published=True) / 1e9 for ratio in (0.0, 0.5)]
    assert flops == pytest.approx(operations, abs=0.05 if operations[0] < 100 else 0.5)
    embedding = 2 * 1408 * 1536 * dim  # what is not computed for hidden tubelets
    # Nor do the 160 visible of 1568 tokens ask in the decoder's last block: q, projection, MLP.
    asking = 160 * (2 * 10 * ddim * ddim + 4 * 1568 * ddim)
    executed = model.flops(MaskConfig(0.9))
    saved = model.flops(MaskConfig(0.9), published=True) - executed
    assert saved == pytest.approx(embedding + asking)
