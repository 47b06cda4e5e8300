"""Reading the golden tensors, which lie beside the repository and are not shipped with it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "../shared/golden"
CONSTANTS = {  # their names → ours
    "beta": "power",
    "lam": "uniform_mix",
    "floor_eps": "floor",
    "w_self": "confidence_weight",
    "w_entropy": "concentration_weight",
    "alpha_min": "alpha_min",
    "alpha_max": "alpha_max",
    "mix_eta": "residual_mix",
    "flash_tau": "temperature",
}


def names(kind: str) -> list:
    """Cases of a kind; one skipped placeholder where there is no folder or nothing to read it."""
    reason = "safetensors is not installed"
    found = []
    if find_spec("safetensors"):
        reason = f"no golden tensors in {FOLDER}"
        found = sorted(path.stem for path in FOLDER.glob(f"{kind}_*.safetensors"))
    return found or [pytest.param(kind, marks=pytest.mark.skip(reason=reason))]


def load(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Description and tensors of a case."""
    from safetensors import safe_open  # a machine without it runs the kernel tests all the same

    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["case"]), tensors


def constants(case: dict) -> dict[str, float]:
    """The constants a case changes, in our names."""
    changed = {ours: case[theirs] for theirs, ours in CONSTANTS.items() if theirs in case}
    if case.get("use_residual") is False:
        changed["residual_mix"] = 1.0
    return changed


def attention_of(case: dict) -> str:
    """Which core a case used."""
    if case["kind"] != "attention" and not case.get("add_fmp_attention"):
        return "sdpa"
    return "mira_flashlite" if case.get("use_fmp_flashlite") else "mira_exact"


def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict among a case's tensors."""
    return {
        key.removeprefix("model."): tensor
        for key, tensor in tensors.items()
        if key.startswith("model.")
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of what is expected."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm() / expected.norm())
