"""Which step's weights are kept, and what is written of them.

Owns the measuring of the validation split during training, the choice of the best step, and its
folder on disk. It knows no loop; figures are `measure.py`, the folder's form `predictor.py`.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.feeding import open_split
from finetune.measure import Measure
from finetune.models.configs import privileged
from finetune.pictures import confusion_matrix_picture
from finetune.predictor import PredictorConfig, save_predictor
from finetune.task import ClassifyTask
from launch.checkpoint import fp32_state
from launch.cluster import WorkerContext
from launch.engine import evaluate
from launch.task import Tracker
from mira.weights import restore
from shards.ledger import Ledger
from shards.presence import Lost
from shards.reader import Collection


class Best:
    """Keeps the weights of the best step on the validation split, on disk, across restarts.

    Args:
        lost: as for `shards.stream.open_clips`.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        folder: Path,
        labels: Sequence[str],
        origin: dict[str, str],
        *,
        lost: Lost | None = None,
    ):
        self.config, self.folder, self.origin = config, folder, origin
        self.outputs = config.outputs(tuple(labels))
        self._collection: Collection | None = None
        self._lost = lost

    def evaluator(self, tracker: Tracker, context: WorkerContext, ledger: Ledger):
        """What the engine calls when an evaluation is due."""

        def measure(task: Any, step: int) -> dict[str, float]:
            split = self.config.validation_split
            if split is None:
                return {}
            meter = Measure(self.outputs)
            with open_split(
                self.config,
                split,
                rank=context.rank,
                world=context.world,
                ledger=ledger,
                collection=self._collection,
                lost=self._lost,
            ) as stream:
                self._collection = stream.collection  # opened once, whatever the evaluations
                found = evaluate(
                    task, stream, meter, context=context, precision=self.config.run.precision
                )
            if context.rank == 0:
                if meter.classes is not None:
                    image = confusion_matrix_picture(meter.classes.confusion, self.outputs.labels)
                    tracker.figure(f"confusion_{split}", image, step)
                self._keep(task, step, found[self.outputs.selected_by])
            return {f"{split}/{name}": value for name, value in found.items()}

        return measure

    def resume(self, *, anew: bool) -> None:
        """Take up what is here; a run that starts `anew` does not compete with it."""
        restore(self.folder)
        if anew:
            shutil.rmtree(self.folder, ignore_errors=True)

    def score(self) -> float | None:
        """The best figure so far, of the split and the figure that pick now; None before the
        first. ValueError where it cannot be read."""
        origin = self.folder / "provenance.json"
        try:
            record = json.loads(origin.read_text()) if origin.is_file() else {}
            return record["score"] if record.get("selection") == self._rule else None
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{origin} is damaged ({error!r}): remove {self.folder} and give the same command "
                "again; the best of the steps to come is then kept"
            ) from error

    def write(
        self, folder: Path, task: ClassifyTask, step: int, *, selection: str, score=None
    ) -> None:
        """Everything that the predictor needs, with how it was selected and what it was told."""
        config = self.config
        stamp = {"selection": selection, "score": score, "privileged": privileged(config.encoder)}
        stamp |= {"train_split": config.data.split, "validation_split": config.validation_split}
        predictor = PredictorConfig.of(
            encoder=config.encoder, data=config.data, outputs=self.outputs, soa=config.heads.soa
        )
        origin = {**self.origin, "step": step, **stamp}
        save_predictor(folder, fp32_state(task.model), predictor, origin)

    def chosen(self) -> dict[str, Any]:
        """Which weights are published: the best on validation, or without one the last."""
        name = "best" if self.config.validation_split and self.score() is not None else "last"
        return {"predictor": str(self.folder.with_name(name)), "selection": name}

    @property
    def _rule(self) -> str:
        return f"best {self.outputs.selected_by} on {self.config.validation_split}"

    def _keep(self, task: ClassifyTask, step: int, score: float) -> None:
        before = self.score()
        if before is None or score > before:
            self.write(self.folder, task, step, selection=self._rule, score=score)
