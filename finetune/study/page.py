"""A report as Markdown and as one HTML page: headings, text, tables, one picture.

Owns the form. Foreign text (names of subjects, paths) cannot become markup. Refuses to know what
the tables say.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from shards.preview_page import POLICY, STYLE
from shards.wording import visible


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, a table."""

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report for a terminal, a repository, a forge."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_plain(section.text)] * bool(section.text)
        lines = [section.head, ["---"] * len(section.head), *section.rows]
        parts.append("\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def page(title: str, sections: Sequence[Section], picture: bytes, caption: str) -> str:
    """The report as one file without scripts; `picture` (PNG) stands after the first section."""
    image = base64.b64encode(picture).decode()
    shown = [_section(section) for section in sections]
    shown.insert(
        1,
        f"<h2>Confusion matrix</h2>\n<p>{_safe(caption)}</p>\n"
        f'<img class="matrix" alt="confusion matrix" src="data:image/png;base64,{image}">',
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{STYLE}{OWN_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_safe(title)}</h1>\n" + "\n".join(shown) + "\n</body>\n</html>\n"
    )


OWN_STYLE = """img.matrix { width: auto; max-width: min(100%, 44rem); aspect-ratio: auto }
p { max-width: 60rem }
"""


def _section(section: Section) -> str:
    columns = zip(section.head, *section.rows, strict=True)
    numbers = [all(cell[:1].isdigit() or cell == "–" for cell in rest) for _, *rest in columns]

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if number else "" for number in numbers]
        inner = "".join(
            f"<{tag}{kind}>{_safe(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )
        return f"<tr>{inner}</tr>"

    text = f"<p>{_safe(section.text)}</p>\n" if section.text else ""
    lines = [line(section.head, "th"), *(line(row, "td") for row in section.rows)]
    table = "\n".join(["<table>", *lines, "</table>"])
    return f"<h2>{_safe(section.title)}</h2>\n{text}{table}"


def _plain(text: str) -> str:
    return visible(" ".join(text.split()))


def _cell(text: str) -> str:
    """In a Markdown table: bars and what starts markup are escaped."""
    plain = _plain(text)
    for sign in "\\|`*<":
        plain = plain.replace(sign, f"\\{sign}")
    return plain.replace("](", "]\\(")  # a link


def _safe(text: str) -> str:
    return html.escape(visible(text))
