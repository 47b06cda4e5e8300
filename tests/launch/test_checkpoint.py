"""Checkpoints: another number of workers, other networks, full disks, crashes while writing."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from launch.agreement import Agreement
from launch.checkpoint import Checkpoints, fp32_state
from launch.cluster import WorkerContext
from launch.durable import check_shared
from launch.engine import RunConfig, fit
from launch.zero import Zero
from tests.launch.toy import MemoryTracker, ToyStream, ToyTask, here

GLOBAL = 16


def train(
    folder, steps: int, context: WorkerContext, *, task=None, agreement=None, keep=9, **changes
):
    """Train to `steps` of a run of 8, a checkpoint every 2; returns the task and its losses by
    step."""
    values = {
        "global_batch": GLOBAL,
        "micro_batch": 4,
        "base_lr": 0.3,
        "save_every": 2,
        "log_every": 1,
    }
    run = RunConfig(steps=8, **(values | changes))
    task, tracker = task or ToyTask(), MemoryTracker()

    def until(start):
        for batch in ToyStream(GLOBAL, 4, context).open(start):
            if batch.keys[0].startswith(f"s{steps}."):
                raise InterruptedError
            yield batch

    checkpoints = Checkpoints(folder, keep=keep, agreement=agreement)
    try:
        fit(
            task,
            until,
            run,
            tracker=tracker,
            checkpoints=checkpoints,
            context=context,
            total_steps=8,
        )
    except InterruptedError:
        assert steps < 8
    return task, {step: row["train/loss"] for step, row in tracker.rows.items()}


def _rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    context = WorkerContext(rank, 2, torch.device("cpu"))
    found: dict = {}
    for stage in (0, 1, 2):
        train(f"{folder}/of-two-{stage}", 4, context, zero_stage=stage)
        found[stage] = train(f"{folder}/of-one-{stage}", 8, context, zero_stage=stage)[1]
    private = f"{folder}/private-{rank}"
    os.makedirs(private)
    try:
        check_shared(Path(private), patience=0.5)
    except OSError as error:
        found["not shared"] = str(error)
    try:
        Checkpoints(f"{folder}/of-two-1", agreement=Agreement({"width": 3})).restore(_zero(context))
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _zero(context, task=None, stage=1, **changes):
    values = {"precision": "fp32", "weight_decay": 0.05, "betas": (0.9, 0.95)} | changes
    return Zero(
        task or ToyTask(),
        device=context.device,
        stage=stage,
        micro_batch=4,
        accumulation=1,
        clip_grad=None,
        **values,
    )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Checkpoints of one rank continued by two, of two continued by one, and an uninterrupted
    run."""
    folder = str(tmp_path_factory.mktemp("worlds"))
    losses = {}
    for stage in (0, 1, 2):
        here(lambda c, s=stage: train(f"{folder}/of-one-{s}", 4, c, zero_stage=s))
    mp.spawn(_rank_of_two, args=(folder,), nprocs=2)
    two = [torch.load(f"{folder}/rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    for stage in (0, 1, 2):
        task, late = here(lambda c, s=stage: train(f"{folder}/of-two-{s}", 8, c, zero_stage=s))
        straight, whole = here(lambda c, s=stage: train(f"{folder}/never-{s}", 8, c, zero_stage=s))
        losses[stage] = (late, two[0][stage], whole, task, straight)
    return losses, two


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_worker_continues_what_two_began(stage, worlds):
    late, _, whole, task, straight = worlds[0][stage]
    assert sorted(late) == [5, 6, 7, 8]
    assert [late[s] for s in late] == pytest.approx([whole[s] for s in late], rel=1e-5)
    for one, other in zip(task.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_workers_continue_what_one_began(stage, worlds):
    _, late, whole, _, _ = worlds[0][stage]
    assert sorted(late) == [5, 6, 7, 8]
    assert [late[s] for s in late] == pytest.approx([whole[s] for s in late], rel=1e-5)


def test_folder_that_is_not_shared_is_named_on_every_rank(worlds):
    for found in worlds[1]:
        assert "not shared across nodes: rank 1 on" in found["not shared"]
        assert "--cluster.output" in found["not shared"]


def test_every_rank_refuses_a_foreign_checkpoint(worlds):
    assert all("model.width was None, this run has 3" in found["refused"] for found in worlds[1])


def refusal(folder, **changes) -> str:
    with pytest.raises(ValueError) as error:
        here(lambda context: train(folder, 8, context, **changes))
    return str(error.value)


def test_checkpoint_of_another_shape_is_refused_with_the_tensor(tmp_path):
    here(lambda context: train(tmp_path, 2, context))
    told = refusal(tmp_path, task=ToyTask(width=24))
    assert "body.0.bias was [32], is [24]" in told and "--cluster.output" in told


def test_checkpoint_of_another_network_is_refused_with_the_field(tmp_path):
    ours = Agreement({"encoder": {"depth": 2, "attention": "sdpa"}})
    here(lambda context: train(tmp_path, 2, context, agreement=ours))
    other = Agreement({"encoder": {"depth": 2, "attention": "mira_exact"}})
    assert "model.encoder.attention was sdpa, this run has mira_exact" in refusal(
        tmp_path, agreement=other
    )


def test_another_recipe_is_refused_unless_it_is_meant_and_then_told(tmp_path, capsys):
    ours = Agreement(recipe={"run.base_lr": "0.3", "mask.ratio": "0.9", "gone": "1", "m": "7.0"})
    here(lambda context: train(tmp_path, 2, context, agreement=ours))
    other = {"run.base_lr": "0.1", "mask.ratio": "0.9", "new": "2", "m": "7"}
    told = refusal(tmp_path, agreement=Agreement(recipe=other))
    assert "has gone 2 steps with run.base_lr 0.3, now it is 0.1" in told
    assert "--run.allow_change" in told
    capsys.readouterr()
    meant = Agreement(recipe=other, allow_change=True)
    here(lambda context: train(tmp_path, 4, context, agreement=meant))
    said = capsys.readouterr().out
    assert "from here on run.base_lr is 0.1, it was 0.3" in said
    assert said.count("from here on") == 1, "what one of the two does not know is no change"
    # From now on the new recipe is this run's.
    here(lambda context: train(tmp_path, 6, context, agreement=Agreement(recipe=other)))
    assert "run.base_lr 0.1, now it is 0.3" in refusal(tmp_path, agreement=ours)


def test_stage_zero_and_the_others_do_not_mix(tmp_path):
    here(lambda context: train(tmp_path, 2, context, zero_stage=0))
    assert "--run.zero_stage 0, this run has 2" in refusal(tmp_path, zero_stage=2)


def test_stages_one_and_two_exchange_checkpoints(tmp_path):
    here(lambda context: train(tmp_path, 4, context, zero_stage=1))
    _, late = here(lambda context: train(tmp_path, 8, context, zero_stage=2))
    _, whole = here(lambda context: train(tmp_path / "other", 8, context, zero_stage=2))
    assert [late[s] for s in late] == [whole[s] for s in late]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: ECC")]
)
def test_a_device_that_fails_while_a_checkpoint_is_read_damages_none(error, tmp_path, monkeypatch):
    here(lambda context: train(tmp_path, 2, context))

    def fails(*_):
        raise error

    monkeypatch.setattr(Zero, "load", fails)
    with pytest.raises(type(error), match=str(error)):
        here(lambda context: train(tmp_path, 4, context))
    monkeypatch.undo()
    _, late = here(lambda context: train(tmp_path, 4, context))
    assert sorted(late) == [3, 4]


def test_checkpoint_of_another_schema_is_refused_with_both_versions(tmp_path):
    here(lambda context: train(tmp_path, 2, context))
    meta = tmp_path / "step_000002" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"schema": "face-checkpoint/9"}))
    told = refusal(tmp_path)
    assert "'face-checkpoint/9'" in told and "'face-checkpoint/1'" in told


