"""Pieces of pages that open offline: tables made here and not by a script, figures as JSON, plotly.js written in.

A number's full value stands in its cell's `data-value`, by which the page's script sorts. Everything that is text is
escaped, and JSON inside a script element holds no `<`.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from switchlora.report.compare_style import HEAD, SCRIPT


def whole_page(title: str, body: str, *, data: Any, figures: Mapping[str, Any]) -> str:
    """A page with `body`, its data and its figures (by the id of the element that each is drawn in), as text."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,unused-ignore]

    scripts = (
        f"<script>{get_plotlyjs()}</script>"
        f'<script type="application/json" id="data">{embedded(data)}</script>'
        f'<script type="application/json" id="figures">{embedded(figures)}</script>'
        f"<script>{SCRIPT}</script>"
    )
    return f"{HEAD.replace('TITLE', text(title))}<body><main>{body}</main>{scripts}</body></html>\n"


def table(id: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; its columns can be sorted by a click."""
    first = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f'<div class="wide"><table id="{id}"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(content: object) -> str:
    """A cell of text."""
    return f"<td>{text(content)}</td>"


def number(found: float | None, form: str) -> str:
    """A cell with a number in a format, or empty."""
    shown = "" if found is None else form.format(found)
    return f'<td class="number" data-value="{value(found)}">{shown}</td>'


def value(found: float | None) -> str:
    """A number as an attribute, with all its digits."""
    return "" if found is None else repr(found)


def text(content: object) -> str:
    """Text that holds no markup."""
    return html.escape(str(content))


def embedded(content: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
