"""Intervals where a draw of people holds nobody of a rare class."""

import numpy as np
import pytest

from finetune.bootstrap import figures_of, paired_differences
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
