"""RAVDESS: speech and song of 24 actors, 8 emotions. All is in the names: 01-01-06-01-02-01-12.mp4

Modality, vocal channel, emotion, intensity, statement, repetition, actor.
"""

from __future__ import annotations

from pathlib import Path

from shards.datasets.contract import Dataset, Expected, Options
from shards.datasets.named import videos
from shards.ingest.inputs import Annotation, Collected, Item, Refused

EMOTIONS = (
    *("neutral", "calm", "happy", "sad"),
    *("angry", "fearful", "disgust", "surprised"),
)
NAME = r"([0-9]{2})-" * 6 + r"([0-9]{2})"
AUDIO = "03"


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    found = Collected([])
    takes: set[str] = set()
    again = 0
    for relative, name in sorted(videos(root, NAME), key=lambda found: found[1][0]):
        emotion, take = int(name[3]), name[0][3:]
        if name[1] == AUDIO:
            continue
        if not 1 <= emotion <= len(EMOTIONS):
            why = f"emotion {name[3]} is none of 01 to {len(EMOTIONS):02d}"
            found.refused.append(Refused(relative, why, "give the file its original name"))
        elif take in takes:
            again += 1  # 02 holds the pictures of 01, without the sound
        else:
            takes.add(take)
            annotation = Annotation(
                label=EMOTIONS[emotion - 1],
                subject_id=f"Actor_{name[7]}",
            )
            found.items.append(Item("", root / relative, relative, annotation))
    if not found.items and not found.refused:
        raise dataset.refuse(root, "video file such as 01-01-06-01-02-01-12.mp4")
    if again:
        found.notes.append(f"{again} files repeat a take (02- is 01- without sound): not taken")
    return found


DATASET = Dataset(
    name="ravdess",
    title="RAVDESS",
    about="2,452 clips (1,440 spoken, 1,012 sung), 24 actors, 8 classes",
    licence="CC BY-NC-SA 4.0",
    ask="https://zenodo.org/record/1188976",
    layout=("Actor_01/01-01-06-01-02-01-12.mp4 (any folder)",),
    read=_read,
    classes=EMOTIONS,
    expected=Expected(clips=2_452, subjects=24),
)
