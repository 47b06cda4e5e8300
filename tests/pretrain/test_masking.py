"""Masks: what they hide, that they derive from a clip's seed alone, bad configurations."""

import pytest
import torch

from mira.encoder import EncoderConfig
from pretrain.masking import MaskConfig, decoder_mask, make_masks, tube_mask

ENCODER = EncoderConfig()
SEEDS = torch.tensor([3, 2**62, -5, 3])


def test_a_tube_hides_the_floor_of_the_ratio_at_the_same_places_of_all_frames():
    mask = tube_mask(MaskConfig(0.9), ENCODER.grid, SEEDS)
    assert mask.shape == (4, 1568) and mask.dtype == torch.bool
    frames = mask.view(4, 8, 196)
    assert (frames == frames[:, :1]).all()
    assert (frames.sum(2) == 176).all()


def test_a_decimal_ratio_is_not_rounded_below_its_integer():
    grid = EncoderConfig(image_size=160).grid  # 100 tokens a frame; 0.57 * 100 = 56.99999…
    assert MaskConfig(0.57).hidden_per_frame(grid) == 57


def test_masks_depend_on_the_seed_alone():
    together = make_masks(MaskConfig(0.75, 0.5), ENCODER, SEEDS)
    for index, seed in enumerate(SEEDS):
        alone = make_masks(MaskConfig(0.75, 0.5), ENCODER, seed[None])
        for mask, one in zip(together, alone, strict=True):
            assert torch.equal(mask[index], one[0])
    tubes = together[0]
    assert torch.equal(tubes[0], tubes[3]) and not torch.equal(tubes[0], tubes[1])


def test_masks_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    make_masks(MaskConfig(0.9, 0.5), ENCODER, SEEDS)
    assert torch.equal(torch.rand(1), expected)


def test_every_place_is_hidden_about_equally_often():
    grid = EncoderConfig(image_size=64, frames=2).grid
    shares = tube_mask(MaskConfig(0.75), grid, torch.arange(2000)).float().mean(0)
    assert shares.mean() == pytest.approx(0.75)
    assert (shares - 0.75).abs().max() < 0.05


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_running_cells_hide_their_share_of_each_cell_and_move_every_frame(ratio):
    mask = decoder_mask(MaskConfig(0.9, ratio), ENCODER.grid, torch.arange(40))
    frames = mask.view(40, 8, 14, 14)
    cells = frames.unflatten(3, (7, 2)).unflatten(2, (7, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)
    assert (cells.sum(4) == 4 * ratio).all()
    assert (cells == cells[:, :, :1, :1]).all()
    assert (frames[:, 1:] != frames[:, :-1]).any((2, 3)).all()
    assert torch.equal(frames[:, 4:], frames[:, :4]), "a cell is back after four frames"
    assert len(mask.unique(dim=0)) == 4, "one mask a phase"


def test_without_a_decoder_ratio_there_is_one_mask():
    assert len(make_masks(MaskConfig(), ENCODER, SEEDS)) == 1
    assert len(make_masks(MaskConfig(0.9, 0.5), ENCODER, SEEDS)) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0, 0.0), "ratio=1.0 must lie between 0 and 1"),
        ((0.0, 0.0), "ratio=0.0 must lie between 0 and 1"),
        ((0.9, 0.4), "decoder_ratio=0.4 must be 0, 0.25, 0.5 or 0.75"),
    ],
)
def test_impossible_ratios_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(*values)


def test_a_grid_too_small_for_the_ratio_is_refused():
    grid = EncoderConfig(image_size=32, frames=2).grid  # 2 x 2 tokens
    with pytest.raises(ValueError, match="hides 0 of the 4 tokens"):
        tube_mask(MaskConfig(0.2), grid, SEEDS)


def test_cells_that_do_not_tile_a_frame_are_refused():
    grid = EncoderConfig(image_size=112).grid  # 7 x 7 tokens
    with pytest.raises(ValueError, match="even number of tokens each way, not 7 x 7"):
        decoder_mask(MaskConfig(0.9, 0.5), grid, SEEDS)
