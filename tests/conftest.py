"""What holds for every test: how they are dealt to processes, and MLflow as our commands have it."""

from __future__ import annotations

import os

import pytest

# `launch.tracking.connect` says this before it imports MLflow; a test may import MLflow earlier.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process, and all files that start a Ray in the same one.

    With two clusters on a machine, Ray's clean-up of one meets the processes of the other and
    prints traces into the output that tests read.
    """
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
