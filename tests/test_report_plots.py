"""The figures of a report show the numbers of the record, change no global state, and become clean SVG."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import numpy as np
import pytest
from test_report_record import make_guide, make_record

from pyrostoch.report.plots import accuracy_by_samples, posterior, reliability, training
from pyrostoch.report.svg import inline_svg

DRAWINGS = {
    "training": lambda: training(make_record()),
    "samples": lambda: accuracy_by_samples(make_record()),
    "reliability": lambda: reliability(make_guide(1)),
    "posterior": lambda: posterior(make_guide(1)),
}


def test_training_draws_every_guide_in_every_term() -> None:
    record = make_record()
    figure = training(record)
    assert [axes.get_title() for axes in figure.axes] == ["ELBO", "Data term", "KL"]
    for axes, key in zip(figure.axes, ("elbo", "data", "kl"), strict=True):
        assert len(axes.lines) == 5
        for line, guide in zip(axes.lines, record["guides"], strict=True):
            np.testing.assert_array_equal(line.get_xdata(), guide["history"]["epoch"])
            np.testing.assert_array_equal(line.get_ydata(), guide["history"][key])
        assert len({line.get_color() for line in axes.lines}) == 5
        assert len({str(line._dash_pattern) for line in axes.lines}) == 5
        (warm_up,) = axes.patches
        assert warm_up.get_extents().transformed(axes.transData.inverted()).x1 == pytest.approx(9.0)
    assert figure.axes[0].get_ylabel() == "nats"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [guide["title"] for guide in record["guides"]] + ["KL warm-up"]


def test_training_axes_are_chosen_without_the_first_epochs() -> None:
    record = make_record(1)
    record["guides"][0]["history"] = {
        "epoch": list(range(1, 11)),
        "elbo": [-1e9, -1e6, *np.linspace(-100, -90, 8)],
        "data": [math.nan, None, "inf", *[-5.0] * 7],
        "kl": [1e9, 1e6, *np.geomspace(1e5, 10, 8)],
    }
    elbo, data, kl = training(record).axes
    assert elbo.get_yscale() == "linear" and elbo.get_ylim() == pytest.approx((-100.8, -89.2))
    assert np.isnan(data.lines[0].get_ydata()[:3]).all() and data.get_ylim()[0] < -5.0 < data.get_ylim()[1]
    assert kl.get_yscale() == "symlog" and kl.get_ylim()[1] == pytest.approx(1.15e5)
    assert not elbo.patches


def test_training_of_both_signs_is_linear_and_cuts_spikes_off() -> None:
    record = make_record(1)
    wave = 300.0 * np.sin(np.arange(100.0))
    spiky = wave.copy()
    spiky[[40, 60]] = -1e5, 1e4
    terms = {"elbo": spiky.tolist(), "data": wave.tolist(), "kl": [0.0] * 100}
    record["guides"][0]["history"] = {"epoch": list(range(1, 101)), **terms}
    elbo, data, _ = training(record).axes
    for axes in (elbo, data):
        assert axes.get_yscale() == "linear" and axes.get_ylim() == pytest.approx((-348, 348), rel=0.01)
        shown = [y for y in axes.get_yticks() if abs(y) < 348]
        assert 3 <= len(shown) <= 5 and 0.0 in shown
    assert [axes.get_title(loc="right") for axes in (elbo, data)] == ["spikes cut off", ""]


def test_training_with_nothing_finite_or_short_series() -> None:
    record = make_record(1)
    record["guides"][0]["history"] = {"epoch": [1, 2], "elbo": [math.nan, math.nan], "data": [-1.0], "kl": [0.0, 0.0]}
    figure = training(record)
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [-1.0, math.nan])
    inline_svg(figure, "a", "")


def test_reliability_draws_the_bins() -> None:
    guide = make_guide(0)
    # A bin is drawn only if it has a confidence and an accuracy.
    for empty in ("confidence", "accuracy"):
        bins = {"confidence": [0.2, 0.4, 0.8], "accuracy": [0.3, 0.5, 0.9], "count": [1, 1, 1]}
        bins[empty][1] = math.nan
        curve = reliability({"name": "a", "reliability": {"mean": bins}}).axes[0].lines[1]
        assert list(curve.get_xdata()) == [0.2, 0.8] and list(curve.get_ydata()) == [0.3, 0.9]
    figure = reliability(guide)
    tops, bottoms = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in tops] == ["mean", "20 samples"]
    for top, bottom, bins in zip(tops, bottoms, guide["reliability"].values(), strict=True):
        diagonal, curve = top.lines
        assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
        assert list(curve.get_xdata()) == [c for c in bins["confidence"] if c is not None]
        assert list(curve.get_ydata()) == [a for a in bins["accuracy"] if a is not None]
        assert [bar.get_height() for bar in bottom.patches] == bins["count"]
        centers = [bar.get_x() + bar.get_width() / 2 for bar in bottom.patches]
        assert centers == pytest.approx([(i + 0.5) / 15 for i in range(15)])


@pytest.mark.parametrize("regression, key", [(False, "accuracy"), (True, "nll")])
def test_samples_draw_scores_errors_and_the_mean(regression: bool, key: str) -> None:
    record = make_record(5, regression)
    figure = accuracy_by_samples(record)
    assert len(figure.axes) == 5
    for axes, guide in zip(figure.axes, record["guides"], strict=True):
        curve, dashed = axes.lines[0], axes.lines[-1]
        assert list(curve.get_xdata()) == [1, 2, 5, 10, 20]
        assert list(curve.get_ydata()) == guide["by_samples"][key]
        segments = axes.collections[0].get_segments()
        spans = [(low[1] + high[1]) / 2 for low, high in segments], [high[1] - low[1] for low, high in segments]
        assert spans[0] == pytest.approx(guide["by_samples"][key]) and spans[1] == pytest.approx([0.016] * 5)
        assert dashed.get_linestyle() == "--" and list(dashed.get_ydata()) == [guide["rows"][0][key]] * 2
        assert axes.get_title() == guide["title"]
    assert figure.axes[0].get_ylabel() == ("NLL, nats" if regression else "accuracy")


def test_samples_without_a_mean_or_errors() -> None:
    record = make_record(2)
    record["guides"][0]["rows"] = record["guides"][0]["rows"][1:]
    record["guides"][1]["by_samples"] = {"samples": [1, 2], "accuracy": [0.5, None], "stderr": [None, 0.1]}
    first, second = accuracy_by_samples(record).axes
    assert all(line.get_linestyle() != "--" for line in first.lines)
    np.testing.assert_array_equal(second.lines[0].get_ydata().astype(float), [0.5, math.nan])


def test_posterior_draws_the_histograms() -> None:
    guide = make_guide(1)
    figure = posterior(guide)
    assert len(figure.axes) == 3
    for axes, entry in zip(figure.axes, guide["posterior"], strict=True):
        data = axes.patches[0].get_data()
        assert data.values.tolist() == entry["counts"] and data.edges.tolist() == entry["edges"]
        assert axes.get_title() == entry["site"] and axes.get_xlabel() == "log α"
    guide["posterior"][0]["edges"] = [math.nan] * 41
    guide["posterior"][1]["counts"] = []
    assert [axes.get_title() for axes in posterior(guide).axes] == ["head.weight"]


EMPTY: dict[str, Any] = {"schema": 1, "kind": "train", "guides": [{"name": "bare"}]}


@pytest.mark.parametrize(
    "draw, record, message",
    [
        (training, EMPTY, "no guide of the record has a training history"),
        (accuracy_by_samples, EMPTY, "no guide of the record has scores by number"),
        (training, {"schema": 7}, "schema 7"),
        (accuracy_by_samples, {"schema": 7}, "schema 7"),
        (reliability, {"name": "bare"}, "'bare' has no reliability"),
        (posterior, {"name": "bare"}, "'bare' has no posterior"),
    ],
)
def test_missing_data_are_an_error(draw: Any, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(record)


@pytest.mark.parametrize("name", DRAWINGS)
def test_svg_is_clean(name: str) -> None:
    text = inline_svg(DRAWINGS[name](), "key", 'a "label"')
    assert text.startswith('<svg role="img" aria-label="a &quot;label&quot;"') and text.endswith("</svg>")
    assert 'viewBox="0 0 ' in text and "http" not in text and "DOCTYPE" not in text and "xlink" not in text
    assert "<style" not in text and "<metadata" not in text
    assert "#000000" not in text and "currentColor" in text
    known = set(re.findall(r'\bid="([^"]*)"', text))
    assert known and all(identifier.startswith("key-") for identifier in known)
    used = set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used and used <= known
    assert text == inline_svg(DRAWINGS[name](), "key", 'a "label"')


def test_names_are_shown_as_plain_text() -> None:
    record = make_record(2)
    record["guides"][0]["title"] = "costs $5 and $6 <b>& _more_"
    record["guides"][1]["title"] = "_hidden 漢字"
    assert training(record).legends[0].get_texts()[1].get_text() == "hidden 漢字"
    for figure in (training(record), accuracy_by_samples(record)):
        text = inline_svg(figure, "k", "")
        assert "costs $5 and $6 &lt;b&gt;&amp; _more_" in text and "hidden 漢字" in text


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_global_state_of_matplotlib_changes(name: str) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    inline_svg(DRAWINGS[name](), "key", "")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
