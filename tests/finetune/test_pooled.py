"""Pooled figures against scikit-learn and a slow, obvious reference; intervals; errors."""

import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from finetune.metrics import ClassificationMeter
from finetune.study.pooled import Answer, by_fold, by_subject, intervals, mean_over_folds, pool
from tests.finetune.test_metrics import slots

LABELS = ("anger", "joy", "fear", "calm")


def random_answers(seed: int, *, clips: int = 120, classes: int = 4) -> list[Answer]:
    """Folds of one subject each, most of which lack some class; skewed and partly right."""
    rng = random.Random(seed)
    answers = []
    for n in range(clips):
        subject = rng.randrange(12)
        own = [label for i, label in enumerate(LABELS[:classes]) if (subject + i) % 3]
        label = rng.choice(own)
        guess = label if rng.random() < 0.5 else rng.choice(LABELS[:classes])
        answers.append(Answer(f"s{subject}", f"c{n}", label, guess, f"s{subject}", f"s{subject}"))
    return sorted(answers, key=lambda answer: answer.fold)


def obvious(answers: list[Answer]) -> dict[str, float]:
    """UF1, UAR, WAR by their definitions, counting fold by fold and adding up."""
    folds = sorted({a.fold for a in answers})
    f1, recall = [], []
    for label in LABELS:
        tp = fp = fn = 0
        for fold in folds:
            for a in answers:
                if a.fold == fold and a.prediction is not None:
                    tp += a.label == label and a.prediction == label
                    fp += a.label != label and a.prediction == label
                    fn += a.label == label and a.prediction != label
        if tp + fp + fn:
            f1.append(2 * tp / (2 * tp + fp + fn))
        if tp + fn:
            recall.append(tp / (tp + fn))
    known = [a for a in answers if a.prediction is not None]
    war = sum(a.label == a.prediction for a in known) / len(known)
    return {"uf1": sum(f1) / len(f1), "uar": sum(recall) / len(recall), "war": war}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("classes", [4, 3])
def test_pooled_figures_equal_scikit_learn_and_the_definitions(seed, classes):
    answers = random_answers(seed, classes=classes)
    for fold in {a.fold for a in answers}:
        assert {a.label for a in answers if a.fold == fold} < set(LABELS[:classes]), "some lack"
    got = pool(answers, LABELS)
    truth, guess = [a.label for a in answers], [a.prediction for a in answers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "uf1": sklearn_metrics.f1_score(truth, guess, average="macro"),
            "uar": sklearn_metrics.balanced_accuracy_score(truth, guess),
            "war": sklearn_metrics.accuracy_score(truth, guess),
        }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12)
        assert obvious(answers)[name] == pytest.approx(value, abs=1e-12)
    matrix = sklearn_metrics.confusion_matrix(truth, guess, labels=LABELS)
    assert got["confusion"] == matrix.tolist()


def test_a_mean_of_folds_would_be_another_number():
    """Guards the test above: in these cases the wrong way shows."""
    answers = random_answers(0)
    mean = mean_over_folds(by_fold(answers, LABELS))
    assert all(abs(mean[name] - pool(answers, LABELS)[name]) > 0.005 for name in ("uf1", "uar"))


def test_each_fold_has_the_figures_of_its_own_clips():
    answers = random_answers(3)
    rows = by_fold(answers, LABELS)
    assert [row["fold"] for row in rows] == sorted({a.fold for a in answers})
    for row in rows:
        mine = [a for a in answers if a.fold == row["fold"]]
        for name, value in obvious(mine).items():
            assert row[name] == pytest.approx(value, abs=1e-12)
        assert row["clips"] == len(mine)
    war = [row["war"] for row in rows]
    assert mean_over_folds(rows)["war"] == pytest.approx(sum(war) / len(war))


def test_always_naming_the_commonest_class_stands_beside_the_figures():
    answers = random_answers(4)
    truth = [answer.label for answer in answers]
    most = max(LABELS, key=truth.count)
    found = pool(answers, LABELS)["commonest"]
    assert found.pop("label") == most
    assert found == pytest.approx(obvious([replace(a, prediction=most) for a in answers]))


