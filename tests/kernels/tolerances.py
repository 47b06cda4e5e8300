"""How far from the truth a kernel may be: a small multiple of what plain PyTorch loses itself.

The truth is the reference in float64 (or float32) on the same inputs; plain PyTorch is the obvious
formula in the kernel's own dtype. So no tolerance is a number that somebody chose.
"""

from torch import Tensor, finfo, float32

OUTPUT = 2.0
GRADIENT = 3.0


def errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square absolute difference."""
    difference = found.detach().to(exact.dtype) - exact.detach()
    return float(difference.abs().max()), float(difference.square().mean().sqrt())


def assert_as_good_as_plain(
    found: Tensor, plain: Tensor, exact: Tensor, *, factor: float = OUTPUT, name: str = "output"
) -> None:
    """Fails where `found` errs more than `factor` times what `plain` errs against `exact`.

    Both the largest and the root-mean-square error count. The floor, a few roundings of float32,
    matters only where plain PyTorch is right by luck: a single key has probability exactly 1 and
    gradient exactly 0. In 16 bits such a gradient is a difference of two sums of up to 128 products
    whatever it comes to, so there it may be some more roundings, still far below those 16 bits.
    """
    assert found.shape == exact.shape, f"{name} has shape {tuple(found.shape)}"
    assert found.isfinite().all(), f"{name} holds values that are not finite"
    roundings = 4 if found.dtype == float32 else 64
    floor = roundings * finfo(float32).eps * max(1.0, float(exact.detach().abs().max()))
    pairs = zip(("largest", "mean"), errors(found, exact), errors(plain, exact), strict=True)
    for kind, ours, theirs in pairs:
        allowed = factor * theirs + floor
        assert ours <= allowed, f"{kind} error of {name} is {ours:.3e}, allowed {allowed:.3e}"
