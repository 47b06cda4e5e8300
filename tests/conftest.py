"""What holds for every test: how they are dealt to processes, and how MLflow talks."""

from __future__ import annotations

import os
from typing import Any

import pytest

RAY = (
    "tests/launch/test_cluster.py",
    "tests/launch/test_parallel.py",
    "tests/shards/test_ingest_ray.py",
    "tests/test_elastic.py",
    "tests/test_road.py",
)
"""Files that start a Ray."""
LONG = (
    *RAY,
    "tests/kernels/test_exact_compiled.py",
    "tests/kernels/test_flashlite_compiled.py",
    "tests/finetune/test_study.py",
    "tests/shards/test_real_videos.py",
)
"""Files that take longest. They come first, so that no process is left with one at the end."""

# NumPy's threads wait for one another without sleeping: with two test processes on two cores a
# product of matrices may take forty times as long. This comes before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# `launch.tracking.connect` says this before it imports MLflow; a test may import MLflow earlier.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, before them the longest queue: that of the files with a Ray."""
    items.sort(key=lambda item: [not item.nodeid.startswith(files) for files in (RAY, LONG)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays in one process, and all files that start a Ray in the same one.

    With two clusters on a machine, Ray's clean-up of one meets the processes of the other and
    prints traces into the output that tests read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if file in RAY else file

    config.option.loadscopereorder = False  # it goes by the number of tests, not by their time
    return ByFile(config, log)
