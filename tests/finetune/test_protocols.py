"""Protocols: what a fold trains on and tests, on every data set and on made-up clips."""

import csv
import hashlib
import random
from collections import Counter
from dataclasses import replace

import pytest

from finetune.protocols import ProtocolConfig, build
from finetune.study.cohort import Clip, composite_differences, in_words, renamed, three_classes
from finetune.study.dealing import deal, hold_out
from finetune.study.folds import Fold, Protocol, Refused, proves, split_table
from shards.datasets import TABLE
from shards.splitfile import read_split_file
from tests.finetune.miniatures import MINIATURES, ingest


def clips(
    subjects: int = 4, labels: str = "ab", *, dataset: str = "d", each: int = 2, **facts
) -> list[Clip]:
    """`each` clips of every label of every subject."""
    return [
        Clip(dataset, f"{dataset}{s}_{label}{i}", label, subject=f"p{s}", source=f"f{s}", **facts)
        for s in range(subjects)
        for label in labels
        for i in range(each)
    ]


def plan(protocol: str, found, **more) -> Protocol:
    return build(ProtocolConfig(protocol, **more), found)


def ids(found) -> set[tuple[str, str]]:
    return {clip.id for clip in found}


# --- every data set ---------------------------------------------------------------------------

PEOPLE = {"casme2": 3, "samm": 3, "casme3": 3, "smic": 3, "mmew": 3}
PEOPLE |= {"crema-d": 3, "ravdess": 3, "table": 3}
OTHER = {"dfew": ("folds", 5), "mafw": ("folds", 5), "ferv39k": ("split", 1)}


def test_every_adapter_has_a_miniature():
    assert set(MINIATURES) == set(TABLE)


@pytest.mark.parametrize("name", MINIATURES)
def test_loso_on_a_miniature_of_every_data_set(name, tmp_path):
    MINIATURES[name](tmp_path / "root")
    fps = ("--fps", "25") if name in ("folder",) else ()
    found = ingest(name, tmp_path / "root", tmp_path / "shards", *fps)
    if name in PEOPLE:
        made = plan("loso", found)
        assert len(made.folds) == PEOPLE[name] and made.apart == "subject"
        for fold in made.folds:
            (tested,) = {clip.subject for clip in fold.test}
            assert tested not in {clip.subject for clip in (*fold.train, *fold.validation)}
            assert ids((*fold.train, *fold.validation, *fold.test)) == ids(found)
            assert {clip.label for clip in fold.train} == {clip.label for clip in found}
    elif name in OTHER:
        with pytest.raises(Refused, match=r"have no subject_id: .*Ingest with a column subject_id"):
            plan("loso", found)
        protocol, folds = OTHER[name]
        made = plan(protocol, found)
        assert len(made.folds) == folds
        for fold in made.folds:
            assert {clip.split for clip in fold.test} == {fold.name if folds > 1 else "test"}
    else:
        with pytest.raises(Refused, match="fewer than two classes"):
            plan("loso", found)


# --- each protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["loso", "kfold", "lodo", "folds"])
@pytest.mark.parametrize("seed", range(4))
def test_random_clips_are_split_without_overlap_and_tested_once(protocol, seed):
    rng = random.Random(seed)
    found = [
        Clip(
            f"d{rng.randrange(2)}",
            f"k{n}",
            rng.choice("abc"),
            subject=f"p{rng.randrange(9)}",
            source=f"f{rng.randrange(20)}",
            split=f"fold{n % 3 + 1}",
        )
        for n in range(90)
    ]
    allowed = {"allow_shared_subjects": True} if protocol in ("folds",) else {}
    made = plan(protocol, found, k=4, split_seed=seed, **allowed)
    tested = Counter(clip.id for fold in made.folds for clip in fold.test)
    assert tested == Counter(ids(found))
    for fold in made.folds:
        parts = [ids(part) for part in fold.parts().values()]
        assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 90
        people = [{clip.group("subject") for clip in part} for part in fold.parts().values()]
        assert not people[0] & people[1], "validation is carved out by subject"
        if protocol != "folds":
            assert not (people[0] | people[1]) & people[2]


