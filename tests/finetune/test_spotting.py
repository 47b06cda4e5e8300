"""Onset and apex of videos that nobody annotated."""

import numpy as np
import pytest

from finetune.spotting import spot


def clip(levels) -> np.ndarray:
    """Even grey frames of these levels, uint8 [n, 8, 8, 3]."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 8, 8, 3))


@pytest.mark.parametrize(
    ("levels", "apex"),
    [
        ([10, 10, 20, 40, 60, 40, 20, 10, 10], 4),
        ([200, 150, 100, 150, 200, 200], 2),
        ([10, 100, 10, 10, 60, 60, 60, 10], 5),
        ([0, 255], 1),
        ([7, 7, 7], 1),
    ],
    ids=["rise", "fall", "a flash is smoothed away", "two frames", "nothing moves"],
)
def test_the_apex_differs_most_from_the_first_frame(levels, apex):
    assert spot(clip(levels)) == (0, apex)
