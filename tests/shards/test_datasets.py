"""Adapters on miniature folders: from a data set's own layout to canonical items."""

import errno
import os
import zipfile
from collections import Counter
from pathlib import Path

import openpyxl
import pytest

from shards.__main__ import main
from shards.datasets import TABLE, dataset, micro
from shards.datasets.collect import collect
from shards.datasets.contract import Options
from shards.datasets.sheets import sheet_rows
from shards.ingest.annotations import action_units
from shards.ingest.inputs import InputError
from shards.ingest.numbering import FrameFolder, choose, numbered
from shards.ingest.settings import Rejected
from tests.shards.layouts import CASME2_HEADER, casme2, dfew, samm, save_pictures, workbook


def read(name, root, **options):
    return collect(dataset(name), root, Options(**options))


def by_name(found):
    return {item.name: item for item in found.items}


def reasons(found):
    return {row.path: row.reason for row in found.refused}


def touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write(path, text, encoding="utf-8"):
    return touch(path, text.encode(encoding))


# --- the table --------------------------------------------------------------------------------


def test_every_data_set_says_what_it_is_and_where_to_ask(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    for name in TABLE:
        one = dataset(name)
        assert one.name == name and one.title in out and one.layout[0][:20] in out
        assert one.own or (one.ask.startswith("http") and one.ask in out and one.licence)
        assert all(p.source and p.why and p.patch_id.startswith(f"{name}-1/") for p in one.patches)
        assert not one.expected.labels or set(one.expected.labels) == set(one.classes)
        if one.expected.labels and one.expected.clips:
            assert sum(one.expected.labels.values()) == one.expected.clips


def test_one_data_set_is_told_in_full(capsys):
    assert main(["datasets", "samm"]) == 0
    out = capsys.readouterr().out
    assert "samm-1/apex-028_4_1" in out and "contempt" in out and "[github.com/tvaranka" in out
    assert "also        --context\n" in out


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, capsys):
    assert main(["datasets", "casme"]) == 2
    assert "did you mean casme" in capsys.readouterr().err
    assert main(["ingest", "--dataset", "dfwe", "--root", str(tmp_path), "--out", "o"]) == 2
    assert "did you mean dfew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("dfew", "set_1.csv"),
        ("ferv39k", "2_ClipsforFaceCrop"),
        ("mafw", "single/no_caption/set_1/test.txt"),
        ("casme2", "CASME2-coding-*.xlsx"),
        ("casme3", "part_A_ME_label_JpgIndex"),
        ("samm", "SAMM_Micro_FACS_Codes_v*.xlsx"),
        ("smic", "HS_long"),
        ("mmew", "MMEW_Micro_Exp*.xlsx"),
        ("voxceleb2", "dev/mp4/id00012"),
        ("crema-d", "1001_DFA_ANG_XX"),
        ("ravdess", "01-01-06-01-02-01-12"),
        ("table", "annotations.csv"),
        ("folder", "no video"),
    ],
)
def test_a_wrong_root_says_what_was_looked_for_and_where(tmp_path, name, looked_for):
    touch(tmp_path / "holiday.txt")
    with pytest.raises(InputError) as no:
        read(name, tmp_path)
    assert looked_for in str(no.value) and str(tmp_path) in str(no.value)
    assert dataset(name).own or (
        "holiday.txt" in str(no.value) and dataset(name).ask in str(no.value)
    )
    with pytest.raises(InputError, match="no folder"):
        read(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "dfew"], "needs --root"),
        (["--dataset", "samm", "--root", ".", "--fold", "1"], "SAMM has folds: none"),
        (["--dataset", "dfew", "--root", ".", "--fold", "6"], "folds: 1 to 5"),
        (["--dataset", "mafw", "--root", ".", "--set", "6"], "folds: 1 to 5"),
        (["--dataset", "ravdess", "--root", ".", "--variant", "x"], "comes in one form"),
        (["--dataset", "samm", "--root", ".", "--annotations", "x.csv"], "its own annotations"),
        (["--dataset", "folder", "--root", ".", "--fps", "-1"], "--fps is -1"),
        (["--dataset", "samm", "--root", ".", "--fps", "50"], "--fps changes nothing of SAMM"),
        (["--dataset", "ravdess", "--root", ".", "--context", "5"], "nothing of RAVDESS; leave it"),
        ([".", "--fold", "1"], "--fold goes with --dataset"),
        ([".", "--context", "3"], "--context goes with --dataset"),
        ([], "name a folder of videos"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(arguments, message, tmp_path, capsys):
    assert main(["ingest", *arguments, "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err


# --- numbered pictures ------------------------------------------------------------------------


def test_numbers_order_pictures_and_hidden_files_do_not_count(tmp_path):
    save_pictures(tmp_path, [10, 9, 100], name="006_{:05d}.jpg")
    save_pictures(tmp_path, [1], name="b2_img{}.PNG")
    touch(tmp_path / "._006_00009.jpg")
    touch(tmp_path / "Thumbs.db")
    assert [n for n, _ in numbered(tmp_path)] == [1, 9, 10, 100]


def test_missing_numbers_leave_instants_and_too_many_a_reason(tmp_path):
    save_pictures(tmp_path, [n for n in range(20) if n not in (7, 8)])
    chosen = choose(tmp_path, FrameFolder(25))
    assert chosen.instants == 20 and [at for at, _ in chosen.pictures][6:8] == [6, 9]
    assert choose(tmp_path, FrameFolder(25, 9, 15)).instants == 7
    with pytest.raises(Rejected, match="2 of 12 pictures are missing"):
        choose(tmp_path, FrameFolder(25, 0, 11))
    with pytest.raises(Rejected, match="number 8 is missing"):
        choose(tmp_path, FrameFolder(25, 8, 15))


def test_an_even_step_is_a_pace_and_an_uneven_one_a_reason(tmp_path):
    save_pictures(tmp_path / "even", range(5, 50, 5))
    assert choose(tmp_path / "even", FrameFolder(5)).instants == 9
    save_pictures(tmp_path / "odd", [0, 5, 10, 15, 17])
    with pytest.raises(Rejected, match="rise unevenly"):
        choose(tmp_path / "odd", FrameFolder(5))
    assert choose(tmp_path / "odd", FrameFolder(5, by_order=True)).instants == 5


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "no picture"),
        (("a1.jpg", "a01.jpg"), "the same number"),
        (("face.jpg",), "has no number"),
    ],
)
def test_folders_that_make_no_clip_have_a_reason(tmp_path, names, reason):
    for name in names:
        touch(tmp_path / name)
    with pytest.raises(Rejected, match=reason):
        numbered(tmp_path)


