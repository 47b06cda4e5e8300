"""What a spawned rank of `test_engine.py` runs."""

import torch
from torch import distributed

from launch.cluster import WorkerContext
from launch.step import Tally
from tests.launch.toy import slots


def wait_of_rank(rank: int, folder: str) -> None:
    """Rank r waited r / 2 seconds for two clips; writes the longest wait and the mean loss."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    context = WorkerContext(rank, 2, torch.device("cpu"))
    tally = Tally([slots(0, [rank, rank + 2])], context, waited=rank / 2)
    tally.add(torch.full((2,), float(rank)), {}, slots(0, [rank, rank + 2]))
    torch.save((tally.longest_wait(), tally.reduce()["loss"]), f"{folder}/wait_{rank}.pt")
    distributed.destroy_process_group()
