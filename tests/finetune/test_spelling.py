"""People and data sets in two spellings, and names of nobody: refused before any fold is made."""

import unicodedata
from dataclasses import replace

import pytest

from finetune.protocols import ProtocolConfig, build
from finetune.study.cohort import Clip
from finetune.study.folds import Refused
from finetune.study.spelling import parts

LOSO = ProtocolConfig("loso", validation_share=0)


def clips(*subjects: str | None, dataset: str = "d") -> list[Clip]:
    """Two clips, of two labels, of each."""
    return [
        Clip(dataset, f"{dataset}{n:02d}{i}", label, subject=subject, source=f"film {n}")
        for n, subject in enumerate(subjects)
        for i, label in enumerate("ab")
    ]


@pytest.mark.parametrize(
    "two",
    [
        ("sub01", "sub1"),
        ("007", "7"),
        ("1.0", "1"),
        ("S01", "s01"),
        ("p1", "p1 "),
        ("p 1", "p\u20091"),
        ("p_1", "P-01"),
        ("Jos\u00e9", unicodedata.normalize("NFD", "Jos\u00e9")),
        ("\uff11\uff12", "12"),
    ],
)
@pytest.mark.parametrize("protocol", ["loso", "kfold", "split", "folds"])
def test_one_subject_in_two_spellings_is_refused(two, protocol):
    found = clips(*two, "x", "y")
    stored = {"split": ("train", "test"), "folds": ("fold1", "fold2")}.get(protocol, ("a", "b"))
    found = [replace(clip, split=stored[n % 4 // 2]) for n, clip in enumerate(found)]
    with pytest.raises(Refused) as no:
        build(ProtocolConfig(protocol, k=2, validation_share=0), found)
    told = str(no.value)
    assert "1 subject_id spelled in two ways" in told and "d/d000" in told and "d/d010" in told
    assert all(repr(name) in told for name in two)


@pytest.mark.parametrize(
    "two", [("spNO.1", "spNO.10"), ("1_12", "11_2"), ("a1", "b1"), ("NA", "KA"), ("10", "1")]
)
def test_two_subjects_are_two(two):
    assert len(build(LOSO, clips(*two)).folds) == 2


def test_two_data_sets_may_both_have_a_subject_and_are_spelled_in_one_way_themselves():
    both = clips("sub01", "x", dataset="d") + clips("sub1", "y", dataset="e")
    assert len(build(LOSO, both).folds) == 4
    twice = clips("x", "y", dataset="samm") + clips("x", "y", dataset="SAMM")
    for protocol in ("loso", "lodo"):
        with pytest.raises(Refused, match="1 data set spelled in two ways: 'samm' .*'SAMM'"):
            build(ProtocolConfig(protocol, classes="own", validation_share=0), twice)


@pytest.mark.parametrize("nobody", ["", " ", "nan", "None", "N/A", "unknown", "-", "?"])
def test_a_name_of_nobody_is_refused(nobody):
    with pytest.raises(Refused, match="2 clips have a subject_id that names no subject .*d/d000"):
        build(LOSO, clips(nobody, "x", "y"))


def test_sources_are_looked_at_where_folds_go_by_them():
    found = clips("x", "y", "z")
    found[2:4] = [replace(clip, source="Film 00") for clip in found[2:4]]
    assert len(build(LOSO, found).folds) == 3
    with pytest.raises(Refused, match="1 source_id spelled in two ways: 'film 0' .*'Film 00'"):
        build(ProtocolConfig("kfold", k=2, group="source", validation_share=0), found)


def test_names_are_compared_by_their_parts():
    assert parts("Sub-0012_a") == ("sub", "12", "a")
    assert parts("000") == ("0",) != parts("")
    assert parts("3.10") == ("3", "10") != parts("3.1")
