"""Figures of expression recognition against scikit-learn and an obvious loop."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from sklearn import metrics as sklearn_metrics

from finetune.metrics import ClassificationMeter, figures

NAMES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


@dataclass
class Slots:
    labels: torch.Tensor
    weights: torch.Tensor
    keys: list[str]


def slots(labels, weights=None, keys=None) -> Slots:
    n = len(labels)
    weights = torch.ones(n) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    return Slots(torch.as_tensor(labels), weights, keys or [f"clip{i}" for i in range(n)])


def alone(value):
    return value.clone()


def random_case(seed: int, *, classes: int = 7, n: int = 60, only: int | None = None):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(n, classes, generator=generator).softmax(1)
    labels = torch.randint(0, only or classes, (n,), generator=generator)
    return probabilities, labels


def obvious(truth: list[int], guess: list[int]) -> dict[str, float]:
    """WAR, UAR and F1 by their definitions, clip by clip."""
    recalls, scores = [], []
    for c in sorted(set(truth) | set(guess)):
        tp = sum(t == c and g == c for t, g in zip(truth, guess, strict=True))
        fp = sum(t != c and g == c for t, g in zip(truth, guess, strict=True))
        fn = sum(t == c and g != c for t, g in zip(truth, guess, strict=True))
        scores.append(2 * tp / (2 * tp + fp + fn))
        if tp + fn:
            recalls.append(tp / (tp + fn))
    war = sum(t == g for t, g in zip(truth, guess, strict=True)) / len(truth)
    mean = {"uar": sum(recalls) / len(recalls), "f1": sum(scores) / len(scores)}
    return {"war": war, **mean}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "only"), [(60, None), (9, None), (1, None), (40, 3)])
def test_figures_agree_with_scikit_learn_and_with_the_definitions(seed, n, only):
    probabilities, labels = random_case(seed, n=n, only=only)
    meter = ClassificationMeter(7, NAMES)
    meter.update(probabilities, slots(labels))
    got = meter.compute(alone)
    truth, guess = labels.tolist(), probabilities.argmax(1).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # absent classes, which are the point here
        expected = {
            "war": sklearn_metrics.accuracy_score(truth, guess),
            "uar": sklearn_metrics.balanced_accuracy_score(truth, guess),
            "f1": sklearn_metrics.f1_score(truth, guess, average="macro"),
        }
        matrix = sklearn_metrics.confusion_matrix(truth, guess, labels=range(7))
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12)
        assert obvious(truth, guess)[name] == pytest.approx(value, abs=1e-12)
    assert meter.confusion.tolist() == matrix.tolist()
    assert got["clips"] == n


def test_any_split_over_ranks_and_batches_gives_the_same_figures():
    probabilities, labels = random_case(1, n=50)
    whole = ClassificationMeter(7, NAMES)
    whole.update(probabilities, slots(labels))
    expected = whole.compute(alone)
    ranks = [ClassificationMeter(7, NAMES) for _ in range(3)]
    for start, rank in zip(range(0, 50, 5), [0, 0, 1, 2, 0, 1, 1, 1, 0, 1], strict=True):
        ranks[rank].update(probabilities[start : start + 5], slots(labels[start : start + 5]))
    sent = []
    for meter in ranks:
        meter.compute(lambda value: sent.append(value) or value)
    for meter in ranks:
        assert meter.compute(lambda value: sum(sent)) == expected
        assert torch.equal(meter.confusion, whole.confusion)


def test_an_average_of_batch_figures_would_be_another_number():
    """Guards the test above: the case must be one where the wrong way shows."""
    probabilities, labels = random_case(1, n=50)
    parts = [
        obvious(labels[i : i + 5].tolist(), probabilities[i : i + 5].argmax(1).tolist())["uar"]
        for i in range(0, 50, 5)
    ]
    whole = obvious(labels.tolist(), probabilities.argmax(1).tolist())["uar"]
    assert abs(sum(parts) / len(parts) - whole) > 0.001


def test_slots_of_weight_zero_do_not_count_and_unread_ones_are_told():
    meter = ClassificationMeter(2, ("a", "b"))
    output = torch.tensor([[0.9, 0.1], [0.9, 0.1], [float("nan")] * 2, [0.9, 0.1]])
    meter.update(output, slots([0, 1, -1, -1], [1, 0, 0, 1], ["x", "broken", "", "nameless"]))
    got = meter.compute(alone)
    assert (got["war"], got["clips"], got["unread"], got["unlabelled"]) == (1.0, 1.0, 1.0, 1.0)
    assert got["coverage"] == pytest.approx(2 / 3), "of three clips one could not be read"


def test_a_rank_of_padding_alone_adds_nothing():
    meter = ClassificationMeter(2, ("a", "b"))
    meter.update(torch.zeros(2, 2), slots([-1, -1], [0, 0], ["", ""]))
    other = ClassificationMeter(2, ("a", "b"))
    other.update(torch.eye(2), slots([0, 1]))
    other_sums = []
    other.compute(lambda value: other_sums.append(value) or value)
    assert meter.compute(lambda value: value + other_sums[0])["war"] == 1.0


def test_a_class_that_never_occurs_has_no_recall_but_costs_f1_if_predicted():
    confusion = torch.tensor([[3, 0, 1], [0, 0, 0], [0, 2, 2]])
    got = figures(confusion, ("a", "b", "c"))
    assert got["uar"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert got["f1"] == pytest.approx((6 / 7 + 0 + 4 / 7) / 3)
    assert "recall/b" not in got


def test_folds_pool_by_their_sum():
    """A class without a sample in one fold still counts in the pool."""
    first, second = torch.tensor([[1, 1], [0, 0]]), torch.tensor([[2, 0], [1, 3]])
    pooled = figures(first + second, ("a", "b"))
    assert pooled["recall/b"] == 0.75
    assert pooled["recall/a"] == 0.75


def test_recalls_carry_the_names_of_the_classes():
    meter = ClassificationMeter(7, NAMES)
    meter.update(torch.eye(7), slots(range(7)))
    got = meter.compute(alone)
    assert {k for k in got if k.startswith("recall/")} == {f"recall/{n}" for n in NAMES}


def test_counts_stay_exact_beyond_what_float32_holds():
    meter = ClassificationMeter(2, ("a", "b"))
    meter.update(torch.eye(2), slots([0, 1]))
    many = meter.compute(lambda value: value * (2**24 + 1))
    assert many["clips"] == 2 * (2**24 + 1)
    assert meter.confusion[0, 0] == 2**24 + 1


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        (torch.tensor([[float("nan"), 1.0]]), [0], "probabilities of 'clip0' are not finite"),
        (torch.tensor([[0.5, 0.5]]), [2], "label 2 of 'clip0' is none of the 2 classes a, b"),
    ],
)
def test_what_cannot_be_counted_names_the_clip(output, labels, message):
    with pytest.raises(ValueError, match=message):
        ClassificationMeter(2, ("a", "b")).update(output, slots(labels))


def test_an_evaluation_without_a_labelled_clip_is_an_error():
    meter = ClassificationMeter(2, ("a", "b"))
    meter.update(torch.eye(2), slots([-1, -1]))
    with pytest.raises(ValueError, match=r"2 without label.*check data.shards and data.split"):
        meter.compute(alone)


@pytest.mark.parametrize("labels", [("a",), ("a", "a"), ("a", "b", "c")])
def test_classes_need_as_many_different_names(labels):
    with pytest.raises(ValueError, match="2 classes"):
        ClassificationMeter(2, labels)
