"""`python -m shards preview`: what the page shows, and that nothing in a folder can break it."""

import csv
import os
import random
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from shards.__main__ import main
from shards.index import index_shard
from shards.manifest import write_manifest
from shards.preview import preview
from tests.shards.make import LABELS, record, video, write_folder, write_tar

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;'
TURNED = "a\u202egpj.exe\x00\x1b[31m"


class Elements(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.sources, self.attributes = [], [], [], set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def write(folder, facts, *, mp4=None, labels=("calm",)):
    """A folder of one shard with one sample a record."""
    folder.mkdir()
    tar = folder / "shard-000000.tar"
    write_tar(tar, [(fact, mp4 or video()) for fact in facts])
    write_manifest(folder, [index_shard(tar)], labels=labels, clip={}, created_by={})
    return folder


def rejected(folder, rows):
    with (folder / "rejected.csv").open("w", newline="", errors="surrogatepass") as file:
        csv.writer(file).writerows([("path", "reason", "action"), *rows])


def test_a_page_shows_clips_counts_and_rejections(tmp_path, capsys):
    write_folder(tmp_path / "s", [3, 2], test_every=5)
    reasons = [("a.mp4", "no face (seen in 0 of 9)", "leave it"), ("b.mp4", "no face (1)", "cut")]
    rejected(tmp_path / "s", reasons)
    out = tmp_path / "p.html"
    assert main(["preview", str(tmp_path / "s"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    seen = Elements(out.read_text())
    assert seen.open == [] and seen.tags.count("figure") == 5 and seen.tags.count("img") == 15
    for words in ("s0_0", "shard-000001.tar", "20 frames at 25 fps", "no face was looked for"):
        assert words in seen.text
    for words in ("calm", "glad", "train", "test", "a.mp4", "seen in 0 of 9", "leave it"):
        assert words in seen.text
    assert re.search(r"no face\s+2\s", seen.text), "reasons are counted without their figures"
    assert sorted(os.listdir(tmp_path)) == ["p.html", "s"]


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    write_folder(tmp_path / "s", [2])
    text = preview(tmp_path / "s", clips=2)
    seen = Elements(text)
    assert all(source.startswith("data:image/jpeg;base64,") for source in seen.sources)
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert "url(" not in text and "default-src 'none'" in text


def test_hostile_text_stays_text(tmp_path):
    facts = record(
        "k0", path=HOSTILE, label=HOSTILE, subject_id=TURNED, split=HOSTILE, damaged=HOSTILE
    )
    folder = write(tmp_path / (HOSTILE.replace("/", "_") + "\udc80"), [facts], labels=(HOSTILE,))
    rejected(folder, [(HOSTILE, HOSTILE, HOSTILE), (TURNED, "x" * 9000, "")])
    text = preview(folder, clips=1)
    seen = Elements(text)
    assert set(seen.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "br", "span", "div"),
        *("table", "tr", "th", "td", "figure", "img", "figcaption", "b"),
    }
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert seen.text.count(HOSTILE) >= 7, "shown as it is, every time"
    assert "\u202e" not in text and "\\u202e" in text and "\\u001b" in text
    assert "x" * 301 not in text
    text.encode()


def test_clips_with_an_apex_show_onset_apex_and_offset(tmp_path):
    facts = [record("k0", onset=3, apex=7, offset=11), record("k1", apex=4), record("k2")]
    seen = Elements(preview(write(tmp_path / "s", facts), clips=3))
    words = [line.strip() for line in seen.text.splitlines()]
    for frame in ("onset 3", "apex 7", "offset 11", "apex 4", "0", "9", "19"):
        assert frame in words


def test_damaged_clips_and_poor_tracks_come_first(tmp_path):
    facts = [record(f"k{i}") for i in range(6)]
    assert facts[4].track is not None
    facts[4] = replace(facts[4], track=replace(facts[4].track, detector="haar", found=0.31))
    facts[2] = replace(facts[2], damaged="kept frames 0-19 of 40")
    text = Elements(preview(write(tmp_path / "s", facts), clips=12)).text
    first, rest = text.split("Look at these first")[1].split(" of 6 clips")
    assert "k4" in first and "31%" in first and "kept frames 0-19 of 40" in first
    assert "k4" not in rest and all(key in rest for key in ("k0", "k1", "k3", "k5"))


def test_an_unreadable_clip_tells_why_among_the_others(tmp_path):
    write_folder(tmp_path / "s", [3], replaced={"s0_1": b"\0\0\0\x18ftypisom" + bytes(64)})
    seen = Elements(preview(tmp_path / "s", clips=3))
    assert seen.tags.count("figure") == 3 and seen.tags.count("img") == 6
    assert "cannot be decoded" in seen.text


def test_damaged_files_are_shown_as_such(tmp_path):
    folder = tmp_path / "s"
    write_folder(folder, [2, 2, 2])
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000001.index.jsonl").write_bytes(b"{}\n")
    tar = folder / "shard-000002.tar"
    tar.write_bytes(tar.read_bytes()[:-3000])
    (folder / "rejected.csv").write_bytes(
        b'path,reason,action\n"\xff\xfe,cut\n\n,,,,,\n' + b"z" * 200_000
    )
    seen = Elements(preview(folder, clips=6))
    assert seen.tags.count("figure") == 6
    assert "shard-000000.tar" in seen.text and "is not the file that" in seen.text
    assert "cannot be read to its end" in seen.text


def test_an_empty_collection_is_a_page_without_clips(tmp_path):
    (tmp_path / "s").mkdir()
    write_manifest(tmp_path / "s", [], labels=(), clip={}, created_by={})
    seen = Elements(preview(tmp_path / "s", clips=5))
    assert "0 clips in 0 shards" in seen.text and "figure" not in seen.tags


@pytest.mark.parametrize(
    ("folder", "out", "message"),
    [
        ("nowhere", "p.html", "is no shard folder"),
        ("s", "gone/p.html", "choose another --out"),
        ("s", "folder.html", "choose another --out"),
    ],
)
def test_what_goes_wrong_is_named(tmp_path, capsys, folder, out, message):
    write_folder(tmp_path / "s", [1])
    (tmp_path / "folder.html").mkdir()
    assert main(["preview", str(tmp_path / folder), "--out", str(tmp_path / out)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert sorted(os.listdir(tmp_path)) == ["folder.html", "s"]


@pytest.mark.parametrize("more", [["--out", "manifest.json"], ["--clips", "0"]])
def test_only_pages_are_written(tmp_path, capsys, more):
    write_folder(tmp_path / "s", [1])
    with pytest.raises(SystemExit) as stop:
        main(["preview", str(tmp_path / "s"), *more])
    assert stop.value.code == 2 and more[0] in capsys.readouterr().err


def test_a_hundred_thousand_shards_are_sampled(tmp_path):
    """Few of them are on this disk; a page reads its clips and some hundred indexes."""
    shards, folder = 100_000, tmp_path / "s"
    manifest = write_folder(folder, [10])
    one = manifest.shards[0]
    entries = [replace(one, name=f"shard-{i:06d}.tar") for i in range(shards)]
    for i in sorted(random.Random(0).sample(range(1, shards), 50)):
        for end in ("tar", "index.jsonl"):
            os.link(folder / f"shard-000000.{end}", folder / f"shard-{i:06d}.{end}")
    write_manifest(folder, entries, labels=LABELS, clip={}, created_by={})
    start = time.perf_counter()
    text = preview(folder, clips=20)
    assert time.perf_counter() - start < 10
    seen = Elements(text)
    assert "1,000,000 clips in 100,000 shards" in seen.text
    assert "of 1,000,000 clips" in seen.text and seen.tags.count("figure") == 20
    assert text == preview(folder, clips=20), "the same folder gives the same page"