def test_subjects_of_two_data_sets_with_one_name_are_two_people():
    made = plan("loso", clips(2, dataset="d") + clips(2, dataset="e"), validation_share=0)
    assert [fold.name for fold in made.folds] == ["d-p0", "d-p1", "e-p0", "e-p1"]
    assert len(made.folds[0].train) == 12


def test_official_folds_go_by_number_and_need_the_names():
    found = [replace(c, split=f"fold{n % 11 + 1}") for n, c in enumerate(clips(11, each=1))]
    found = [replace(clip, subject=None) for clip in found]
    made = plan("folds", found)
    assert [fold.name for fold in made.folds] == [f"fold{n}" for n in range(1, 12)]
    assert made.folds[0].validation_by == ("source",)
    found[3] = replace(found[3], split="train")
    with pytest.raises(Refused, match=r"1 clip name no official fold .*d1_b0.*without --fold"):
        plan("folds", found)
    one = [replace(clip, split="fold3") for clip in found]
    with pytest.raises(Refused, match="all 22 clips are of fold3: name the shards of all folds"):
        plan("folds", one)


def test_a_stored_split_keeps_its_validation_or_gets_one():
    parts = ("train", "train", "val", "test")
    found = [replace(c, split=parts[int(c.subject[1:]) % 4]) for c in clips(8)]
    (fold,) = plan("split", found).folds
    assert fold.validation_by == ("stored",)
    assert {clip.split for clip in fold.validation} == {"val"}
    (whole,) = plan("split", found, validation_share=0).folds
    assert whole.validation_by == whole.validation == () and whole.test == fold.test
    assert ids(whole.train) == ids((*fold.train, *fold.validation))
    found = [replace(c, split="train" if c.split == "val" else c.split) for c in found]
    (fold,) = plan("split", found).folds
    assert fold.validation_by == ("subject",) and fold.validation
    with pytest.raises(Refused, match=r"needs the stored splits train and test.*'none': 32"):
        plan("split", [replace(clip, split=None) for clip in found])


def test_folds_have_the_classes_in_proportion():
    rng = random.Random(0)
    found = [
        Clip("d", f"k{n}", "rare" if n % 10 == 0 else "often", subject=f"p{rng.randrange(40)}")
        for n in range(400)
    ]
    made = plan("kfold", found, k=5)
    for fold in made.folds:
        counts = Counter(clip.label for clip in fold.test)
        assert 60 <= counts["often"] <= 84 and 6 <= counts["rare"] <= 10
    again = plan("kfold", list(reversed(found)), k=5)
    assert [ids(fold.test) for fold in again.folds] == [ids(fold.test) for fold in made.folds]
    other = plan("kfold", found, k=5, split_seed=1)
    assert [ids(fold.test) for fold in other.folds] != [ids(fold.test) for fold in made.folds]


def test_folders_of_folds_have_names_whatever_data_sets_and_subjects_are_called():
    found = [*clips(2, dataset=""), *clips(2, dataset="../up"), *clips(2, dataset="b/c")]
    made = plan("lodo", found, validation_share=0)
    assert [fold.name for fold in made.folds] == ["unnamed", "_up", "b_c"]
    people = [replace(c, subject={"p0": "李", "p1": "王"}[c.subject or ""]) for c in clips(2)]
    assert [fold.name for fold in plan("loso", people).folds] == ["d-李", "d-王"]
    twice = [replace(c, subject="c-p0") for c in clips(1, dataset="b")] + clips(1, dataset="b-c")
    with pytest.raises(Refused, match="two groups would have the fold b-c-p0"):
        plan("loso", twice)


