"""Training against plain PyTorch, on one rank and on two, with good and with bad batches."""

from __future__ import annotations

import re

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn import functional as F

from launch.checkpoint import Checkpoints, fp32_state
from launch.cluster import WorkerContext
from launch.engine import Diverged, RunConfig, due, evaluate, fit
from launch.schedule import lr_at, scaled_lr
from tests.launch.ranks import wait_of_rank
from tests.launch.toy import Accuracy, MemoryTracker, ToyStream, ToyTask, here, slots

STEPS, GLOBAL = 6, 16


def config(**changes) -> RunConfig:
    values = {
        "steps": STEPS,
        "global_batch": GLOBAL,
        "micro_batch": 4,
        "base_lr": 0.3,
        "warmup": 0.2,
        "clip_grad": 0.5,
        "log_every": 1,
        "save_every": 100,
    }
    return RunConfig(**(values | changes))


def train(folder, run: RunConfig, context: WorkerContext, *, task=None, stream=None, **extra):
    """One run; returns its summary, its tracker and its task."""
    task, tracker = task or ToyTask(), MemoryTracker()
    stream = stream or ToyStream(run.global_batch, run.micro_batch, context)
    summary = fit(
        task,
        stream.open,
        run,
        tracker=tracker,
        checkpoints=Checkpoints(folder, keep=run.keep_checkpoints),
        context=context,
        total_steps=run.steps,
        **extra,
    )
    return summary, tracker, task


