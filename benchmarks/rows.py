"""Result rows that every benchmark writes: clocks, quantiles, the machine, the CSV file.

Knows no benchmark. Needs torch alone.
"""

import csv
import platform
import time
from pathlib import Path

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def quantile(values: list[float], share: float) -> float:
    """A quantile of measured values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def append(path: Path, found: list[dict[str, object]]) -> None:
    """Add rows to a results file, with a header if it is new.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(found[0])
    if path.exists():
        with path.open(newline="") as file:
            before = next(csv.reader(file), None)
        if before != columns:
            raise ValueError(f"{path} has the columns {before}, not {columns}; name another file")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(found)
