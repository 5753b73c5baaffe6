"""The frame of the inspector's pages, and the pieces that all subjects share.

A page holds everything it shows. Its content security policy forbids the browser to fetch anything, or to run any script
but the one written here; without scripts everything is there to read, only the filters are not.
"""

from __future__ import annotations

import hashlib
import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

_NUMBER = ' class="number"'
_HEAD_CELL = 'th scope="col"'
_SCRIPT = """
(() => {
  const tools = document.querySelector(".tools");
  if (!tools) return;
  const items = [...document.querySelectorAll("[data-modality]")];
  const rows = [...document.querySelectorAll(".row")];
  const selects = [...tools.querySelectorAll("select")];
  const names = (item, select) => (item.dataset[select.name] || "").split("|").filter(Boolean);
  const filter = () => {
    for (const item of items)
      item.hidden = !selects.every(select => !select.value || names(item, select).includes(select.value));
    for (const row of rows) row.hidden = !items.some(item => !item.hidden && row.contains(item));
    const left = items.filter(item => !item.hidden).length;
    tools.querySelector("output").value = left < items.length ? `${left} of ${items.length} shown` : "";
  };
  for (const select of selects) {
    const found = [...new Set(items.flatMap(item => names(item, select)))].sort();
    for (const name of found) select.add(new Option(name.replaceAll("_", " "), name));
    select.parentElement.hidden = found.length < 2;
    select.addEventListener("change", filter);
  }
  for (const button of tools.querySelectorAll("button"))
    button.addEventListener("click", () => {
      for (const row of document.querySelectorAll("details.row")) row.open = button.name === "open";
    });
  tools.hidden = false;
})();
"""


def write_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of these parts."""
    css = Path(__file__).with_name("inspector.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def tools(selects: Sequence[str], *, foldable: bool) -> str:
    """Filters by what the items below say of themselves in ``data-NAME``, and buttons; shown where scripts run.

    Args:
        selects: names, e.g. ``modality``; one with fewer than two values on the page hides itself.
    """
    fields = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option></select></label>' for name in selects
    )
    buttons = '<button type="button" name="open">open all</button><button type="button" name="close">close all</button>'
    return f'<div class="tools" hidden>{fields}{buttons if foldable else ""}<output></output></div>'


def contents(sections: Mapping[str, str]) -> str:
    """Links to the sections of the page: id -> heading."""
    links = "".join(f'<li><a href="#{name}">{html.escape(heading)}</a></li>' for name, heading in sections.items())
    return f'<nav class="contents" aria-label="On this page"><ul>{links}</ul></nav>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str | int]], *, name: str = "") -> str:
    """A table; numbers stand right, texts are escaped.

    Args:
        name: what it shows, for those who do not see what stands around it.
    """
    right = {place for row in rows for place, cell in enumerate(row) if isinstance(cell, int)}

    def cells(row: Sequence[str | int], tag: str, opening: str) -> str:
        return "".join(
            f"<{opening}{_NUMBER if place in right else ''}>"
            f"{html.escape(cell) if isinstance(cell, str) else format(cell, ',')}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td', 'td')}</tr>" for row in rows)
    label = f' aria-label="{html.escape(name)}"' if name else ""
    head = f"<thead><tr>{cells(heads, 'th', _HEAD_CELL)}</tr></thead>"
    kind = "scroll wide" if len(heads) > 3 else "scroll"
    return f'<div class="{kind}"><table{label}>{head}<tbody>{body}</tbody></table></div>'


def share_bar(counts: Mapping[str, int], *, whole: int | None = None) -> str:
    """Shares of modalities as one bar.

    Args:
        whole: what fills the bar; the sum of the counts when None.
    """
    total = sum(counts.values())
    scale = 100 / max(1, whole or total)
    parts: list[str] = []
    left = 0.0
    for modality, count in counts.items():
        style = f"left:{left:.3f}%;width:{count * scale:.3f}%"
        title = html.escape(f"{modality} {count:,}")
        parts.append(f'<i class="{colour(modality)}" style="{style}" title="{title}"></i>')
        left += count * scale
    label = html.escape(", ".join(f"{modality} {count / max(1, total):.1%}" for modality, count in counts.items()))
    return f'<div class="bar" role="img" aria-label="{label}">{"".join(parts)}</div>'


def chip(text: str) -> str:
    """A short text in a box."""
    return f'<span class="chip">{html.escape(text)}</span>'


def data_attributes(**values: Sequence[str]) -> str:
    """What the filters read: ``data-modality="image|text"``."""
    return "".join(f' data-{name}="{html.escape("|".join(words))}"' for name, words in values.items())


def in_words(name: str) -> str:
    """``text_to_image`` as a person writes it."""
    return name.replace("_", " ")


def colour(modality: str) -> str:
    """The class that colours a modality."""
    known = {"text", "image", "speech", "music", "audio"}
    return str(modality) if modality in known else "other"
