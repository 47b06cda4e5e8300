"""Identity-adversarial training: the reversed gradient, and features that forget who is seen."""

import pytest
import torch
from torch.nn import functional

from finetune.identity import IdentityConfig, IdentityHead, strength_for
from finetune.mixing import MixConfig, mix
from finetune.models import build
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from finetune.outputs import Outputs
from finetune.targets import one_hot
from finetune.task import ClassifyTask
from launch.checkpoint import fp32_state
from mira.encoder import EncoderConfig
from mira.tubelets import normalise
from shards.batch import ClipBatch

UNMIXED = MixConfig(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
ENCODER = EncoderConfig(image_size=16, frames=2, patch_size=8, dim=24, depth=1, heads=2)
NETWORKS = [
    ENCODER,
    HstaConfig(
        image_size=24, frames=2, patch_size=8, dim=8, special_patch=12, special_dim=8, heads=2,
        stages=1,
    ),
    FaceSleuthConfig(
        image_size=48, dims=(8, 8, 8), depths=(1, 1, 1), heads=(1, 2, 2), window=3
    ),
]  # fmt: skip


def task(config=ENCODER, *, weight=1.0, strength=None, subjects=4):
    torch.manual_seed(0)
    identity = IdentityConfig(weight=weight, strength=strength)
    network = build(config, Outputs(("a", "b")))
    return ClassifyTask(network, UNMIXED, identity=identity, subjects=subjects)


def clips(config=ENCODER, subjects=(0, 1, 2, -1)):
    count, frames = len(subjects), config.frames + 2 * config.pair
    shape = (count, 3, frames, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(1)
    return ClipBatch(
        pixels=torch.randint(0, 256, shape, generator=generator).to(torch.uint8),
        labels=torch.arange(count) % 2,
        weights=torch.ones(count),
        seeds=torch.arange(count),
        keys=[f"k{i}" for i in range(count)],
        extra={"subject": torch.tensor(subjects)},
    )


def test_the_gradient_is_turned_round_on_its_way_into_the_features():
    torch.manual_seed(0)
    head = IdentityHead(6, 3, strength=2.0)
    features = torch.randn(4, 6, requires_grad=True)
    subjects = torch.tensor([0, 1, 2, 0])
    losses, _ = head.losses(features, one_hot(subjects, 3))
    losses.sum().backward()
    reversed_gradient, own = features.grad.clone(), head.head.weight.grad.clone()
    features.grad, head.head.weight.grad = None, None
    plain = functional.cross_entropy(head.head(features), subjects, reduction="none")
    torch.testing.assert_close(losses, plain)
    plain.sum().backward()
    torch.testing.assert_close(reversed_gradient, -2.0 * features.grad)
    torch.testing.assert_close(own, head.head.weight.grad)  # the head itself learns to tell


def test_an_unknown_subject_costs_nothing():
    head = IdentityHead(6, 3)
    features = torch.randn(2, 6, requires_grad=True)
    losses, told = head.losses(features, one_hot(torch.tensor([1, -1]), 3))
    losses.sum().backward()
    assert losses[0] > 0 and losses[1] == 0 and told[1] == 0
    assert features.grad[0].abs().sum() > 0 and features.grad[1].abs().sum() == 0


def test_the_published_strengths_and_the_nearest_of_them():
    assert [strength_for(n) for n in (27, 41, 140)] == [0.5, 2.0, 1.0]
    assert [strength_for(n) for n in (2, 30, 35, 70, 10_000)] == [0.5, 0.5, 2.0, 2.0, 1.0]
    assert IdentityHead(6, 41).strength == 2.0 and IdentityHead(6, 41, strength=0.3).strength == 0.3


def test_of_mixed_clips_both_people_are_to_be_told():
    """And of a mixture with somebody unknown nobody is."""
    torch.manual_seed(0)
    mixing = MixConfig(mixup=0.8, cutmix=0.0, label_smoothing=0.0)
    identity = IdentityConfig(weight=1.0, strength=0.0)
    model = ClassifyTask(
        build(ENCODER, Outputs(("a", "b"))), mixing, identity=identity, subjects=4
    ).eval()
    batch = clips()
    _, figures = model(batch)
    mixed = mix(normalise(batch.pixels), batch.weights, batch.seeds, mixing)
    assert 0.02 < mixed.kept < 0.98 and (mixed.partner != torch.arange(4)).all()
    logs = model.identity(model.model.features(mixed.pixels)).log_softmax(1)
    subjects = [0, 1, 2, -1]
    for i, other in enumerate(mixed.partner.tolist()):
        mine, theirs, cost = subjects[i], subjects[other], 0.0
        if mine >= 0 and theirs >= 0:
            cost = -(mixed.kept * logs[i, mine] + (1 - mixed.kept) * logs[i, theirs]).item()
        assert figures["loss_identity"][i].item() == pytest.approx(cost, abs=1e-6)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: type(c).__name__)
def test_every_network_takes_it_and_saves_without_it(config):
    model = task(config)
    losses, figures = model(clips(config))
    assert losses.shape == (4,) and losses.isfinite().all()
    assert {"loss_labels", "loss_identity", "identity_accuracy"} <= set(figures)
    without = task(config, weight=0.0)
    plain, _ = without(clips(config))
    torch.testing.assert_close(losses, plain + figures["loss_identity"])
    assert figures["loss_identity"][3] == 0, "the subject is unknown"
    saved = fp32_state(model.model)
    assert saved.keys() == without.model.state_dict().keys()
    held = [id(p) for group in model.param_groups(0.05) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters()), "the head is trained too"


def test_one_subject_is_refused():
    with pytest.raises(ValueError, match="at least two known subjects, found 1.*identity.weight 0"):
        task(subjects=1)
    with pytest.raises(ValueError, match="identity.weight is -1"):
        IdentityConfig(weight=-1)


SUBJECTS, EACH, NOISE = 6, 40, 0.3


def people(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors [240, 12] and who they are of: a code of each person, and a weak sign of the class.

    All vectors of a person are of one class, so that who it is tells the class as well.
    """
    codes = torch.randn(SUBJECTS, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    who = torch.arange(SUBJECTS).repeat_interleave(EACH)
    person = codes[who] + 0.3 * torch.randn(len(who), 8, generator=generator)
    sign = (who % 2 * 2.0 - 1)[:, None] + torch.randn(len(who), 4, generator=generator)
    return torch.cat([person, sign], 1), who


def noisy(features: torch.Tensor) -> torch.Tensor:
    return features + NOISE * torch.randn_like(features)


def train(modules, rates, loss, *, steps, betas) -> None:
    groups = [
        {"params": list(m.parameters()), "lr": r} for m, r in zip(modules, rates, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups, betas=betas)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


def shown(encoder) -> float:
    """How often a fresh linear probe tells who unseen vectors are of."""
    (x, who), (unseen, _) = people(0), people(1)
    with torch.no_grad():
        known, asked = noisy(encoder(x)), noisy(encoder(unseen))
    probe = torch.nn.Linear(known.shape[1], SUBJECTS)
    cost = lambda: functional.cross_entropy(probe(known), who)  # noqa: E731
    train([probe], [3e-2], cost, steps=200, betas=(0.9, 0.999))
    return (probe(asked).argmax(1) == who).float().mean().item()


def fine_tuned(weight: float) -> tuple[float, float]:
    """An encoder that knows people, as pretrained ones do, learns classes: how often people are
    told from it then, and classes."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.LayerNorm(16))
    teller, classes = torch.nn.Linear(16, SUBJECTS), torch.nn.Linear(16, 2)
    x, who = people(0)
    before = lambda: functional.cross_entropy(teller(noisy(encoder(x))), who)  # noqa: E731
    train([encoder, teller], [1e-2, 1e-2], before, steps=100, betas=(0.9, 0.999))
    head = IdentityHead(16, SUBJECTS, strength=1.0)

    def loss():
        features = noisy(encoder(x))
        adverse = head.losses(features, one_hot(who, SUBJECTS))[0].mean()
        return functional.cross_entropy(classes(features), who % 2) + weight * adverse

    train([encoder, classes, head], [1e-3, 1e-3, 1e-2], loss, steps=600, betas=(0.0, 0.99))
    with torch.no_grad():
        right = classes(encoder(people(1)[0])).argmax(1) == who % 2
    return shown(encoder), right.float().mean().item()


def test_features_that_knew_people_forget_them_and_keep_the_class():
    plain, _ = fine_tuned(0.0)
    adversarial, right = fine_tuned(1.0)
    assert plain > 0.95, "learning classes alone forgets nobody"
    assert adversarial < 0.75
    assert right > 0.95


def test_the_head_may_learn_faster():
    model = task()
    model.adversary = IdentityConfig(weight=1.0, rate=10.0)
    groups = model.param_groups(0.05)
    rates = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert {rates[id(p)] for p in model.identity.parameters()} == {10.0}
    assert {rates[id(p)] for p in model.model.parameters()} == {1.0}