WEIGHTS = "deepspeed/mp_rank_00_model_states.pt"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def flip(file: Path) -> None:
    """One bit in the middle: the size stays, and torch would read it without a word."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [("meta.json", cut), (WEIGHTS, cut), (WEIGHTS, flip), (WEIGHTS, Path.unlink)],
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(name, spoil, tmp_path, capsys):
    here(lambda context: train(tmp_path, 4, context))
    spoil(tmp_path / "step_000004" / name)
    assert Checkpoints(tmp_path).resumable()
    _, late = here(lambda context: train(tmp_path, 4, context))
    assert sorted(late) == [3, 4]
    said = capsys.readouterr().out
    assert (
        f"{tmp_path / 'step_000004'} is damaged (" in said and "going on from step_000002" in said
    )
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["damaged-step_000004", "step_000002", "step_000004"]


@pytest.mark.parametrize("name", ["meta.json", WEIGHTS])
def test_where_each_checkpoint_is_damaged_the_run_does_not_start_anew(name, tmp_path):
    here(lambda context: train(tmp_path, 4, context))
    for step in (2, 4):
        cut(tmp_path / f"step_00000{step}" / name)
    told = refusal(tmp_path)
    assert f"{tmp_path / 'step_000004'} is damaged" in told and "delete this folder" in told
    if name == "meta.json":
        with pytest.raises(ValueError, match="step_000004 is damaged"):
            Checkpoints(tmp_path).resumable()


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power cut a folder of that name must be whole, so the order of calls matters."""
    order: list[str] = []
    sync, rename = os.fsync, Path.rename

    def synced(handle):
        order.append(os.readlink(f"/proc/self/fd/{handle}").removeprefix(f"{tmp_path}/"))
        sync(handle)

    def renamed(path, to):
        order.append(f"rename to {Path(to).name}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    here(lambda context: train(tmp_path, 2, context))
    aside = ".writing-step_000002"
    before = order[: order.index("rename to step_000002")]
    written = sorted(p.name for p in (tmp_path / "step_000002/deepspeed").iterdir())
    assert {f"{aside}/deepspeed/{name}" for name in written} <= set(before)
    assert {f"{aside}/deepspeed", f"{aside}/meta.json", aside} <= set(before)
    assert order[len(before) + 1] == str(tmp_path)


@pytest.mark.parametrize("stage", [0, 1])
def test_what_a_resumed_run_asks_of_the_optimiser_holds(stage, tmp_path):
    """The optimiser's state on disk brings the settings of the run that wrote it."""

    def work(context):
        zero = _zero(context, stage=stage)
        Checkpoints(tmp_path).restore(zero)
        Checkpoints(tmp_path).save(zero, 2, {})
        zero.close()
        zero = _zero(context, stage=stage, weight_decay=0.3, betas=(0.8, 0.9), precision="fp16")
        Checkpoints(tmp_path).restore(zero)
        groups = [(g["weight_decay"], g["betas"]) for g in zero.engine.optimizer.param_groups]
        return groups, zero.loss_scale

    assert here(work) == ([(0.3, (0.8, 0.9)), (0.0, (0.8, 0.9))], 2.0**16)


def test_the_loss_scale_goes_on_where_it_was(tmp_path):
    def work(context):
        zero = _zero(context, precision="fp16")
        Checkpoints(tmp_path).restore(zero)
        zero.loss_scale, zero.good_steps = 512.0, 7
        Checkpoints(tmp_path).save(zero, 2, {})
        zero.close()
        zero = _zero(context, precision="fp16")
        Checkpoints(tmp_path).restore(zero)
        return zero.loss_scale, zero.good_steps

    assert here(work) == (512.0, 7)


def test_only_the_newest_are_kept(tmp_path):
    here(lambda context: train(tmp_path, 8, context, keep=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000006", "step_000008"]


def test_half_written_checkpoint_is_never_resumed_and_cleared_away(tmp_path):
    here(lambda context: train(tmp_path, 4, context))
    (tmp_path / "step_000004").rename(tmp_path / ".writing-step_000006")
    (tmp_path / "step_000008").mkdir()  # as a foreign program may leave it: without meta.json
    assert Checkpoints(tmp_path).latest() == tmp_path / "step_000002"
    _, late = here(lambda context: train(tmp_path, 4, context))
    assert sorted(late) == [3, 4]
    assert not (tmp_path / ".writing-step_000006").exists()


def test_too_small_a_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("launch.checkpoint.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"no room.*0\.0 MB are free.*--cluster\.output") as error:
        here(lambda context: train(tmp_path, 8, context))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_write_that_fails_midway_leaves_the_last_checkpoint_and_nothing_else(tmp_path):
    here(lambda context: train(tmp_path, 2, context))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # what a full disk does to a write
    try:
        with pytest.raises(OSError, match="checkpoint of step 4 could not be written") as error:
            here(lambda context: train(tmp_path, 8, context))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG, "of the system, which torch hides: no restart mends it"
    assert [p.name for p in tmp_path.iterdir()] == ["step_000002"]
    _, late = here(lambda context: train(tmp_path, 8, context))
    assert sorted(late) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("stage", [0, 2])
def test_exported_weights_are_the_fp32_masters_under_the_tasks_names(stage, tmp_path):
    task, _ = here(lambda context: train(tmp_path, 8, context, precision="bf16", zero_stage=stage))
    state = fp32_state(task)
    assert set(state) == set(ToyTask().state_dict())
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in state.values())
    assert not torch.equal(state["head.weight"], state["head.weight"].bfloat16().float())
    if stage:
        files = tmp_path / "step_000008" / "deepspeed" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
        saved = torch.load(files, weights_only=False)["optimizer_state_dict"]
        head = saved["single_partition_of_fp32_groups"][1][: task.head.weight.numel()]
        assert torch.equal(state["head.weight"].flatten(), head.detach())
    ToyTask().load_state_dict(state)