def test_films_on_both_sides_are_told_where_folds_do_not_go_by_them():
    found = [replace(clip, source="film") for clip in clips(3)]
    notes = plan("loso", found, validation_share=0).notes
    assert notes == (
        "12 test clips of a source that is trained on, too, such as d/d0_a0 of film in fold d-p0",
    )
    assert plan("loso", clips(3), validation_share=0).notes == ()
    unknown = [replace(clip, source=None) for clip in clips(3)]
    assert plan("loso", unknown, validation_share=0).notes == ()
    by_film = plan("kfold", clips(3), k=3, group="source", validation_share=0)
    assert by_film.notes == ()


def test_people_of_a_stored_validation_that_are_trained_on_are_told():
    parts = {"p0": "train", "p1": "val", "p2": "test"}
    found = [replace(clip, split=parts[clip.subject or ""], source=None) for clip in clips(3)]
    assert plan("split", found).notes == ()
    shared = [replace(clip, subject="p0") if clip.split == "val" else clip for clip in found]
    assert plan("split", shared).notes == (
        "fold split: 1 subject of the validation trained on, too: p0",
    )


def test_more_folds_than_groups_are_refused():
    with pytest.raises(ValueError, match="5 folds of 4 groups"):
        plan("kfold", clips(4), k=5)
    with pytest.raises(Refused, match="kfold goes by source, and 16 of 16"):
        plan("kfold", [replace(clip, source=None) for clip in clips(4)], group="source")


def test_every_list_gets_a_group_though_one_outweighs_the_others():
    groups = {"big": Counter(a=90), "s1": Counter(a=1), "s2": Counter(a=1)}
    assert sorted(map(len, deal(groups, 3, 0))) == [1, 1, 1]


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_what_is_held_out_has_about_its_share_of_every_class(share):
    groups = {f"p{n}": Counter(a=4, b=2, c=n % 2) for n in range(40)}
    held = hold_out(groups, share, 0)
    for label in "abc":
        part = sum(groups[g][label] for g in held) / sum(n[label] for n in groups.values())
        assert part == pytest.approx(share, abs=0.06)


def test_the_last_clips_of_a_class_are_not_held_out():
    groups = {"only": Counter(a=1, b=1), **{f"p{n}": Counter(a=1) for n in range(5)}}
    for share in (0.15, 0.6, 0.8):
        assert all("only" not in hold_out(groups, share, seed) for seed in range(20))
    with pytest.raises(ValueError, match="only one"):
        hold_out({"only": Counter(a=1)}, 0.5, 0)


def test_a_training_of_one_subject_is_validated_on_other_clips_of_it():
    made = plan("loso", [replace(clip, source=None) for clip in clips(2)])
    assert {fold.validation_by for fold in made.folds} == {("clip",)}
    assert all(fold.validation and fold.train for fold in made.folds)


@pytest.mark.parametrize("seed", range(5))
def test_a_clip_without_a_subject_leaves_the_subjects_of_others_whole(seed):
    found = [replace(clip, source=None, split=f"fold{n % 3}") for n, clip in enumerate(clips(9))]
    found[7] = replace(found[7], subject=None)
    found[8] = replace(found[8], subject=None, source="film")
    more = {"allow_shared_subjects": True, "split_seed": seed, "validation_share": 0.5}
    for fold in plan("folds", found, **more).folds:
        known = [{c.subject for c in part} - {None} for part in (fold.train, fold.validation)]
        assert known[0] and known[1] and not known[0] & known[1]
    kinds = {fold.validation_by for fold in plan("folds", found, **more).folds}
    assert kinds == {("subject", "source"), ("subject", "clip"), ("subject", "source", "clip")}
    assert in_words(("subject", "clip")) == "subject where known, else clip"


def test_what_is_held_out_does_not_depend_on_how_units_are_told_apart():
    """Folders of earlier studies hold these folds."""
    counts = {("d", f"p{s}"): Counter(a=2, b=2) for s in range(1, 6)}
    for seed in range(8):
        fold = plan("loso", clips(6), split_seed=seed).folds[0]
        held = {clip.group("subject") for clip in fold.validation}
        assert held == set(hold_out(counts, 0.15, seed))


