"""Intervals: a draw of people with nobody of a rare class, and several trainings."""

import numpy as np
import pytest

from finetune.bootstrap import (
    figures_interval,
    figures_of,
    mean_interval,
    paired_differences,
    turns,
)
from finetune.study.pooled import Answer, pool

LABELS = ("a", "b", "c")
PEOPLE = [f"s{n}" for n in range(10) for _ in "ab"] + ["s0"]
TRUTH = np.array([0, 1] * 10 + [2])
RARE_MISSED = np.array([0, 1] * 10 + [0])  # the one clip of c, of one person, is taken for an a


def test_a_rare_class_that_is_missed_keeps_counting():
    rows = zip(PEOPLE, TRUTH, RARE_MISSED, strict=True)
    found = pool(
        [Answer("f", str(i), LABELS[t], LABELS[p], who) for i, (who, t, p) in enumerate(rows)],
        LABELS,
    )
    assert found["uar"] == pytest.approx(2 / 3)
    assert found["interval"]["uar"] == pytest.approx([2 / 3, 2 / 3])
    low, high = found["interval"]["uf1"]
    assert low < found["uf1"] < high <= 2 / 3
    assert found["interval"]["war"][1] == 1  # of clips, not of classes: some draws have no error


def test_differences_count_the_same_classes_in_every_draw():
    found = paired_differences(TRUTH, TRUTH, RARE_MISSED, PEOPLE, classes=3, seed=0)
    assert found["uar"] == pytest.approx((-1 / 3, -1 / 3, -1 / 3))
    assert found["f1"].low < found["f1"].value < found["f1"].high < -0.3
    assert found["war"].high == 0


def test_a_draw_has_the_classes_of_the_whole_and_its_own_figures_where_it_can():
    rng = np.random.default_rng(0)
    for _ in range(50):
        each = rng.integers(0, 3, size=(6, 4, 4)) * (rng.random((6, 4, 1)) < 0.4)
        each[:, 3] = 0  # a class that nobody shows, though it is answered
        each[:, 0, 0] += 1
        whole, drawn = each.sum(0).astype(float), each[rng.integers(0, 6, 6)].sum(0).astype(float)
        recalls, f1 = [], []
        for c in range(4):
            own = drawn if drawn[c].sum() else whole
            if whole[c].sum():
                recalls.append(own[c, c] / own[c].sum())
            if whole[c].sum() + whole[:, c].sum():
                f1.append(2 * own[c, c] / (own[c].sum() + own[:, c].sum()))
        found = figures_of(drawn, whole=whole)
        assert found["uar"] == pytest.approx(np.mean(recalls))
        assert found["f1"] == pytest.approx(np.mean(f1))
        assert found["war"] == pytest.approx(drawn.trace() / drawn.sum())


def test_several_trainings_are_averaged_and_drawn_too():
    rng = np.random.default_rng(1)
    people = [n // 4 for n in range(200)]
    truth = rng.integers(0, 3, 200)
    good = np.stack([np.where(rng.random(200) < share, truth, 0) for share in (0.9, 0.7, 0.5)])
    each = [figures_interval(truth, one, people, classes=3, seed=0)["f1"] for one in good]
    found = figures_interval(truth, good, people, classes=3, seed=0)["f1"]
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    same = figures_interval(truth, good[[1, 1, 1]], people, classes=3, seed=0)["f1"]
    assert same == pytest.approx(each[1])  # trainings that agree add nothing to the interval
    assert found.high - found.low > 1.5 * (same.high - same.low)
    shifted = paired_differences(truth, good, good[[1, 2, 0]], people, classes=3, seed=0)["f1"]
    assert shifted.value == pytest.approx(0) and shifted.low < -0.05 and shifted.high > 0.05
    alike = paired_differences(truth, good, good, people, classes=3, seed=0)["f1"]
    assert alike == (0, 0, 0)


def test_the_mean_over_trainings_varies_as_much_as_trainings_say():
    """The variance of a mean of R is s² / R, also where R is 3."""
    shares = turns(3, seed=0)
    values = np.array([1.0, 2.0, 6.0])
    assert shares.sum(1) == pytest.approx(1) and set(shares.flat) <= {0, 0.5, 1}
    assert (shares @ values).var() == pytest.approx(values.var(ddof=1) / 3, rel=0.1)
    assert set(turns(1, seed=0).flat) == {1.0}


def test_intervals_over_few_trainings_hold_the_truth_nearly_as_often_as_they_say():
    rng, people = np.random.default_rng(1), list(range(20))
    covered = 0
    for trial in range(100):
        values = rng.normal(size=(5, 1)) + 0.01 * rng.normal(size=(5, 20))
        found = mean_interval(values, people, seed=trial)
        assert found.value == pytest.approx(values.mean())
        covered += found.low <= 0 <= found.high
    assert 80 <= covered <= 96
