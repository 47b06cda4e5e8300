"""Seconds a training step of our networks against transformers' on the same work.

    python -m benchmarks.train_step [CASE …] [--precision fp32 bf16 autocast] [--steps 12]

Both networks hold the same weights and take the same clips, masks and labels; a step is forward,
backward and AdamW. They run in turn in one process, so that whatever else the machine does meets
both; on a machine that other work keeps busy, `--threads 1 --clock cpu` counts the process's own
seconds. Before anything is timed, loss and gradients are compared; where they differ no figure is
printed. Rows are appended to benchmarks/results/train_step.csv.
"""

import argparse
import datetime
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from benchmarks.rows import CLOCKS, append, processor, quantile
from finetune.models import Classifier
from mira.layouts import to_hugging_face
from pretrain.masking import MaskConfig, tube_mask
from pretrain.model import VideoMAE

RESULTS = Path(__file__).parent / "results" / "train_step.csv"
WARM_UP = 2
EPS = 1e-6
CLASSES = 7
PRECISIONS = ("fp32", "bf16", "autocast")


@dataclass(frozen=True)
class Case:
    """One comparison: which network, how large, on how many clips of 16 frames."""

    task: str
    dim: int
    depth: int
    heads: int
    decoder: tuple[int, int, int]  # dim, depth, heads
    image: int
    batch: int


S, B = (384, 12, 6, (192, 4, 3)), (768, 12, 12, (384, 4, 6))
CASES = {
    "pretrain-S-112": Case("pretrain", *S, image=112, batch=4),
    "pretrain-S-224": Case("pretrain", *S, image=224, batch=2),
    "pretrain-B-112": Case("pretrain", *B, image=112, batch=4),
    "pretrain-B-224": Case("pretrain", *B, image=224, batch=1),
    "finetune-S-112": Case("finetune", *S, image=112, batch=4),
    "finetune-S-160": Case("finetune", *S, image=160, batch=2),
    "finetune-B-112": Case("finetune", *B, image=112, batch=2),
}


@dataclass
class Contestant:
    """A network with its optimiser and how its loss is computed."""

    model: nn.Module
    loss: Callable[[], Tensor]
    autocast: bool

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.05)

    def backward(self) -> float:
        """Forward and backward; the loss."""
        context = torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()
        with context:
            loss = self.loss()
        loss.backward()
        return loss.item()

    def step(self, clock: Callable[[], float]) -> float:
        """Seconds of one training step by a clock."""
        start = clock()
        self.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return clock() - start

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of one step in transformers' names, float32."""
        self.backward()
        grads = {n: p.grad.float() for n, p in self.model.named_parameters() if p.grad is not None}
        self.optimiser.zero_grad()
        ours = not isinstance(self.model, transformers.PreTrainedModel)
        return to_hugging_face(grads, biases="in_memory") if ours else grads


