"""How fast a run goes: clips a second, waiting for data, utilisation, memory, time left.

Owns the clock of the training loop and its line of progress. Refuses to know losses, tasks and
trackers.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

# Dense peak in bf16/fp16 with fp32 accumulation, TFLOP/s, from NVIDIA's data sheets and
# architecture white papers. The first entry counts that the device's name has as whole words, so
# longer names stand before shorter ones.
PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.4,
    "H100": 989.4,
    "A100": 312.0,
    "A40": 149.7,
    "A10": 125.0,
    "L40S": 362.1,
    "L4": 121.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_tflops(device_name: str) -> float | None:
    """Dense low-precision peak of a GPU by its name, None for one that the table lacks."""
    return next(
        (peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name)), None
    )


class Clock:
    """Times the steps alone: saving and evaluating between two steps is not counted.

    `clips` a step and `flops_per_clip` are of the whole job, `peak` (TFLOP/s, or None) is of one of
    its `world` devices.
    """

    def __init__(
        self,
        *,
        clips: int,
        flops_per_clip: float,
        world: int,
        device: torch.device,
        peak: float | None,
    ):
        self._clips, self._flops, self._world = clips, flops_per_clip, world
        self._device, self._peak = device, peak
        self.waited = 0.0
        """Seconds that this rank waited for the data of the present step."""
        self._born = self._began = time.perf_counter()
        self._waited = self._all_waited = self._spent = self._all_spent = 0.0
        self._steps = self._all_steps = 0
        self._readings = 0

    def load(self, take: Callable[[], Result]) -> Result:
        """Start a step by taking its data."""
        self._began = time.perf_counter()
        taken = take()
        self.waited = time.perf_counter() - self._began
        return taken

    def tick(self, waited: float) -> None:
        """End the step, whose slowest rank waited so long for its data. The caller has read a
        number of this step, so the device is done with it."""
        self._spent += time.perf_counter() - self._began
        self._waited += waited
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Figures of the steps since the last reading."""
        spent = max(self._spent, 1e-9)
        rate = self._clips * self._steps / spent
        figures = {
            "clips_per_second": rate,
            "data_wait": self._waited / spent,
            "memory_gb": self._memory(),
        }
        figures["seconds_per_step"] = spent / max(1, self._steps)
        if self._flops:
            figures["tflops"] = self._flops * rate / self._world / 1e12
            if self._peak:
                figures["mfu"] = figures["tflops"] / self._peak
        self._keep()
        return figures

    def totals(self) -> dict[str, float]:
        """Clips a second and share of waiting over the steps that were read, and seconds since the
        start."""
        spent = max(self._all_spent, 1e-9)
        return {
            "clips_per_second": self._clips * self._all_steps / spent,
            "data_wait": self._all_waited / spent,
            "seconds": time.perf_counter() - self._born,
        }

    def _keep(self) -> None:
        # The first reading holds the cost of starting up (workers, allocations, tuned kernels): the
        # totals leave it out once there is another.
        if self._readings == 1:
            self._all_spent = self._all_waited = 0.0
            self._all_steps = 0
        self._readings += 1
        self._all_spent += self._spent
        self._all_waited += self._waited
        self._all_steps += self._steps
        self._spent = self._waited = 0.0
        self._steps = 0

    def _memory(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def progress_line(
    step: int, total: int, *, loss: float, lr: float, figures: dict[str, float]
) -> str:
    """One line for people; `make demo` reads `step a/b` from it."""
    left = int((total - step) * figures["seconds_per_step"])
    return (
        f"step {step}/{total} · loss {loss:.4f} · lr {lr:.1e} · "
        f"{figures['clips_per_second']:.1f} clips/s · data {figures['data_wait']:.0%} · "
        f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    )
