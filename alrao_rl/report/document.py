"""A report as sections of blocks, and how they become one HTML page, Markdown, tables and figures.

Blocks contain plain text: the templates escape all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from alrao_rl.report.figures import PAPER, SERIES, Picture

DARK = ("#5fb0ee", "#f0955a", "#4cc79a", "#dd8bc7", "#cfae3c", "#ef7f86", "#a3a7f2", "#9fb4be")
"""The colours of ``figures.SERIES`` on a dark page."""


@dataclass(frozen=True)
class Text:
    """A paragraph; ``lead`` marks the sentence to read if nothing else is read."""

    kind: ClassVar[str] = "text"
    text: str
    lead: bool = False


@dataclass(frozen=True)
class Alert:
    """A warning: ``red`` changes what may be concluded, ``amber`` with how much certainty."""

    kind: ClassVar[str] = "alert"
    level: Literal["red", "amber"]
    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    kind: ClassVar[str] = "items"
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; its first column is text, the others are numbers, or text as well if it is a table of ``words``."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True)
class Image:
    """A figure; ``name`` is used for its files, ``alt`` says in words what it shows."""

    kind: ClassVar[str] = "image"
    name: str
    caption: str
    alt: str
    picture: Picture


@dataclass(frozen=True)
class Verbatim:
    """Text to copy, folded if ``title`` is given. Markdown names ``file``, if there is one, instead of the text."""

    kind: ClassVar[str] = "verbatim"
    text: str
    title: str = ""
    file: str = ""


Block: TypeAlias = Text | Alert | Items | Table | Image | Verbatim


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it; ``data`` holds the tables that are written as CSV, by name."""

    title: str
    blocks: Sequence[Block]
    data: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """Target of links to the section."""
        return slug(self.title).lower()


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    sections: Sequence[Section]

    def files(self, refresh: int = 0) -> dict[str, bytes]:
        """Every file of the report by its path in the report's folder, the page last.

        Args:
            refresh: seconds after which the page loads itself again; 0 for never.
        """
        files: dict[str, bytes] = {}
        for section in self.sections:
            files |= {f"tables/{name}.csv": csv(frame).encode() for name, frame in section.data.items()}
            for block in section.blocks:
                if isinstance(block, Image):
                    files[f"figures/{block.name}.svg"] = block.picture.svg.encode()
                    files[f"figures/{block.name}.png"] = block.picture.png
        files["report.md"] = _render("report.md.jinja", report=self)
        look = {"series": list(enumerate(zip(SERIES, DARK, strict=True))), "paper": PAPER, "refresh": refresh}
        files["report.html"] = _render("report.html.jinja", report=self, **look)
        return files


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV; six significant digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def slug(text: str) -> str:
    """The text as a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60]


def markdown(text: Any) -> str:
    """Escape text so that Markdown shows it as it is, also within a table."""
    escaped = re.sub(r"([\\`*_\[\]#|$~!{}])", r"\\\1", str(text))
    # What would start a list.
    escaped = re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", escaped)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":\\//")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _render(template: str, **values: Any) -> bytes:
    page = template.endswith(".html.jinja")
    environment = Environment(
        loader=PackageLoader("alrao_rl", "report"),
        autoescape=page,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": markdown, "indented": _indented}
    lines: Iterator[str] = (line.rstrip() for line in environment.get_template(template).render(values).splitlines())
    return ("\n".join(lines) + "\n").encode()