def theirs(case: Case) -> nn.Module:
    """Transformers' network with random weights and our LayerNorm eps."""
    dim, depth, heads = case.decoder
    config = VideoMAEConfig(
        image_size=case.image,
        hidden_size=case.dim,
        num_hidden_layers=case.depth,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.dim,
        decoder_hidden_size=dim,
        decoder_num_hidden_layers=depth,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * dim,
        layer_norm_eps=EPS,
        use_mean_pooling=case.task == "finetune",
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    kind = VideoMAEForPreTraining if case.task == "pretrain" else VideoMAEForVideoClassification
    model = kind(config).train()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
    return model


def contestants(case: Case, precision: str) -> tuple[Contestant, Contestant]:
    """Ours and theirs with the same weights and inputs, each in the layout it takes."""
    other = theirs(case)
    sizes = {"heads": case.heads, "frames": 16, "image_size": case.image}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(case.batch, 3, 16, case.image, case.image, dtype=torch.float32).to(dtype)
    swapped = x.transpose(1, 2).contiguous()
    own: nn.Module
    if case.task == "pretrain":
        own = VideoMAE.from_public(other.state_dict(), decoder_heads=case.decoder[2], **sizes)
        mask = tube_mask(MaskConfig(0.9), own.grid, torch.arange(case.batch))
        losses = (
            lambda: own.loss(own(x, mask), x, mask),
            lambda: other(swapped, bool_masked_pos=mask).loss,
        )
    else:
        own = Classifier.from_public(other.state_dict(), **sizes)
        labels = torch.arange(case.batch) % CLASSES
        losses = (
            lambda: functional.cross_entropy(own(x), labels),
            lambda: other(swapped, labels=labels).loss,
        )
    autocast = precision == "autocast"
    models = (own.train().to(dtype), other.to(dtype))
    return tuple(Contestant(m, f, autocast) for m, f in zip(models, losses, strict=True))


def disagreement(case: Case, precision: str) -> str | None:
    """What differs between the two beyond rounding, or None.

    The truth is transformers' float32 gradient. In float32 ours may differ by 1e-4 of its norm; in
    lower precision by twice what transformers itself loses there.
    """
    truth = contestants(case, "fp32")[1].gradients()
    own, other = (one.gradients() for one in contestants(case, precision))
    if set(own) != set(truth):
        return f"parameters differ: {sorted(set(own) ^ set(truth))[:3]}"
    allowed = 1e-4 if precision == "fp32" else 2 * distance(other, truth)
    found = distance(own, truth)
    if not found <= allowed:
        return f"gradients differ by {found:.1e} of their norm, allowed is {allowed:.1e}"
    losses = [one.backward() for one in contestants(case, precision)]
    if abs(losses[0] - losses[1]) > (1e-5 if precision == "fp32" else 1e-2) * abs(losses[1]):
        return f"losses differ: {losses[0]:.6f} against {losses[1]:.6f}"
    return None


def distance(grads: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the true ones."""
    norm = sum(float(t.square().sum()) for t in truth.values()) ** 0.5
    return sum(float((grads[n] - t).square().sum()) for n, t in truth.items()) ** 0.5 / norm


def measure(case: Case, precision: str, steps: int, clock: str) -> tuple[list[float], list[float]]:
    """Seconds of `steps` steps of ours and of theirs, taken in turn, the first ones changing."""
    pair = contestants(case, precision)
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(WARM_UP + steps):
        for which in (0, 1) if step % 2 else (1, 0):
            taken = pair[which].step(CLOCKS[clock])
            if step >= WARM_UP:
                seconds[which].append(taken)
    return seconds


def rows(name: str, precision: str, steps: int, clock: str) -> Iterator[dict[str, object]]:
    """The two result rows of a case; ratios are ours over theirs, of medians and of each turn."""
    own, other = measure(CASES[name], precision, steps, clock)
    turns = [a / b for a, b in zip(own, other, strict=True)]
    for model, seconds in (("ours", own), ("transformers", other)):
        yield {
            "date": datetime.date.today().isoformat(),
            "device": "cpu",
            "cpu": processor(),
            "threads": torch.get_num_threads(),
            "clock": clock,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "case": name,
            "batch": CASES[name].batch,
            "precision": precision,
            "steps": steps,
            "model": model,
            "p20_s": f"{quantile(seconds, 0.2):.4f}",
            "p50_s": f"{quantile(seconds, 0.5):.4f}",
            "p80_s": f"{quantile(seconds, 0.8):.4f}",
            "ratio_p50": f"{quantile(own, 0.5) / quantile(other, 0.5):.3f}",
            "ratio_turns_p50": f"{quantile(turns, 0.5):.3f}",
        }


def main() -> int:
    """Run the cases; exit 1 if any pair disagreed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; choose of {', '.join(CASES)}")
    failed = 0
    for name in options.cases or CASES:
        for precision in options.precision:
            problem = disagreement(CASES[name], precision)
            if problem is not None:
                failed += 1
                print(f"{name} {precision}: not timed, {problem}", flush=True)
                continue
            found = list(rows(name, precision, options.steps, options.clock))
            append(RESULTS, found)
            print(
                f"{name} {precision}: ours {found[0]['p50_s']} s, transformers "
                f"{found[1]['p50_s']} s, ratio {found[0]['ratio_p50']}",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
