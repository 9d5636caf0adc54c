"""A matplotlib figure as an SVG element inside an HTML page, in the text color of the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]

FONT = "system-ui, sans-serif"


def inline_svg(figure: Figure, key: str, label: str) -> str:
    """Render a figure as one `<svg>` element without external references.

    Black becomes the text color of the page, so that the figure is readable on a dark page. Identifiers begin with
    `key`, so that one page can hold several figures. Text is not converted to paths.

    Args:
        figure: The figure.
        key: Letters and digits, unique in the page.
        label: Description of the figure, for screen readers.

    Returns:
        The element, as HTML.

    Example:
        >>> from matplotlib.figure import Figure
        >>> inline_svg(Figure(), "empty", "nothing")[:5]
        '<svg '
    """
    import matplotlib

    buffer = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pyrostoch"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A glyph that matplotlib's font lacks does not matter, since the browser renders the text with its own fonts.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    # The metadata has links to other sites, and the style sheet would apply to the whole page.
    text = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", text[text.index("<svg ") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{key}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{key}-\1"', text)
    text = re.sub(r"(font: [^;\"]*?[\d.]+px )[^;\"]*", rf"\1{FONT}", text)
    text = text.replace("#000000", "currentColor")
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    width = float(view.group(1)) if view else 0.0
    # From points to CSS pixels. With a minimum width, a wide figure scrolls on a phone and its text stays legible.
    style = f"max-width:{width * 4 / 3:.0f}px;min-width:{min(width, 720):.0f}px"
    head = f'<svg role="img" aria-label="{html.escape(label)}" style="{style}" {view.group(0) if view else ""}'
    return re.sub(r"\s*\n\s*", "\n", f"{head}{text[text.index('>') :]}").strip()
