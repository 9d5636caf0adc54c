"""Tables of the report: all guides, the scores of one guide by predictive mode, and its KL by site."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyrostoch.report.record import is_regression, mode_title, modes, number, row_of

__all__ = [
    "comparison_table",
    "data_table",
    "format_number",
    "mode_table",
    "rate_table",
    "site_table",
    "with_error",
]

#: `min` or `max`.
Best = Callable[[list[float]], float]

#: Shown in place of a missing number.
ABSENT = "–"


def format_number(value: float | str | None, digits: int, scale: float = 1.0) -> str:
    """A number as HTML: thousands separators, a minus sign, NaN and infinity in red, a dash for a missing number.

    Args:
        value: A number of the record, a string such as `"nan"`, or `None`.
        digits: Digits after the decimal point.
        scale: Factor, such as 100 for percent.

    Returns:
        HTML.

    Example:
        >>> format_number(-1234.56, 1), format_number(None, 2)
        ('−1,234.6', '–')
    """
    x = number(value)
    if x is None:
        return ABSENT
    if math.isnan(x):
        return '<span class="bad">NaN</span>'
    if math.isinf(x):
        return f'<span class="bad">{"−" if x < 0 else ""}∞</span>'
    text = f"{scale * x:,.{digits}f}"
    # No sign for a number that is rounded to zero.
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def with_error(value: float | str | None, error: float | str | None, digits: int, scale: float = 1.0) -> str:
    """A number as HTML, with its standard error below it, if there is one.

    Args:
        value: A number of the record.
        error: Its standard error.
        digits: Digits after the decimal point.
        scale: Factor, such as 100 for percent.

    Example:
        >>> with_error(0.5, 0.01, 1, 100.0)
        '50.0<span class="err">± 1.0</span>'
    """
    text, x = format_number(value, digits, scale), number(error)
    if number(value) is None or x is None or x == 0.0:
        return text
    return f'{text}<span class="err">± {format_number(x, digits, scale)}</span>'


def data_table(titles: Sequence[str], body: Sequence[str], name: str) -> str:
    """A table as HTML.

    Args:
        titles: Titles of the columns.
        body: The cells of each row, as HTML.
        name: Its class in the style sheet.

    Example:
        >>> data_table(["A"], ["<td>1</td>"], "numbers").count("<tr>")
        2
    """
    return _table([_header_cells(titles)], body, name)


def _table(header: Sequence[str], body: Sequence[str], name: str) -> str:
    heads = "".join(f"<tr>{row}</tr>" for row in header)
    rows = "\n".join(f"<tr>{row}</tr>" for row in body)
    table = f'<table class="{name}"><thead>{heads}</thead>\n<tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _header_cells(titles: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)


def _spanning_cell(title: str, columns: int) -> str:
    return f'<th scope="colgroup" colspan="{columns}">{html.escape(title)}</th>'


class _Column:
    """A column of scores; with several guides, the best one is bold."""

    def __init__(self, title: str, values: list[Any], errors: list[Any], digits: int, scale: float, better: Best):
        finite = [round(scale * x, digits) for x in map(number, values) if x is not None and math.isfinite(x)]
        best = better(finite) if len(values) > 1 and finite else None
        self.title = title
        self.cells = []
        for value, error in zip(values, errors, strict=True):
            x = number(value)
            bold = best is not None and x is not None and math.isfinite(x) and round(scale * x, digits) == best
            text = with_error(value, error, digits, scale)
            self.cells.append(f'<td class="best">{text}</td>' if bold else f"<td>{text}</td>")


def comparison_table(results: Mapping[str, Any]) -> str:
    """One row per guide: the ELBO and its terms, the score in each predictive mode, NLL, ECE, seconds of training.

    Args:
        results: The record.

    Returns:
        HTML; with several guides, the best score of a column is bold.

    Example:
        >>> guide = {"name": "additive", "rows": [{"mode": "mean", "accuracy": 0.5}]}
        >>> "50.00" in comparison_table({"schema": 1, "kind": "train", "guides": [guide]})
        True
    """
    guides, used = results["guides"], modes(results)
    regression = is_regression(results)
    key, digits, scale, better = ("rmse", 4, 1.0, min) if regression else ("accuracy", 2, 100.0, max)

    def column(title: str, mode: str, key: str, digits: int, scale: float, better: Best) -> _Column:
        rows = [row_of(guide, mode) for guide in guides]
        errors = [row.get(f"{key}_stderr") for row in rows]
        return _Column(title, [row.get(key) for row in rows], errors, digits, scale, better)

    scores = [column(mode_title(mode), mode, key, digits, scale, better) for mode in used]
    quality: list[_Column] = []
    if used:
        quality = [column("NLL", used[-1], "nll", 4, 1.0, min)]
        if not regression:
            quality.append(column("ECE", used[-1], "ece", 4, 1.0, min))
    top = '<th rowspan="2" scope="col">Guide</th>' + _spanning_cell("Whole training set, nats", 3)
    if used:
        top += _spanning_cell("Test RMSE" if regression else "Test accuracy, %", len(scores))
        mode = "mean weights" if used[-1] == "mean" else mode_title(used[-1])
        top += _spanning_cell(f"With {mode}", len(quality))
    top += '<th rowspan="2" scope="col">Training, s</th>'
    titles = ["ELBO", "Data term", "KL", *(c.title for c in scores), *(c.title for c in quality)]
    body = []
    for i, guide in enumerate(guides):
        parts = guide.get("decomposition") or {}
        cells = [
            f'<th scope="row"><a href="#guide-{i}">{html.escape(str(guide.get("title") or guide["name"]))}</a></th>',
            f"<td>{with_error(parts.get('elbo'), parts.get('elbo_stderr'), 1)}</td>",
            f"<td>{format_number(parts.get('data'), 1)}</td>",
            f"<td>{format_number(parts.get('kl'), 1)}</td>",
            *(c.cells[i] for c in scores),
            *(c.cells[i] for c in quality),
            f"<td>{format_number(guide.get('seconds'), 1)}</td>",
        ]
        body.append("".join(cells))
    return _table([top, _header_cells(titles)], body, "all comparison")


def mode_table(results: Mapping[str, Any], guide: Mapping[str, Any]) -> str:
    """All scores of one guide, one row per predictive mode.

    Args:
        results: The record.
        guide: The part of the record that describes the guide.

    Returns:
        HTML; empty if the guide has no scores.

    Example:
        >>> guide = {"name": "additive", "rows": [{"mode": "mc:20", "accuracy": 0.5, "nll": 0.7}]}
        >>> "20 samples" in mode_table({"schema": 1, "kind": "train", "guides": [guide]}, guide)
        True
    """
    rows = guide.get("rows") or []
    if not rows:
        return ""
    columns: list[tuple[str, str, int, float]]
    if is_regression(results):
        columns = [("RMSE", "rmse", 4, 1.0), ("NLL, nats", "nll", 4, 1.0)]
    else:
        columns = [
            ("Accuracy, %", "accuracy", 2, 100.0),
            ("NLL, nats", "nll", 4, 1.0),
            ("Brier", "brier", 4, 1.0),
            ("ECE", "ece", 4, 1.0),
        ]
    body = []
    for row in rows:
        cells = "".join(
            f"<td>{with_error(row.get(key), row.get(f'{key}_stderr'), digits, scale)}</td>"
            for _, key, digits, scale in columns
        )
        title = html.escape(mode_title(str(row.get("mode"))))
        body.append(f'<th scope="row">{title}</th>{cells}<td>{format_number(row.get("seconds"), 2)}</td>')
    return _table([_header_cells(["Prediction", *(title for title, *_ in columns), "Seconds"])], body, "modes")


def rate_table(decomposition: Mapping[str, Any]) -> str:
    """The rate of each stochastic layer: a table, or an empty string if there is none.

    Args:
        decomposition: The guide's `decomposition` in the record.

    Example:
        >>> rate_table({})
        ''
    """
    body = []
    for row in decomposition.get("rates") or []:
        method = str(row.get("method") or ABSENT).replace("monte carlo", "Monte Carlo")
        bounds = "the output" if row.get("cuts") else "its activations"
        body.append(
            f'<th scope="row"><code>{html.escape(str(row.get("layer")))}</code></th>'
            f"<td>{format_number(row.get('activations'), 0)}</td><td>{format_number(row.get('nats'), 2)}</td>"
            f"<td>{format_number(row.get('bits'), 2)}</td>"
            f'<td class="text">{html.escape(method)}</td><td class="text">{bounds}</td>'
        )
    heads = _header_cells(["Layer", "Activations", "Rate, nats an example", "Bits"])
    heads += '<th scope="col" class="text">By</th><th scope="col" class="text">Bounds the information in</th>'
    return _table([heads], body, "sites") if body else ""


def site_table(decomposition: Mapping[str, Any]) -> str:
    """The KL of one guide, one row per site, and its penalties.

    Args:
        decomposition: The guide's `decomposition` in the record.

    Returns:
        HTML; empty if there are no sites and penalties.

    Example:
        >>> "fc1.weight" in site_table({"kl": 3.0, "sites": [{"site": "fc1.weight", "kl": 3.0, "method": "exact"}]})
        True
    """
    body = []
    for site in decomposition.get("sites") or []:
        kl, weights = number(site.get("kl")), number(site.get("weights"))
        per_weight = kl / weights if kl is not None and weights else None
        error = site.get("stderr") if site.get("method") != "exact" else None
        method = str(site.get("method") or ABSENT).replace("monte carlo", "Monte Carlo")
        treatment = str(site.get("treatment") or ABSENT)
        body.append(
            f'<th scope="row"><code>{html.escape(str(site.get("site")))}</code></th>'
            f"<td>{format_number(weights, 0)}</td><td>{with_error(kl, error, 1)}</td>"
            f"<td>{format_number(per_weight, 3)}</td>"
            f'<td class="text">{html.escape(method)}</td><td class="text">{html.escape(treatment)}</td>'
        )
    penalty = decomposition.get("penalty")
    for name, value in penalty.items() if isinstance(penalty, Mapping) else ():
        body.append(
            f'<th scope="row"><code>{html.escape(str(name))}</code></th><td></td><td>{format_number(value, 1)}</td>'
            '<td></td><td class="text">penalty</td><td></td>'
        )
    heads = _header_cells(["Site", "Weights", "KL, nats", "KL per weight"])
    heads += '<th scope="col" class="text">KL method</th><th scope="col" class="text">Treatment</th>'
    return _table([heads], body, "sites") if body else ""
