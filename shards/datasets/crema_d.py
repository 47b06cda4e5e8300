"""CREMA-D: 7,442 clips of 91 actors, 6 emotions. All is in the names: 1001_DFA_ANG_XX.flv"""

from __future__ import annotations

from pathlib import Path

from shards.datasets.contract import Dataset, Expected, Options
from shards.datasets.named import videos
from shards.datasets.patches import Patch
from shards.ingest.inputs import Annotation, Collected, Item, Refused

LABELS = {
    **{"ANG": "anger", "DIS": "disgust", "FEA": "fear"},
    **{"HAP": "happiness", "NEU": "neutral", "SAD": "sadness"},
}
NAME = r"(1[0-9]{3})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})"
README = "github.com/CheyneyComputerScience/CREMA-D, README"


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    left_out = {p.clip: p for p in dataset.patches}
    found = Collected([])
    takes: set[str] = set()
    again = 0
    for relative, name in videos(root, NAME):
        patch = left_out.get(name[0])
        if name[3] not in LABELS:
            why = f"label {name[3]!r} is none of {', '.join(LABELS)}"
            found.refused.append(Refused(relative, why, "give the file its original name"))
        elif patch:
            found.refused.append(Refused(relative, f"{patch.why} ({patch.patch_id})", "nothing"))
        elif name[0] in takes:
            again += 1
        else:
            takes.add(name[0])
            annotation = Annotation(label=LABELS[name[3]], subject_id=name[1])
            found.items.append(Item("", root / relative, relative, annotation))
    if not found.items and not found.refused:
        raise dataset.refuse(root, "video file such as 1001_DFA_ANG_XX.flv")
    if again:
        found.notes.append(f"{again} files repeat a clip in another form: not taken")
    return found


def _leave_out(clip: str, why: str) -> Patch:
    return Patch(patch_id=f"crema-d-1/{clip}", clip=clip, change={}, why=why, source=README)


DATASET = Dataset(
    name="crema-d",
    title="CREMA-D",
    about="7,442 clips, 91 actors, 6 classes",
    licence="Open Database License 1.0",
    ask="https://github.com/CheyneyComputerScience/CREMA-D",
    layout=("VideoFlash/1001_DFA_ANG_XX.flv (any folder, any kind of video)",),
    read=_read,
    classes=tuple(LABELS.values()),
    expected=Expected(
        clips=7_438,
        subjects=91,
        labels={
            **{"anger": 1271, "disgust": 1270, "fear": 1271},
            **{"happiness": 1271, "neutral": 1086, "sadness": 1269},
        },
    ),
    patches=(
        _leave_out("1076_MTI_NEU_XX", "nearly empty"),
        _leave_out("1076_MTI_SAD_XX", "nearly empty"),
        _leave_out("1064_TIE_SAD_XX", "without duration"),
        _leave_out("1064_IEO_DIS_MD", "a minute with all emotions of the sentence"),
    ),
)
