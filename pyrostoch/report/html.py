"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrostoch.guides.temperature import temperature_text
from pyrostoch.report import plots
from pyrostoch.report.audit_section import audit_content, audit_title
from pyrostoch.report.record import check, is_regression, mode_title, modes, number, row_of
from pyrostoch.report.style import CSS
from pyrostoch.report.svg import inline_svg
from pyrostoch.report.tables import comparison_table, format_number, mode_table, rate_table, site_table
from pyrostoch.report.words import words_list
from pyrostoch.safefile import made_folders, temporary_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["render", "write"]

# Differences between mean weights and averaging that are larger than the noise of any test set of useful size: of the
# accuracy, and as a ratio of the RMSE.
ACCURACY_GAP = 0.1
RMSE_RATIO = 2.0


def render(results: Mapping[str, Any]) -> str:
    """The report as an HTML page that contains its style sheet and figures, and loads no other files.

    Parts that the record lacks are left out; NaN and infinite numbers are shown as such.

    Args:
        results: The record read from `results.json` (schema 1, kind `compare` or `train`), with the content of audits'
            files in a list `audits`, if there are some.

    Returns:
        The page.

    Raises:
        ValueError: The schema or kind is unknown, or there is no guide.

    Example:
        >>> guide = {"name": "additive", "rows": [{"mode": "mean", "accuracy": 0.5}]}
        >>> render({"schema": 1, "kind": "train", "guides": [guide]})[:15]
        '<!DOCTYPE html>'
    """
    check(results)
    guides = results["guides"]
    title = _page_title(results)
    parts = [_head(results, title), _comparison(results)]
    if any((guide.get("history") or {}).get("epoch") for guide in guides):
        parts.append(
            _section(
                "training",
                "Training",
                "The ELBO is the data term minus the KL. All three are sums over the whole training set, in nats. The "
                "axes are chosen without the first fifth of the epochs, and without the spikes where a panel says that "
                "they are cut off.",
                _plot(plots.training, results, "training", "The ELBO, its data term and its KL over the epochs"),
            )
        )
    if any((guide.get("by_samples") or {}).get("samples") for guide in guides):
        score = "NLL" if is_regression(results) else "accuracy"
        parts.append(
            _section(
                "samples",
                f"{score[0].upper()}{score[1:]} against the number of samples",
                f"Test {score} of predictions averaged over draws of the weights, with one standard error. The dashed "
                "line is the network with every weight at its mean. Each panel has its own scale.",
                _plot(plots.accuracy_by_samples, results, "samples", f"Test {score} against the number of samples"),
            )
        )
    parts += [_guide(results, guide, i) for i, guide in enumerate(guides)]
    for i, saved in enumerate(results.get("audits") or []):
        parts.append(_section(f"audit-{i}", audit_title(saved), "", audit_content(saved, f"audit-{i}-pictures")))
    text = "The pages are those of the documentation of pyrostoch."
    parts += [_section("words", "What the words mean", text, words_list(results)), _footer(results)]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def write(results: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the report atomically: after a failure, an existing file is unchanged.

    Args:
        results: The record read from `results.json`.
        path: The file to write; its folder is created if missing.

    Returns:
        The path.

    Raises:
        ValueError: The schema or kind of the record is unknown, or there is no guide.
        OSError: The folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write({"schema": 1, "kind": "train", "guides": [{"name": "additive"}]}, folder + "/report.html")
        ...     path.read_text(encoding="utf-8")[:15]
        '<!DOCTYPE html>'
    """
    path = Path(path)
    page = render(results)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = temporary_name(path)
    with made_folders(path.parent):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _page_title(results: Mapping[str, Any]) -> str:
    data = results.get("data") or {}
    name = str(data.get("title") or data.get("name") or "a data set")
    guides = results["guides"]
    if len(guides) == 1:
        return f"{guides[0].get('title') or guides[0]['name']} on {name}"
    return f"{len(guides)} guides on {name}"


def _head(results: Mapping[str, Any], title: str) -> str:
    data, model = results.get("data") or {}, results.get("model") or {}
    task = str(data.get("task") or "")
    if task == "classification" and data.get("classes"):
        task = f"{data['classes']} classes"
    sizes = [f"{format_number(data[key], 0)} {key}" for key in ("train", "test") if key in data]
    random = ", ".join(f"<code>{escape(str(name))}</code>" for name in model.get("random") or [])
    epochs = "{} epochs for each of two steps" if _settings(results, "conditional") else "{} epochs"
    parameters = f"{format_number(model['parameters'], 0)} parameters" if "parameters" in model else ""
    rows = {
        "Data": [escape(str(data.get("title") or data.get("name") or "")), *sizes, escape(task)],
        "Network": [escape(str(model.get("name") or "")), escape(str(model.get("description") or "")), parameters],
        "Random": [random],
        "Layers": _layers(results),
        "Prior": [escape(str((results.get("prior") or {}).get("text") or ""))],
        "Estimator": [escape(str(results.get("estimator") or ""))],
        "Training": [
            text.format(escape(str(results[key])))
            for key, text in (("epochs", epochs), ("batch_size", "batches of {}"))
            if key in results
        ],
    }
    joined = ((name, ", ".join(part for part in values if part)) for name, values in rows.items())
    listing = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in joined if value)
    command = f'<p class="command"><code>{escape(str(results["command"]))}</code></p>' if results.get("command") else ""
    guides = [str(guide.get("title") or guide["name"]) for guide in results["guides"]]
    targets = {f"guide-{i}": name for i, name in enumerate(guides)} if len(guides) > 1 else {}
    targets |= {f"audit-{i}": audit_title(saved) for i, saved in enumerate(results.get("audits") or [])}
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in targets.items())
    nav = f"<nav>{links}</nav>" if links else ""
    return f"<header><h1>{escape(title)}</h1>{command}<dl>{listing}</dl>{nav}</header>"


def _settings(results: Mapping[str, Any], name: str) -> Any:
    return (results.get("config") or {}).get(name)


def _layers(results: Mapping[str, Any]) -> list[str]:
    """What is stochastic or conditional in the network."""
    stochastic, conditional = (escape(str(_settings(results, k) or "")) for k in ("stochastic", "conditional"))
    found = []
    if stochastic:
        weight = format_number(_settings(results, "rate_weight"), 4)
        found.append(f"<code>{stochastic}</code> stochastic, weight of the rate {weight}")
    if conditional:
        found.append(
            f"<code>{conditional}</code> conditional on the class: trained with known labels first, then with a gate "
            "for unknown labels, with which all scores are made; the curves are those of the second step"
        )
    return found


def _section(key: str, title: str, text: str, *content: str) -> str:
    text = f"<p>{text}</p>" if text else ""
    return f'<section id="{key}"><h2>{escape(title)}</h2>\n{text}\n{"".join(content)}</section>'


def _plot(draw: Callable[[Any], Figure], record: Mapping[str, Any], key: str, label: str) -> str:
    return f'<div class="scroll" tabindex="0">{inline_svg(draw(record), key, label)}</div>'


def _comparison(results: Mapping[str, Any]) -> str:
    used = modes(results)
    several = len(results["guides"]) > 1
    text = (
        "ELBO, data term and KL are sums over the whole training set; a higher ELBO is better, among guides with the "
        "same prior. Test scores are for the network with every weight at its mean (mean), for means and variances "
        "propagated through the network (moments), or for predictions averaged over draws of the weights (samples)."
    )
    if _settings(results, "stochastic"):
        text += " Draws are those of the activations, too; the ELBO is the data term less KL and rate."
    text += " The best value of a column is bold." if several else ""
    if is_regression(results) and (results.get("data") or {}).get("standardized", True):
        text += (
            " The ELBO and its data term are those of the standardized target; RMSE and NLL are in the target's "
            "original units, so they cannot be compared with the data term."
        )
    content = [comparison_table(results)]
    if _improper(results):
        content.append(
            '<p class="note"><strong>The prior is improper.</strong> It has no normalizing constant, so the ELBO is '
            "defined up to a constant per weight. Compare it only between guides with the same random weights and the "
            "same prior, not between networks or priors, and do not read it as a bound on the evidence.</p>"
        )
    if any((guide.get("decomposition") or {}).get("pseudo") for guide in results["guides"]):
        content.append(
            '<p class="note"><strong>The likelihood is a pseudo-likelihood,</strong> as losses and weights make it: '
            "the posterior is not that of the data, and the ELBO is no bound of the evidence.</p>"
        )
    content += [
        f'<p class="note"><strong>{escape(str(guide.get("title") or guide["name"]))} was '
        f"{temperature_text(tuple(trained))},</strong> where it maximizes no ELBO: a cold or warm posterior.</p>"
        for guide in results["guides"]
        if (trained := (guide.get("decomposition") or {}).get("temperatures"))
    ]
    content += [
        f"<p>{escape(str(guide.get('title') or guide['name']))} has no scores by moments: "
        f"{escape(str(guide['without_moments']))}.</p>"
        for guide in results["guides"]
        if guide.get("without_moments")
    ]
    content += _variance_notes(results, used)
    return _section("comparison", "Comparison" if several else "Result", text, *content)


def _improper(results: Mapping[str, Any]) -> bool:
    parts = [results.get("prior") or {}, *(guide.get("decomposition") or {} for guide in results["guides"])]
    return any(part.get("improper") for part in parts)


def _variance_notes(results: Mapping[str, Any], used: list[str]) -> list[str]:
    """A sentence for each guide that scores much worse with mean weights than with averaged predictions."""
    averaged = next((mode for mode in reversed(used) if mode.startswith("mc")), None)
    if averaged is None:
        return []
    regression, notes = is_regression(results), []
    classes = number((results.get("data") or {}).get("classes"))
    for guide in results["guides"]:
        mean, average = (number(row_of(guide, m).get("rmse" if regression else "accuracy")) for m in ("mean", averaged))
        if mean is None or average is None:
            continue
        if not (mean > RMSE_RATIO * average if regression else average - mean > ACCURACY_GAP):
            continue
        chance = f" (chance is {format_number(1 / classes, 1, 100.0)} %)" if classes else ""
        if regression:
            first, last = f"an RMSE of {format_number(mean, 4)}", format_number(average, 4)
        else:
            first, last = f"{format_number(mean, 1, 100.0)} %", f"{format_number(average, 1, 100.0)} %"
        notes.append(
            f"<p><strong>{escape(str(guide.get('title') or guide['name']))}</strong> scores {first} with mean "
            f"weights{chance} and {last} with {escape(mode_title(averaged))}: what it has learned is in the variances "
            "of its weights, not in their means.</p>"
        )
    return notes


def _guide(results: Mapping[str, Any], guide: Mapping[str, Any], index: int) -> str:
    key = f"guide-{index}"
    decomposition = guide.get("decomposition") or {}
    text = []
    if decomposition:
        text.append(
            f"ELBO {format_number(decomposition.get('elbo'), 1)} nats = data term "
            f"{format_number(decomposition.get('data'), 1)} − KL {format_number(decomposition.get('kl'), 1)}"
            + (f" − rate {format_number(decomposition['rate'], 1)}" if decomposition.get("rates") else "")
            + (f" over {format_number(decomposition['num_data'], 0)} examples" if "num_data" in decomposition else "")
            + "."
        )
    if guide.get("checkpoint"):
        text.append(f"Checkpoint: <code>{escape(str(guide['checkpoint']))}</code>.")
    content = []
    if scores := mode_table(results, guide):
        content.append(f"<h3>Test scores by predictive mode</h3>{scores}")
    if rates := rate_table(decomposition):
        content.append(f"<h3>Rate by stochastic layer</h3>{rates}")
    if sites := site_table(decomposition):
        estimator = escape(str(results.get("estimator") or ""))
        trained = f" Training used the estimator <code>{estimator}</code>." if estimator else ""
        content.append(
            "<h3>KL by site</h3><p>An exact KL is in closed form; a Monte Carlo estimate has a standard error. The "
            "treatment is how the weights were sampled when the terms above were estimated after training: local "
            "means by local reparameterization, which samples the outputs of the layer for each example, where this "
            "is exact; shared means one draw of the weights for all examples."
            f"{trained}</p>{sites}"
        )
    if guide.get("reliability"):
        content.append(
            "<h3>Calibration</h3><p>For points on the diagonal, the accuracy equals the confidence; below it the "
            "network is overconfident. The lower panels show the number of test examples per bin, on a logarithmic "
            "scale.</p>" + _plot(plots.reliability, guide, f"{key}-reliability", "Accuracy against confidence")
        )
    if plots.histograms(guide):
        content.append(
            "<h3>Posterior noise by layer</h3><p>α is the ratio of a weight's variance to its squared mean, σ its "
            "standard deviation; logarithms are natural.</p>"
            + _plot(plots.posterior, guide, f"{key}-posterior", "Histograms of the posterior noise by layer")
        )
    return _section(key, str(guide.get("title") or guide["name"]), " ".join(text), *content)


def _footer(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    parts = [str(results[key]) for key in ("date",) if results.get(key)]
    parts += [versions] if versions else []
    parts += [f"device {results['device']}"] if results.get("device") else []
    parts += [f"seed {results['seed']}"] if results.get("seed") is not None else []
    text = " · ".join(map(escape, parts))
    if number(results.get("seconds")) is not None:
        text += f" · {format_number(results['seconds'], 1)} s in all"
    return f"<footer>{text}</footer>"