# --- action units, spreadsheets ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "units"),
    [
        ("4+L10", ("4", "L10")),
        ("R2+R1", ("R2", "R1")),
        ("14?", ("14?",)),
        ("12/15", ("12/15",)),
        ("A2", ("A2",)),
        ("AU4, AU 10", ("4", "10")),
        ("R12 or R15", ("R12/R15",)),
        (" 1 + 2 ;au5b", ("1", "2", "5b")),
        ("/", ()),
        ("?", ()),
        ("", ()),
    ],
)
def test_action_units_stay_as_annotated(cell, units):
    assert action_units(cell) == units


def rows(file, **more):
    return sheet_rows(file, {"subject": ("Subject",), "onset": ("Onset Frame", "OnsetF")}, **more)


def test_the_header_is_found_by_its_content_in_any_sheet(tmp_path):
    file = workbook(
        tmp_path / "a.xlsx",
        About=[["Subject"], ["see the other sheet"]],
        Data=[["title"], [], [" subject ", None, "ONSETF"], [None, None, None], ["006", 1, 46.0]],
    )
    (row,) = rows(file)
    assert (row.line, row.number, row.text("subject"), row.frame("onset")) == (5, 0, "006", 46)


def test_cells_are_read_in_spite_of_excel(tmp_path):
    file = workbook(
        tmp_path / "a.xlsx", S=[["Subject", "OnsetF"], [6, "46 "], [6.0, "46.0"], ["006", "/"]]
    )
    assert [(r.text("subject"), r.frame("onset")) for r in rows(file)] == [
        *(("6", 46), ("6", 46), ("006", None))
    ]
    file = workbook(tmp_path / "b.xlsx", S=[["Subject", "OnsetF"], [1, 46.5], [2, "x"], [3, -4]])
    for row in rows(file):
        with pytest.raises(InputError, match="not a frame number"):
            row.frame("onset")


def test_a_unit_that_excel_took_for_a_date_is_one_again(tmp_path):
    from datetime import datetime

    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "OnsetF"], [datetime(2014, 12, 15), 1]])
    assert rows(file)[0].text("subject") == "12/15"


def test_merged_cells_speak_for_all_they_cover(tmp_path):
    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "OnsetF"], [7, 1], [None, 2], [8, 3]])
    book = openpyxl.load_workbook(file)
    book["S"].merge_cells("A2:A3")
    book.save(file)
    assert [r.text("subject") for r in rows(file)] == ["7", "7", "8"]


def test_formulas_without_a_stored_value_are_followed(tmp_path):
    file = workbook(
        tmp_path / "a.xlsx",
        HS=[["Subject", "OnsetF"], ["=VIS!A2", "=+VIS!$B$2"], ["='VIS'!A3", "=B2"]],
        VIS=[["Subject", "OnsetF"], [1, 17], [2, None]],
    )
    assert [(r.text("subject"), r.frame("onset")) for r in rows(file)] == [("1", 17), ("2", 17)]