def plain(run: RunConfig, *, without: tuple[str, ...] = ()):
    """The same training in plain PyTorch: whole batches, no DeepSpeed, samples in `without` left
    out."""
    task = ToyTask()
    optimizer = torch.optim.AdamW(task.param_groups(run.weight_decay), betas=run.betas)
    losses, norms = [], []
    for step in range(run.steps):
        batch = slots(step, [i for i in range(GLOBAL) if f"s{step}.{i}" not in without])
        loss = F.cross_entropy(task.predict(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(task.parameters(), run.clip_grad)))
        peak = scaled_lr(run.base_lr, GLOBAL)
        lr = lr_at(
            step,
            steps=run.steps,
            peak=peak,
            floor=scaled_lr(run.min_lr, run.global_batch),
            warmup=run.warmup,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, dict(task.named_parameters())


def assert_same_parameters(task, expected, tolerance=2e-6):
    for name, value in task.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_stage_equals_plain_pytorch(stage, tmp_path):
    run = config(zero_stage=stage)
    losses, norms, parameters = plain(run)
    summary, tracker, task = here(lambda context: train(tmp_path, run, context))
    assert max(norms) > run.clip_grad > 0, "clipping must be at work"
    assert tracker.losses == pytest.approx(losses, rel=1e-5)
    assert [row["train/grad_norm"] for row in tracker.rows.values()] == pytest.approx(
        norms, rel=1e-4
    )
    assert_same_parameters(task, parameters)
    assert (summary.first_loss, summary.last_loss) == (tracker.losses[0], tracker.losses[-1])


@pytest.mark.parametrize("micro_batch", [1, 16])
def test_accumulation_does_not_change_the_result(micro_batch, tmp_path):
    run = config(micro_batch=micro_batch)
    losses, _, parameters = plain(run)
    _, tracker, task = here(lambda context: train(tmp_path, run, context))
    assert tracker.losses == pytest.approx(losses, rel=1e-5)
    assert_same_parameters(task, parameters)


@pytest.mark.parametrize("stage", [0, 2])
def test_samples_of_weight_zero_do_not_count(stage, tmp_path):
    missing = ("s0.3", "s1.0", "s1.1", "s1.2", "s1.3", "s4.15")  # s1: a whole micro-batch
    run = config(zero_stage=stage)
    losses, _, parameters = plain(run, without=missing)

    def work(context):
        stream = ToyStream(GLOBAL, 4, context, missing=missing)
        return train(tmp_path, run, context, stream=stream)

    _, tracker, task = here(work)
    assert tracker.losses == pytest.approx(losses, rel=1e-5)
    assert_same_parameters(task, parameters)


@pytest.mark.parametrize("precision, tolerance", [("bf16", 2e-2), ("fp16", 4e-3)])
@pytest.mark.parametrize("stage", [0, 1])
def test_low_precision_follows_fp32_with_fp32_weights(precision, tolerance, stage, tmp_path):
    run = config(precision=precision, zero_stage=stage)
    losses, _, _ = plain(run)
    _, tracker, task = here(lambda context: train(tmp_path, run, context))
    assert tracker.losses == pytest.approx(losses, abs=tolerance)
    assert tracker.losses != pytest.approx(losses, rel=1e-6), "the precision must make a difference"
    assert {p.dtype for p in task.parameters()} == {torch.float32}


@pytest.mark.parametrize("stage", [0, 1])
def test_fp16_overflow_lowers_the_loss_scale_and_is_no_bad_step(stage, tmp_path):
    run = config(precision="fp16", zero_stage=stage, max_bad_steps=1, steps=12)
    task = ToyTask(loss_factor=300.0)
    summary, _, _ = here(lambda context: train(tmp_path, run, context, task=task))
    assert 0 < summary.skipped_steps < 12
    assert summary.last_loss < summary.first_loss


def snapshots(stage, context, folder, task, stream):
    """Copies of all tensors of the task after every step."""
    seen: dict[int, dict] = {}

    def look(task, step):
        seen[step] = {name: value.clone() for name, value in task.state_dict().items()}
        return {}

    run = config(zero_stage=stage, eval_every=1, clip_grad=None)
    summary, _, _ = train(folder, run, context, task=task, stream=stream, evaluators=[look])
    return summary, seen


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("what", ["input", "loss", "gradient"])
def test_bad_batch_changes_nothing_and_is_named(stage, what, tmp_path, capsys):
    fill, cliff = (float("nan"), "") if what == "input" else (60.0, what)

    def work(context):
        stream = ToyStream(GLOBAL, 4, context, fill={"s3.5": fill})
        return snapshots(stage, context, tmp_path, ToyTask(cliff=cliff), stream)

    summary, seen = here(work)
    assert all(torch.equal(seen[4][name], seen[3][name]) for name in seen[3])
    assert not torch.equal(seen[3]["head.weight"], seen[2]["head.weight"])
    assert not torch.equal(seen[5]["head.weight"], seen[4]["head.weight"])
    assert summary.skipped_steps == 1
    said = capsys.readouterr().out
    assert "step 3 skipped" in said
    assert "s3.5" in said
    assert ("gradient is not finite" in said) if what == "gradient" else ("s3.4" not in said)


def test_training_goes_on_after_a_bad_batch_as_if_it_had_not_been(tmp_path):
    """The optimiser's moments are untouched too: dropping step 0 gives what starting at step 1
    gives."""
    run = config(warmup=0.0, min_lr=config().base_lr)  # a rate that does not depend on the step

    def work(context):
        spoilt = ToyStream(GLOBAL, 4, context, fill={"s0.0": float("nan")})
        _, _, first = train(tmp_path / "a", run, context, stream=spoilt)
        late = ToyStream(GLOBAL, 4, context)
        late_run = config(warmup=0.0, min_lr=run.min_lr, steps=STEPS - 1)
        shifted = lambda start: late.open(start + 1)  # noqa: E731
        second = ToyTask()
        fit(
            second,
            shifted,
            late_run,
            tracker=MemoryTracker(),
            checkpoints=Checkpoints(tmp_path / "b"),
            context=context,
            total_steps=STEPS - 1,
        )
        return first, second

    first, second = here(work)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_step_whose_samples_all_weigh_nothing_is_dropped(tmp_path, capsys):
    nothing = tuple(f"s2.{i}" for i in range(GLOBAL))

    def work(context):
        return train(
            tmp_path, config(), context, stream=ToyStream(GLOBAL, 4, context, missing=nothing)
        )

    summary, _, task = here(work)
    assert summary.skipped_steps == 1
    assert all(torch.isfinite(p).all() for p in task.parameters())
    said = capsys.readouterr().out
    assert re.search(r"step 2 skipped.* weight 0, .*\(see the ledger\).* label: s2\.0, s2\.1", said)


def uncounted(*steps: int) -> tuple[str, ...]:
    return tuple(f"s{step}.{i}" for step in steps for i in range(GLOBAL))


@pytest.mark.parametrize("stage", [0, 1])
def test_steps_in_which_nothing_counts_are_passed_over(stage, tmp_path, capsys):
    """However many come in a row: few clips may have a label. In fp16 they are no overflow."""
    run = config(zero_stage=stage, precision="fp16", max_bad_steps=2, steps=9)

    def work(context):
        stream = ToyStream(GLOBAL, 4, context, missing=uncounted(*range(1, 7)))
        return train(tmp_path, run, context, stream=stream), Checkpoints(tmp_path).resumable()

    (summary, tracker, _), kept = here(work)
    assert (summary.steps, summary.skipped_steps) == (9, 6)
    assert sum("train/loss" in row for row in tracker.rows.values()) == 3
    assert capsys.readouterr().out.count("skipped, nothing changed") == 1
    assert kept is not None and kept["loss_scale"] == 2.0**16


def test_a_run_in_which_nothing_ever_counts_names_the_labels(tmp_path):
    def work(context):
        stream = ToyStream(GLOBAL, 4, context, missing=uncounted(*range(STEPS)))
        return train(tmp_path, config(), context, stream=stream)

    with pytest.raises(ValueError, match=r"no step of .* label.*--data\.balance 0"):
        here(work)


def bad_from(first: int, last: int) -> dict[str, float]:
    return {f"s{step}.{i}": float("nan") for step in range(first, last) for i in (0, 7)}


def test_bad_steps_in_a_row_go_back_once_then_end_the_run_by_name(tmp_path, capsys):
    run = config(steps=20, save_every=4, max_bad_steps=3)

    def work(context):
        return train(
            tmp_path, run, context, stream=ToyStream(GLOBAL, 4, context, fill=bad_from(5, 20))
        )

    with pytest.raises(Diverged, match=r"s7\.0, s7\.7.*base_lr") as error:
        here(work)
    assert "again after going back" in str(error.value)
    assert "going back to the last checkpoint" in capsys.readouterr().out


def test_run_that_recovers_after_going_back_ends_like_one_that_was_never_ill(tmp_path):
    run = config(steps=10, save_every=4, max_bad_steps=2)

    def work(context):
        ill = ToyStream(GLOBAL, 4, context, fill=bad_from(5, 20))
        well = ToyStream(GLOBAL, 4, context)
        openings = []

        def open_batches(start):
            openings.append(start)
            return (ill if len(openings) == 1 else well).open(start)

        ill_task = ToyTask()
        summary = fit(
            ill_task,
            open_batches,
            run,
            tracker=MemoryTracker(),
            checkpoints=Checkpoints(tmp_path / "ill"),
            context=context,
            total_steps=10,
        )
        _, _, well_task = train(tmp_path / "well", run, context)
        return summary, openings, ill_task, well_task

    summary, openings, ill_task, well_task = here(work)
    assert openings == [0, 4]
    assert summary.skipped_steps == 2
    ill, well = ill_task.state_dict(), well_task.state_dict()
    assert all(torch.equal(ill[name], well[name]) for name in well)


def test_diverging_before_the_first_checkpoint_ends_the_run(tmp_path):
    run = config(max_bad_steps=2)

    def work(context):
        return train(
            tmp_path, run, context, stream=ToyStream(GLOBAL, 4, context, fill=bad_from(0, 9))
        )

    with pytest.raises(Diverged, match="no checkpoint to go back to"):
        here(work)


def test_a_finished_run_that_is_made_longer_goes_on_and_says_so(tmp_path, capsys):
    def work(context):
        train(tmp_path, config(steps=6), context)
        longer, tracker, _ = train(tmp_path, config(steps=9), context)
        shorter, _, _ = train(tmp_path, config(steps=4), context)
        return longer, tracker, shorter

    longer, tracker, shorter = here(work)
    assert (longer.resumed_from, longer.steps, sorted(tracker.rows)) == (6, 9, [7, 8, 9])
    rates = [tracker.rows[step]["train/lr"] for step in (7, 8, 9)]
    assert rates == [config(steps=9).lr_at(step, 9) for step in (6, 7, 8)]
    assert (shorter.resumed_from, shorter.steps) == (9, 9)
    said = capsys.readouterr().out
    assert "a run of 6 steps, now of 9" in said and "a run of 9 steps, now of 4" in said


@pytest.mark.parametrize("stage", [0, 2])
def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(stage, tmp_path):
    run = config(zero_stage=stage, steps=9, save_every=4, precision="bf16")

    def work(context):
        straight = train(tmp_path / "a", run, context, task=ToyTask(dropout=0.3))
        broken = ToyStream(GLOBAL, 4, context, fill={"s6.1": float("nan")})
        with pytest.raises(Diverged):  # leaves the checkpoint of step 4, further than a crash would
            halt = config(**(vars(run) | {"max_bad_steps": 1}))
            fit_task = ToyTask(dropout=0.3)
            train(tmp_path / "b", halt, context, task=fit_task, stream=_Stops(broken))
        resumed = train(tmp_path / "b", run, context, task=ToyTask(dropout=0.3))
        return straight, resumed

    (_, straight, one), (summary, resumed, other) = here(work)
    assert summary.resumed_from == 4
    assert resumed.losses == straight.losses[4:]
    assert summary.first_loss == straight.losses[0]
    one, other = one.state_dict(), other.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


class _Stops:
    """A stream that raises in the middle of step 6."""

    def __init__(self, stream: ToyStream):
        self.stream = stream

    def open(self, start: int):
        for batch in self.stream.open(start):
            if batch.keys[0].startswith("s6."):
                raise Diverged("stopped by the test")
            yield batch


def test_finished_run_is_evaluated_again_but_not_trained_again(tmp_path):
    def work(context):
        first = train(tmp_path, config(), context)
        again = train(
            tmp_path, config(), context, evaluators=[lambda task, step: {"test/x": float(step)}]
        )
        return first, again

    (first, _, task), (again, tracker, other) = here(work)
    assert again.resumed_from == again.steps == STEPS
    assert again.metrics == {"test/x": float(STEPS)}
    assert tracker.rows == {STEPS: {"test/x": float(STEPS)}}
    assert again.last_loss == first.last_loss
    assert torch.equal(task.head.weight, other.head.weight)


def test_evaluators_run_when_due_and_at_the_end(tmp_path):
    seen = []

    def look(task, step):
        seen.append(step)
        return {}

    here(lambda context: train(tmp_path, config(eval_every=4), context, evaluators=[look]))
    assert seen == [4, 6]


def test_progress_is_told_in_lines_that_a_program_can_read(tmp_path, capsys):
    _, tracker, _ = here(lambda context: train(tmp_path, config(log_every=3), context))
    line = (
        r"step (\d+)/6 · loss \d\.\d{4} · lr \d\.\de-\d\d · \d+\.\d clips/s · data \d+% · "
        r"left \d+:\d\d:\d\d"
    )
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(line, text)[1] for text in lines] == ["3", "6"]
    expected = {"loss", "lr", "grad_norm", "accuracy", "clips_per_second", "data_wait", "tflops"}
    assert {f"train/{name}" for name in expected} <= set(tracker.rows[6])


