"""Tables of text: CSV and Parquet files as rows of cells by column, lists as lines.

Owns what can be wrong with such a file as a whole. Knows no column's meaning.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.ingest.inputs import InputError

LARGEST_TABLE = 1 << 30
MOST_ROWS = 20_000_000
Row = tuple[int, dict[str, str]]
"""(line in the file, cells by column)."""


def table(file: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of a .parquet file, or of anything else as CSV, cells without outer space.

    InputError where it cannot be read as a whole.
    """
    if file.suffix.lower() == ".parquet":
        return _parquet(file)
    return _csv(file)


def text_of(file: Path) -> str:
    """The text of a UTF-8 file; InputError names the file and what is wrong with it."""
    try:
        if file.stat().st_size > LARGEST_TABLE:
            raise InputError(f"{file} is larger than 1 GiB; split it")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file} is not UTF-8 text (line {line}); save it as CSV in UTF-8"
        ) from None


def lines(file: Path) -> list[tuple[int, str]]:
    """(line number, text) of the lines of a list that are not empty."""
    found = [(n, line.strip()) for n, line in enumerate(text_of(file).splitlines(), start=1)]
    found = [(n, line) for n, line in found if line]
    if not found:
        raise InputError(f"{file} is empty; copy it again from the data set")
    return found


def _csv(file: Path) -> tuple[list[str], list[Row]]:
    text = text_of(file)
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    # Strict, as else one quotation mark too many swallows the rows behind it without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_names(file, names)
        for cells in filter(None, reader):
            if any(cell.strip() for cell in cells[len(names) :]):
                raise csv.Error(
                    f"{len(cells)} cells under {len(names)} names; a text with {separator!r} in it "
                    "stands in quotation marks"
                )
            row = dict.fromkeys(names, "") | dict(zip(names, map(str.strip, cells), strict=False))
            rows.append((reader.line_num, row))
    except csv.Error as error:
        what = "a quotation mark is not closed" if "end of data" in str(error) else error
        raise InputError(f"{file}, line {reader.line_num}: {what}") from None
    return names, rows


def _check_names(file: Path, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise InputError(f"{file} has two columns {twice[0]!r}; remove or rename one")


def _parquet(file: Path) -> tuple[list[str], list[Row]]:
    import pyarrow as pa  # comes with ray and mlflow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            if opened.metadata.num_rows > MOST_ROWS:
                raise InputError(f"{file} has more than {MOST_ROWS:,} rows; split it")
            names = [name.strip() for name in opened.schema_arrow.names]
            _check_names(file, names)
            return names, list(_rows_of(opened.iter_batches(4096), names))
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{file} cannot be read ({reason}); check the path") from None
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{file} is no Parquet file that can be read ({error})") from None


def _rows_of(batches: Any, names: list[str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            yield number, dict(zip(names, map(as_text, values), strict=True))


def as_text(value: Any) -> str:
    """A cell as a CSV file would have it: 46.0 as "46", nothing as ""."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return "+".join(map(as_text, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).strip()
