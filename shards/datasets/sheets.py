"""Coding files: Excel sheets as rows of cells by column, in spite of what people do to them.

Owns the header's place (found by its content: SAMM's is on row 14), blank and merged columns,
numbers stored as text and text stored as numbers, and formulas. A formula's stored value counts;
where the file was saved without values, plain references (`=VIS!C5`, as in SMIC) are followed.
Knows no data set.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from shards.ingest.inputs import InputError
from shards.ingest.tables import as_text

LARGEST_FILE = 16 << 20
LARGEST_UNPACKED = 64 << 20
HEADER_WITHIN = 60
"""Rows, and columns."""
MOST_EMPTY = 1000
"""Rows in a row; a sheet once formatted to its end has a million."""
DEEPEST = 20
"""References followed from one cell."""
REFERENCE = re.compile(r"=\s*\+?\s*(?:'?([^'!]+)'?!)?\$?([A-Z]{1,3})\$?([0-9]{1,7})\s*")
NOTHING = ("", "/", "-", "\\", "n/a", "na", "nan", "none", "null", "?")
Columns = Mapping[str, Sequence[str]]
"""Our name of a column → how the file may call it; case, blanks and signs do not count."""


@dataclass(frozen=True)
class SheetRow:
    """A row below the header."""

    number: int
    """From 0, rows without any content not counted."""
    line: int
    """In the sheet, from 1."""
    cells: Mapping[str, Any]

    def text(self, column: str) -> str:
        """The cell as text: 6.0 as "6", a date (which Excel makes of 12/15) as "12/15"."""
        value = self.cells.get(column)
        if isinstance(value, Unresolved):
            raise InputError(value.why)
        if isinstance(value, date):
            return f"{value.month}/{value.day}"
        return as_text(value)

    def needed(self, column: str) -> str:
        """The text; InputError where there is none."""
        text = self.text(column)
        if not text:
            raise InputError(f"has no {column}")
        return text

    def frame(self, column: str) -> int | None:
        """The cell as a frame number, None where it is empty or "/"."""
        text = self.text(column)
        if text.lower() in NOTHING:
            return None
        if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", text):
            raise InputError(f"{column} is {text!r}, not a frame number")
        return int(text.partition(".")[0])


@dataclass(frozen=True)
class Unresolved:
    """A formula that has no value here."""

    why: str


def sheet_rows(
    file: Path, needed: Columns, *, more: Columns | None = None, sheet: str | None = None
) -> list[SheetRow]:
    """The rows of the sheet that has the `needed` columns: `sheet`, if the file has it, else the
    first that fits. InputError where the file cannot be read, or no sheet has the columns.
    """
    book = _Book(file)
    names = [n for n in book.names if n.lower() == (sheet or "").lower()] or book.names
    for name in names:
        at = book.header(name, needed)
        if at:
            columns = {**at[1], **book.columns(name, at[0], more or {})}
            return book.rows(name, at[0], columns)
    wanted = ", ".join(names[0] for names in needed.values())
    raise InputError(
        f"{file}: no sheet has the columns {wanted} within its first {HEADER_WITHIN} rows (sheets: "
        f"{', '.join(book.names)}); take the coding file as it was handed out"
    )


class _Book:
    """An opened file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._formulas = self._load(values=False)
        self._values: Any = None
        self._merged = {name: _merged(self._formulas[name]) for name in self.names}

    @property
    def names(self) -> list[str]:
        return [sheet.title for sheet in self._formulas.worksheets]

    def _load(self, *, values: bool) -> Any:
        import openpyxl

        try:
            _check_size(self.file)
            return openpyxl.load_workbook(self.file, data_only=values)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{self.file} cannot be read ({error.strerror or error})") from None
        except Exception as error:  # openpyxl meets a broken file with any of a dozen types
            raise InputError(
                f"{self.file} cannot be read as a spreadsheet ({error!s:.80}); save it as .xlsx"
            ) from error

    def header(self, name: str, needed: Columns) -> tuple[int, dict[str, int]] | None:
        """(row, column of each name) of the first row that has all of them."""
        last = min(HEADER_WITHIN, self._formulas[name].max_row)
        for row in range(1, last + 1):
            found = self.columns(name, row, needed)
            if len(found) == len(needed):
                return row, found
        return None

    def columns(self, name: str, row: int, wanted: Columns) -> dict[str, int]:
        """Where row `row` has the columns' names; of several the first."""
        sheet = self._formulas[name]
        titles: dict[str, int] = {}
        for column in range(1, min(sheet.max_column, HEADER_WITHIN) + 1):
            titles.setdefault(_plain(sheet.cell(row, column).value), column)
        ways = {ours: [_plain(way) for way in theirs] for ours, theirs in wanted.items()}
        hits = {ours: [titles[w] for w in theirs if w in titles] for ours, theirs in ways.items()}
        return {ours: places[0] for ours, places in hits.items() if places}

    def rows(self, name: str, header: int, columns: Mapping[str, int]) -> list[SheetRow]:
        found: list[SheetRow] = []
        empty = 0
        for line in range(header + 1, self._formulas[name].max_row + 1):
            cells = {ours: self._value(name, line, at) for ours, at in columns.items()}
            if any(value is not None and value != "" for value in cells.values()):
                found.append(SheetRow(len(found), line, cells))
                empty = 0
            elif (empty := empty + 1) > MOST_EMPTY:
                break
        return found

    def _value(self, name: str, row: int, column: int, depth: int = 0) -> Any:
        """The content of a cell, of a merged one that of the whole; formulas as their value."""
        for top, left, bottom, right in self._merged[name]:
            if top <= row <= bottom and left <= column <= right:
                row, column = top, left
        cell = self._formulas[name].cell(row, column)
        if cell.data_type != "f":
            return cell.value.strip() if isinstance(cell.value, str) else cell.value
        if self._values is None:
            self._values = self._load(values=True)
        stored = self._values[name].cell(row, column).value
        return stored if stored is not None else self._followed(name, cell, depth)

    def _followed(self, name: str, cell: Any, depth: int) -> Any:
        formula = str(getattr(cell.value, "text", cell.value))
        where = f"cell {cell.coordinate} of sheet {name} holds {formula:.40}"
        hint = "open the file in a spreadsheet program and save it"
        plain = REFERENCE.fullmatch(formula)
        if not plain:
            return Unresolved(f"{where}, without a stored value; {hint}")
        to = plain[1] or name
        if to not in self._merged or depth >= DEEPEST:
            return Unresolved(f"{where}, which leads nowhere; {hint}")
        from openpyxl.utils import column_index_from_string

        return self._value(to, int(plain[3]), column_index_from_string(plain[2]), depth + 1)


def _check_size(file: Path) -> None:
    """A small file can unpack to any size."""
    if file.stat().st_size <= LARGEST_FILE:
        with zipfile.ZipFile(file) as packed:
            if sum(part.file_size for part in packed.infolist()) <= LARGEST_UNPACKED:
                return
    raise InputError(f"{file} is too large for a coding file; save its sheet alone as .xlsx")


def _merged(sheet: Any) -> list[tuple[int, int, int, int]]:
    """Merged areas: top, left, bottom, right. The top left cell holds the content."""
    areas = list(sheet.merged_cells.ranges)[:MOST_EMPTY]
    return [(a.min_row, a.min_col, a.max_row, a.max_col) for a in areas]


def _plain(title: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(title or "").lower())
