"""Pictures of results: what is drawn where, without looking at fonts."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from finetune.pictures import confusion_matrix_picture, importance_strip, pair_picture, png
from mira.tubelets import Grid, normalise, to_pixels, tubelets
from pretrain.pictures import GAP, MARGIN, reconstruction_strip

GRID = Grid(frames=2, rows=2, columns=2, tubelet=2, patch=48, channels=3)


def clips(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 4, 96, 96), generator=generator, dtype=torch.uint8)


def tube(hidden: int) -> torch.Tensor:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, :hidden] = True
    return mask.repeat(1, 2)


def true_prediction(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a perfect model predicts: normalised patches, channel fastest."""
    pieces = tubelets(to_pixels(x), GRID)
    mean = pieces.mean((3, 4, 5), keepdim=True)
    deviation = pieces.std((3, 4, 5), keepdim=True) + 1e-6
    patches = ((pieces - mean) / deviation).movedim(2, -1).flatten(2)
    return patches[mask].view(len(x), -1, patches.shape[2])


def rows_of(sheet: np.ndarray, clip: int) -> list[np.ndarray]:
    """The three rows of a clip, without margin."""
    start = clip * (3 * (96 + GAP) + 2 * GAP)
    tops = [start + row * (96 + GAP) for row in range(3)]
    return [sheet[top : top + 96, MARGIN:].astype(int) for top in tops]


def test_a_perfect_prediction_is_drawn_as_the_input():
    pixels, mask = clips(), tube(3)
    x = normalise(pixels)
    sheet = reconstruction_strip(x, mask, true_prediction(x, mask), grid=GRID)
    assert sheet.dtype == np.uint8
    for clip in range(2):
        shown, masked, rebuilt = rows_of(sheet, clip)
        assert np.abs(shown - rebuilt).max() <= 1
        assert (shown[:, :96] == pixels[clip, :, 0].permute(1, 2, 0).numpy()).all()
        assert (masked[:48, :96] == 128).all()
        assert (masked[48:, 48:96] == shown[48:, 48:96]).all()


def test_a_bad_prediction_shows_in_hidden_patches_only():
    x, mask = normalise(clips()), tube(2)
    good = true_prediction(x, mask)
    sheet = reconstruction_strip(x, mask, torch.zeros_like(good), grid=GRID)
    shown, _, rebuilt = rows_of(sheet, 0)
    assert np.abs(shown[:48, :96] - rebuilt[:48, :96]).max() > 50
    assert (shown[48:, :96] == rebuilt[48:, :96]).all()


def test_the_strip_takes_half_precision_predictions():
    x, mask = normalise(clips()), tube(3)
    strip = reconstruction_strip(x, mask, true_prediction(x, mask).bfloat16(), grid=GRID)
    shown, _, rebuilt = rows_of(strip, 0)
    assert np.abs(shown - rebuilt).mean() < 2


def test_small_frames_are_enlarged_and_at_most_eight_are_shown():
    grid = Grid(frames=16, rows=2, columns=2, tubelet=1, patch=8, channels=3)
    x = normalise(torch.zeros(1, 3, 16, 16, 16, dtype=torch.uint8))
    mask = torch.ones(1, 64, dtype=torch.bool)
    sheet = reconstruction_strip(x, mask, torch.zeros(1, 64, 192), grid=grid)
    assert sheet.shape == (3 * 96 + 2 * GAP, MARGIN + 8 * 96 + 7 * GAP, 3)


@pytest.mark.parametrize("classes", [2, 7, 11])
def test_a_confusion_matrix_is_dark_on_a_perfect_diagonal_and_light_elsewhere(classes):
    names = [f"class {i}" for i in range(classes)]
    image = confusion_matrix_picture(torch.eye(classes, dtype=torch.float64) * 9, names)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    dark = (image.astype(int) == [8, 48, 107]).all(-1)  # the end of the colour map
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] > 0.7  # a diagonal that runs down to the right


def test_classes_without_clips_do_not_break_the_matrix():
    image = confusion_matrix_picture(np.zeros((3, 3)), ["a", "b", "c"])
    assert image.std() > 0


def test_the_tallest_bar_stands_under_the_most_important_frame():
    frames = np.full((5, 32, 32, 3), 255, np.uint8)
    importance = [0.15, 0.15, 0.15, 0.4, 0.15]
    image = importance_strip(frames, [0, 0.1, 0.2, 0.3, 0.4], importance, title="fear (70%)")
    red = (image.astype(int) == [192, 57, 43]).all(-1)
    blue = (image.astype(int) == [36, 113, 163]).all(-1)
    assert red.any(0).nonzero()[0].mean() / image.shape[1] == pytest.approx(0.7, abs=0.05)
    assert red.any(1).sum() > 2 * blue.any(1).sum()


def test_a_strip_with_other_numbers_of_times_is_refused():
    with pytest.raises(ValueError, match="2 frames, 1 times and 2 importances"):
        importance_strip(np.zeros((2, 8, 8, 3), np.uint8), [0.0], [0.5, 0.5], title="a")


def test_a_pair_is_shown_with_the_place_of_its_change():
    onset = np.full((32, 32, 3), 200, np.uint8)
    apex = onset.copy()
    apex[4:12, 20:28] = 90
    image = pair_picture(onset, apex, times=(0.0, 0.2), title="fear (70%)").astype(int)
    light = (image.min(-1) > 180) & (image.max(-1) - image.min(-1) > 50)  # magma's far end
    middle = image.shape[1] // 3, 2 * image.shape[1] // 3
    found = light[:, slice(*middle)].any(0).nonzero()[0]
    assert found.size and not light[:, : middle[0]].any() and not light[:, middle[1] :].any()
    same = pair_picture(onset, onset, times=(0.0, 0.2), title="").astype(int)
    assert not ((same.min(-1) > 180) & (same.max(-1) - same.min(-1) > 50)).any()


def test_png_keeps_every_pixel():
    image = clips()[0, :, 0].permute(1, 2, 0).numpy()
    back = imread(io.BytesIO(png(image)), format="png")
    assert (np.round(back[..., :3] * 255).astype(np.uint8) == image).all()