def test_classes_that_are_tested_and_never_trained_are_told():
    found = [*clips(3), Clip("d", "x", "rare", subject="p0", source="f0")]
    notes = plan("loso", found, validation_share=0).notes
    assert notes == ("fold d-p0: no training clip of rare, which is tested",)


# --- labels -----------------------------------------------------------------------------------


def micro() -> list[Clip]:
    sets = {"casme2": ("disgust", "others"), "samm": ("anger", "other"), "smic": ("negative",)}
    more = {"casme2": "happiness", "samm": "surprise", "smic": "positive"}
    return [
        Clip(name, f"{name}{s}{label}", label, subject=f"p{s}")
        for name, labels in sets.items()
        for label in (*labels, more[name])
        for s in range(2)
    ]


def test_the_composite_has_three_classes_and_says_how_it_differs():
    made = plan("composite", micro(), validation_share=0)
    assert made.labels == ("negative", "positive", "surprise") and made.mapped
    assert len(made.folds) == 6 and len(made.clips) == 12
    assert "4 clips left out whose label is none of the classes" in made.notes
    assert "smic has 4 clips, MEGC 2019 counts 164 (-160)" in made.notes
    assert "6 subjects, MEGC 2019 counts 68 (-62)" in made.notes
    renamed_too = plan("composite", micro(), rename=("samm/other=anger",), validation_share=0)
    assert len(renamed_too.clips) == 14 and renamed_too.labels == made.labels
    with pytest.raises(Refused, match="mmew is not part of it"):
        plan("composite", [*micro(), Clip("mmew", "x", "fear", subject="s")])


MEGC = {
    "casme2": {"disgust": "negative", "repression": "negative"},
    "samm": dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness"), "negative"),
    "smic": {"negative": "negative"},
}
MEGC |= {"mmew": MEGC["samm"], "casme3": {**MEGC["samm"], "sad": "negative", "happy": "positive"}}
EVERYTHING = ("anger", "contempt", "disgust", "fear", "sadness", "sad", "repression", "happiness")
EVERYTHING += ("happy", "surprise", "others", "other", "negative", "positive", "neutral")


@pytest.mark.parametrize("dataset", MEGC)
def test_every_label_has_the_class_of_the_challenge_or_is_dropped(dataset):
    expected = MEGC[dataset] | {"surprise": "surprise"}
    expected |= {"positive": "positive"} if dataset == "smic" else {"happiness": "positive"}
    found = three_classes([Clip(dataset, label, label) for label in EVERYTHING])
    assert {c.key: c.label for c in found if c.label is not None} == expected
    assert [clip.stored for clip in found] == list(EVERYTHING)


def test_the_published_composite_has_no_difference():
    counts = {"smic": (164, 16), "casme2": (145, 24), "samm": (133, 28)}
    found = [
        Clip(name, str(n), "negative", subject=f"p{n % people}")
        for name, (clips, people) in counts.items()
        for n in range(clips)
    ]
    assert composite_differences(found) == []


def test_lodo_of_micro_expressions_tests_whole_data_sets_on_three_classes():
    made = plan("lodo", micro())
    assert [fold.name for fold in made.folds] == ["casme2", "samm", "smic"]
    for fold in made.folds:
        assert {clip.dataset for clip in fold.test} == {fold.name}
        assert fold.name not in {clip.dataset for clip in (*fold.train, *fold.validation)}
    with pytest.raises(Refused, match="lodo needs two data sets or more, here is casme2"):
        plan("lodo", [clip for clip in micro() if clip.dataset == "casme2"], rename=("others=",))


def test_renaming_one_label_leaves_the_three_classes():
    for rule in ("casme2/others=", "samm/other=negative", "samm/other=anger"):
        made = plan("lodo", micro(), rename=(rule,))
        assert made.labels == ("negative", "positive", "surprise"), rule
        assert len(made.clips) == 12 + 2 * (rule[-1] != "="), "what was renamed to a class counts"
    own = plan("lodo", micro(), rename=("casme2/others=other",), classes="own")
    assert {"disgust", "other"} < set(own.labels)
    for protocol in ("lodo", "composite"):
        with pytest.raises(ValueError, match=r"rename makes glad, which is none of .*classes own"):
            plan(protocol, micro(), rename=("casme2/happiness=glad",))