def test_unread_clips_cost_coverage_and_nothing_else():
    answers = random_answers(1)
    lost = [replace(a, prediction=None) if i % 10 == 0 else a for i, a in enumerate(answers)]
    got = pool(lost, LABELS)
    assert (got["clips"], got["answered"], got["coverage"]) == (120, 108, 0.9)
    for name, value in obvious(lost).items():
        assert got[name] == pytest.approx(value, abs=1e-12)
    with pytest.raises(ValueError, match="no test clip was answered"):
        pool([replace(a, prediction=None) for a in answers], LABELS)
    rows = by_fold([replace(a, prediction=None) for a in answers], LABELS)
    assert all(row["answered"] == 0 and "war" not in row for row in rows)


def test_intervals_draw_whole_subjects():
    """Clips of a subject that are all right or all wrong: the interval is that of 12 draws."""
    answers = [
        Answer("f", f"{s}-{n}", "joy", "joy" if s % 2 else "anger", f"s{s}")
        for s in range(12)
        for n in range(50)
    ]
    low, high = intervals(answers, LABELS, seed=0)["war"]
    spread = np.random.default_rng(5).binomial(12, 0.5, 100_000) / 12
    assert low == pytest.approx(np.quantile(spread, 0.025), abs=0.09)
    assert high == pytest.approx(np.quantile(spread, 0.975), abs=0.09)
    apart = [replace(a, unit=a.clip) for a in answers]
    narrow = intervals(apart, LABELS, seed=0)["war"]
    assert narrow[1] - narrow[0] < 0.1 < (high - low) / 2


def test_intervals_hold_the_figure_are_seeded_and_need_two_units():
    answers = random_answers(2)
    got = pool(answers, LABELS, seed=3)
    assert got == pool(answers, LABELS, seed=3) and got["units"] == 12
    assert got["interval"] != pool(answers, LABELS, seed=4)["interval"]
    for name in ("uf1", "uar", "war"):
        low, high = got["interval"][name]
        assert 0 <= low < got[name] < high <= 1
    one = [replace(a, unit="s") for a in answers]
    assert pool(one, LABELS)["interval"] == {"uf1": None, "uar": None, "war": None}


def test_errors_by_subject_come_with_what_is_mistaken_most():
    answers = [
        Answer("s1", "a", "joy", "fear", "s1", "s1"),
        Answer("s1", "b", "joy", "fear", "s1", "s1"),
        Answer("s1", "c", "calm", "fear", "s1", "s1"),
        Answer("s1", "d", "calm", "calm", "s1", "s1"),
        Answer("s2", "e", "joy", "joy", "s2", "s2"),
        Answer("s2", "f", "joy", None, "s2", "s2"),
        Answer("s3", "g", "joy", None, "s3", "s3"),
    ]
    first, second, third = by_subject(answers)
    assert first == {
        **{"subject": "s1", "clips": 4, "errors": 3, "share": 0.75},
        "most": "joy → fear (2)",
    }
    assert (second["clips"], second["errors"], second["most"]) == (1, 0, "")
    assert (third["clips"], third["share"]) == (0, None)
    assert by_subject([replace(a, subject=None) for a in answers]) == []


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_with_uneven_ends_duplicates_and_no_clip_at_all_give_the_pooled_figures(world):
    """Ranks whose shares differ, padding, a clip padded twice, unread clips: as one list counts."""
    answers = random_answers(world)[:107]
    at = {label: i for i, label in enumerate(LABELS)}
    meters = [ClassificationMeter(4, LABELS) for _ in range(world)]
    for rank, meter in enumerate(meters):
        mine = answers[rank::world] if rank < world - 1 else []  # the last rank has padding alone
        mine = [(a, 1.0) for a in mine]
        mine += [(a, 0.0) for a, _ in mine[:1]] * (-len(mine) % 4)  # fill up with a duplicate
        rows = [
            (torch.eye(4)[at[a.prediction]], at[a.label], w, a.clip if w else "") for a, w in mine
        ]
        rows = rows or [(torch.zeros(4), -1, 0.0, "")] * 4
        for start in range(0, len(rows), 4):
            probabilities, labels, weights, keys = zip(*rows[start : start + 4], strict=True)
            meter.update(torch.stack(probabilities), slots(labels, weights, list(keys)))
    seen = [a for rank in range(world - 1) for a in answers[rank::world]]
    sent: list[torch.Tensor] = []
    for meter in meters:
        meter.compute(lambda value: sent.append(value) or torch.ones_like(value))
    got = meters[0].compute(lambda value: sum(sent))
    expected = pool(seen, LABELS)
    assert got["clips"] == len(seen) == expected["answered"]
    for ours, theirs in (("f1", "uf1"), ("uar", "uar"), ("war", "war")):
        assert got[ours] == pytest.approx(expected[theirs], abs=1e-12)
