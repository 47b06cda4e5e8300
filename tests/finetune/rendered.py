"""Ten rendered clips with onset and apex, small, for tests that a network can learn them."""

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
    clips, expressions = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        expression = Expression.sample(LABELS[seed % 2], 1.0, frames=FRAMES, fps=25, rng=rng)
        scene = Scene.sample(seed, seed, seconds=FRAMES / 25)
        frames = render_clip(
            ClipSpec(Face.from_seed(seed), scene, expression, FRAMES, 25, (96, 96))
        )
        wanted = [*range(0, FRAMES, 2), expression.onset, expression.apex]
        clips.append([cv2.resize(frames[t], (size, size)) for t in wanted])
        expressions.append(expression)
    pixels = torch.from_numpy(np.array(clips)).permute(0, 4, 1, 2, 3)  # [10, 3, 8, size, size]
    marks = [torch.tensor([getattr(e, name) for e in expressions]) for name in ("onset", "apex")]
    return normalise(pixels), torch.arange(10) % 2, *marks


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
