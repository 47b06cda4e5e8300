"""Onset and apex of videos that nobody annotated."""

import cv2
import numpy as np
import pytest

from shards.spotting import spot


def clip(levels) -> np.ndarray:
    """Even grey frames of these levels, uint8 [n, 8, 8, 3]."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 8, 8, 3))


@pytest.mark.parametrize(
    ("levels", "apex"),
    [
        ([10, 10, 20, 40, 60, 40, 20, 10, 10], 4),
        ([200, 150, 100, 150, 200, 200], 2),
        ([10, 100, 10, 10, 60, 60, 60, 10], 5),
        ([10, 20, 50, 90, 70, 60, 70], 3),
        ([0, 255], 1),
        ([7, 7, 7], 1),
    ],
    ids=["rise", "fall", "a flash is smoothed away", "drift", "two frames", "nothing moves"],
)
def test_the_apex_differs_most_from_an_even_change(levels, apex):
    assert spot(clip(levels)) == (0, apex)


@pytest.mark.parametrize("size", [64, 160])
def test_a_head_that_moves_on_is_no_expression(size):
    """A textured face drifts by a tenth of the picture; its mouth is open in frame 6 of 16."""
    rng = np.random.default_rng(0)
    face = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), size / 20)
    face = 128 + 50 * face / face.std()
    frames = []
    for i in range(16):
        shown = face.copy()
        depth = round(size / 8 * max(0, 1 - abs(i - 6) / 3))
        shown[size * 5 // 8 : size * 5 // 8 + depth, size * 3 // 8 : size * 5 // 8] -= 60
        shift = np.array([[1, 0, size * i / 160], [0, 1, size * i / 320]], dtype=np.float32)
        shown = cv2.warpAffine(shown, shift, (size, size), borderMode=cv2.BORDER_REFLECT)
        frames.append((shown + rng.normal(0, 4, shown.shape)).clip(0, 255))
    video = np.repeat(np.stack(frames).astype(np.uint8)[..., None], 3, axis=-1)
    kept = video.copy()
    onset, apex = spot(video)
    assert onset == 0 and abs(apex - 6) <= 1
    assert (video == kept).all()
