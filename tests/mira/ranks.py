"""What a spawned rank of `test_encoder.py` runs."""

import torch
from torch import distributed

from mira.blocks import Attention


def average_of_rank(rank: int, folder: str) -> None:
    """One training forward on a clip of the rank's own; writes the moving average it ends with."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    module, x = module_and_clips()
    module(x[rank : rank + 1])
    torch.save(module.c_buf, f"{folder}/average_{rank}.pt")
    distributed.destroy_process_group()


def module_and_clips() -> tuple[Attention, torch.Tensor]:
    """The same module and two clips in every process."""
    torch.manual_seed(0)
    module = Attention(16, 2, attention="mira_flashlite", frames=4, statistics="batch_ema")
    return module, torch.randn(2, 12, 16) * torch.linspace(0.2, 3, 12)[:, None]
