"""How long a call takes and how much memory it holds, on a CPU or a GPU.

On CUDA the calls of a turn are issued behind a kernel that does nothing, and the first event comes
after it: else the device would wait for the processor between short calls, and the time measured
would be the processor's. Memory is what a call allocates on top of its inputs: on CUDA from the
allocator's statistics, on the CPU from the profiler's record of every allocation.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.attention_check import Attend
from benchmarks.rows import CLOCKS

CLOCK_RATE = 2e9  # cycles a second that no GPU of today exceeds by much
LONGEST_LEAD = 0.5  # seconds; the queue of a device is full long before


def call(attend: Attend, tensors: list[Tensor], direction: str) -> Callable[[], object]:
    """One call of a contestant: without autograd, or with the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    if direction == "forward":
        return torch.no_grad()(lambda: attend(q, k, v))
    return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), tensors[3])


def seconds(
    run: Callable[[], object], device: str, clock: str, repeats: int, lead: float = 0.0
) -> float:
    """Mean seconds of `repeats` calls; on CUDA between two events, the first of which comes `lead`
    seconds after the calls begin to be issued."""
    if device == "cpu":
        start = CLOCKS[clock]()
        for _ in range(repeats):
            run()
        return (CLOCKS[clock]() - start) / repeats
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(min(lead, LONGEST_LEAD) * CLOCK_RATE))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def issuing(run: Callable[[], object], device: str) -> float:
    """Seconds of the processor until a call returns; on CUDA the device still works then."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Most bytes that a call holds at once on top of its inputs."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as record:
        run()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@dataclass
class Timed:
    """One contestant in one direction, warmed up, and what its turns took."""

    run: Callable[[], object]
    host: float
    """Seconds that issuing a call takes."""
    repeats: int
    """Calls a turn."""
    taken: list[float]
    """Milliseconds a call, by turn."""

    def turn(self, device: str, clock: str) -> None:
        """Take one more turn."""
        lead = 2 * self.host * self.repeats
        self.taken.append(1e3 * seconds(self.run, device, clock, self.repeats, lead))
