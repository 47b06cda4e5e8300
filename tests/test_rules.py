"""Limits that matter, as tests: who imports whom, and how long files and functions may be."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "mira", "shards", "launch", "pretrain", "finetune")
MAY_IMPORT = {
    "kernels": set(),
    "mira": {"kernels"},
    "shards": set(),
    "launch": set(),
    "pretrain": {"mira", "shards", "launch"},
    "finetune": {"mira", "shards", "launch"},
}
ENTRY_SCRIPTS = {
    f"launch/{n}.py"
    for n in ("pretrain", "finetune", "evaluate", "predict", "demo", "probe", "temporal", "study")
}
WALLS = {  # a third party → the files or folders that may name it
    "triton": ("kernels/",),
    "ray": ("launch/capacity.py", "launch/cluster.py", "launch/parallel.py", "shards/ingest/"),
    "deepspeed": ("launch/engine.py", "launch/zero.py", "launch/checkpoint.py"),
    "mlflow": (
        "launch/store.py",
        "launch/delivery.py",
        "launch/tracking.py",
        "launch/record.py",
        "launch/registry.py",
        "launch/fetching.py",
        "finetune/predictor",
    ),
    "webdataset": ("shards/",),
    "fsspec": ("shards/place.py",),
    "aiohttp": ("shards/place.py",),
    "decord": (),  # of benchmarks and tests alone
    "av": ("shards/",),
    "cv2": ("shards/",),
    "kornia": ("shards/draws_device.py",),
    "openpyxl": ("shards/",),
    "pyarrow": ("shards/", "finetune/probes/features.py"),
}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
NAMES = [p.relative_to(ROOT).as_posix() for p in FILES]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def functions(path: Path) -> list[tuple[str, int]]:
    return [
        (node.name, (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_room_imports_only_what_it_may(name):
    room = name.split("/")[0]
    if name in ENTRY_SCRIPTS:
        return
    ours = imported(ROOT / name) & set(ROOMS) - {room}
    assert ours <= MAY_IMPORT[room], f"{name} imports {sorted(ours - MAY_IMPORT[room])}"


@pytest.mark.parametrize("name", NAMES)
def test_third_parties_stay_behind_their_walls(name):
    for package in imported(ROOT / name) & set(WALLS):
        assert name.startswith(WALLS[package]), f"{name} imports {package}"


@pytest.mark.parametrize("name", NAMES)
def test_files_and_functions_stay_short(name):
    lines = len((ROOT / name).read_text().splitlines())
    assert lines <= (400 if name.startswith("kernels/") else 300), f"{name} has {lines} lines"
    for function, size in functions(ROOT / name):
        assert size <= 60, f"{name}: {function} has {size} lines"


def test_most_functions_are_very_short():
    sizes = [size for path in FILES for _, size in functions(path)]
    assert statistics.median(sizes) <= 15


def test_nobody_imports_an_entry_script():
    modules = {name.removesuffix(".py").replace("/", ".") for name in ENTRY_SCRIPTS}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                assert not named & modules, f"{path} imports an entry script"


def test_there_are_no_junk_drawers():
    drawers = {"utils", "common", "helpers", "misc"}
    assert not [p for p in FILES if p.stem in drawers or p.parent.name in drawers]


def test_kernels_package_imports_nothing():
    """`transformers` may execute it while it looks for a package of that name."""
    assert (ROOT / "kernels/__init__.py").read_text() == ""


@pytest.mark.parametrize("room", ["mira", "kernels"])
def test_the_network_needs_torch_alone(room):
    """A GPU box with nothing but torch, triton and numpy runs the benchmarks."""
    heavy = "('ray', 'deepspeed', 'mlflow', 'webdataset', 'decord', 'av', 'cv2', 'kornia')"
    code = f"import sys, {room}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_project_version_is_not_taken_for_another_package():
    """`transformers` takes versions 0.18.x of a package named kernels for Hugging Face's."""
    from importlib.metadata import version

    assert not version("mira-video").startswith("0.18.")