def test_a_stored_value_counts_before_the_formula(tmp_path):
    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "OnsetF"], [1, "=20+C9"]])
    with zipfile.ZipFile(file) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    assert b"<f>20+C9</f>" in parts[sheet]
    parts[sheet] = parts[sheet].replace(b"<f>20+C9</f><v />", b"<f>20+C9</f><v>46</v>")
    parts[sheet] = parts[sheet].replace(b"<f>20+C9</f><v></v>", b"<f>20+C9</f><v>46</v>")
    with zipfile.ZipFile(file, "w") as packed:
        for name, data in parts.items():
            packed.writestr(name, data)
    assert rows(file)[0].frame("onset") == 46


@pytest.mark.parametrize("formula", ["=SUM(A1:A3)", "=GONE!A1", "=B2", "=1+1"])
def test_a_formula_without_an_answer_is_a_reason(tmp_path, formula):
    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "OnsetF"], [1, formula]])
    (row,) = rows(file)
    with pytest.raises(InputError, match=r"cell B2 of sheet S holds .*save it"):
        row.frame("onset")


@pytest.mark.parametrize("data", [b"", b"Subject,Onset", b"PK\x03\x04 cut"])
def test_what_is_no_spreadsheet_is_said(tmp_path, data):
    with pytest.raises(InputError, match=r"a\.xlsx cannot be read as a spreadsheet.*\.xlsx"):
        rows(touch(tmp_path / "a.xlsx", data))


def test_a_spreadsheet_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "OnsetF"]])
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("xl/bomb.xml", bytes(65 << 20))
    with pytest.raises(InputError, match="too large"):
        rows(file)


def test_a_sheet_formatted_to_its_end_is_read_to_its_rows(tmp_path):
    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "OnsetF"], [7, 1]])
    book = openpyxl.load_workbook(file)
    book["S"].cell(1_048_576, 16_384).number_format = "0.00"
    book.save(file)
    assert [r.text("subject") for r in rows(file)] == ["7"]


def test_a_sheet_without_the_columns_names_them(tmp_path):
    file = workbook(tmp_path / "a.xlsx", S=[["Subject", "Begin"]])
    with pytest.raises(InputError, match=r"columns Subject, Onset Frame .*sheets: S"):
        rows(file)


# --- micro-expressions ------------------------------------------------------------------------


def test_casme2_rows_become_clips_from_onset_to_offset(tmp_path):
    root = casme2(
        tmp_path,
        [
            (1, "EP02_01f", 46, 59, 66, "4+L10", "Disgust"),
            ("02", "EP03_02 ", 50.0, "/", 60, "12/15", "others "),
        ],
    )
    found = read("casme2", root)
    first, second = (found.items[i] for i in (0, 1))
    a = first.annotation
    assert first.relative == "CASME2_RAW_selected/sub01/EP02_01f"
    assert first.frames == FrameFolder(200, 46, 66)
    assert dict(a.marks) == {"onset": 0, "apex": 13, "offset": 20}
    assert (a.subject_id, a.label, a.apex_source) == ("sub01", "disgust", "annotated")
    assert (a.dataset, a.version, a.action_units) == (
        "casme2",
        "coding of 2014-05-08",
        ("4", "L10"),
    )
    assert "non-commercial" in a.licence
    b = second.annotation
    assert dict(b.marks) == {"onset": 0, "apex": 5, "offset": 10}
    assert (b.apex_source, b.label, b.action_units) == ("middle", "others", ("12/15",))
    assert found.settings == {"detector": "haar"}


def test_counts_that_differ_are_a_note_with_the_difference(tmp_path):
    found = read("casme2", casme2(tmp_path, [(1, "EP02_01f", 46, 59, 66, "4", "disgust")]))
    (note,) = [n for n in found.notes if "published" in n]
    assert "1 clips (-254, published 255)" in note and "fear 0 (-2, published 2)" in note
    assert "1 subjects (-25, published 26)" in note


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((1, "EP1", 66, 59, 46, "4", "disgust"), "onset 66 lies after apex 59"),
        ((1, "EP1", 46, 70, 66, "4", "disgust"), "apex 70 lies after offset 66"),
        ((1, "EP1", 46, 59, 99, "4", "disgust"), "offset 99 is not among the pictures 40 to 75"),
        ((1, "EP1", "/", 59, 66, "4", "disgust"), "has no onset"),
        ((1, "EP1", 90, "/", 95, "4", "disgust"), "is not among the pictures"),
        ((1, "EP1", 0, "/", 5, "4", "disgust"), "onset 0 is not among the pictures"),
        ((1, "EP1", "soon", 59, 66, "4", "disgust"), "onset is 'soon', not a frame number"),
        ((1, "EP1", 46, 59, 66, "4", "envy"), "label 'envy' is none of others"),
    ],
)
def test_an_offending_row_is_refused_with_reason_and_line(tmp_path, row, reason):
    good = (2, "EP2", 46, 59, 66, "4", "fear")
    found = read("casme2", casme2(tmp_path, [row, good]))
    assert [item.annotation.label for item in found.items] == ["fear"]
    (told,) = found.refused
    assert "EP1" in told.path and reason in told.reason
    assert "line 2 of CASME2-coding-20140508.xlsx" in told.reason