def test_every_rank_knows_how_long_the_slowest_waited_for_its_data(tmp_path):
    """The others wait for it in the step: a figure of rank 0's own loader would not show it."""
    mp.spawn(wait_of_rank, args=(str(tmp_path),), nprocs=2)
    assert [torch.load(tmp_path / f"wait_{rank}.pt") for rank in range(2)] == [(0.5, 0.5)] * 2


def test_data_that_ends_inside_a_step_is_an_error(tmp_path):
    def work(context):
        stream = ToyStream(GLOBAL, 4, context)
        three = lambda start: list(zip(range(3), stream.open(start), strict=False))  # noqa: E731
        short = type("Short", (), {"open": staticmethod(lambda s: [b for _, b in three(s)])})
        return train(tmp_path, config(), context, stream=short)

    with pytest.raises(ValueError, match="3 of 4 micro-batches"):
        here(work)


@pytest.mark.parametrize(
    "world, micro, told", [(3, 4, "workers can be 1, 2, 4, 8, 16"), (2, 3, "can be 1, 2, 4, 8")]
)
def test_batch_that_the_workers_do_not_divide_is_refused_with_what_works(world, micro, told):
    with pytest.raises(ValueError, match=told):
        config(micro_batch=micro).accumulation(world)


def test_length_of_a_run():
    assert config(steps=7).total_steps(1000) == 7
    assert RunConfig(epochs=1.5).total_steps(10) == 15
    assert RunConfig(epochs=0.001).total_steps(10) == 1


