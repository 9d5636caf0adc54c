"""The part of a report that holds the audits of a run: the answer alone, then attackers, bounds and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pyrostoch.records import number as text_of
from pyrostoch.report.audit_pictures import audit_pictures
from pyrostoch.report.record import number
from pyrostoch.report.svg import inline_svg
from pyrostoch.report.tables import data_table, format_number, with_error

__all__ = ["audit_content", "audit_title"]


def audit_title(saved: Mapping[str, Any]) -> str:
    """The heading of an audit.

    Args:
        saved: The content of its file.

    Example:
        >>> audit_title({"guide": "additive", "audit": {"at": ["fc1"]}})
        'Audit of what is sent at fc1, by additive'
    """
    return f"Audit of what is sent at {', '.join(map(str, saved['audit'].get('at') or []))}, by {saved.get('guide')}"


def audit_content(saved: Mapping[str, Any], key: str) -> str:
    """An audit as HTML: what the answer alone allows, what attackers read, bounds and pictures.

    Args:
        saved: The content of its file.
        key: Letters and digits, unique in the page.

    Example:
        >>> "The client might send its answer" in audit_content({"audit": {"at": ["fc1"], "attacks": []}}, "audit-0")
        True
    """
    found = saved["audit"]
    attacks = found.get("attacks") or []
    content = [f'<p class="note"><strong>{escape(warning)}</strong></p>' for warning in _warnings(found)]
    content += [_answer(found, attacks)]
    if attacks:
        content += ["<h3>What attackers read</h3>", _attack_table(attacks), _verdicts(attacks)]
    content += [
        f"<h3>Bounds</h3>{_list(_bounds(found))}",
        _list([f"Not made: {why}." for why in _texts(found, "skipped")]),
    ]
    if found.get("pictures"):
        label = "Images, what was sent of them, and what attackers make of it"
        figure = inline_svg(audit_pictures(found), key, label)
        content.append(f'<h3>Pictures</h3><p>{_UNDER_PICTURES}</p><div class="scroll" tabindex="0">{figure}</div>')
    return "".join([*content, _made_by(saved)])


_UNDER_PICTURES = (
    "Some test examples, what was sent of them, and the images that attackers take for the originals. What looks like "
    "noise may still tell the private attributes: the table says what is read."
)


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """What is said before all else."""
    parts = []
    if found.get("labels"):
        parts.append("The client knows the label and chooses the noise by it: which noise was chosen may tell it.")
    if found.get("keyed"):
        parts.append("Noise is fixed by a secret key: queries after the first one are of inputs near each example.")
    if not found.get("noisy", True):
        parts.append("Two queries of the same examples sent the same: what is sent has no noise.")
    if weights := _texts(found, "weights"):
        parts.append(
            f"Weights are random ({', '.join(weights)}): a query draws them once for all examples, and standard errors "
            "are those over examples alone."
        )
    return parts


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    return [str(value) for value in found.get(key) or []]


def _answer(found: Mapping[str, Any], attacks: Sequence[Mapping[str, Any]]) -> str:
    """The simplest thing that the client could do."""
    task = found.get("task") or {}
    right = " ± ".join(format_number(task.get(part), 2, 100.0) for part in ("value", "stderr"))
    text = (
        f"The client might send its answer alone, which is right for {right} % of the test examples. As it is, it "
        f"makes {format_number(found.get('share'), 1, 100.0)} % of all multiplications: where that is most of them, it "
        "might as well make the rest. This is what the answer tells:"
    )
    rows = {str(a.get("attack")): a for a in attacks}
    body = [
        f'<th scope="row">{escape(name)}, {escape(str(a.get("unit")))}</th>'
        + "".join(f"<td>{_score(a, a.get(guess))}</td>" for guess in ("label", "blind"))
        for name, a in rows.items()
    ]
    table = data_table(["Attack", "Guess by the answer", "Guess by nothing"], body, "baseline") if body else ""
    return f"<h3>The answer alone</h3><p>{text}</p>{table}"


def _score(attack: Mapping[str, Any], value: Any) -> str:
    """A score in the unit of an attack; squared errors may be tiny."""
    return format_number(value, 2) if "%" in str(attack.get("unit")) else text_of(number(value))


def _attack_table(attacks: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for a in attacks:
        score, told = a.get("score") or {}, a.get("information") or {}
        cells = [
            format_number(a.get("queries"), 0),
            f'{_score(a, score.get("value"))}<span class="err">± {_score(a, score.get("stderr"))}</span>',
            _score(a, a.get("label")),
            _score(a, (a.get("strength") or {}).get("score")),
            format_number(a.get("psnr"), 2),
            format_number(a.get("ssim"), 4),
            with_error(told.get("value"), told.get("stderr"), 4),
        ]
        name = f"{a.get('attack')}, {a.get('unit')}"
        body.append(f'<th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells))
    heads = ["Attack", "Queries", "Score", "By the answer", "Without noise", "PSNR, dB", "SSIM", "Told, nats"]
    return data_table(heads, body, "attacks")


def _verdicts(attacks: Sequence[Mapping[str, Any]]) -> str:
    return _list([f"{a.get('attack')}, {_queries(a.get('queries'))}: {a.get('verdict')}." for a in attacks])


def _queries(count: Any) -> str:
    return "one query" if count == 1 else f"mean of {count} queries"


def _bounds(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if least := found.get("least"):
        lines.append(
            f"A query tells at least {_estimate(least)} nats of an example (InfoNCE, never above log 100 = 4.6)."
        )
    if rate := found.get("rate"):
        what = "an example and its label" if rate.get("with_labels") else "an example"
        lines.append(
            f"A query tells at most {_estimate(rate.get('rate') or {})} nats of {what}; m: "
            f"{'; '.join(_texts(rate, 'marginals'))}."
        )
    if error := found.get("reconstruction"):
        lines.append(f"Unbiased reconstructions of one query have a mean squared error of at least {_estimate(error)}.")
    if reason := found.get("no_bound"):
        lines.append(f"No bound: {reason}.")
    return lines


def _estimate(value: Mapping[str, Any]) -> str:
    return " ± ".join(text_of(number(value.get(part))) for part in ("value", "stderr"))


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _made_by(saved: Mapping[str, Any]) -> str:
    """Settings and time, in one line."""
    settings = dict(saved.get("settings") or {})
    settings["queries"] = ", ".join(map(str, settings.get("queries") or []))
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if name != "labels"]
    parts += [f"{format_number(saved['seconds'], 1)} s"] if "seconds" in saved else []
    return f"<p>{escape('; '.join(parts))}</p>" if settings["queries"] else ""
