"""Rendered clips with onset and apex, small, for tests that a network can learn from them."""

import functools
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from mira.tubelets import normalise
from shards.render import ClipSpec, Expression, Face, Scene, render_clip

FRAMES = 12
LABELS = ("happiness", "surprise")


@functools.cache
def ten_clips(size: int = 48) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 [10, 3, 6 + 2, size, size], onset and apex last; labels, onset, apex int64 [10].

    Ten people; the clip's frames are every other one, the marks count in all of them.
    """
    return _rendered([(seed, seed, LABELS[seed % 2]) for seed in range(10)], (96, 96), size)


@functools.cache
def people(first: int, last: int, size: int = 48) -> tuple[Tensor, Tensor]:
    """Clips as `ten_clips` gives them and their labels: both expressions of each person."""
    wanted = [(p, 2 * p + i, label) for p in range(first, last) for i, label in enumerate(LABELS)]
    return _rendered(wanted, (64, 64), size)[:2]


def _rendered(wanted, picture: tuple[int, int], size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of people, seeds and expressions."""
    clips, expressions = [], []
    for person, seed, label in wanted:
        rng = np.random.default_rng(seed)
        expression = Expression.sample(label, 1.0, frames=FRAMES, fps=25, rng=rng)
        scene = Scene.sample(person, seed, seconds=FRAMES / 25)
        spec = ClipSpec(Face.from_seed(person), scene, expression, FRAMES, 25, picture)
        frames = render_clip(spec)
        shown = [*range(0, FRAMES, 2), expression.onset, expression.apex]
        clips.append([cv2.resize(frames[t], (size, size)) for t in shown])
        expressions.append(expression)
    pixels = torch.from_numpy(np.array(clips)).permute(0, 4, 1, 2, 3)  # [n, 3, 8, size, size]
    marks = [torch.tensor([getattr(e, name) for e in expressions]) for name in ("onset", "apex")]
    labels = torch.tensor([LABELS.index(label) for _, _, label in wanted])
    return normalise(pixels), labels, *marks


@contextmanager
def one_thread():
    """Small networks on one thread: two wait for one another where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def overfit(network, inputs: tuple, labels: Tensor, *, steps: int, lr: float) -> float:
    """Train on the ten clips until all are right in evaluation; the accuracy reached."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    accuracy = 0.0
    for step in range(steps):
        network.train()
        loss = nnf.cross_entropy(network(*inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 9:
            network.eval()
            with torch.no_grad():
                accuracy = (network(*inputs).argmax(1) == labels).float().mean().item()
            if accuracy == 1.0 and loss < 0.1:
                break
    return accuracy


@one_thread()
def generalise(network, train: tuple, test: tuple, *, steps: int, lr: float) -> float:
    """Train on some people; the accuracy on others.

    Args:
        train, test: inputs of the network, labels last.
    """
    torch.manual_seed(0)
    *inputs, labels = train
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randperm(len(labels))[:24]
        loss = nnf.cross_entropy(network(*(x[chosen] for x in inputs)), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    network.eval()
    *inputs, labels = test
    with torch.no_grad():
        return (network(*inputs).argmax(1) == labels).float().mean().item()
