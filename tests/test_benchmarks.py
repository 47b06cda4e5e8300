"""The attention benchmark: its baselines, its refusal to time what is wrong, and its rows."""

import csv
import functools
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from benchmarks import attention, attention_check, gpu, mfu
from benchmarks.attention_check import CASES, contestants, inputs, parse, wrong
from benchmarks.rows import append

ROOT = Path(__file__).resolve().parents[1]
TINY = parse("2x16-n160-b2-fp32")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["attention", *map(str, arguments)])
    return attention.main()


@pytest.mark.parametrize("name", ["2x16-n160-b2-fp32", "2x16-n160-b1-bf16", "3x20-n784-b1-fp32"])
def test_every_contestant_computes_what_it_should(name):
    tensors = inputs(parse(name), "cpu")
    entrants = contestants(parse(name), tensors)
    assert len(entrants) == 6 and not tensors[0].is_contiguous()
    assert wrong(parse(name), entrants, tensors) == {}


def test_rows_are_complete_and_appended(monkeypatch, tmp_path, capsys):
    out = tmp_path / "rows" / "attention.csv"
    for turns in (2, 3):
        arguments = ("2x16-n160-b2-fp32", "--turns", turns, "--out", out, "--device", "cpu")
        assert run(monkeypatch, *arguments, "--only", "ours exact") == 0
    rows = list(csv.DictReader(out.open(newline="")))
    assert [row["contestant"] for row in rows] == ["sdpa", "sdpa", "ours exact", "ours exact"] * 2
    assert {row["turns"] for row in rows} == {"2", "3"}
    assert all(value for row in rows for value in row.values())
    assert float(rows[0]["p20_ms"]) <= float(rows[0]["p50_ms"]) <= float(rows[0]["p80_ms"])
    assert rows[0]["ratio_p50"] == rows[0]["ratio_turns_p50"] == "1.000"
    assert "ours exact, forward+backward" in capsys.readouterr().out


def test_a_wrong_contestant_is_named_and_never_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attention_check, "published_flashlite", lambda q, k, v, frames: v * 1.0)
    monkeypatch.setattr(attention_check, "published_exact", exact_for_one_clip_only)
    out = tmp_path / "attention.csv"
    assert run(monkeypatch, TINY, "--turns", 1, "--out", out, "--device", "cpu") == 1
    printed = capsys.readouterr().out
    assert "published flashlite: not timed, it does not run: The differentiated" in printed
    assert "published exact: not timed, out of clip 1 is off by" in printed
    names = {row["contestant"] for row in csv.DictReader(out.open(newline=""))}
    assert names == {"sdpa", "ours flashlite", "ours flashlite, kernel alone", "ours exact"}


def test_a_contestant_too_large_for_the_memory_is_named_and_no_failure(
    monkeypatch, tmp_path, capsys
):
    def too_large(q, k, v, frames):
        raise torch.OutOfMemoryError("tried to allocate a map")

    # Plain PyTorch's loss, on one clip, is what the others are held to; it must still run.
    monkeypatch.setattr(attention_check, "published_flashlite", too_large)
    out = tmp_path / "attention.csv"
    arguments = (TINY, "--turns", 1, "--out", out, "--device", "cpu")
    assert run(monkeypatch, *arguments, "--only", "published flashlite") == 0
    assert "published flashlite: not timed, out of memory" in capsys.readouterr().out
    assert {row["contestant"] for row in csv.DictReader(out.open(newline=""))} == {"sdpa"}


def exact_for_one_clip_only(q, k, v, frames):
    from benchmarks.attention_baselines import published_exact

    own = published_exact(q[:1], k[:1], v[:1], frames)
    plain = torch.nn.functional.scaled_dot_product_attention(q[1:], k[1:], v[1:])
    return torch.cat([own, plain])


def test_cases_not_begun_in_time_are_named(monkeypatch, capsys, tmp_path):
    out = tmp_path / "attention.csv"
    assert run(monkeypatch, TINY, TINY, "--limit", 1e-9, "--out", out, "--device", "cpu") == 2
    assert f"time is up; not begun: {TINY} {TINY}" in capsys.readouterr().out


