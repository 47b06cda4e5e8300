"""Single-Orientation Attention: its formulas at known angles, its gradient, what θ learns."""

from math import cos, pi, sin

import pytest
import torch
from torch import nn
from torch.nn import functional

from finetune.models.soa import (
    SingleOrientationAttention,
    SoaConfig,
    TokenOrientationAttention,
    hat_weights,
    orientation_layers,
    pooled,
)
from tests.finetune.rendered import one_thread


def maps(batch=2, channels=3, rows=7, columns=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, rows, columns, generator=generator, dtype=dtype)


def angle(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upright_means_are_columns_and_level_ones_are_rows(dtype):
    x = maps(rows=5, columns=9, dtype=dtype)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    upright = pooled(x.flatten(2), hat_weights(angle(pi / 2, dtype), 5, 9, 9))
    torch.testing.assert_close(upright, x.mean(2).flip(2), atol=tolerance, rtol=0)
    level = pooled(x.flatten(2), hat_weights(angle(0.0, dtype), 5, 9, 5))
    torch.testing.assert_close(level, x.mean(3), atol=tolerance, rtol=0)


@pytest.mark.parametrize("theta", [0.0, 0.3, pi / 4, pi / 2, 2.0, 3.1, -1.0])
def test_bins_share_every_pixel_and_none_is_empty(theta):
    weights = hat_weights(angle(theta), 6, 8, 8)
    torch.testing.assert_close(weights.sum(0), torch.ones(48, dtype=torch.float64))
    assert (weights.sum(1) > 0.01).all() and (weights >= 0).all()


def test_the_descriptor_is_the_slow_obvious_one():
    theta, bins, x = 0.7, 5, maps(rows=4, columns=6)
    top = torch.zeros(2, 3, bins, dtype=torch.float64)
    mass = torch.zeros(bins, dtype=torch.float64)
    sine, cosine = torch.tensor(theta).double().sin(), torch.tensor(theta).double().cos()
    reach = float(sine.abs() + cosine.abs())
    for row in range(4):
        for column in range(6):
            t = float(-(2 * column / 5 - 1) * sine + (2 * row / 3 - 1) * cosine)
            for k in range(bins):
                centre, width = reach * (2 * k / (bins - 1) - 1), 2 * reach / (bins - 1)
                w = max(0.0, 1 - abs(t - centre) / width)
                top[:, :, k] += w * x[:, :, row, column]
                mass[k] += w
    found = pooled(x.flatten(2), hat_weights(angle(theta), 4, 6, bins))
    torch.testing.assert_close(found, top / mass, atol=1e-7, rtol=0)


def layer(channels=3, rows=7, columns=7, **values):
    torch.manual_seed(1)
    config = SoaConfig(**values)
    return SingleOrientationAttention(channels, rows, columns, config).double()


@pytest.mark.parametrize("theta", [0.41, 1.13, 2.2])
def test_the_gradient_of_theta_is_that_of_finite_differences(theta):
    model, x = layer(theta=theta).eval(), maps()
    probe = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(at):
        with torch.no_grad():
            model.theta.fill_(at)
        return (model(x)[0] * probe).sum()

    step = 1e-6
    with torch.no_grad():
        numeric = (value(theta + step) - value(theta - step)) / (2 * step)
    model.zero_grad()
    value(theta).backward()
    torch.testing.assert_close(model.theta.grad, numeric.reshape(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("theta", [0.0, 0.5, pi / 2, 2.4])
def test_a_flip_maps_theta_to_pi_less_theta(theta):
    model, x = layer(theta=theta).eval(), maps()
    expected = model(x)[0].flip(3)
    with torch.no_grad():
        model.theta.fill_(pi - theta)
    torch.testing.assert_close(model(x.flip(3))[0], expected)


def test_a_half_turn_of_theta_changes_nothing():
    model, x = layer(theta=0.5).eval(), maps()
    expected, direction = model(x)[0], model.direction
    with torch.no_grad():
        model.theta.add_(pi)
    torch.testing.assert_close(model(x)[0], expected)
    assert float(model.direction) == pytest.approx(float(direction)) == pytest.approx(0.5)


def test_the_previous_gate_multiplies():
    model, x = layer().eval(), maps()
    out, gate = model(x)
    torch.testing.assert_close(out, x * gate)
    assert gate.min() > 0 and gate.max() < 1
    same = torch.rand(2, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(model(x, same)[1], gate * same)
    constant = torch.full((2, 5, 14, 14), 0.5, dtype=torch.float64)
    torch.testing.assert_close(model(x, constant)[1], gate * 0.5)
    larger = torch.rand(2, 3, 14, 14, dtype=torch.float64)
    blocks = larger.unflatten(3, (7, 2)).unflatten(2, (7, 2)).mean((3, 5))
    torch.testing.assert_close(model(x, larger)[1], gate * blocks)  # bilinear to the half
    others = torch.rand(2, 5, 7, 7, dtype=torch.float64)
    expected = gate * (others.sum(1) / 5)[:, None]
    torch.testing.assert_close(model(x, others)[1], expected)


def test_tokens_are_maps_of_frames():
    torch.manual_seed(0)
    add_on = TokenOrientationAttention(16, 3, 4, 5).eval()
    tokens = torch.randn(2, 60, 16)
    frames = tokens.reshape(6, 4, 5, 16).permute(0, 3, 1, 2)
    expected = add_on.soa(frames)[0].permute(0, 2, 3, 1).reshape(2, 60, 16)
    torch.testing.assert_close(add_on(tokens), expected)
    assert [name for name, _ in orientation_layers(add_on)] == ["soa"]
    add_on(tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in add_on.parameters())
    with pytest.raises(ValueError, match="61 tokens are not 3 frames of 20"):
        add_on(torch.randn(2, 61, 16))


def test_half_precision_is_close():
    model, x = layer().eval().float(), maps(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)[0]
        assert model._weights().dtype == torch.float32
    torch.testing.assert_close(out.float(), model(x)[0], atol=0.05, rtol=0.05)


def moving_gratings(phi, count, generator, *, side=16):
    """Differences of frames [B, 1, h, w] in noise; where the label is 1, gratings along φ moved."""
    axis = torch.linspace(-1, 1, side)
    phase = 2 * pi * torch.rand(count, 1, 1, generator=generator)
    wave = 1.4 * pi * (axis[None, :, None] * cos(phi) - axis[None, None] * sin(phi))
    moved = torch.sin(wave + phase + 0.8) - torch.sin(wave + phase)
    labels = torch.randint(2, (count,), generator=generator)
    noise = torch.randn(count, side, side, generator=generator)
    return (noise + labels[:, None, None] * moved)[:, None], labels.float()


@pytest.mark.parametrize(
    ("degrees", "start", "bins", "within"),
    [
        *((*turn, 12, 3) for turn in ((20, 49), (65, 37), (88, 59), (88, 117))),
        *((*turn, 12, 3) for turn in ((90, 60), (137, 166), (170, 142))),
        *((*turn, None, 5) for turn in ((20, 49), (88, 117))),  # a bin a row
    ],
)
@one_thread()
def test_theta_finds_the_direction_of_moving_gratings(degrees, start, bins, within):
    """Trained to tell motion from noise, θ turns by up to 30° to where the gratings lie."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    soa = SingleOrientationAttention(1, 16, 16, SoaConfig(bins=bins, theta=start * pi / 180))
    head = nn.Linear(1, 1)
    gate = [*soa.reduce.parameters(), *soa.norm.parameters(), *soa.expand.parameters()]
    optimiser = torch.optim.Adam([{"params": [*gate, *head.parameters()]}, {"params": [soa.theta]}])
    steps, alone = 250, 40  # the gate learns alone first, so that θ gets a gradient of sense
    for step in range(steps):
        rate = 0.03 * (1 - step / steps)
        for group, scale in zip(optimiser.param_groups, (1, step >= alone), strict=True):
            group["lr"] = rate * scale
        x, labels = moving_gratings(degrees * pi / 180, 128, generator)
        logits = head(soa(x)[0].mean((2, 3)) * 10)[:, 0]
        optimiser.zero_grad()
        functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimiser.step()
    off = (float(soa.direction) * 180 / pi - degrees + 90) % 180 - 90
    assert abs(off) < within, f"θ is {off:.1f}° off"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bins": 1}, "SoaConfig.bins=1 must be at least 2"),
        ({"reduction": 0}, "SoaConfig.reduction=0"),
        ({"theta": 90.0}, "SoaConfig.theta=90.0 is an angle in radians"),
    ],
)
def test_an_impossible_config_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SoaConfig(**values)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="built for rows=7, columns=7"):
        layer()(maps(rows=6))
    with pytest.raises(ValueError, match="at least 2 × 2"):
        SingleOrientationAttention(3, 1, 7)
