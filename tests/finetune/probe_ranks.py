"""What a spawned rank of `test_probe.py` runs."""

from pathlib import Path

import torch
from torch import distributed

from finetune.probes.driver import ProbeConfig, open_split
from finetune.probes.features import FeatureMeter, FeatureTask
from finetune.probes.networks import Sizes, open_network
from launch.cluster import WorkerContext
from launch.engine import evaluate
from shards.ledger import Ledger


def table_of_rank(rank: int, folder: str, shards: str, encoder: str) -> None:
    """Features of split test by one of two ranks; rank 0 writes the table of both."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    context = WorkerContext(rank, 2, torch.device("cpu"))
    config = ProbeConfig(shards=(shards,), batch=1, loader_workers=0)
    network = open_network(encoder, Sizes())
    ledger = Ledger(Path(folder, "ledger.jsonl"), rank=rank)
    with open_split(config, network, "test", context, ledger) as stream:
        meter = FeatureMeter(stream, split="test")
        found = evaluate(FeatureTask(network), stream, meter, context=context)
    assert found == {"clips": 4.0, "unread": 0.0, "coverage": 1.0}
    assert (meter.table is not None) == (rank == 0)
    if meter.table is not None:
        meter.table.write(Path(folder, "table.parquet"))
    distributed.destroy_process_group()
