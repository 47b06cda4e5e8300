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

# `launch.tracking.connect` says this before it imports MLflow; a test may import MLflow earlier.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


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

    return ByFile(config, log)