def test_a_case_that_runs_out_of_time_writes_the_turns_it_has():
    tensors, case = inputs(TINY, "cpu"), TINY
    plain = {"sdpa": contestants(case, tensors)["sdpa"]}
    found = attention.rows(case, plain, tensors, 30, "wall", end=time.monotonic())
    assert {row["turns"] for row in found} == {attention.FEWEST}


def test_a_contestant_that_fails_once_it_is_timed_is_named_and_costs_no_other(
    monkeypatch, tmp_path, capsys
):
    def no_graph_alone(q, k, v, frames):
        if not torch.is_grad_enabled():
            raise RuntimeError("no kernel without gradients\nand a long explanation")
        return attention_check.eager(q, k, v, attention_check.key_bias(k, frames))

    monkeypatch.setattr(attention_check, "published_flashlite", no_graph_alone)
    out = tmp_path / "attention.csv"
    arguments = (TINY, "--turns", 1, "--out", out, "--device", "cpu")
    assert run(monkeypatch, *arguments, "--only", "published flashlite") == 0
    told = "published flashlite, forward: not timed, no kernel without gradients\n"
    assert told in capsys.readouterr().out
    rows = [(r["contestant"], r["direction"]) for r in csv.DictReader(out.open(newline=""))]
    assert ("published flashlite", "forward+backward") in rows and len(rows) == 3


def test_rows_of_others_are_written_where_plain_attention_cannot_be_timed(
    monkeypatch, tmp_path, capsys
):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError("no room")

    found = contestants(TINY, inputs(TINY, "cpu"))
    monkeypatch.setitem(found, "sdpa", attention_check.Contestant("plain", too_large))
    monkeypatch.setattr(attention, "contestants", lambda *_: found)
    out = tmp_path / "attention.csv"
    arguments = (TINY, "--turns", 1, "--out", out, "--device", "cpu")
    assert run(monkeypatch, *arguments, "--only", "ours exact") == 0
    assert "sdpa: not timed, out of memory" in capsys.readouterr().out
    rows = list(csv.DictReader(out.open(newline="")))
    assert {row["contestant"] for row in rows} == {"ours exact"} and len(rows) == 2
    assert {row["ratio_p50"] for row in rows} == {"nan"}


def test_a_contestant_that_breaks_the_device_ends_the_command_with_a_status_of_its_own(
    monkeypatch, tmp_path, capsys
):
    def broken(who):
        raise attention_check.DeviceLost(f"{who}: it broke the device: illegal address")

    monkeypatch.setattr(attention_check, "published_flashlite", lambda q, k, v, frames: 1 / 0)
    monkeypatch.setattr(attention_check, "require_device", broken)
    arguments = (TINY, "--out", tmp_path / "attention.csv", "--device", "cpu")
    assert run(monkeypatch, *arguments, "--only", "published flashlite") == 3
    assert (
        f"{TINY} published flashlite: it broke the device: illegal address"
        in capsys.readouterr().out
    )


def test_cases_have_names_that_read_back():
    for case in (*CASES["cpu"], *CASES["cuda"]):
        assert parse(str(case)) == case
        assert case.tokens % case.frames == 0
    for name in ("12x64", "12x64-n100-b2-fp32", "12x64-n160-b2-fp8", "axb-n160-b2-fp32"):
        with pytest.raises(ValueError, match=r"a case is like 12x64-n1568-b2-fp32"):
            parse(name)


def test_peak_memory_on_the_cpu_counts_what_is_allocated_inside():
    def hold():
        first = torch.ones(1 << 20)
        return (first + 1).sum()

    assert 8 << 20 <= attention.peak_bytes(hold, "cpu") < 9 << 20


def test_rows_of_other_columns_are_not_mixed(tmp_path):
    append(tmp_path / "rows.csv", [{"a": 1, "b": 2}])
    with pytest.raises(ValueError, match="has the columns"):
        append(tmp_path / "rows.csv", [{"a": 1, "c": 2}])


ON_A_GPU_MACHINE = """
import sys

there = "torch torchgen functorch triton numpy sympy mpmath typing_extensions pytest _pytest pluggy"
there += " iniconfig packaging pygments py kernels mira benchmarks launch pretrain tests"
finders = list(sys.meta_path)

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        known = top in (*sys.stdlib_module_names, *there.split())
        if not known and not top.startswith("_sysconfigdata"):  # whose name depends on the platform
            return None
        return next(filter(None, (f.find_spec(name, path, target) for f in finders)), None)

sys.meta_path[:] = [NothingElse()]
import benchmarks.attention, benchmarks.gpu, benchmarks.mfu, benchmarks.tune_attention
import tests.kernels.test_exact, tests.kernels.test_flashlite
"""


