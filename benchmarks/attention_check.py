"""Who takes part in the attention benchmark, on which tensors, and whether they compute it right.

Owns cases, inputs, the table of contestants and their check against a float64 reference. It knows
no clocks and no files. Needs torch and triton alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import mira
from benchmarks.attention_baselines import (
    CONSTANTS,
    eager,
    flex,
    key_bias,
    published_exact,
    published_flashlite,
)
from kernels.exact import exact_attention
from kernels.flashlite import flashlite_attention
from kernels.flashlite.op import BACKENDS as FLASHLITE_BACKENDS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FRAMES = {160: 8, 784: 16, 1568: 8, 3136: 16}
NAMES, FACTORS = ("out", "dq", "dk", "dv"), (2, 3, 3, 3)  # FACTORS × what plain PyTorch loses
OUT_OF_MEMORY = "out of memory"
FLOOR, CEILING = 1e-5, 0.05  # relative errors that are always and never allowed


class DeviceLost(RuntimeError):
    """A contestant broke the device: nothing more can be measured in this process."""


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes and precision of one comparison."""

    heads: int
    dim: int
    tokens: int
    batch: int
    precision: str

    def __str__(self) -> str:
        return f"{self.heads}x{self.dim}-n{self.tokens}-b{self.batch}-{self.precision}"

    @property
    def frames(self) -> int:
        """F; the frames have P = 20, 49, 196, 196 tokens."""
        return FRAMES[self.tokens]


@dataclass(frozen=True)
class Contestant:
    """A way to attend and what it should compute: `plain`, `flashlite` or `exact`."""

    truth: str
    attend: Attend


CASES = {
    "cpu": [
        Case(12, 64, 160, 2, "fp32"),
        Case(12, 64, 784, 2, "fp32"),
        Case(12, 64, 1568, 2, "fp32"),
        Case(12, 64, 160, 2, "bf16"),
        Case(12, 64, 784, 2, "bf16"),
    ],
    "cuda": [
        Case(heads, dim, tokens, batch, "bf16")
        for heads, dim in ((12, 64), (16, 64), (16, 80))
        for tokens, batch in ((1568, 32), (1568, 8), (3136, 16), (784, 32), (160, 64))
    ]
    + [
        Case(12, 64, 1568, 64, "bf16"),
        Case(12, 64, 1568, 8, "fp32"),
        Case(12, 64, 160, 64, "fp32"),
    ],
}


def parse(name: str) -> Case:
    """The case a name stands for; ValueError says what a name looks like."""
    parts = name.replace("x", "-").split("-")
    try:
        heads, dim, tokens, batch = (int(p.lstrip("nb")) for p in parts[:4])
        found = Case(heads, dim, tokens, batch, parts[4])
    except (ValueError, IndexError):
        found = None
    if found is None or found.tokens not in FRAMES or found.precision not in DTYPES:
        raise ValueError(
            f"no case {name!r}; a case is like 12x64-n1568-b2-fp32 with n of "
            f"{', '.join(map(str, FRAMES))} and a precision of {', '.join(DTYPES)}"
        )
    return found


