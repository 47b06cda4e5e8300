"""What every kernel test needs: an interpreter where there is no GPU, and memory full of NaN.

The Triton interpreter has to be on when a kernel's module and Triton's own library are imported,
and while a kernel runs, but must not reach the subprocesses of other tests: so the environment
variable is set for the imports here and then for the length of each test.
"""

import importlib
import os
import sys
from collections.abc import Iterator

import pytest
import torch

KERNELS = (  # in the order of their imports of one another
    "kernels.flashlite.tiles",
    "kernels.flashlite.kernel_backward",
    "kernels.flashlite.kernel",
    "kernels.exact.kernel_backward",
    "kernels.exact.kernel",
)
NATIVE = torch.cuda.is_available()
DEVICE = "cuda" if NATIVE else "cpu"


def _interpret_library() -> None:
    """Turns Triton's own library over, where another test imported it for compilation."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    turned = {}
    for module in [m for name, m in sys.modules.items() if name.startswith("triton.language")]:
        for name, member in list(vars(module).items()):
            if isinstance(member, JITFunction):
                new = turned.setdefault(id(member), InterpretedFunction(member.fn))
                setattr(module, name, new)


def _interpret_kernels() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        if "triton" in sys.modules:
            _interpret_library()
        for name in KERNELS:
            if importlib.util.find_spec(name.rpartition(".")[0]) and importlib.util.find_spec(name):
                known = sys.modules.get(name)
                importlib.reload(known) if known else importlib.import_module(name)
    finally:
        del os.environ["TRITON_INTERPRET"]


if not NATIVE:
    _interpret_kernels()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The part of the tests that MIRA_TESTS_PART asks for: "I/N" is each Nth one from number I."""
    part, count = map(int, os.environ.get("MIRA_TESTS_PART", "0/1").split("/"))
    items[:] = items[part::count]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in the interpreter where there is no GPU."""
    if not NATIVE:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # what turns the filling on
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    """Where kernels run: natively on CUDA, else in the interpreter."""
    return DEVICE


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
