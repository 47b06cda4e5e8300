"""How large the tiles of every kernel are: a table by kernel, generation of GPU, and head dim.

Owns the numbers. They keep every kernel's registers from spilling as the assembler reports it
(tests/kernels/test_flashlite_compiled.py), with Triton 3.6 as with 3.9; they are what to tune on a
GPU, by passing other `Tiles` to the launch functions. 16-bit kernels above head dim 128 and float32
ones above 64 spill and are slow: they are there to be right.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Kernel = Literal["forward", "dq", "dkv"]


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut.

    Attributes:
        rows: rows that a program owns.
        columns: columns that it takes at a time.
        warps: warps a program.
        stages: depth of the pipeline of loads.
    """

    rows: int
    columns: int
    warps: int
    stages: int


INTERPRETED = Tiles(32, 32, 4, 1)
# float32 runs on the scalar units, to keep float32's precision.
FLOAT32 = Tiles(16, 16, 8, 1)
# kernel → (largest head dim, tiles), rising; for float16 and bfloat16.
AMPERE: dict[Kernel, list[tuple[int, Tiles]]] = {
    "forward": [
        (64, Tiles(128, 64, 8, 3)),
        (128, Tiles(128, 32, 8, 3)),
        (256, Tiles(64, 32, 8, 2)),
    ],
    "dq": [
        (64, Tiles(128, 64, 8, 3)),
        (96, Tiles(128, 32, 8, 2)),
        (128, Tiles(128, 16, 8, 2)),
        (256, Tiles(64, 16, 8, 1)),
    ],
    "dkv": [
        (64, Tiles(128, 32, 8, 3)),
        (80, Tiles(128, 32, 8, 2)),
        (128, Tiles(128, 16, 8, 2)),
        (256, Tiles(32, 16, 8, 1)),
    ],
}
HOPPER: dict[Kernel, list[tuple[int, Tiles]]] = {
    "forward": [
        (64, Tiles(128, 64, 4, 3)),
        (128, Tiles(128, 64, 8, 3)),
        (256, Tiles(64, 32, 4, 3)),
    ],
    "dq": [(128, Tiles(128, 64, 8, 3)), (256, Tiles(64, 32, 4, 2))],
    "dkv": [(128, Tiles(128, 64, 8, 3)), (256, Tiles(64, 32, 8, 1))],
}


def tiles_of(kernel: Kernel, head_dim: int, dtype: torch.dtype, major: int) -> Tiles:
    """Tiles of a kernel; `major` is the GPU's compute capability.

    8 is Ampere and Ada, 9 Hopper, 10 and 11 Blackwell; 12, its small form, has the matrix
    instructions and about the memory of Ampere.
    """
    if dtype.itemsize > 2:
        return FLOAT32
    table = (HOPPER if 9 <= major < 12 else AMPERE)[kernel]
    return next(tiles for largest, tiles in table if head_dim <= largest)