def inputs(case: Case, device: str) -> list[Tensor]:
    """q, k, v as views of a fused projection, and the gradient of the output; [B, H, N, D]."""
    generator = torch.Generator(device).manual_seed(0)
    shape, dtype = (case.batch, case.tokens, 3, case.heads, case.dim), DTYPES[case.precision]
    fused = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    strength = torch.linspace(0.7, 1.3, case.frames, device=device, dtype=dtype)
    # Frames differ, so that their weights do.
    fused[:, :, 1] *= strength.repeat_interleave(case.tokens // case.frames)[:, None, None]
    grad = torch.randn(fused[:, :, 0].shape, generator=generator, device=device, dtype=dtype)
    return [x.transpose(1, 2) for x in (*fused.unbind(2), grad)]


def contestants(case: Case, tensors: list[Tensor]) -> dict[str, Contestant]:
    """Everything that can run on these tensors, by name; `sdpa` first."""
    frames, (q, k, _, _) = case.frames, tensors
    bias = key_bias(k, frames).to(torch.promote_types(k.dtype, torch.float32))

    def kernel(backend: str | None) -> Attend:
        return lambda q, k, v: flashlite_attention(q, k, v, bias, backend=backend)

    def exact(backend: str | None) -> Attend:
        settings = {"frames": frames, "constants": CONSTANTS, "statistics": "instance"}
        return lambda q, k, v: exact_attention(q, k, v, **settings, backend=backend)

    def flashlite(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mira.attention(q, k, v, frames=frames, mode="flashlite")

    found = {
        "sdpa": Contestant("plain", functional.scaled_dot_product_attention),
        "ours flashlite": Contestant("flashlite", flashlite),
        "ours flashlite, kernel alone": Contestant("flashlite", kernel(None)),
        "published flashlite": Contestant(
            "flashlite", lambda q, k, v: published_flashlite(q, k, v, frames)
        ),
        "ours exact": Contestant("exact", exact(None)),
        "published exact": Contestant("exact", lambda q, k, v: published_exact(q, k, v, frames)),
    }
    if q.is_cuda:
        found["flex with bias"] = Contestant("flashlite", flex(bias))
        for name in ("sdpa", "flash_attn"):
            if FLASHLITE_BACKENDS[name].unavailable(q) is None:
                found[f"ours flashlite, kernel alone ({name})"] = Contestant(
                    "flashlite", kernel(name)
                )
        if case.tokens == min(FRAMES):  # by chunks of queries: tens of thousands of launches beyond
            found["ours exact (sdpa)"] = Contestant("exact", exact("sdpa"))
        if q.dtype != torch.float32:
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                name = backend.name.split("_")[0].lower()
                found[f"sdpa ({name})"] = Contestant("plain", only(backend))
    return found


def only(backend: SDPBackend) -> Attend:
    """PyTorch's attention by one of its kernels."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(q, k, v)

    return attend


def result(attend: Attend, tensors: list[Tensor]) -> list[Tensor]:
    """Output and the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out = attend(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3])]


def references(case: Case) -> dict[str, tuple[Attend, Attend]]:
    """What a contestant should compute → (the specification, what plain PyTorch makes of it)."""
    frames = case.frames
    settings = {"frames": frames, "constants": CONSTANTS, "statistics": "instance"}

    def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flashlite_attention(q, k, v, key_bias(k, frames), backend="reference")

    return {
        "plain": (lambda q, k, v: flashlite_attention(q, k, v, None, backend="reference"), eager),
        "flashlite": (biased, lambda q, k, v: eager(q, k, v, key_bias(k, frames))),
        "exact": (
            lambda q, k, v: exact_attention(q, k, v, **settings, backend="reference"),
            lambda q, k, v: published_exact(q, k, v, frames),
        ),
    }


def wrong(case: Case, entrants: dict[str, Contestant], tensors: list[Tensor]) -> dict[str, str]:
    """The contestants that miss the reference on the first or the last clip → by how much.

    One for which the memory is too small is among them, as `OUT_OF_MEMORY`.
    """
    clips = sorted({0, case.batch - 1})
    losses = {clip: losses_of(case, [x[clip : clip + 1] for x in tensors]) for clip in clips}
    found = {}
    for name, contestant in entrants.items():
        try:
            results = result(contestant.attend, tensors)
            for clip in clips:
                truth, plain = losses[clip][contestant.truth]
                lost = errors([x[clip : clip + 1] for x in results], truth)
                if (problem := too_far(lost, plain)) is not None:
                    found.setdefault(name, problem.format(clip=clip))
        except Exception as error:  # whatever a compiler raises: this one does not take part
            out = is_out_of_memory(error)
            found[name] = OUT_OF_MEMORY if out else f"it does not run: {first_line(error)}"
            require_device(f"{case} {name}")
    return found


def too_far(lost: list[float], plain: list[float]) -> str | None:
    """What a contestant misses, given what plain PyTorch loses; `{clip}` is left to fill in."""
    for what, factor, own, other in zip(NAMES, FACTORS, lost, plain, strict=True):
        if not own <= min(factor * other + FLOOR, CEILING):
            return f"{what} of clip {{clip}} is off by {own:.1e}, plain PyTorch by {other:.1e}"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory is too small, which is no fault of the contestant's."""
    return isinstance(error, torch.OutOfMemoryError)


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require_device(who: str) -> None:
    """DeviceLost where the device, after an error of `who`, does nothing any more."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLost(f"{who}: it broke the device: {first_line(error)}") from error


def losses_of(case: Case, clip: list[Tensor]) -> dict[str, tuple[list[Tensor], list[float]]]:
    """What should be computed → the float64 results of one clip, and what plain PyTorch loses."""
    found = {}
    for name, (specification, plain) in references(case).items():
        truth = result(specification, [x.double() for x in clip])
        found[name] = truth, errors(result(plain, clip), truth)
    return found


def errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Norm of each difference over the norm of what is true."""
    return [float((f.double() - t).norm() / t.norm()) for f, t in zip(found, truth, strict=True)]
