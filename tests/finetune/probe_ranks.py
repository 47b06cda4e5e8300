"""What spawned ranks of `test_probe.py` run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from finetune.collecting import check_read
from finetune.probes.driver import ProbeConfig, data_of
from finetune.probes.features import FeatureMeter, FeatureTask
from finetune.probes.networks import Sizes, open_network
from finetune.reading import measured, open_once
from launch.cluster import ClusterConfig, WorkerContext
from shards.stream import DataConfig, TooManyFailures, open_clips


def table_of_rank(rank: int, folder: str, shards: str, encoder: str) -> None:
    """Features of split test by one of two ranks; rank 0 writes the table of both."""
    _join(rank, folder)
    context = WorkerContext(rank, 2, torch.device("cpu"))
    here = ClusterConfig(workers=0, output=folder)
    config = ProbeConfig(shards=(shards,), batch=1, loader_workers=0, cluster=here)
    network = open_network(encoder, Sizes())
    data = data_of(config, "test", network=network, streams=2)
    with open_once(config, data, context, lost=None) as stream:
        meter = FeatureMeter(stream, split="test")
        found = measured(config, FeatureTask(network), stream, meter, context)
    assert found == {"clips": 4.0, "unread": 0.0, "coverage": 1.0}
    assert (meter.table is not None) == (rank == 0)
    if meter.table is not None:
        meter.table.write(Path(folder, "table.parquet"))
    distributed.destroy_process_group()


def judged_by_rank(rank: int, folder: str, shards: str) -> None:
    """Read half of the shards, which alone is good enough, and write what is said of the whole."""
    _join(rank, folder)
    data = DataConfig(shards=(shards,), streams=2, frames=2, size=16, max_failed_share=0.25)
    data = replace(data, loader_workers=0)
    with open_clips(
        data, global_batch=2, micro_batch=1, rank=rank, world=2, train=False, ledger=None
    ) as stream:
        assert len([batch for batch in stream if not batch.weights.any()]) == 1
        with pytest.raises(TooManyFailures) as told:
            check_read(stream)
    Path(folder, f"told-{rank}").write_text(str(told.value))
    distributed.destroy_process_group()


def _join(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