@pytest.mark.parametrize(
    ("subject", "clip", "reason"),
    [
        (1, "../../../etc", "leads out"),
        (1, "EP9", "cannot be listed"),
        ("eve", "EP1", "not a number"),
        (1, "..\\..\\x", "leads out"),
        (1, None, "has no clip"),
    ],
)
def test_rows_lead_nowhere_but_into_the_data_set(tmp_path, subject, clip, reason):
    casme2(tmp_path, [(1, "EP1", 46, 59, 66, "4", "fear")])
    header = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion")
    row = (subject, clip, 46, 59, 66, "fear")
    workbook(tmp_path / "CASME2-coding-20140508.xlsx", S=[header, row])
    found = read("casme2", tmp_path)
    assert not found.items and reason in found.refused[0].reason


def test_context_is_kept_by_request_and_ends_with_the_pictures(tmp_path):
    root = casme2(tmp_path, [(1, "EP1", 46, 59, 66, "4", "fear")])
    (item,) = read("casme2", root, context=20).items
    assert (item.frames.first, item.frames.last) == (40, 75)
    assert dict(item.annotation.marks) == {"onset": 6, "apex": 19, "offset": 26}
    (root / "CASME2_RAW_selected/sub01/EP1/img44.jpg").unlink()
    (item,) = read("casme2", root, context=20).items
    assert item.frames.first == 45 and item.annotation.marks["onset"] == 1


def test_cropped_pictures_are_taken_where_there_are_no_others_or_by_request(tmp_path):
    root = casme2(tmp_path, [(1, "EP1", 46, 59, 66, "4", "fear")])
    save_pictures(root / "Cropped/sub01/EP1", range(46, 67), name="reg_img{}.jpg")
    found = read("casme2", root, variant="cropped")
    assert found.items[0].relative == "Cropped/sub01/EP1" and found.settings["detector"] == "none"
    assert any("other forms: raw" in note for note in found.notes)
    with pytest.raises(InputError, match=r"no --variant 'warped', it has: raw, cropped"):
        read("casme2", root, variant="warped")


def test_a_correction_by_row_needs_its_row_at_fault_and_mends_it(tmp_path):
    rows = [(1, f"EP{i}", 46, 59, 66, "4", "fear") for i in range(62)]
    rows[60] = (1, "EP60", 46, 59, 19, "4", "fear")  # the offset is a slip
    root = casme2(tmp_path, [])
    cells = [(s, c, None, on, apex, off, None, *more) for s, c, on, apex, off, *more in rows]
    workbook(root / "CASME2-coding-20140508.xlsx", S=[CASME2_HEADER, *cells])
    for name in ("EP1", "EP60"):
        save_pictures(root / "CASME2_RAW_selected/sub01" / name, range(40, 95))
    plain, mended = (item.annotation for item in read("casme2", root).items)
    assert mended.marks["offset"] == 91 - 46 and plain.patch_id is None
    assert mended.patch_id == "casme2-1/offset-row-60"
    assert "corrected: casme2-1/offset-row-60" in read("casme2", root).notes
    workbook(root / "CASME2-coding-20140508.xlsx", S=[CASME2_HEADER, *cells[:10], *cells[11:]])
    found = read("casme2", root)  # a row less: row 60 is another one
    assert "CASME2_RAW_selected/sub01/EP60" in reasons(found)
    assert any("were not applied" in note for note in found.notes)


@pytest.mark.parametrize("name", ["mmew", "casme3", "samm"])
def test_corrections_by_row_are_applied_all_or_none(name):
    one = dataset(name)
    by_row = {p.row: p for p in one.patches if p.row is not None}

    def coded(row, *, fault=True):
        right = by_row[row].change
        onset = right.get("onset", 1)
        marks = {"onset": onset, "apex": onset, "offset": 10**5, **right}
        marks |= dict.fromkeys(right, 10**6) if fault else {}
        folder = {"clip": f"c{row}", "subject": "s", "folder": "f", "label": "x"}
        return micro.Coded(**folder, **marks, row=row, numbers=range(10**5 + 1))

    mended, notes = micro._mended(one, [coded(row) for row in by_row])
    assert not notes and all(c.patches and not c.problem() for c in mended)
    assert {c.apex_source for c in mended} == {"spotted" if name == "mmew" else "annotated"}
    first, *rest = by_row
    mended, notes = micro._mended(one, [coded(first, fault=False), *map(coded, rest)])
    assert notes and not any(c.patches for c in mended)


