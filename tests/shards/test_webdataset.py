"""The shards outside of this project: read by the webdataset package, as docs/data.md shows."""

import re
from pathlib import Path

import pytest

from tests.shards.make import LABELS, write_folder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_documented_lines_read_every_clip(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    [code] = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        if "webdataset" in block
    ]
    seen: list[tuple[tuple[int, ...], str]] = []
    write_folder(tmp_path / "runs" / "shards", [5, 3])
    monkeypatch.chdir(tmp_path)
    exec(code + "    seen.append((frames.shape, label))\n", {"seen": seen})
    assert len(seen) == 8
    assert {shape for shape, _ in seen} == {(5, 64, 64, 3)}
    assert {label for _, label in seen} == set(LABELS)
