"""Losses of classes, action units and affect against their definitions; unknown targets."""

import math

import pytest
import torch
from torch.nn import functional

from finetune.losses import (
    LossesConfig,
    Objective,
    affect_losses,
    class_weights,
    label_losses,
    unit_losses,
)
from finetune.outputs import HeadsConfig, Outputs, Parts
from finetune.targets import known, one_hot, targets_of
from shards.batch import ClipBatch

NAN = float("nan")


def logits(rows=5, columns=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 3


def clips(labels=(0, 2, -1, 1), **extra):
    count = len(labels)
    return ClipBatch(
        pixels=torch.zeros(count, 3, 2, 4, 4, dtype=torch.uint8),
        labels=torch.tensor(labels),
        weights=torch.ones(count),
        seeds=torch.arange(count),
        keys=[f"k{i}" for i in range(count)],
        extra={name: torch.tensor(value) for name, value in extra.items()},
    )


def test_class_weights_are_powers_of_counts_and_one_on_average_over_clips():
    counts, exponent = [90, 9, 1], 0.5
    weights = class_weights(counts, exponent).double()
    assert float((weights * torch.tensor(counts)).sum()) == pytest.approx(100)
    assert float(weights[1] / weights[0]) == pytest.approx(10**0.5)
    assert class_weights([7, 3], 0.0).tolist() == [1.0, 1.0]
    even = class_weights([90, 10], 1.0).double() * torch.tensor([90, 10])
    assert even.tolist() == pytest.approx([50, 50]), "classes count alike"
    assert class_weights([5, 0], 1.0).isfinite().all()


def test_weighted_cross_entropy_is_that_of_torch():
    x, labels, weights = logits(), torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0.2, 1.0, 3.0])
    found = label_losses(x, one_hot(labels, 3).double(), weights=weights.double())
    expected = functional.cross_entropy(x, labels, weight=weights.double(), reduction="none")
    torch.testing.assert_close(found, expected)


def test_the_focal_loss_is_its_definition_and_plain_at_zero():
    x, labels = logits(), [0, 1, 2, 2, 1]
    found = label_losses(x, one_hot(torch.tensor(labels), 3).double(), focal=2.0)
    for row, label, loss in zip(x, labels, found, strict=True):
        p = float(row.softmax(0)[label])
        assert float(loss) == pytest.approx(-((1 - p) ** 2) * math.log(p))
    certain = torch.tensor([[60.0, 0.0]], requires_grad=True)
    label_losses(certain, torch.tensor([[1.0, 0.0]]), focal=0.5).sum().backward()
    assert certain.grad.isfinite().all(), "a clip that is told for certain has a gradient"


def test_soft_labels_are_votes_where_there_are_some():
    batch = clips(votes=[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    outputs = Outputs(("a", "b", "c"))
    targets = targets_of(batch, outputs, votes=True).labels
    assert targets.tolist() == [[0.5, 0.5, 0.0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    smooth = targets_of(batch, outputs, votes=True, smoothing=0.3).labels
    torch.testing.assert_close(smooth.sum(1), torch.ones(4))
    assert smooth[0].tolist() == pytest.approx([0.45, 0.45, 0.1])


def test_unknown_targets_cost_nothing_and_have_no_gradient():
    units = torch.tensor([[1.0, 0.0, NAN], [NAN, NAN, NAN], [NAN, 1.0, 0.0]])
    x = logits(3).float().requires_grad_()
    losses = unit_losses(x, units)
    expected = functional.binary_cross_entropy_with_logits(x[0, :2], units[0, :2])
    torch.testing.assert_close(losses[0], expected)
    assert losses[1] == 0
    losses.sum().backward()
    assert torch.equal(x.grad == 0, units.isnan())


def test_affect_costs_its_squared_error():
    targets = torch.tensor([[0.5, NAN], [NAN, NAN], [-1.0, 1.0]])
    x = logits(3, 2).float()
    told = x.tanh()
    found = affect_losses(x, targets)
    assert float(found[0]) == pytest.approx(float((told[0, 0] - 0.5) ** 2))
    assert found[1] == 0
    assert float(found[2]) == pytest.approx(float(((told[2] - targets[2]) ** 2).mean()))


def test_a_clip_counts_where_anything_is_known():
    outputs = Outputs(("a", "b"), units=("1", "4"), affect=True)
    nothing = [NAN, NAN]
    batch = clips(
        labels=(0, -1, -1, -1),
        units=[nothing, [NAN, 1.0], nothing, nothing],
        affect=[nothing, nothing, [0.1, NAN], nothing],
    )
    targets = targets_of(batch, outputs)
    assert known(targets).tolist() == [True, True, True, False]
    losses = Objective(outputs, LossesConfig())(logits(4, 6), targets)
    costs = {name: (value != 0).tolist() for name, value in losses.items()}
    assert costs == {
        "labels": [True, False, False, False],
        "units": [False, True, False, False],
        "affect": [False, False, True, False],
    }


def test_every_loss_has_its_weight_and_its_part_of_the_outputs():
    outputs = Outputs(("a", "b"), units=("1",), affect=True)
    x = logits(2, 5)
    targets = Parts(
        one_hot(torch.tensor([0, 1]), 2), torch.tensor([[1.0], [0.0]]), torch.zeros(2, 2)
    )
    plain = Objective(outputs, LossesConfig())(x, targets)
    config = LossesConfig(labels=2.0, units=0.5, affect=3.0)
    weighted = Objective(outputs, config)(x, targets)
    for name, weight in (("labels", 2.0), ("units", 0.5), ("affect", 3.0)):
        torch.testing.assert_close(weighted[name], weight * plain[name])
    torch.testing.assert_close(plain["units"], unit_losses(x[:, 2:3].float(), targets.units))
    torch.testing.assert_close(plain["affect"], affect_losses(x[:, 3:].float(), targets.affect))
    alone = Objective(Outputs(units=("1",)), LossesConfig())(x[:, :1], targets)
    assert set(alone) == {"units"}


def test_answers_are_probabilities_averaged_over_views():
    outputs = Outputs(("a", "b"), units=("1",), affect=True)
    x = logits(4, 5).float()
    told = outputs.answers(x, views=2)
    assert told.shape == (2, 5)
    torch.testing.assert_close(told[:, :2].sum(1), torch.ones(2))
    torch.testing.assert_close(told[1, 2], x[2:, 2].sigmoid().mean())
    torch.testing.assert_close(told[0, 3:], x[:2, 3:].tanh().mean(0))
    assert Outputs(units=("1", "2")).answers(x[:, :2], views=1).shape == (4, 2)


def test_impossible_settings_name_the_field():
    with pytest.raises(ValueError, match="losses.focal is -1"):
        LossesConfig(focal=-1)
    with pytest.raises(ValueError, match="name every action unit once"):
        HeadsConfig(units=("1", "1"))
    with pytest.raises(ValueError, match="needs the number of training clips"):
        Objective(Outputs(("a", "b")), LossesConfig(balance=1.0))