def test_samm_is_read_below_its_long_head(tmp_path):
    root = samm(
        tmp_path,
        [
            (6, "006_1_2", 5562, 5565, 5570, "AU4", "Anger"),
            ("028", "028_4_1", 5562, 5571, 5570, "14?", "Other"),
            (7, "007_1_1", 5562, None, 5567, "R2+R1", "Happiness"),
            (7, "007_1_2", 5562, 5571, 5567, "A2", "Fear"),
        ],
    )
    found = read("samm", root)
    known = {item.annotation.source_id: item.annotation for item in found.items}
    assert dict(known["006/006_1_2"].marks) == {"onset": 0, "apex": 3, "offset": 8}
    assert known["006/006_1_2"].objective_class == "III"
    patched = known["028/028_4_1"]
    assert (patched.apex_source, patched.marks["apex"]) == ("middle", 4)
    assert patched.patch_id == "samm-1/apex-028_4_1" and patched.action_units == ("14?",)
    assert known["007/007_1_1"].apex_source == "middle" and not known["007/007_1_1"].patch_id
    assert "apex 5571 lies after offset 5567" in reasons(found)["SAMM/007/007_1_2"]
    assert {item.frames.fps for item in found.items} == {200}


def test_samm_may_be_named_by_its_inner_folder(tmp_path):
    root = samm(tmp_path, [(6, "006_1_2", 5562, 5565, 5570, "AU4", "Anger")])
    (root / "SAMM_Micro_FACS_Codes_v2.xlsx").rename(root / "SAMM/SAMM_Micro_FACS_Codes_v2.xlsx")
    assert [i.relative for i in read("samm", root / "SAMM").items] == ["006/006_1_2"]


def casme3(root, rows):
    header = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
    file = root / "annotation" / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx"
    workbook(file, label=[header, *rows])


def test_casme3_rows_of_one_video_are_told_apart_by_their_onset(tmp_path):
    casme3(
        tmp_path,
        [
            ("spNO.1", "A", 3, 5, 8, "4+L10", "III", "Disgust"),
            ("spNO.1", "a", 11, 12, 14, "12", "I", "happiness"),
            ("spNO.2", "b", 0, 0, 6, "1", "II", "fear"),
            ("spNO.2", "b", 4, 4, 9, "1", "II", "surprise"),
            ("spNO.2", "b", 4, 5, 9, "1", "II", "surprise"),
            ("../x", "b", 4, 5, 9, "1", "II", "surprise"),
        ],
    )
    for name in ("spNO.1/a", "spNO.2/b"):
        save_pictures(tmp_path / "part_A" / name / "color", range(1, 16), name="{}.jpg")
    found = read("casme3", tmp_path)
    assert [item.key for item in found.items] == [
        "part_A_spNO_1_a_color-f11",
        "part_A_spNO_1_a_color-f3",
        "part_A_spNO_2_b_color-f0",
        "part_A_spNO_2_b_color-f4",
    ]
    later, first, zero, same = (item.annotation for item in found.items)
    assert (first.label, later.label, first.action_units) == ("disgust", "happy", ("4", "L10"))
    assert dict(zero.marks) == {"onset": 0, "apex": 2, "offset": 5}
    assert zero.patch_id == "casme3-1/onset-zero; casme3-1/apex-is-onset"
    assert (same.marks["apex"], same.apex_source) == (2, "middle")
    assert same.patch_id == "casme3-1/apex-is-onset"
    assert reasons(found)["part_A/spNO.2/b/color#f4"] == "is listed twice"
    assert any("leads out" in reason for reason in reasons(found).values())


def test_smic_formulas_lead_to_clips_and_a_long_clip_may_hold_several(tmp_path):
    header = ("Subject", "Filename", "Nr", "OnsetF", "OffsetF", "Onset2F", "Offset2F", "Emotion")
    workbook(
        tmp_path / "HS_long" / "SMIC-HS-E_annotation.xlsx",
        HS=[header, [f"=VIS!{c}2" for c in "ABCDEFGH"], [f"=VIS!{c}3" for c in "ABCDEFGH"]],
        VIS=[
            header,
            (20, "s20_ne_01", 1, 17581041, 17581046, None, None, "negative"),
            (3, "s3_po_08", 2, 17585998, 17590001, 17590002, 17590003, "positive"),
        ],
    )
    below = tmp_path / "HS_long" / "SMIC_HS_E"
    save_pictures(below / "s20/s20_ne_01", range(17581039, 17581050), name="image{}.jpg")
    over_the_minute = [*range(17585997, 17586000), *range(17590000, 17590005)]
    save_pictures(below / "s03/s3_po_08", over_the_minute, name="image{}.jpg")
    found = read("smic", tmp_path)
    items = by_name(found)
    assert not found.refused and len(items) == 3
    plain = items["HS_long/SMIC_HS_E/s20/s20_ne_01"]
    assert (plain.frames.first, plain.frames.last, plain.frames.fps) == (17581041, 17581046, 100)
    assert plain.annotation.subject_id == "s20" and plain.annotation.apex_source == "middle"
    first = items["HS_long/SMIC_HS_E/s03/s3_po_08"].annotation
    assert dict(first.marks) == {"onset": 0, "apex": 1, "offset": 3}
    second = items["HS_long/SMIC_HS_E/s03/s3_po_08#m2"]
    assert dict(second.annotation.marks) == {"onset": 0, "apex": 0, "offset": 1}