def test_due():
    assert [step for step in range(1, 11) if due(step, 4, last=10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if due(step, 0, last=10)] == [10]


# Two ranks: one pair of processes runs everything, the tests below look at what it left.


def _rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    import os

    import torch.distributed as dist

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    context = WorkerContext(rank, 2, torch.device("cpu"))
    found: dict = {}
    for stage in (0, 1, 2):
        _, tracker, task = train(f"{folder}/{stage}", config(zero_stage=stage), context)
        norms = [row["train/grad_norm"] for row in tracker.rows.values()]
        found[f"stage {stage}"] = tracker.losses, norms, fp32_state(task)
    bad = ToyStream(GLOBAL, 4, context, fill={"s3.5": float("nan")}, missing=("s1.1", "s1.2"))
    summary, seen = snapshots(2, context, f"{folder}/bad", ToyTask(), bad)
    found["bad"] = summary.skipped_steps, seen
    found["evaluation"] = score(task, context)
    dist.barrier()
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def score(task, context):
    mine = list(range(context.rank, 10, context.world))
    batches = [slots(99, mine[:2]), slots(99, mine[2:])]
    batches[0].weights[0] = 0.0 if context.rank == 0 else 1.0  # slot 0 could not be read
    return evaluate(task, batches, Accuracy(), context=context)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("two"))
    mp.spawn(_rank_of_two, args=(folder,), nprocs=2)
    return [torch.load(f"{folder}/rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks_equal_one(stage, two_ranks):
    losses, norms, parameters = plain(config(zero_stage=stage))
    (logged, logged_norms, state), (silent, _, other) = (f[f"stage {stage}"] for f in two_ranks)
    assert logged == pytest.approx(losses, rel=1e-5)
    assert logged_norms == pytest.approx(norms, rel=1e-4)
    assert silent == [], "only rank 0 logs"
    for name, value in parameters.items():
        torch.testing.assert_close(state[name], value.detach(), atol=2e-6, rtol=1e-4)
        assert torch.equal(state[name], other[name])


def test_bad_batch_on_one_rank_is_dropped_by_both(two_ranks):
    for skipped, seen in (found["bad"] for found in two_ranks):
        assert skipped == 1
        names = [name for name in seen[3] if name != "mean"]
        assert all(torch.equal(seen[4][name], seen[3][name]) for name in names)
        assert not torch.equal(seen[5]["head.weight"], seen[4]["head.weight"])
    assert torch.equal(
        two_ranks[0]["bad"][1][5]["head.weight"], two_ranks[1]["bad"][1][5]["head.weight"]
    )


def test_evaluation_on_two_ranks_is_exact(two_ranks):
    task = ToyTask()
    task.load_state_dict(two_ranks[0]["stage 2"][2])
    alone = here(lambda context: score(task, context))
    assert alone["samples"] == 9.0
    assert two_ranks[0]["evaluation"] == two_ranks[1]["evaluation"] == alone
