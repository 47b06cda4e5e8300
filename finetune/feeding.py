"""The clips of a fine-tuning run: opening training and validation, and which of them count.

Owns what is refused of the data before anything starts. It knows no network and no loop.
"""

from collections.abc import Iterator
from dataclasses import replace

from finetune.config import FinetuneConfig
from finetune.outputs import Outputs
from finetune.targets import known, targets_of
from shards.batch import ClipBatch
from shards.ledger import Ledger
from shards.stream import ClipStream, open_clips


def open_train(
    config: FinetuneConfig, *, rank: int, world: int, start_step: int = 0, ledger=None
) -> ClipStream:
    """The training clips of one rank. Raises ValueError where they have not what is to be learnt
    from them."""
    stream = open_clips(
        config.data_for(),
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        start_step=start_step,
        train=True,
        ledger=ledger,
    )
    try:
        _check_annotated(config, stream)
    except ValueError:
        stream.close()
        raise
    return stream


def open_split(
    config: FinetuneConfig, split: str, *, rank: int, world: int, ledger: Ledger | None = None
) -> ClipStream:
    """Each clip of a split once, with its views."""
    return open_clips(
        replace(config.data_for(), split=split),
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        train=False,
        ledger=ledger,
    )


def check_labelled(config: FinetuneConfig, stream: ClipStream) -> None:
    """Say how many training clips have no label, and how many no apex where it is looked at.

    Raises ValueError where not one clip has anything that is to be learnt.
    """
    where = f"{', '.join(config.data.shards)}"
    if not config.heads.labels and not _any_annotated(config, stream):
        raise ValueError(
            f"none of the {stream.samples} clips of split {config.data.split} in {where} has "
            "action units or affect to learn; ingest again with --annotations that have columns "
            "action_units, or valence and arousal"
        )
    if config.heads.labels:
        bare = stream.samples - sum(class_counts(stream))
        told = config.outputs(stream.labels)
        alone = not told.units and not told.affect and not config.losses.votes
        if bare == stream.samples and alone:
            raise ValueError(
                f"none of the {bare} clips of split {config.data.split} in {where} has a label; "
                "ingest again with --annotations that label them"
            )
        if bare:
            print(f"{bare} of these clips have no label and do not count" + " there" * (not alone))
    if config.encoder.pair and (unmarked := stream.collection.unmarked):
        print(f"{unmarked} of these clips have no annotated apex: their middle frame is taken")


def _any_annotated(config: FinetuneConfig, stream: ClipStream) -> bool:
    """Whether there is a clip with action units or affect, as far as these are told."""
    units, affect = bool(config.outputs(()).units), config.heads.affect
    for shard, count in enumerate(stream.collection.counts):
        for sample in range(count):
            facts = stream.collection.row(shard, sample).record
            if (units and facts.action_units) or (
                affect and (facts.valence is not None or facts.arousal is not None)
            ):
                return True
    return False


def class_counts(stream: ClipStream) -> list[int]:
    """How many of the clips are of each class."""
    counts = [0] * len(stream.labels)
    for classes in stream.collection.classes:
        for index in classes[classes >= 0].tolist():
            counts[index] += 1
    return counts


class Known:
    """Training batches in which clips do not count of which no target is known.

    Args:
        stream: the batches.
        outputs: what is learnt.
        votes: whether annotators' votes are targets.
    """

    def __init__(self, stream: ClipStream, outputs: Outputs, *, votes: bool = False):
        self.stream, self._outputs, self._votes = stream, outputs, votes

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in self.stream:
            targets = targets_of(batch, self._outputs, votes=self._votes)
            yield replace(batch, weights=batch.weights * known(targets))

    def close(self) -> None:
        """End the loader processes."""
        self.stream.close()


def _check_annotated(config: FinetuneConfig, stream: ClipStream) -> None:
    where = f"{', '.join(config.data.shards)}"
    if config.heads.labels and len(stream.labels) < 2:
        raise ValueError(
            f"{where}: fine-tuning needs at least two labels, found {list(stream.labels)}; ingest "
            "again with --annotations and a label column, or set --heads.labels False and learn "
            "action units or affect"
        )
    if config.identity.weight and len(stream.subjects) < 2:
        raise ValueError(
            f"{where}: identity-adversarial training needs clips of at least two known subjects, "
            f"found {len(stream.subjects)}; ingest again with subjects, or set --identity.weight 0"
        )
