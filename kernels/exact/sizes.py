"""How large the tiles of every kernel are: a table by kernel, generation of GPU, and head dim.

Owns the numbers. They keep every kernel's registers from spilling as the assembler reports it
(tests/kernels/test_exact_compiled.py), with Triton 3.6 as with 3.9; they have not been tuned on a
GPU. 16-bit kernels above head dim 128 and float32 ones above 64 may spill and are slow: they are
there to be right.
"""

from typing import Literal

import torch

from kernels.flashlite.sizes import FLOAT32, Tiles

Kernel = Literal["mass", "mix", "values", "dq", "dk"]
# kernel → (largest head dim, tiles), rising; for float16 and bfloat16.
AMPERE: dict[Kernel, list[tuple[int, Tiles]]] = {
    "mass": [(128, Tiles(128, 64, 8, 3)), (256, Tiles(64, 32, 8, 2))],
    "mix": [
        (64, Tiles(128, 64, 8, 3)),
        (128, Tiles(128, 32, 8, 3)),
        (256, Tiles(64, 32, 8, 2)),
    ],
    "values": [
        (64, Tiles(128, 32, 8, 3)),
        (96, Tiles(64, 32, 4, 2)),
        (256, Tiles(16, 16, 4, 1)),
    ],
    "dq": [
        (64, Tiles(128, 32, 8, 3)),
        (80, Tiles(64, 32, 4, 2)),
        (96, Tiles(64, 16, 4, 2)),
        (256, Tiles(16, 16, 4, 1)),
    ],
    "dk": [
        (64, Tiles(128, 64, 8, 3)),
        (96, Tiles(64, 32, 4, 2)),
        (256, Tiles(16, 16, 4, 1)),
    ],
}
HOPPER: dict[Kernel, list[tuple[int, Tiles]]] = {
    "mass": [
        (64, Tiles(128, 64, 4, 3)),
        (128, Tiles(128, 64, 8, 3)),
        (256, Tiles(64, 32, 4, 2)),
    ],
    "mix": [(128, Tiles(128, 64, 8, 3)), (256, Tiles(64, 32, 4, 2))],
    "values": [
        (64, Tiles(128, 64, 8, 3)),
        (128, Tiles(64, 64, 8, 2)),
        (256, Tiles(64, 32, 8, 1)),
    ],
    "dq": [
        (64, Tiles(128, 64, 8, 3)),
        (128, Tiles(64, 64, 8, 2)),
        (256, Tiles(64, 16, 8, 1)),
    ],
    "dk": [
        (64, Tiles(128, 64, 8, 3)),
        (128, Tiles(64, 64, 8, 2)),
        (256, Tiles(64, 32, 8, 1)),
    ],
}
BLACKWELL = HOPPER | {
    "values": [
        (64, Tiles(128, 32, 8, 3)),
        (128, Tiles(64, 64, 8, 2)),
        (256, Tiles(64, 32, 8, 1)),
    ]
}


def tiles_of(kernel: Kernel, head_dim: int, dtype: torch.dtype, major: int) -> Tiles:
    """Tiles of a kernel; `major` is the GPU's compute capability: see `kernels.flashlite.sizes`."""
    if dtype.itemsize > 2:
        return FLOAT32
    table = {9: HOPPER, 10: BLACKWELL, 11: BLACKWELL}.get(major, AMPERE)[kernel]
    return next(tiles for largest, tiles in table if head_dim <= largest)
