"""An audit in a report: its tables, warnings and bounds, and the figure of its pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from test_report_html import Page
from test_report_record import make_record

from pyrostoch.report import audit_pictures, render


def estimate(value: Any, stderr: Any = 0.01) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "count": 100}


def attack(name: str, queries: int, score: Any, unit: str = "mean squared error", **more: Any) -> dict[str, Any]:
    row = {"attack": name, "unit": unit, "queries": queries, "score": estimate(score), "label": 0.05, "blind": 0.07}
    row |= {"psnr": None, "ssim": None, "information": None, "verdict": "reads no more than the label tells"}
    return row | {"strength": {"score": 6.7e-6, "longer": 0.0, "enough": True}} | more


def images(count: int, *shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((count, *shape)).tolist()


def make_audit(**more: Any) -> dict[str, Any]:
    found = {
        "at": ["conv1", "<b>"],
        "labels": False,
        "share": 0.25,
        "task": estimate(0.9512),
        "attacks": [
            attack("reconstruction", 1, 0.0123, psnr=19.1, ssim=0.5),
            attack("reconstruction", 100, "nan", psnr="inf", ssim=0.9),
            attack("a <digit>", 1, 61.25, "right %", label=21.6, blind=11.0, information=estimate(1.25)),
        ],
        "rate": {"rate": estimate(12.5), "marginals": ["normal, <x>"], "with_labels": False},
        "reconstruction": estimate(0.25),
        "no_bound": "",
        "examples": 360,
        "skipped": ["attacks by optimization: not asked for"],
        "keyed": False,
        "least": estimate(2.5),
        "noisy": True,
        "weights": [],
        "pictures": {
            "low": 0.0,
            "high": 1.0,
            "originals": images(2, 1, 4, 4),
            "sent": {"1": images(2, 5, 3, 3), "100": images(2, 5, 3, 3)},
            "found": {"reconstruction": {"1": images(2, 1, 4, 4), "10": images(2, 1, 4, 4), "100": images(2, 1, 4, 4)}},
        },
    }
    return {"schema": 1, "guide": "additive", "seconds": 12.0, "settings": {"queries": [1, 100]}, "audit": found | more}


def page_of(**more: Any) -> Page:
    return Page(render({**make_record(1), "audits": [make_audit(), make_audit(**more)]}))


def test_the_page_has_the_answer_first_then_attackers_bounds_and_pictures() -> None:
    page = page_of()
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"][-3:] == ["audit-0", "audit-1", "words"]
    words = page.words[page.words.rindex("Audit of what is sent at conv1, <b>, by additive") :]
    told = [
        "right for 95.12 ± 1.00 % of the test examples",
        "makes 25.0 % of all multiplications",
        "What attackers read",
        "reconstruction, mean of 100 queries: reads no more than the label tells.",
        "A query tells at least 2.5000 ± 0.0100 nats of an example",
        "A query tells at most 12.5000 ± 0.0100 nats of an example; m: normal, <x>.",
        "mean squared error of at least 0.2500 ± 0.0100",
        "Not made: attacks by optimization: not asked for.",
        "Pictures",
        "queries 1, 100; 12.0 s",
    ]
    places = [words.index(part) for part in told]
    assert places == sorted(places)
    assert page.tables["baseline"][:3] == [
        ["Attack", "Guess by the answer", "Guess by nothing"],
        ["reconstruction, mean squared error", "0.0500", "0.0700"],
        ["a <digit>, right %", "21.60", "11.00"],
    ]
    assert page.tables["attacks"][1:4] == [
        ["reconstruction, mean squared error", "1", "0.0123± 0.0100", "0.0500", "6.7e-06", "19.10", "0.5000", "–"],
        ["reconstruction, mean squared error", "100", "nan± 0.0100", "0.0500", "6.7e-06", "∞", "0.9000", "–"],
        ["a <digit>, right %", "1", "61.25± 0.01", "21.60", "0.00", "–", "–", "1.2500± 0.0100"],
    ]
    assert "Audit" in page.words[page.words.index("What the words mean") :]


def test_identifiers_are_unique_and_nothing_is_loaded() -> None:
    page = page_of()
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    sources = [str(attrs["xlink:href"]) for tag, attrs in page.tags if tag == "image"]
    assert len(sources) == 2 * 6 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_warnings_stand_first() -> None:
    more = {"labels": True, "keyed": True, "noisy": False, "weights": ["fc1.weight"], "rate": None, "least": None}
    words = page_of(**more, no_bound="none here", pictures=None, reconstruction=None).words
    part = words[words.rindex("Audit of what is sent at") :]
    told = [
        "The client knows the label",
        "Noise is fixed by a secret key",
        "what is sent has no noise",
        "Weights are random (fc1.weight)",
        "The answer alone",
        "No bound: none here.",
    ]
    places = [part.index(text) for text in told]
    assert places == sorted(places)
    assert "Pictures" not in part and "A query tells" not in part
    plain = page_of().words
    assert not any(text in plain for text in (*told[:4], told[5]))


def pixels(figure: Any, index: int) -> NDArray[Any]:
    (picture,) = figure.axes[index].images
    return np.asarray(picture.get_array())


def test_the_figure_has_the_images_themselves() -> None:
    record = make_audit()["audit"]
    figure = audit_pictures(record)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["one query", "mean of 100 queries"]
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[::2] == ["original", "sent,\nown gray scale", "reconstruction"] and not any(labels[1::2])
    shown = pixels(figure, 0)
    assert shown.shape == (4, 2 * (4 + 1), 4)
    originals = np.asarray(record["pictures"]["originals"])
    assert np.array_equal(shown[:, :4, 0], (255 * originals[0, 0]).round())
    assert np.array_equal(shown[:, 5:9, 2], (255 * originals[1, 0]).round())
    assert (shown[:, :4, 3] == 255).all() and (shown[:, 4, 3] == 0).all()
    # Five channels are tiles of three by two, with lines of nothing between them; the last tile is empty.
    tiles, sent = pixels(figure, 2), np.asarray(record["pictures"]["sent"]["1"])
    low, high = np.quantile(sent, (0.01, 0.99))
    scaled = (255 * ((sent - low) / (high - low)).clip(0, 1)).round()
    assert tiles.shape == (7, 2 * (11 + 1), 4)
    assert np.array_equal(tiles[:3, :3, 0], scaled[0, 0]) and np.array_equal(tiles[4:, 4:7, 0], scaled[0, 4])
    assert np.array_equal(tiles[:3, 20:23, 0], scaled[1, 2])
    assert not tiles[3, :, 3].any() and not tiles[:, 3, 3].any() and not tiles[4:, 8:11, 3].any()


def test_colors_other_scales_and_numbers_that_are_not_finite() -> None:
    originals = 200.0 * np.asarray(images(2, 3, 4, 4)) - 100.0
    sent = originals.tolist()
    sent[0][0][0][0] = "nan"
    pictures = {"low": -100.0, "high": 100.0, "originals": originals.tolist(), "sent": {"1": sent}, "found": {}}
    figure = audit_pictures({"pictures": pictures})
    assert len(figure.axes) == 2
    expected = (255 * (originals[1] + 100.0) / 200.0).round().transpose(1, 2, 0)
    assert np.array_equal(pixels(figure, 0)[:, 5:9, :3], expected)
    assert pixels(figure, 1).shape == pixels(figure, 0).shape  # in colors, since it has the shape of the images


def test_rows_without_pictures_are_empty_and_a_figure_may_be_given() -> None:
    record = make_audit()["audit"]
    record["pictures"]["found"]["search"] = {"1": images(1, 1, 4, 4)}
    given = plt.figure()
    figure = audit_pictures(record, given)
    assert figure is given
    assert [len(axes.images) for axes in figure.axes[-2:]] == [1, 0]
    with pytest.raises(ValueError, match="the audit has no pictures"):
        audit_pictures({"pictures": None})