def test_labels_are_renamed_and_dropped_by_rule():
    found = [Clip("d", "1", "happy"), Clip("e", "2", "happiness"), Clip("e", "3", "meh")]
    rules = ("happiness=happy", "e/meh=", "d/happy=joy")
    assert [clip.label for clip in renamed(found, rules)] == ["joy", "happy", None]
    with pytest.raises(ValueError, match=r"no clip has label hapy; there are happiness, happy"):
        renamed(found, ("hapy=joy",))
    with pytest.raises(ValueError, match="write LABEL=CLASS"):
        renamed(found, ("joy",))
    with pytest.raises(ValueError, match=r"not for d: .*--rename"):
        plan("loso", clips(3), classes="three")


def test_clips_without_a_label_are_left_out_and_counted():
    found = [*clips(3), Clip("d", "bare", None, subject="p0", source="f0")]
    made = plan("loso", found)
    assert len(made.clips) == 12 and "1 clip without a label left out" in made.notes


# --- the proof --------------------------------------------------------------------------------


def broken(train, validation, test, *, validation_by=("subject",), **facts) -> Protocol:
    fold = Fold("one", tuple(train), tuple(validation), tuple(test), validation_by)
    known = {"apart": "subject", "each_once": False, "mapped": False, "notes": ()} | facts
    return Protocol("loso", (fold,), ("a", "b"), **known)


def test_the_proof_finds_what_is_in_two_parts():
    a, b, c, d = clips(4, "a", each=1)
    proves(broken([a], [b], [c, d]))
    with pytest.raises(Refused, match=r"fold one: d/d0_a0 is in two parts of it"):
        proves(broken([a, b], [c], [a, d]))
    with pytest.raises(Refused, match=r"fold one: d/d0_a0 and d/d3_a0 are of one subject \(d/p0\)"):
        proves(broken([a], [b], [c, replace(d, subject="p0")]))
    with pytest.raises(Refused, match=r"d/d1_a0 and d/d2_a0 are of one subject"):
        proves(broken([b], [replace(c, subject="p1")], [d]))
    with pytest.raises(Refused, match=r"1 clip tested by no fold: .*d0_a0"):
        proves(broken([a], [], [b], each_once=True))
    twice = broken([a], [], [b])
    with pytest.raises(Refused, match="1 clip tested by more than one fold: d/d1_a0"):
        proves(replace(twice, folds=twice.folds * 2))
    with pytest.raises(Refused, match="d/d1_a0 is in two parts of it"):
        proves(broken([a, b], [b], [c], apart="clip", validation_by=("stored",)))
    with pytest.raises(Refused, match="one source"):
        proves(broken([a], [b], [replace(c, source="f0")], apart="source"))


# --- the split file ---------------------------------------------------------------------------


def test_a_split_file_says_what_the_loader_reads(tmp_path):
    fold = plan("loso", clips(3)).folds[1]
    (tmp_path / "s.csv").write_bytes(split_table(fold, mapped=False))
    digest = hashlib.sha256((tmp_path / "s.csv").read_bytes()).hexdigest()
    read = read_split_file(str(tmp_path / "s.csv"))
    assert read.sha256 == digest and read.labels is None
    expected = {c.id: part for part, found in fold.parts().items() for c in found}
    assert read.splits == expected and set(expected.values()) == {"train", "val", "test"}
    (tmp_path / "s.csv").write_bytes(split_table(fold, mapped=True))
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["key"]: row["label"] for row in rows} == {
        clip.key: clip.label for part in fold.parts().values() for clip in part
    }
    assert read_split_file(str(tmp_path / "s.csv")).classes == ("a", "b")