def test_smic_clips_that_are_cut_already_need_no_coding_file(tmp_path):
    for name in ("s01/micro/negative/s1_ne_01", "s02/micro/surprise/s2_sur_11"):
        save_pictures(tmp_path / "HS" / name, range(70, 79), name="image{}.jpg")
    (tmp_path / "HS/s02/micro/positive/s2_po_01").mkdir(parents=True)
    found = read("smic", tmp_path)
    assert [i.annotation.label for i in found.items] == ["negative", "surprise"]
    assert dict(found.items[0].annotation.marks) == {"onset": 0, "apex": 4, "offset": 8}
    assert "no picture" in reasons(found)["HS/s02/micro/positive/s2_po_01"]
    assert found.settings["detector"] == "haar"
    with pytest.raises(InputError, match="no frames around them; leave out --context"):
        read("smic", tmp_path, context=5)
    (tmp_path / "SMIC_all_cropped").mkdir()
    (tmp_path / "HS").rename(tmp_path / "SMIC_all_cropped/HS")
    assert read("smic", tmp_path).settings["detector"] == "none"


def test_mmew_folders_are_found_by_emotion(tmp_path):
    header = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units")
    workbook(
        tmp_path / "MMEW_Micro_Exp.xlsx",
        S=[
            (*header, "Estimated Emotion", "remarks"),
            (1, "S01-01-001", 1, 6, 9, "R12?", "happiness", None),
            (1, "nonsense", 1, 6, 9, "R12?", "happiness", None),
        ],
    )
    save_pictures(tmp_path / "Micro_Expression/happiness/S01-01-001", range(1, 11), name="{}.jpg")
    found = read("mmew", tmp_path)
    (item,) = found.items
    assert (item.annotation.subject_id, item.frames.fps, item.frames.last) == ("S01", 90, 9)
    assert "such as S01-01-001" in reasons(found)["nonsense"]


# --- in the wild ------------------------------------------------------------------------------


def test_dfew_of_one_fold_has_its_split(tmp_path):
    found = read("dfew", dfew(tmp_path, {n: n % 7 + 1 for n in range(1, 11)}), fold=2)
    assert Counter(i.annotation.split for i in found.items) == {"train": 8, "test": 2}
    item = by_name(found)["Clip/clip_224x224_16f/00006"]
    assert (item.annotation.label, item.annotation.split) == ("fear", "test")
    assert item.frames == FrameFolder(25) and found.settings["detector"] == "none"
    assert any("25 is assumed" in note for note in found.notes)
    assert read("dfew", tmp_path, fold=2, fps=24).items[0].frames == FrameFolder(24)


def test_dfew_of_all_folds_is_stored_once(tmp_path):
    found = read("dfew", dfew(tmp_path, {n: 1 for n in range(1, 11)}))
    assert Counter(i.annotation.split for i in found.items) == {f"fold{k}": 2 for k in range(1, 6)}
    assert any("test on one, train on the others" in note for note in found.notes)
    lists = tmp_path / "EmoLabel_DataSplit/train(single-labeled)/set_3.csv"
    lists.write_text("video_name,label\n1,1\n")
    assert any("training list of fold 3" in note for note in read("dfew", tmp_path).notes)
    (tmp_path / "EmoLabel_DataSplit/test(single-labeled)/set_4.csv").unlink()
    with pytest.raises(InputError, match="set_4.csv"):
        read("dfew", tmp_path)


def test_dfew_prefers_the_original_videos_wherever_their_part_is(tmp_path):
    dfew(tmp_path, {n: n for n in range(1, 6)})
    touch(tmp_path / "Clip/original/part_1/1.mp4")
    touch(tmp_path / "Clip/original/part_2/2.mp4")
    found = read("dfew", tmp_path)
    assert [i.relative for i in found.items] == [
        *("Clip/original/part_1/1.mp4", "Clip/original/part_2/2.mp4")
    ]
    assert "no 3.mp4 below" in reasons(found)["3"] and found.settings["detector"] == "haar"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("../../etc/passwd,1", "not a number"),
        ("77,1", "neither a file nor a folder"),
        ("1,9", "label is '9', not 1 to 7"),
        ("1,happy", "not 1 to 7"),
        ("1,", "not 1 to 7"),
    ],
)
def test_dfew_lines_that_cannot_be_used_are_told(tmp_path, line, reason):
    dfew(tmp_path, {1: 1, 2: 2})
    file = tmp_path / "EmoLabel_DataSplit/test(single-labeled)/set_1.csv"
    file.write_text(f"video_name,label\n{line}\n")
    (tmp_path / "EmoLabel_DataSplit/train(single-labeled)/set_1.csv").write_text(
        "video_name,label\n2,2\n2,2\n"
    )
    found = read("dfew", tmp_path, fold=1)
    assert [i.annotation.label for i in found.items] == ["sad"]
    assert any(reason in r and "line 2 of set_1.csv" in r for r in reasons(found).values())
    assert "is listed twice" in reasons(found).values()


