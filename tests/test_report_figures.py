"""The figures of the benchmarks show their numbers, have gaps at missing values, and change no global state."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pyrostoch.report.figures import phase_transition, toy
from pyrostoch.report.plots import COLORS


def make_toy(classes: int = 4) -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(classes).repeat(90)
    axis = np.linspace(-1.0, 14.0, 16)
    label = np.add.outer(2 * (axis > 6), axis > 6) % classes
    widths = 10.0 ** np.arange(-2, classes - 2)
    return SimpleNamespace(
        x=rng.normal(size=(90 * classes, 2)) + 3.0,
        y=y,
        axis=axis,
        by_mean=SimpleNamespace(label=np.full((16, 16), 1), confidence=np.full((16, 16), 1 / classes)),
        by_averaging=SimpleNamespace(label=label, confidence=np.where(label == 0, 1.0, 0.5)),
        activations=rng.normal(size=(3, 90 * classes, 2)) * widths[y][None, :, None],
        accuracy={"mean": 1 / classes, "mc:1": 0.875, "mc:101": 0.997},
    )


def make_curve(label: str = "layer", epochs: int = 6, **changes: Any) -> dict[str, Any]:
    decay = [2.0**-i for i in range(epochs)]
    curve = {
        "label": label,
        "epoch": list(range(1, epochs + 1)),
        "accuracy/mean": [0.1 + 0.8 * d for d in decay],
        "accuracy/mc:20": [0.9] * epochs,
        "log_alpha": [float(i) for i in range(epochs)],
        "log_alpha/lower": [i - 1.0 for i in range(epochs)],
        "log_alpha/upper": [i + 2.0 for i in range(epochs)],
        "kl": [100.0 * d for d in decay],
    }
    return {**curve, **changes}


def labels_of(legend: Any) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def render(figure: Figure) -> None:
    """Lay out and draw the figure as for saving it; warnings are errors."""
    figure.canvas.draw()


def test_toy_shows_regions_points_and_clouds() -> None:
    result = make_toy()
    figure = toy(result)
    mean, averaged, clouds, bar = figure.axes
    assert mean.get_title() == "Mean weights: accuracy 25.0 %"
    assert averaged.get_title() == "101 samples averaged: accuracy 99.7 %"
    assert bar.get_ylabel() == "confidence" and bar.get_ylim() == (0.25, 1.0)
    assert labels_of(figure.legends[0]) == [f"class {i}" for i in range(4)]
    for axes in (mean, averaged):
        assert len(axes.collections) == 4
        for label, points in enumerate(axes.collections):
            np.testing.assert_array_equal(points.get_offsets(), result.x[result.y == label][:60])
            assert tuple(points.get_facecolors()[0][:3]) == pytest.approx(to_rgb(COLORS[label]))
        assert axes.get_xlim() == axes.get_ylim() == (-1.0, 14.0)
    drawn = {tuple(np.round(cloud.get_facecolors()[0][:3], 3)): cloud for cloud in clouds.collections}
    for label in range(4):
        cloud = drawn[tuple(np.round(to_rgb(COLORS[label]), 3))]
        np.testing.assert_array_equal(cloud.get_offsets(), result.activations[:, result.y == label].reshape(-1, 2))
    assert len({points.get_paths()[0].vertices.tobytes() for points in mean.collections}) == 4  # markers
    render(figure)


def test_toy_shades_by_confidence() -> None:
    result = make_toy()
    mean, averaged = (axes.images[0].get_array() for axes in toy(result).axes[:2])
    # A guess is nearly white, and full confidence nearly the color of the class.
    np.testing.assert_allclose(mean, np.broadcast_to(1 - 0.06 * (1 - np.array(to_rgb(COLORS[1]))), mean.shape))
    np.testing.assert_allclose(averaged[0, 0], 1 - 0.7 * (1 - np.array(to_rgb(COLORS[0]))))
    unsure = 0.06 + 0.64 * (0.5 - 0.25) / 0.75
    np.testing.assert_allclose(averaged[-1, 0], 1 - unsure * (1 - np.array(to_rgb(COLORS[2]))))
    image = toy(result).axes[0].images[0]
    assert image.origin == "lower" and image.get_extent() == [-1.5, 14.5, -1.5, 14.5]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("classes", [2, 4])
def test_toy_clouds_lie_within_a_symmetric_frame(scale: float, classes: int) -> None:
    result = make_toy(classes)
    result.activations *= scale
    figure = toy(result)
    clouds = figure.axes[2]
    for limits, ticks in ((clouds.get_xlim(), clouds.get_xticks()), (clouds.get_ylim(), clouds.get_yticks())):
        assert limits[0] == -limits[1] and limits[1] > np.abs(result.activations).max()
        assert 3 <= len(ticks) <= 7 and list(ticks) == sorted(ticks) == [-tick for tick in ticks[::-1]]
        assert all(abs(tick) <= limits[1] for tick in ticks)
    # Narrower clouds are drawn on top of wider ones.
    sizes = [np.median(np.abs(np.asarray(cloud.get_offsets()))) for cloud in clouds.collections]
    assert sizes == sorted(sizes, reverse=True)
    render(figure)
    boxes = [text.get_window_extent() for text in clouds.get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[1:], strict=False))


def test_toy_with_zero_activations_is_drawn() -> None:
    result = make_toy()
    result.activations[:] = 0.0
    render(toy(result))


def test_transition_draws_every_series_in_three_panels() -> None:
    curves = [make_curve("layer"), make_curve("neuron", 4), make_curve("costs $5 and $6", 3)]
    figure = phase_transition(curves)
    accuracy, alpha, kl = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["Accuracy", "log α (band: quartiles)", "KL"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "log α", "nats"]
    assert kl.get_yscale() == "log" and alpha.get_yscale() == accuracy.get_yscale() == "linear"
    chance = accuracy.lines[-1]
    assert list(chance.get_ydata()) == [0.1, 0.1] and chance.get_linestyle() == ":"
    for index, curve in enumerate(curves):
        mean, averaged = accuracy.lines[2 * index : 2 * index + 2]
        pairs = [
            (mean, "accuracy/mean"),
            (averaged, "accuracy/mc:20"),
            (alpha.lines[index], "log_alpha"),
            (kl.lines[index], "kl"),
        ]
        for line, key in pairs:
            assert list(line.get_xdata()) == curve["epoch"] and list(line.get_ydata()) == curve[key]
            assert line.get_color() == COLORS[index]
        assert mean.get_linestyle() == "-" and averaged.get_linestyle() == "--"
        band = alpha.collections[index].get_paths()[0].vertices
        assert band[:, 1].min() == -1.0 and band[:, 1].max() == curve["log_alpha/upper"][-1]
    assert len({line.get_marker() for line in kl.lines}) == 3
    assert {tuple(labels_of(legend)) for legend in figure.legends} == {
        ("layer", "neuron", "costs $5 and $6"),
        ("accuracy by mean weights", "by 20 samples averaged", "chance"),
    }
    assert not any(text.get_parse_math() for legend in figure.legends[1:] for text in legend.get_texts())
    render(figure)


def test_transition_has_gaps_where_values_are_missing() -> None:
    values = [5.0, 4.0, None, None, "nan", 2.0, 1.0, 0.0, -3.0]
    curve = make_curve(epochs=9, kl=values)
    (line,) = phase_transition([curve]).axes[2].lines
    # Zero and negative values are not drawn on a logarithmic axis.
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 6, 7])
    np.testing.assert_array_equal(line.get_ydata(), [5.0, 4.0, math.nan, 2.0, 1.0])


def test_transition_joins_points_measured_every_few_epochs() -> None:
    sparse = [1.0, 0.9, None, 0.8, None, 0.7, None, None, None, 0.6, None, 0.5]
    line = phase_transition([make_curve(epochs=12, **{"accuracy/mean": sparse})]).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 6, 8, 10, 12])
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 0.9, 0.8, 0.7, math.nan, 0.6, 0.5])


def test_transition_without_some_quantities() -> None:
    bare = {"label": "variance only", "epoch": [1, 2], "accuracy/mean": [0.2, 0.1], "kl": [0.0, 0.0]}
    figure = phase_transition([bare], chance=None)
    accuracy, alpha, kl = figure.axes
    assert len(accuracy.lines) == 1 and not alpha.collections
    assert all(len(line.get_xdata()) == 0 for line in (*alpha.lines, *kl.lines))
    assert sorted(text for legend in figure.legends for text in labels_of(legend)) == [
        "accuracy by mean weights",
        "variance only",
    ]
    render(figure)
    point = make_curve(epochs=1, **{"log_alpha/lower": [0.0], "log_alpha/upper": [0.0]})
    assert not phase_transition([point]).axes[1].collections  # one alpha per layer has no range


@pytest.mark.parametrize(
    "curves, message",
    [
        ([], "at least one curve"),
        ([make_curve(kl=[1.0])], "curve 'layer': expected a value of 'kl' for each of its 6 epochs, got 1"),
    ],
)
def test_missing_curves_are_an_error(curves: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phase_transition(curves)


@pytest.mark.parametrize("draw", [lambda: toy(make_toy()), lambda: phase_transition([make_curve()])])
def test_no_global_state_of_matplotlib_changes(draw: Any) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(draw())
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
