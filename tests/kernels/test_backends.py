"""The rule for choosing how an operation is computed."""

import logging
from typing import get_args

import pytest
import torch

import mira
from kernels import backends
from kernels.backends import Backend, BackendName, anywhere, pick
from kernels.exact import op as exact
from kernels.exact.reference import exact_reference
from kernels.flashlite import op as flashlite
from kernels.flashlite import reference

Q = torch.zeros(1, 1, 2, 4)
TABLE = {
    "triton": Backend(lambda q: "triton", anywhere),
    "sdpa": Backend(lambda q: "sdpa", anywhere),
    "flash_attn": Backend(lambda q: "flash_attn", lambda q: f"no {q.dtype} here; take another"),
}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(backends, "_logged", set())


def test_a_named_backend_is_taken():
    for name in ("triton", "sdpa"):
        assert pick("attention", TABLE, name, Q).run(Q) == name


def test_without_a_name_the_device_decides():
    class OnCuda:
        is_cuda = True
        device = torch.device("cuda")

    assert pick("attention", TABLE, None, Q).run(Q) == "sdpa"
    assert pick("attention", TABLE, None, OnCuda()).run(Q) == "triton"


def test_an_unknown_name_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="attention has no backend 'cudnn'; .* triton, sdpa, fl"):
        pick("attention", TABLE, "cudnn", Q)


def test_a_backend_that_cannot_run_is_never_replaced():
    message = "attention cannot use backend 'flash_attn': no torch.float32 here; take another"
    with pytest.raises(RuntimeError, match=message):
        pick("attention", TABLE, "flash_attn", Q)


def test_the_default_is_held_to_its_own_conditions():
    table = {"sdpa": Backend(lambda q: q, lambda q: "not today")}
    with pytest.raises(RuntimeError, match="'sdpa': not today"):
        pick("attention", table, None, Q)


def test_what_was_chosen_is_logged_once_an_operation(caplog):
    with caplog.at_level(logging.INFO, logger="kernels.backends"):
        for operation in ("attention", "attention", "energy"):
            pick(operation, TABLE, None, Q)
    assert [record.getMessage() for record in caplog.records] == [
        f"{operation} uses backend 'sdpa' on cpu; name another with backend=…"
        for operation in ("attention", "energy")
    ]


def test_what_was_named_is_not_logged(caplog):
    with caplog.at_level(logging.INFO, logger="kernels.backends"):
        pick("attention", TABLE, "sdpa", Q)
    assert not caplog.records


@pytest.mark.parametrize("operation", [flashlite, exact], ids=["flashlite", "exact"])
def test_what_a_configuration_may_name_is_what_exists(operation):
    assert sorted(operation.BACKENDS) == sorted(get_args(BackendName))


@pytest.mark.parametrize("mode", ["flashlite", "exact"])
def test_a_new_backend_is_one_row_of_its_operation(mode, monkeypatch):
    """It has no key energy of its own, which FlashLite needs."""
    monkeypatch.setitem(flashlite.BACKENDS, "mine", Backend(reference.attention, anywhere))
    monkeypatch.setitem(exact.BACKENDS, "mine", Backend(exact_reference, anywhere))
    q, k, v = torch.randn(3, 2, 2, 6, 8).unbind()
    found, expected = (
        mira.attention(q, k, v, frames=3, mode=mode, backend=name) for name in ("mine", "reference")
    )
    assert torch.equal(found, expected)