def test_a_clip_in_training_and_test_is_tested_only(tmp_path):
    dfew(tmp_path, {1: 1, 2: 2})
    for part in ("train", "test"):
        file = tmp_path / f"EmoLabel_DataSplit/{part}(single-labeled)/set_1.csv"
        file.write_text("video_name,label\n1,1\n")
    found = read("dfew", tmp_path, fold=1)
    assert [i.annotation.split for i in found.items] == ["test"]
    assert "in the training and the test list of fold 1" in reasons(found)["1"]


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("", "utf-8", "no rows of video_name,label"),
        ("clip;label\n1;2\n", "utf-8", "no rows of video_name,label"),
        ("video_name,label\n1,é\n", "latin-1", r"set_1.csv is not UTF-8 text \(line 2\)"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, text, encoding, message):
    dfew(tmp_path, {1: 1})
    write(tmp_path / "EmoLabel_DataSplit/test(single-labeled)/set_1.csv", text, encoding)
    with pytest.raises(InputError, match=message):
        read("dfew", tmp_path, fold=1)


def test_ferv39k_has_one_split_and_its_scenes_are_sources(tmp_path):
    lists = tmp_path / "4_setups/All_scenes"
    write(lists / "train_All.csv", "Action/Sad/0010 Sad\nDaily Life/Happy/0011 Happy\n")
    write(
        lists / "test_All.csv", "Action/Sad/0012 Sad\n../../x Sad\n/etc Sad\nAction/Sad/0013 Meh\n"
    )
    for name in ("Action/Sad/0010", "Daily Life/Happy/0011", "Action/Sad/0012"):
        save_pictures(tmp_path / "2_ClipsforFaceCrop" / name, range(3), name="{:04d}.jpg")
    found = read("ferv39k", tmp_path)
    known = {i.relative.split("/")[-1]: i.annotation for i in found.items}
    assert {n: a.split for n, a in known.items()} == {
        "0010": "train",
        "0011": "train",
        "0012": "test",
    }
    assert (known["0011"].source_id, known["0011"].label) == ("Daily Life", "happy")
    told = " ".join(reasons(found).values())
    assert told.count("leads out") + told.count("neither a file") == 2 and "'Meh' is none" in told
    assert "split train 2 (-31086, published 31088)" in " ".join(found.notes)


def test_mafw_takes_clips_or_frames(tmp_path):
    for fold in range(1, 6):
        below = tmp_path / f"Train & Test Set/single/no_caption/set_{fold}"
        mine = f"0000{fold}.mp4 anger\n"
        others = "".join(f"0000{k}.mp4 anger\n" for k in range(1, 6) if k != fold)
        write(below / "test.txt", mine, "utf-8-sig")
        write(below / "train.txt", others)
        save_pictures(tmp_path / f"data/frames/0000{fold}", range(2), name="{:04d}.png")
    found = read("mafw", tmp_path, fold=5)
    assert by_name(found)["data/frames/00005"].annotation.split == "test"
    touch(tmp_path / "data/clips/00001.mp4")
    found = read("mafw", tmp_path)
    assert [i.relative for i in found.items] == ["data/clips/00001.mp4"] and len(found.refused) == 4
    assert found.items[0].annotation.split == "fold1"


# --- names say it all -------------------------------------------------------------------------


