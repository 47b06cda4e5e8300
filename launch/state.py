"""Where a run stands: steps, losses, bad steps, the last evaluation.

Owns what happens to a run around its steps: resuming, dropping a bad step, going back, logging,
evaluating. Refuses to know how a step is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from launch.checkpoint import Checkpoints
from launch.rates import Clock, progress_line
from launch.step import Source, Tally
from launch.task import Tracker
from launch.zero import StepResult, Zero

Evaluator = Callable[[nn.Module, int], dict[str, float]]
"""Called on every rank with the task and the number of completed steps; returns figures by name."""


_KEPT = ("first_loss", "last_loss", "skipped", "left_out", "went_back")


class Diverged(ArithmeticError):
    """Training met too many steps in a row whose loss or gradient is not finite."""


@dataclass(frozen=True)
class Summary:
    """What became of a run. Losses are means over the clips of one step; None where no step was
    good."""

    steps: int
    resumed_from: int
    first_loss: float | None
    last_loss: float | None
    skipped_steps: int
    clips_per_second: float
    data_wait: float
    """Share of the time that the slowest worker of each step waited for its data, 0 to 1."""
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of the last evaluation."""


@dataclass
class State:
    """Where a run stands, and what it does about bad steps."""

    rank: int
    total: int
    step: int = 0
    resumed_from: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    skipped: int = 0
    left_out: float = 0.0
    """Samples so far that had weight 0, padding not counted."""
    uncounted: int = 0
    """Steps since the last start in which no sample counted."""
    bad_in_a_row: int = 0
    went_back: bool = False
    evaluated_at: int = -1
    metrics: dict[str, float] = field(default_factory=dict)

    def resume(self, checkpoints: Checkpoints, zero: Zero, source: Source) -> None:
        """Go to the newest checkpoint, or to the beginning, and open the data there."""
        resumed = checkpoints.restore(zero)
        if resumed is not None:
            self.step = self.resumed_from = resumed.step
            for name in _KEPT:
                setattr(self, name, resumed.progress[name])
            self.say(f"resumed at step {self.step} from {checkpoints.folder}")
            before = resumed.progress.get("total", self.total)
            if before != self.total:
                self.say(
                    f"this was a run of {before} steps, now of {self.total}: the learning rate "
                    "follows the new length"
                )
            for name, (before, now) in resumed.changed.items() if self.step < self.total else ():
                self.say(f"from here on {name} is {now}, it was {before}")
        source.start(self.step)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {name: getattr(self, name) for name in (*_KEPT, "total")}

    @property
    def may_save(self) -> bool:
        """Not amid bad steps: going back must lead to before them. The end is always saved."""
        return self.bad_in_a_row == 0 or self.step == self.total

    def is_lost(self, tally: Tally, result: StepResult, max_bad_steps: int) -> bool:
        """Report a step that was dropped, and say whether there were too many in a row."""
        self.skipped += 1
        if float(tally.weight) == 0:
            self._pass_over(tally)
            return False
        bad_loss, what = tally.verdict()
        self.bad_in_a_row += bad_loss or not result.loss_scale_may_be_why
        self.say(f"step {self.step} skipped, nothing changed: {what}")
        if self.bad_in_a_row < max_bad_steps:
            return False
        if self.went_back:
            raise Diverged(
                f"step {self.step}: {self.bad_in_a_row} steps in a row were not finite, again "
                f"after going back to a checkpoint; the last: {what}. Look at these samples, lower "
                "--run.base_lr or set --run.clip_grad 1.0 (with --run.allow_change)"
            )
        return True

    def _pass_over(self, tally: Tally) -> None:
        """Of a step in which no sample counts: chance, where few do. Raises ValueError where it
        ends a run in which none ever did."""
        self.uncounted += 1
        if self.uncounted == 1:
            self.say(
                f"step {self.step} skipped, nothing changed: every sample has weight 0, because "
                f"it could not be read (see the ledger) or has no label: {tally.named()}. More "
                "such steps are counted in skipped_steps, not told"
            )
        if self.first_loss is None and self.step + 1 == self.total:
            raise ValueError(
                f"no step of {self.total} changed anything: their samples have weight 0, as what "
                "could not be read (see the ledger) and clips without a label have; ingest again "
                "with --annotations that label them, or fine-tune in another --cluster.output with "
                "--data.balance 0, which draws labelled clips alone"
            )

    def go_back(self, checkpoints: Checkpoints, zero: Zero, source: Source) -> None:
        """Continue from the newest checkpoint. Raises Diverged where there is none."""
        if checkpoints.latest() is None:
            raise Diverged(
                f"step {self.step}: {self.bad_in_a_row} steps in a row were not finite and there "
                "is no checkpoint to go back to; look at the samples named above, lower "
                "--run.base_lr or set --run.clip_grad 1.0 (with --run.allow_change)"
            )
        self.say(
            f"step {self.step}: {self.bad_in_a_row} bad steps, going back to the last checkpoint"
        )
        skipped = self.skipped
        self.resume(checkpoints, zero, source)
        self.skipped, self.bad_in_a_row, self.went_back = skipped, 0, True

    def finish_step(self, figures: dict[str, float], *, applied: bool) -> None:
        self.step += 1
        self.left_out += figures["left_out"]
        if applied:
            self.bad_in_a_row = 0
            self.last_loss = figures["loss"]
            self.first_loss = self.last_loss if self.first_loss is None else self.first_loss

    def log(self, figures: dict[str, float], rates: dict[str, float], tracker: Tracker) -> None:
        if self.rank != 0:
            return
        loss, lr = figures["loss"], figures["lr"]
        self.say(progress_line(self.step, self.total, loss=loss, lr=lr, figures=rates))
        so_far = {"skipped_steps": float(self.skipped), "left_out": self.left_out}
        values = figures | rates | so_far
        kept = {f"train/{name}": value for name, value in values.items() if math.isfinite(value)}
        tracker.log(kept, self.step)

    def evaluate(self, zero: Zero, evaluators: Sequence[Evaluator], tracker: Tracker) -> None:
        zero.settle_buffers()
        for evaluator in evaluators:
            figures = evaluator(zero.task, self.step)
            self.metrics |= figures
            if self.rank == 0:
                tracker.log(figures, self.step)
        self.evaluated_at = self.step

    def summary(self, clock: Clock) -> Summary:
        return Summary(
            steps=self.step,
            resumed_from=self.resumed_from,
            first_loss=self.first_loss,
            last_loss=self.last_loss,
            skipped_steps=self.skipped,
            metrics=self.metrics,
            **clock.totals(),
        )

    def say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)