def test_what_runs_on_a_gpu_machine_needs_torch_triton_and_numpy_alone():
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU_MACHINE], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the cases would run")
def test_a_case_that_fails_costs_the_others_nothing(monkeypatch, tmp_path, capsys):
    arguments = [str(TINY), "encode-tiny", "--no-tests"]
    monkeypatch.setenv("CC", sys.executable)  # what stands in for one here is not used
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path), *arguments])
    assert gpu.main() == 1
    printed = capsys.readouterr().out
    assert f"{TINY}: exit status 2" in printed and "encode-tiny: exit status 1" in printed
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path), *arguments, "--limit", "9"])
    assert gpu.main() == 2
    assert f"time is up; not begun: {TINY} encode-tiny" in capsys.readouterr().out


def test_a_case_of_attention_that_dies_is_run_again_with_ours_alone(monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(gpu, "run", lambda what, command, seconds: begun.append(command) or 3)
    assert not gpu.measured(str(TINY), tmp_path, 200.0)
    first, again = begun
    assert first[-2] == "--limit" and float(first[-1]) == pytest.approx(185, abs=1)
    assert again[: len(first) - 1] == first[:-1] and again[-4:] == ["--only", *gpu.OWN]
    names = contestants(TINY, inputs(TINY, "cpu"))
    assert set(gpu.OWN) <= set(names)
    begun.clear()
    assert not gpu.measured("encode-b-compiled", tmp_path, 200.0) and len(begun) == 1
    begun.clear()
    assert not gpu.measured(str(TINY), tmp_path, 50.0) and len(begun) == 1  # no time is left


def test_a_part_of_the_kernel_tests_is_each_nth_of_them():
    def collected(file, part):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", str(file)]
        environment = os.environ | {"MIRA_TESTS_PART": part}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        return [line for line in done.stdout.splitlines() if "::" in line]

    parts = {file: part for file, part in gpu.parts() if file.stem == "test_flashlite"}
    assert list(parts.values()) == ["5/6"]
    (file,) = parts
    everything = collected(file, "0/1")
    assert len(everything) > 100 and collected(file, "5/6") == everything[5::6]


def test_training_steps_that_fail_cost_the_others_nothing(monkeypatch, tmp_path, capsys):
    def failing(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate\nmuch")

    build = mfu.build
    monkeypatch.setattr(
        mfu,
        "build",
        lambda case, device: (failing if case.task == "encode" else build)(case, device),
    )
    out = tmp_path / "mfu.csv"
    asked = ["encode-tiny", "pretrain-tiny", "--steps", "1", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["mfu", *asked])
    assert mfu.main() == 1
    assert "encode-tiny: tried to allocate\n" in capsys.readouterr().out
    (row,) = csv.DictReader(out.open(newline=""))
    assert row["case"] == "pretrain-tiny" and row["compiled"] == "False"


def test_what_a_gpu_machine_lacks_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path)])
    begun = []
    monkeypatch.setattr(gpu, "measured", lambda case, *_: begun.append(case) or True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("CC", sys.executable)
    assert gpu.main() == 0
    assert "pytest is not installed; pip install --target FOLDER" in capsys.readouterr().out
    assert begun[:3] == ["12x64-n1568-b32-bf16", "12x64-n160-b64-bf16", "encode-b"]
    compiled = ["encode-b-compiled", "pretrain-b-compiled"]
    assert sorted(begun) == sorted([*map(str, CASES["cuda"]), *mfu.DEFAULT, *compiled])
    monkeypatch.setenv("CC", str(tmp_path / "gcc"))
    with pytest.raises(SystemExit):
        gpu.main()
    assert "Triton needs a C compiler: install gcc or clang" in capsys.readouterr().err
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not gpu.has_compiler()


def runs(process):
    """Whether a process is there and is no zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_tests_out_of_time_are_stopped_with_what_they_started_and_named(
    monkeypatch, tmp_path, capsys
):
    folder, told, ended = tmp_path / "tests/kernels", tmp_path / "child", gpu.ended
    folder.mkdir(parents=True)
    (folder / "test_hanging.py").write_text(
        "import pathlib, subprocess, time\n"
        "def test_that_hangs():\n"
        "    child = subprocess.Popen(['sleep', '300'])\n"
        f"    pathlib.Path({str(told)!r}).write_text(str(child.pid))\n"
        "    time.sleep(300)\n"
    )

    def when_it_hangs(process, seconds):
        assert seconds <= 240
        while process.poll() is None and not (told.exists() and told.read_text()):
            time.sleep(0.05)
        return ended(process, 0.0)

    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "ended", when_it_hangs)
    assert not gpu.tests(tmp_path, 240.0)
    assert "test_hanging.py::test_that_hangs" in capsys.readouterr().out
    end = time.monotonic() + 10
    while runs(told.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(told.read_text())


def test_the_picture_is_drawn_from_the_newest_rows(tmp_path):
    from benchmarks.plot_attention import drawn, newest, picture, tables

    columns = "p20_ms p50_ms p80_ms peak_bytes peak_ratio ratio_turns_p50 threads torch triton"
    row = dict.fromkeys(columns.split(), "2.0") | {"device": "X", "clock": "wall"}
    rows = [
        row | {"date": date, "case": case, "contestant": who, "direction": way}
        for date in ("2026-01-01", "2026-01-02")
        for case in ("12x64-n160-b2-bf16", "12x64-n160-b8-bf16", "12x64-n784-b2-fp32")
        for who in ("sdpa", "ours exact")
        for way in attention.DIRECTIONS
    ]
    found = newest(rows)["X"]
    assert {r["date"] for r in found.values()} == {"2026-01-02"}
    assert [str(c) for c in drawn({case for case, _, _ in found})] == ["12x64-n784-b2-fp32"]
    picture(rows, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    other = [r | {"device": "Y", "case": "16x80-n784-b2-bf16"} for r in rows]
    picture(rows + other, tmp_path / "attention.png")
    with pytest.raises(ValueError, match="no row of 12 heads"):
        picture(other, tmp_path / "attention.png")
    text = tables(rows)
    assert "not measured on a GPU yet" in text
    assert "| 12x64-n784-b2-fp32 | ours exact | 2 (2.00) | 2 (2.00) | 0 (2.00) |" in text
    del rows[-1]
    assert "| 12x64-n784-b2-fp32 | ours exact | 2 (2.00) | – | – |" in tables(rows[-11:])


def test_tuning_swaps_the_tiles_of_one_kernel_and_puts_them_back():
    pytest.importorskip("triton")
    from benchmarks.tune_attention import KERNELS, tiles

    for operation, kernels in KERNELS.items():
        module = importlib.import_module(f"kernels.{operation}.kernel")
        before, case = module.tiles_of, (64, torch.bfloat16, 9)
        with tiles(operation, kernels[0], (32, 16, 2, 5)):
            found = module.tiles_of(kernels[0], *case)
            assert (found.rows, found.columns, found.warps, found.stages) == (32, 16, 2, 5)
            for other in kernels[1:]:
                assert module.tiles_of(other, *case) == before(other, *case)
        assert module.tiles_of is before


def test_tiles_that_cannot_run_are_told_even_by_an_error_without_words(capsys):
    from benchmarks.tune_attention import ratio

    calls, tensors, sizes = [], inputs(TINY, "cpu"), (64, 64, 4, 2)

    def attend(q, k, v, *, then):
        calls.append(q)
        return then(q + k + v) if len(calls) > 2 else q + k + v  # the first two: the tables' tiles

    def failing(_):
        raise MemoryError

    def unwritten(x):
        x.register_hook(lambda grad: grad * torch.nan)
        return x

    for then, told in (
        (failing, "MemoryError"),
        (lambda x: x * 2, "results 1.0e+00 apart"),
        (unwritten, "results nan apart"),
    ):
        calls.clear()
        attending = functools.partial(attend, then=then)
        assert ratio(attending, tensors, "flashlite", "dq", sizes) is None
        assert f"{sizes}: {told}" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["small", "full"])
def test_every_network_of_the_recognition_study_has_one_budget(scale):
    from benchmarks.recognition_models import MODELS, SCALES, config_of

    assert SCALES[scale].first.seed != SCALES[scale].then.seed, "other people"
    made = [config_of(model, SCALES[scale].first, scale) for model in MODELS]
    assert {(c.run.global_batch, c.run.total_steps(1), c.data.balance) for c in made} == {
        (32, SCALES[scale].first.steps, 1.0)
    }
    assert all(c.encoder.pair == c.data_for().pair for c in made)


def test_rows_of_the_recognition_study_compare_on_the_same_clips_and_seeds(tmp_path):
    from benchmarks.plot_recognition import picture, tables
    from benchmarks.recognition import STRENGTHS, common
    from benchmarks.recognition_figures import Told, rows_of
    from benchmarks.recognition_models import SCALES

    names = ("negative", "positive", "surprise")

    def said(seed: int, strength: str, label: str, right: Collection[str]) -> dict[str, str]:
        answer = label if strength in right else "negative"
        return {"as_is": answer, "shuffled": "negative", "spotted": answer if seed else "negative"}

    def answers(right: Collection[str]) -> list[Told]:
        return [
            Told(
                seed=seed,
                fold=f"fold{person % 2}",
                clip=f"{person}-{strength}-{label}",
                subject=str(person),
                label=label,
                strength=strength,
                **said(seed, strength, label, right),
                uniform=0.5,
                inside=0.75,
                hit=1.0,
                apex="1" if person < 4 else "2",
            )
            for seed in range(2)
            for person in range(6)
            for strength in STRENGTHS
            for label in names
        ]

    told = {"plain": answers(["1"]), "mira_exact": answers(["1", "0.5"])}
    made = rows_of(told, STRENGTHS)
    folds = [{"seconds": 1.0, "code": "ab"}] * 2
    rows = [
        {k: str(v) for k, v in (common(model, SCALES["small"], folds) | row).items()}
        for model, each in made.items()
        for row in each
    ]
    by = {(row["model"], row["strength"]): row for row in rows}
    floor = 0.5 / 3  # of always naming one of three classes
    assert by["plain", "1"]["uf1"] == "1.0000" and by["plain", "0.15"]["uf1"] == f"{floor:.4f}"
    assert by["plain", "1"]["clips"] == "18" and by["plain", "all"]["clips"] == "72"
    assert by["plain", "1"]["commonest_uf1"] == f"{floor:.4f}" and by["plain", "1"]["seeds"] == "2"
    assert by["plain", "1"]["inside"] == "0.7500"
    assert float(by["plain", "1"]["shuffled"]) == pytest.approx(floor - 1, abs=1e-4)
    assert float(by["plain", "1"]["spotted"]) == pytest.approx((floor - 1) / 2, abs=1e-4)
    assert by["plain", "all"]["constant_hit"] == f"{4 / 6:.4f}"
    assert by["plain", "all"]["change"] == "", "it is compared with nothing"
    assert float(by["mira_exact", "0.5"]["change"]) == pytest.approx(1 - floor, abs=1e-4)
    assert float(by["mira_exact", "1"]["change"]) == 0
    table = tables(rows, scale="small")
    assert "1.00 (1.00 … 1.00)" in table and "plain" in table
    picture(rows, tmp_path / "study.png", scale="small")
    assert (tmp_path / "study.png").stat().st_size > 5_000
    other = {**by["plain", "1"], "model": "hsta", "steps": "8"}
    with pytest.raises(ValueError, match=r"differ in steps \(120, 8\)"):
        tables([*rows, other], scale="small")
    with pytest.raises(ValueError, match="2 trainings gave 143 answers to 72 clips"):
        rows_of({"plain": told["plain"][1:]}, STRENGTHS)


def test_the_recognition_study_takes_no_videos_of_another_scale(tmp_path):
    from benchmarks.recognition import check_rendered
    from benchmarks.recognition_models import SCALES

    small, full = SCALES["small"], SCALES["full"]
    made = {"subjects": 400, "clips_per_subject": 7, "size": [256, 256], "fps": 8.0, "seed": 8}
    made |= {"strengths": [1.0]}
    check_rendered(made, small.first, small, tmp_path)
    with pytest.raises(ValueError, match=r"size \[256, 256\], scale full needs \[640, 640\]"):
        check_rendered(made, full.first, full, tmp_path)
