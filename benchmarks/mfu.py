"""Clips a second and model-FLOP utilisation of a training step, without data loading or a cluster.

    python -m benchmarks.mfu [CASE …] [--device cuda] [--steps 20] [--out FILE]

`pretrain-*` is VideoMAE with a tube mask of 0.9; `encode-*` is the encoder on all tokens, which is
what fine-tuning costs, with plain, FlashLite or exact attention; any of them by torch.compile where
`-compiled` is put behind its name. A step is forward, backward and
fused AdamW under bf16 autocast on clips that lie on the device. Utilisation is 3 × the model's own
forward operations (`mira.flops`: products and attention of the tokens really computed) over the
device's dense bf16 peak (`launch.rates`); a device the table lacks gets none. Needs torch, and
triton for MiRA on a GPU. Rows go to benchmarks/results/mfu.csv.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.rows import append, processor, quantile
from kernels.marginals import Statistics
from launch.rates import peak_tflops
from mira.cores import AttentionName
from mira.encoder import Encoder, EncoderConfig
from mira.flops import encoder_flops
from pretrain.masking import MaskConfig, tube_mask
from pretrain.model import DecoderConfig, VideoMAE

RESULTS = Path(__file__).parent / "results" / "mfu.csv"
WARM_UP = 5
MASK = MaskConfig(0.9)
# dim, depth, heads of the encoder; dim, depth, heads of the decoder
SIZES = {
    "s": ((384, 12, 6), (192, 4, 3)),
    "b": ((768, 12, 12), (384, 4, 6)),
    "l": ((1024, 24, 16), (512, 12, 8)),
    "h": ((1280, 32, 16), (640, 12, 8)),
}


@dataclass(frozen=True)
class Case:
    """What is trained, on how many clips of 16 frames."""

    task: str
    size: str
    batch: int
    attention: AttentionName = "sdpa"
    statistics: Statistics = "instance"
    image: int = 224


CASES = {
    "pretrain-b": Case("pretrain", "b", 64),
    "pretrain-b-flashlite": Case("pretrain", "b", 64, "mira_flashlite", "batch_ema"),
    "pretrain-b-exact": Case("pretrain", "b", 64, "mira_exact", "batch_ema"),
    "pretrain-l": Case("pretrain", "l", 32),
    "pretrain-h": Case("pretrain", "h", 16),
    "encode-b": Case("encode", "b", 16),
    "encode-b-flashlite": Case("encode", "b", 16, "mira_flashlite"),
    "encode-b-exact": Case("encode", "b", 16, "mira_exact"),
    "encode-l": Case("encode", "l", 8),
    "encode-l-flashlite": Case("encode", "l", 8, "mira_flashlite"),
    "pretrain-tiny": Case("pretrain", "s", 2, "mira_exact", "batch_ema", image=64),
    "encode-tiny": Case("encode", "s", 2, "mira_flashlite", image=64),
}


DEFAULT = [name for name in CASES if not name.endswith("-tiny")]
COMPILED = "-compiled"


def is_case(name: str) -> bool:
    """Whether that is the name of a case, or of one by torch.compile."""
    return name.removesuffix(COMPILED) in CASES


def build(case: Case, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor], float]:
    """The network, its loss of clips [B, C, T, h, w], and forward operations of one clip."""
    (dim, depth, heads), (narrow, shallow, few) = SIZES[case.size]
    config = EncoderConfig(
        image_size=case.image,
        dim=dim,
        depth=depth,
        heads=heads,
        attention=case.attention,
        statistics=case.statistics,
    )
    if case.task == "encode":
        encoder = Encoder(config).to(device)
        flops = encoder_flops(config, config.grid.tokens)
        return encoder, lambda x: encoder(x).square().mean(), flops
    model = VideoMAE(config, DecoderConfig(narrow, shallow, few)).to(device)
    mask = tube_mask(MASK, model.grid, torch.arange(case.batch))
    return model, lambda x: model.loss(model(x, mask), x, mask), model.flops(MASK)


def measure(case: Case, device: torch.device, *, steps: int, compiled: bool) -> dict[str, float]:
    """Seconds of a step (quantiles), forward operations of a clip, peak memory in GiB."""
    torch.manual_seed(0)
    torch.compiler.reset()  # else the losses of many cases stop being compiled
    model, loss, flops = build(case, device)
    if compiled:
        loss = torch.compile(loss)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    x = torch.randn(case.batch, 3, 16, case.image, case.image, device=device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for step in range(WARM_UP + steps):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(x)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        if not torch.isfinite(value):  # reading it also waits for the device
            raise ArithmeticError(f"the loss is {value.item()} after {step} steps")
        if on_gpu:
            torch.cuda.synchronize(device)
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else float("nan")
    found = {f"p{share:.0%}"[:-1]: quantile(seconds, share) for share in (0.2, 0.5, 0.8)}
    return found | {"flops": flops, "peak_gib": peak}


def row(name: str, device: torch.device, *, steps: int) -> dict[str, object]:
    """One result row."""
    case, compiled = CASES[name.removesuffix(COMPILED)], name.endswith(COMPILED)
    found = measure(case, device, steps=steps, compiled=compiled)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    rate = case.batch / found["p50"]
    peak = peak_tflops(device_name)
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name,
        "torch": torch.__version__,
        "case": name.removesuffix(COMPILED),
        "batch": case.batch,
        "compiled": compiled,
        "steps": steps,
        "p20_s": f"{found['p20']:.4f}",
        "p50_s": f"{found['p50']:.4f}",
        "p80_s": f"{found['p80']:.4f}",
        "clips_per_second": f"{rate:.1f}",
        "tflops": f"{3 * found['flops'] * rate / 1e12:.2f}",
        "mfu": f"{3 * found['flops'] * rate / 1e12 / peak:.3f}" if peak else "",
        "peak_gib": f"{found['peak_gib']:.2f}",
    }


def main() -> int:
    """Run the cases and append their rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    unknown = [name for name in options.cases if not is_case(name)]
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; choose of {', '.join(CASES)}")
    failed = 0
    for name in options.cases or DEFAULT:
        try:
            found = row(name, torch.device(options.device), steps=options.steps)
        except (RuntimeError, ArithmeticError) as error:  # memory too small, or a loss of NaN
            print(f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}", flush=True)
            failed += 1
            continue
        append(options.out, [found])
        print(
            f"{name}: {found['clips_per_second']} clips/s, {found['tflops']} TFLOP/s, "
            f"utilisation {found['mfu'] or 'unknown'}, {found['peak_gib']} GiB",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