def test_crema_d_names_are_read_and_broken_clips_left_out(tmp_path):
    for name in ("1001_DFA_ANG_XX.flv", "1002_IEO_HAP_HI.flv", "1076_MTI_NEU_XX.flv"):
        touch(tmp_path / "VideoFlash" / name)
    touch(tmp_path / "VideoMP4/1001_DFA_ANG_XX.mp4")
    touch(tmp_path / "VideoMP4/1003_DFA_JOY_XX.mp4")
    touch(tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav")
    found = read("crema-d", tmp_path)
    assert [(i.annotation.subject_id, i.annotation.label) for i in found.items] == [
        *(("1001", "anger"), ("1002", "happiness"))
    ]
    assert "nearly empty (crema-d-1/1076_MTI_NEU_XX)" in reasons(found).values()
    assert any("'JOY'" in r for r in reasons(found).values())
    assert any("1 files repeat" in note for note in found.notes)


def test_ravdess_names_are_read_and_takes_counted_once(tmp_path):
    touch(tmp_path / "Actor_12/01-01-06-01-02-01-12.mp4")
    touch(tmp_path / "Actor_12/02-01-06-01-02-01-12.mp4")
    touch(tmp_path / "Actor_12/03-01-06-01-02-01-12.wav")
    touch(tmp_path / "Actor_02/02-01-01-01-02-01-02.mp4")
    touch(tmp_path / "Actor_02/01-01-09-01-02-01-02.mp4")
    found = read("ravdess", tmp_path)
    known = {i.relative: i.annotation for i in found.items}
    assert known["Actor_12/01-01-06-01-02-01-12.mp4"].label == "fearful"
    assert known["Actor_02/02-01-01-01-02-01-02.mp4"].subject_id == "Actor_02"
    assert len(known) == 2 and "emotion 09" in next(iter(reasons(found).values()))


@pytest.mark.parametrize("name", ["ravdess", "crema-d", "folder"])
def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch, name):
    touch(tmp_path / "Actor_01/01-01-01-01-01-01-01.mp4")
    touch(tmp_path / "VideoFlash/1001_DFA_ANG_XX.flv")
    listed, bad = os.scandir, tmp_path / "Actor_02"
    bad.mkdir()

    def faulty(path):
        if Path(path) == bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", faulty)
    with pytest.raises(InputError, match=r"Actor_02 cannot be listed \(Input/output error\)"):
        read(name, tmp_path)


def test_voxceleb2_people_are_subjects_and_in_one_split(tmp_path):
    for name in ("dev/mp4/id00012/abc/00113.mp4", "test/mp4/id00017/xyz/00001.mp4"):
        touch(tmp_path / name)
    found = read("voxceleb2", tmp_path)
    assert [(i.annotation.subject_id, i.annotation.split) for i in found.items] == [
        *(("id00012", "train"), ("id00017", "test"))
    ]
    assert found.items[0].annotation.source_id == "abc"
    touch(tmp_path / "test/mp4/id00012/abc/00114.mp4")
    with pytest.raises(InputError, match="id00012"):
        read("voxceleb2", tmp_path)


# --- tables and folders of one's own ----------------------------------------------------------


def test_a_table_lists_videos_and_folders_of_pictures(tmp_path):
    touch(tmp_path / "a.mp4")
    save_pictures(tmp_path / "b", range(5), name="{:04d}.png")
    write(
        tmp_path / "annotations.csv",
        "path,label,fps,votes,dataset,apex_source,onset,apex\n"
        'a.mp4,joy,,"{""joy"": 3}",mine,spotted,1,2\nb,fear,30,,,,,\nb/,fear,,,,,,\n'
        "/etc/passwd,joy,,,,,,\n../a.mp4,joy,,,,,,\na.mp4,joy,,{,,,3,\n"
        'a.mp4,joy,,"{""joy"": 3}",mine,,1,2\n',
        "utf-8-sig",
    )
    found = read("table", tmp_path)
    video, folder = (found.items[i].annotation for i in (0, 1))
    assert (video.votes, video.dataset, video.apex_source) == ({"joy": 3}, "mine", "spotted")
    assert folder.dataset == "" and folder.licence is None
    assert found.items[1].frames == FrameFolder(30)
    told = [r.reason for r in found.refused]
    for reason in ("rate in a column fps", "leads out", "listed twice", "votes is '{'"):
        assert any(reason in r for r in told), reason
    assert len(told) == 5


def test_a_parquet_table_says_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    touch(tmp_path / "a.mp4")
    columns = {
        **{"path": ["a.mp4", "gone.mp4"], "onset": [1.0, None], "apex": [2, 3]},
        **{"action_units": [["4", "L10"], None], "note": ["x", "y"]},
    }
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table(columns), file)
    found = read("table", tmp_path, annotations=file)
    assert dict(found.items[0].annotation.marks) == {"onset": 1, "apex": 2}
    assert found.items[0].annotation.action_units == ("4", "L10")
    assert "not a file" in reasons(found)["gone.mp4"] and "columns not used: note" in found.notes
    with pytest.raises(InputError, match="no Parquet file"):
        read("table", tmp_path, annotations=touch(tmp_path / "b.parquet", b"PAR1 not"))


def test_a_folder_of_pictures_needs_a_rate(tmp_path):
    touch(tmp_path / "a.mp4")
    save_pictures(tmp_path / "deep/er", range(5))
    touch(tmp_path / "cover/front1.jpg")
    for name in ("v.mp4", "v_1.jpg", "v_2.jpg"):  # pictures beside a video are its own
        touch(tmp_path / "thumbs" / name)
    with pytest.raises(InputError, match=r"deep/er; give their rate by --fps"):
        read("folder", tmp_path)
    found = read("folder", tmp_path, fps=30)
    assert [(i.relative, i.frames) for i in found.items] == [
        *(("a.mp4", None), ("deep/er", FrameFolder(30)), ("thumbs/v.mp4", None))
    ]
