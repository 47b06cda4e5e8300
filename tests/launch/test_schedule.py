from itertools import pairwise

import pytest

from launch.schedule import lr_at, scaled_lr, set_lr

RUN = {"steps": 101, "peak": 1.0, "floor": 0.1, "warmup": 0.2}


def test_warm_up_is_linear_from_zero():
    assert [lr_at(step, **RUN) for step in (0, 5, 10, 20)] == pytest.approx([0, 0.25, 0.5, 1])


def test_cosine_passes_its_middle_and_ends_at_the_floor():
    assert lr_at(60, **RUN) == pytest.approx((1.0 + 0.1) / 2)
    assert lr_at(100, **RUN) == pytest.approx(0.1)


def test_rate_never_jumps_or_leaves_its_bounds():
    rates = [lr_at(step, **RUN) for step in range(101)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(abs(b - a) for a, b in pairwise(rates)) <= 0.05 + 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_runs_have_a_rate(steps):
    rates = [lr_at(s, steps=steps, peak=1.0, floor=0.0, warmup=0.0) for s in range(steps)]
    assert rates[0] == 1.0


def test_without_warm_up_the_first_step_has_the_peak():
    assert lr_at(0, steps=10, peak=3.0, floor=0.0, warmup=0.0) == 3.0


def test_rate_scales_with_the_batch():
    assert scaled_lr(1.5e-4, 1024) == pytest.approx(6e-4)


def test_groups_get_the_rate_times_their_own_scale():
    groups = [{"lr_scale": 1.0}, {"lr_scale": 0.75**3}]
    set_lr(groups, 2.0)
    assert [g["lr"] for g in groups] == [2.0, 2.0 * 0.75**3]
