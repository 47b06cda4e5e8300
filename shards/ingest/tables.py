"""Tables of text: CSV and Parquet files as rows of cells by column, lists as lines.

Owns what can be wrong with such a file as a whole. Knows no column's meaning.
"""

from __future__ import annotations

import csv
import io
import json
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
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval="")
    try:
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        cells = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: {error}") from None
    return names, [(n, {c: row[c].strip() for c in names}) for n, row in cells]


def _parquet(file: Path) -> tuple[list[str], list[Row]]:
    import pyarrow as pa  # comes with ray and mlflow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            if opened.metadata.num_rows > MOST_ROWS:
                raise InputError(f"{file} has more than {MOST_ROWS:,} rows; split it")
            names = [name.strip() for name in opened.schema_arrow.names]
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
