"""Figures of action units and affect against scikit-learn and numpy; ranks, unknown targets."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, mean_squared_error

from finetune.measure import Measure
from finetune.outputs import Outputs
from shards.batch import ClipBatch

NAN = float("nan")
UNITS = ("1", "4", "12", "26")


def batch(units=None, affect=None, *, labels=None, weights=None):
    given = {"units": units, "affect": affect}
    extra = {name: torch.as_tensor(v).float() for name, v in given.items() if v is not None}
    count = len(next(iter(extra.values()))) if extra else len(labels)
    return ClipBatch(
        pixels=torch.zeros(count, 3, 1, 2, 2, dtype=torch.uint8),
        labels=torch.full((count,), -1) if labels is None else torch.tensor(labels),
        weights=torch.ones(count) if weights is None else torch.tensor(weights),
        seeds=torch.arange(count),
        keys=[f"k{i}" for i in range(count)],
        extra=extra,
    )


def alone(value):
    return value.clone()


def of_two_ranks(parts, outputs):
    """Figures of two meters that saw one part each, as a reduction over ranks gives them."""
    meters = [Measure(outputs) for _ in parts]
    for meter, (output, clips) in zip(meters, parts, strict=True):
        meter.update(output, clips)
    sums: list[list[torch.Tensor]] = [[], []]
    for rank in (0, 1):
        meters[rank].compute(lambda value, rank=rank: sums[rank].append(value.clone()) or value)
    totals = iter([a + b for a, b in zip(*sums, strict=True)])
    return meters[0].compute(lambda value: next(totals))


@pytest.mark.parametrize("seed", range(5))
def test_f1_of_units_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, told = rng.integers(0, 2, (40, 4)).astype(float), rng.random((40, 4))
    truth[:, 3] = 0
    told[:, 3] *= 0.4  # never present, never told
    unknown = rng.random((40, 4)) < 0.3
    outputs = Outputs(units=UNITS)
    meter = Measure(outputs)
    shown = np.where(unknown, NAN, truth)
    for part in (slice(0, 7), slice(7, 40)):
        meter.update(torch.tensor(told[part]).float(), batch(units=shown[part]))
    found = meter.compute(alone)
    expected = {
        unit: f1_score(truth[~unknown[:, i], i], told[~unknown[:, i], i] > 0.5)
        for i, unit in enumerate(UNITS[:3])
    }
    for unit, value in expected.items():
        assert found[f"units/f1/{unit}"] == pytest.approx(value)
    assert found["units/f1"] == pytest.approx(sum(expected.values()) / 3)
    assert "units/f1/26" not in found, "a unit that never occurs has no F1"
    assert (found["clips"], found["unread"], found["coverage"]) == (40, 0, 1)


def concordance(x, y):
    """Lin's, by its definition."""
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


@pytest.mark.parametrize("seed", range(5))
def test_concordance_and_error_are_their_definitions(seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-1, 1, (50, 2))
    told = (0.6 * truth + rng.normal(0, 0.2, (50, 2)) + 0.1).clip(-1, 1)
    unknown = rng.random((50, 2)) < 0.2
    meter = Measure(Outputs(affect=True))
    meter.update(torch.tensor(told), batch(affect=np.where(unknown, NAN, truth)))
    found = meter.compute(alone)
    known = [~unknown[:, i] for i in range(2)]
    each = [concordance(told[k, i], truth[k, i]) for i, k in enumerate(known)]
    for i, name in enumerate(("valence", "arousal")):
        k = known[i]
        assert found[f"affect/ccc/{name}"] == pytest.approx(each[i], abs=1e-6)
        error = mean_squared_error(truth[k, i], told[k, i]) ** 0.5
        assert found[f"affect/rmse/{name}"] == pytest.approx(error, abs=1e-6)
    assert found["affect/ccc"] == pytest.approx(np.mean(each), abs=1e-6)


def test_answers_that_do_not_vary_agree_in_nothing():
    meter = Measure(Outputs(affect=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meter.update(torch.full((3, 2), 0.5), batch(affect=[[0.5, 0.5]] * 3))
        assert meter.compute(alone)["affect/ccc"] == 0.0


def test_two_ranks_of_unequal_share_give_the_figures_of_one():
    rng = np.random.default_rng(3)
    outputs = Outputs(("a", "b"), units=UNITS[:2], affect=True)
    told = torch.tensor(rng.random((9, 6))).float()
    units, affect = rng.integers(0, 2, (9, 2)).astype(float), rng.uniform(-1, 1, (9, 2))
    units[2], affect[3] = NAN, NAN
    labels = rng.integers(0, 2, 9).tolist()

    def part(chosen):
        return told[chosen], batch(units[chosen], affect[chosen], labels=labels[chosen])

    whole = Measure(outputs)
    whole.update(*part(slice(0, 9)))
    expected = whole.compute(alone)
    found = of_two_ranks([part(slice(0, 2)), part(slice(2, 9))], outputs)
    assert found == pytest.approx(expected, abs=1e-9)
    assert {"war", "uar", "units/f1", "affect/ccc"} <= set(found)


def test_padding_and_clips_that_could_not_be_read_do_not_count():
    meter = Measure(Outputs(units=("1",)))
    clips = batch(units=[[1.0], [1.0], [0.0]], weights=[1.0, 0.0, 0.0])
    clips.keys[2] = ""
    meter.update(torch.tensor([[0.9], [0.1], [0.9]]), clips)
    found = meter.compute(alone)
    assert found["units/f1"] == 1.0
    assert (found["clips"], found["unread"], found["coverage"]) == (1, 1, 0.5)


def test_units_that_nobody_shows_and_nobody_tells_are_measured():
    """Such as the clips of one person, who never shows any: what is annotated can be answered."""
    clean = Measure(Outputs(units=("1", "4")))
    clean.update(torch.tensor([[0.1, 0.2]]), batch(units=[[0.0, NAN]]))
    assert clean.compute(alone) == {"units/f1": 0.0, "clips": 1, "unread": 0, "coverage": 1.0}
    clean.update(torch.tensor([[0.1, 0.9]]), batch(units=[[0.0, 1.0]]))
    assert clean.compute(alone)["units/f1"] == 1.0, "of those that are present or told"


def test_what_cannot_be_measured_is_refused():
    meter = Measure(Outputs(units=("1",)))
    with pytest.raises(ValueError, match="answer for 'k1' is not finite"):
        meter.update(torch.tensor([[0.5], [NAN]]), batch(units=[[1.0], [0.0]]))
    meter.update(torch.tensor([[0.5]]), batch(units=[[NAN]]))
    with pytest.raises(ValueError, match=r"no clip tells what units/f1 measures \(1 clips read\)"):
        meter.compute(alone)
