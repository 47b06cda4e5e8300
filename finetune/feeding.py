"""The clips of a fine-tuning run: opening training and validation, and which of them count.

Owns what is refused of the data, and settled about it, before anything starts. It knows no network
and no loop.
"""

from collections.abc import Iterator
from dataclasses import replace

from finetune.config import FinetuneConfig
from finetune.outputs import Outputs
from finetune.targets import known, targets_of
from shards.batch import ClipBatch
from shards.index import ShardLost
from shards.ledger import Ledger
from shards.opening import check_indexed, check_lost, open_collection
from shards.presence import Lost
from shards.reader import Collection
from shards.schema import Record
from shards.stream import ClipStream, open_clips


def settle(config: FinetuneConfig) -> FinetuneConfig:
    """The same with `data.augment_on` decided. Raises ValueError where the device is asked for what
    the loader must do."""
    gpu = bool(config.cluster.gpus_per_worker)
    decided = config.data_for().settled(gpu=gpu).augment_on  # the network may need flow
    return replace(config, data=replace(config.data, augment_on=decided))


def open_train(
    config: FinetuneConfig,
    *,
    rank: int,
    world: int,
    start_step: int = 0,
    ledger: Ledger | None = None,
    collection: Collection | None = None,
    lost: Lost | None = None,
) -> ClipStream:
    """The training clips of one rank; `collection` and `lost` as for `open_clips`. Raises
    ValueError where they have not what is to be learnt from them."""
    data = config.data_for()
    collection = collection or open_collection(data, lost=lost)
    _check_indexed(config, collection)
    stream = open_clips(
        data,
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        start_step=start_step,
        train=True,
        pinned=bool(config.cluster.gpus_per_worker),
        ledger=ledger,
        collection=collection,
    )
    try:
        _check_annotated(config, stream)
    except ValueError:
        stream.close()
        raise
    return stream


def open_split(
    config: FinetuneConfig,
    split: str,
    *,
    rank: int,
    world: int,
    ledger: Ledger | None = None,
    collection: Collection | None = None,
    lost: Lost | None = None,
) -> ClipStream:
    """Each clip of a split once, with its views; `collection` and `lost` as for `open_clips`."""
    return open_clips(
        replace(config.data_for(train=False), split=split),
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        train=False,
        pinned=bool(config.cluster.gpus_per_worker),
        ledger=ledger,
        collection=collection,
        lost=lost,
    )


def check_labelled(config: FinetuneConfig, stream: ClipStream) -> None:
    """Say how many training clips have no label, and how many no apex where it is looked at: for
    this every index is read, once.

    Raises ValueError where not one clip has anything that is to be learnt, ShardLost where more
    indexes are lost than `data.allow_missing`.
    """
    where = f"{', '.join(config.data.shards)}"
    units, affect = bool(config.outputs(()).units), config.heads.affect
    if not config.heads.labels and not _any_told(stream.collection, units=units, affect=affect):
        raise ValueError(
            f"none of the {stream.samples} clips of split {config.data.split} in {where} has "
            "action units or affect to learn; ingest again with --annotations that have columns "
            "action_units, or valence and arousal"
        )
    if config.heads.labels:
        bare = stream.samples - sum(class_counts(stream))
        check_lost(config.data, list(stream.collection.lost.values()))
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


def check_measured(config: FinetuneConfig, stream: ClipStream) -> None:
    """ValueError where not one clip of validation has what the best step is picked by; indexes are
    read until one has."""
    by = config.outputs(stream.labels).selected_by
    asked = {"uar": "labels", "units/f1": "units", "affect/ccc": "affect"}[by]
    if not _any_told(stream.collection, **{asked: True}):
        raise ValueError(
            f"none of the {stream.samples} clips of validation_split {config.validation_split} in "
            f"{', '.join(config.data.shards)} tells {asked}, and {by} picks the best step: "
            "name another --validation_split, or None for the last step"
        )


def _any_told(collection: Collection, *, labels=False, units=False, affect=False) -> bool:
    """Whether there is a clip with what is asked for."""
    return any(
        (labels and facts.label is not None)
        or (units and facts.action_units)
        or (affect and (facts.valence is not None or facts.arousal is not None))
        for facts in _records(collection)
    )


def _records(collection: Collection) -> Iterator[Record]:
    """Of the clips, one after the other; those of lost indexes are left out."""
    for shard, count in enumerate(collection.counts):
        try:
            for sample in range(count):
                yield collection.row(shard, sample).record
        except ShardLost:
            continue


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


def _check_indexed(config: FinetuneConfig, collection: Collection) -> None:
    """ShardLost where the records of all training clips count and an index is lost."""
    if config.losses.balance:
        what = "losses.balance needs the classes of every clip"
        check_indexed(collection, what, without="set losses.balance 0")
    if config.identity.weight:
        what = "identity.weight needs the subjects of every clip"
        check_indexed(collection, what, without="set identity.weight 0")


def _check_annotated(config: FinetuneConfig, stream: ClipStream) -> None:
    where = f"{', '.join(config.data.shards)}"
    if config.heads.labels and len(stream.labels) < 2:
        raise ValueError(
            f"{where}: fine-tuning needs at least two labels, found {list(stream.labels)}; ingest "
            "again with --annotations and a label column, or set --heads.no_labels and learn "
            "action units or affect"
        )
    if config.identity.weight and len(stream.subjects) < 2:
        raise ValueError(
            f"{where}: identity-adversarial training needs clips of at least two known subjects, "
            f"found {len(stream.subjects)}; ingest again with subjects, or set --identity.weight 0"
        )
