"""What leaks past a split: subjects on both sides, one video under two names, labels in names."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.protocols import ProtocolConfig, build
from finetune.recipes import debug
from finetune.study import driver
from finetune.study.cohort import Clip, read_clips
from finetune.study.config import StudyConfig
from finetune.study.folds import Refused
from finetune.study.leaks import (
    check_duplicates,
    check_names,
    duplicates,
    tells_label,
    without_duplicates,
    words,
)
from shards.index import index_shard
from shards.manifest import Manifest, write_manifest
from tests.finetune.miniatures import MINIATURES, ingest
from tests.shards.make import record, video, write_tar

LOSO = ProtocolConfig("loso", validation_share=0)


def folder(place: Path, samples: list[tuple[str, dict, bytes]]) -> Manifest:
    """A shard folder of (key, facts of the record, mp4)."""
    place.mkdir(parents=True)
    tar = place / "shard-000000.tar"
    write_tar(tar, [(record(key, **facts), data) for key, facts, data in samples])
    labels = sorted({facts["label"] for _, facts, _ in samples})
    return write_manifest(
        place, [index_shard(tar)], labels=labels, clip={}, created_by={"test": "1"}
    )


def people(*, dataset: str = "", first: int = 0, **facts) -> list[tuple[str, dict, bytes]]:
    """Two clips, of two labels, of each of three people; every video is another one."""
    return [
        (
            f"c{first + 2 * s + i}",
            {"label": label, "subject_id": f"p{s}", "dataset": dataset, **facts},
            video(20 + 11 * (first + 2 * s + i)),
        )
        for s in range(3)
        for i, label in enumerate(("calm", "glad"))
    ]


def changed(samples: list, at: int, *, data: bytes | None = None, **facts) -> list:
    key, known, old = samples[at]
    return [*samples[:at], (key, known | facts, data or old), *samples[at + 1 :]]


# --- shared subjects --------------------------------------------------------------------------


def test_a_stored_split_that_shares_a_subject_is_caught(tmp_path):
    samples = people(split="train")
    samples = [*samples[:4], *(changed(samples, i, split="test")[i] for i in (4, 5))]
    found = read_clips([folder(tmp_path / "sound", samples)])
    assert build(ProtocolConfig("split"), found).notes == ()
    manifest = folder(tmp_path / "leaks", changed(samples, 4, subject_id="p0"))
    config = ProtocolConfig("split")
    with pytest.raises(Refused) as no:
        build(config, read_clips([manifest]))
    told = str(no.value)
    assert "1 subject both trained on and tested, such as p0" in told
    assert "c0 in training, c4 in test" in told and "--protocol loso" in told
    made = build(replace(config, allow_shared_subjects=True), read_clips([manifest]))
    assert any("both trained on and tested, such as p0" in note for note in made.notes)
    assert made.leaks == ("subjects of the test are trained on",)
    assert build(config, found).leaks == ()


# --- duplicates -------------------------------------------------------------------------------


def test_a_clip_under_another_name_and_subject_is_caught_by_its_content(tmp_path):
    samples = people()
    manifest = folder(tmp_path / "s", changed(samples, 5, data=samples[1][2]))
    made = build(LOSO, read_clips([manifest]))
    with pytest.raises(Refused) as no:
        check_duplicates(made, [manifest])
    told = str(no.value)
    assert "fold p0: the same video under 2 names" in told
    assert "c1 (test), c5 (train)" in told and "--drop_duplicates" in told


def test_a_video_of_training_that_validates_is_caught(tmp_path):
    """It would pick the step that knows the video best."""
    samples = people()
    parts = ("train", "train", "val", "val", "test", "test")
    samples = [(k, f | {"split": part}, d) for (k, f, d), part in zip(samples, parts, strict=True)]
    manifest = folder(tmp_path / "s", changed(samples, 3, data=samples[1][2]))
    made = build(ProtocolConfig("split"), read_clips([manifest]))
    with pytest.raises(Refused, match=r"the same video .*: c1 \(train\), c3 \(val\)"):
        check_duplicates(made, [manifest])


def test_a_duplicate_is_found_across_folders(tmp_path):
    first = people(dataset="one")
    second = changed(people(dataset="two", first=10), 3, data=first[0][2])
    manifests = [folder(tmp_path / "a", first), folder(tmp_path / "b", second)]
    made = build(LOSO, read_clips(manifests))
    with pytest.raises(Refused, match=r"one/c0 \(test\), two/c13 \(train\)"):
        check_duplicates(made, manifests)


def test_equal_checksums_alone_are_no_duplicate(tmp_path):
    manifest = folder(tmp_path / "s", people())
    found = read_clips([manifest])
    twins = [replace(clip, content=(7, found[0].content[1], 20)) for clip in found[:2]]
    assert duplicates([*twins, *found[2:]], [manifest]) == []


def test_a_repetition_on_one_side_is_told_and_can_be_dropped(tmp_path):
    samples = people()
    samples.append(("c6", samples[0][1], samples[0][2]))
    manifest = folder(tmp_path / "s", samples)
    found = read_clips([manifest])
    assert check_duplicates(build(LOSO, found), [manifest]) == [
        "1 clip repeat another under another name, on the same side"
    ]
    kept, notes = without_duplicates(found, [manifest])
    assert [clip.key for clip in kept] == [f"c{n}" for n in range(6)]
    assert notes == ["1 clip left out that repeat another: c6"]
    assert without_duplicates(kept, [manifest]) == (kept, [])


def test_a_video_that_counts_does_not_give_way_to_one_that_does_not(tmp_path):
    """c0 repeats c3 under a label that the study drops; c6 repeats c1 as another class."""
    samples = people()
    samples = changed(samples, 0, data=samples[3][2], label="others")
    samples.append(("c6", samples[1][1] | {"label": samples[2][1]["label"]}, samples[1][2]))
    manifest = folder(tmp_path / "s", samples)
    plan = replace(LOSO, rename=("others=",))
    theirs = debug()
    theirs = replace(theirs, data=replace(theirs.data, shards=(str(manifest.folder),)))
    config = StudyConfig(theirs, plan, drop_duplicates=True, select_last=True)
    made, _ = driver.prepare(config)
    assert [clip.key for clip in made.clips] == [f"c{n}" for n in range(1, 6)]
    notes = "\n".join(made.notes)
    assert "1 clip left out that repeat another: c6" in notes
    assert "1 video with two labels, of which the first counts: c1 (" in notes


def test_folders_that_hold_one_clip_under_one_name_are_refused(tmp_path):
    manifests = [folder(tmp_path / "a", people()), folder(tmp_path / "b", people()[2:3])]
    with pytest.raises(ValueError, match="1 clip occur in two of the shard folders .*: c2"):
        read_clips(manifests)


def test_ingested_clips_of_the_same_frames_are_caught(tmp_path):
    """Two people with one recording: our encoder gives the same bytes for the same frames."""
    MINIATURES["casme2"](tmp_path / "root")
    below = tmp_path / "root/CASME2_RAW_selected"
    for picture in (below / "sub01/EP00_1").iterdir():
        (below / "sub03/EP02_1" / picture.name).write_bytes(picture.read_bytes())
    found = ingest("casme2", tmp_path / "root", tmp_path / "shards")
    manifest = Manifest.open(tmp_path / "shards")
    with pytest.raises(Refused, match="sub01_EP00_1 .*sub03_EP02_1"):
        check_duplicates(build(LOSO, found), [manifest])


# --- labels in names --------------------------------------------------------------------------


def named(names: list[str], labels: str, **facts) -> list[Clip]:
    return [
        Clip("d", name, {"h": "happy", "s": "sad", "f": "fear"}[label], path=f"{name}.mp4", **facts)
        for name, label in zip(names, labels, strict=True)
    ]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a_happy_1", "b_2", "c_3"], "hsf"),
        (["HappyFace01", "c2", "c3"], "hsf"),
        (["x/happy/1", "x/sad/2", "x/fear/3"], "hsf"),
        (["sad1", "happy2", "fear3", "fear4"], "shfs"),
        ([f"{n:04d}_DFA_{c}_XX" for n in (1, 2, 3) for c in ("HAP", "SAD")], "hs" * 3),
        ([f"01-01-0{c}-01-{n:02d}" for n in range(4) for c in (3, 4, 6)], "hsf" * 4),
        ([f"s{s}_{c}_01" for s in (1, 20, 3) for c in ("po", "ne")], "hs" * 3),
        ([f"{'abc'[s]}{'_again' * s}_{c}" for s in range(3) for c in "pn"], "hs" * 3),
    ],
)
def test_labels_are_read_from_names(names, labels):
    found = named(names, labels)
    assert tells_label(found, names) is not None
    made = build(ProtocolConfig("kfold", k=2, group="clip", validation_share=0), found)
    with pytest.raises(Refused) as no:
        check_names(made, allowed=False)
    assert "tells the label" in str(no.value) and "--allow_label_in_names" in str(no.value)
    assert any(name in str(no.value) for name in names)
    (note,) = check_names(made, allowed=True)
    assert "tells the label" in note


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([f"{n:05d}" for n in range(12)], "hsf" * 4),
        ([f"006_1_{n}" for n in range(12)], "hsf" * 4),
        ([f"sub{s}_EP0{n}" for s in (1, 2, 3) for n in range(4)], "hshsshshhshs"),
        ([f"HappyFeet_{n}" for n in range(9)], "hsfsfsfsf"),
        (["ambassador1", "ambassador2", "x3"], "shf"),
    ],
)
def test_names_that_say_nothing_pass(names, labels):
    assert tells_label(named(names, labels), names) is None


def test_random_names_pass():
    rng = random.Random(0)
    for _ in range(20):
        names = [f"{rng.choice('xyz')}{rng.randrange(4)}_{rng.randrange(9)}" for _ in range(40)]
        assert tells_label(named(names, "".join(rng.choices("hsf", k=40))), names) is None


def test_subjects_that_tell_the_label_are_refused_whatever_is_allowed():
    found = named([f"c{n}" for n in range(12)], "hsf" * 4)
    spelled = [replace(c, subject=f"p{n // 3}_{c.label}") for n, c in enumerate(found)]
    coded = [replace(c, subject={"happy": "k1", "sad": "k2", "fear": "k3"}[c.label]) for c in found]
    for clips in (spelled, coded):
        made = build(LOSO, clips)
        with pytest.raises(Refused, match="the subject_id of 12 clips.*folds by class"):
            check_names(made, allowed=True)
    sound = [replace(c, subject=f"p{n // 3}") for n, c in enumerate(found)]
    assert check_names(build(LOSO, sound), allowed=False) == []


def test_sources_count_where_clips_are_grouped_by_them():
    found = named([f"c{n}" for n in range(12)], "hsf" * 4)
    found = [replace(c, source=f"{c.label}{n}") for n, c in enumerate(found)]
    people = [replace(c, subject=f"p{n // 3}") for n, c in enumerate(found)]
    assert check_names(build(LOSO, people), allowed=False) == []
    made = build(ProtocolConfig("kfold", k=2, group="source", validation_share=0), found)
    with pytest.raises(Refused, match="the source_id of 12 clips.*label happy"):
        check_names(made, allowed=False)


def test_words_are_cut_where_people_cut_them():
    assert words("Sub01/HappyFace_EP02f.mp4") == [
        *("sub", "01", "happy", "face", "ep", "02", "f", "mp", "4")
    ]
    assert words("größe-HAP") == ["größe", "hap"]


def test_a_name_that_spells_what_the_shards_call_it_is_caught_under_another_name():
    """Seven emotions become two classes: names spell neither, and more ways than classes have."""
    kinds = ("anger", "disgust", "fear", "sadness", "happiness", "contempt")
    found = [
        Clip("d", f"p{s}_{kind}_{i}", kind, subject=f"p{s}", path=f"p{s}_{kind}_{i}.mp4")
        for s in range(4)
        for i in range(2)
        for kind in kinds
    ]
    rename = tuple(f"{kind}={'bad' if kind != 'happiness' else 'good'}" for kind in kinds)
    made = build(replace(LOSO, rename=rename), found)
    assert made.labels == ("bad", "good")
    with pytest.raises(Refused, match=r"the key of 48 clips, such as d/p0_anger_0 \(label anger\)"):
        check_names(made, allowed=False)
    (note,) = check_names(made, allowed=True)
    assert "48 clips" in note
    three = replace(LOSO, classes="three")
    made = build(three, [replace(clip, dataset="samm") for clip in found])
    assert made.labels == ("negative", "positive")
    with pytest.raises(Refused, match="the key of 48 clips"):
        check_names(made, allowed=False)


def test_names_of_one_data_set_of_several_tell_the_label():
    """A third of the clips is named by its class; together with the others that is not seen."""

    def clips(dataset: str, many: int, name) -> list[Clip]:
        labels = ("happy", "sad")
        return [
            Clip(dataset, name(i), labels[i % 2], subject=f"s{i // 2 % 4}", path=f"{name(i)}.mp4")
            for i in range(many)
        ]

    plain = clips("one", 60, lambda i: f"v{i:03d}")
    coded = clips("two", 30, lambda i: f"s{i // 2 % 4}_{('pf', 'nf')[i % 2]}_{i:02d}")
    few = coded[:10]
    assert tells_label([*plain, *coded], [c.key for c in (*plain, *coded)]) is None
    with pytest.raises(Refused, match="the key of 30 clips, such as two/.*tells the label"):
        check_names(build(LOSO, [*plain, *coded]), allowed=False)
    assert check_names(build(LOSO, [*plain, *few]), allowed=False) == [], "that may be chance"
