"""The HTML report: its tables and sections, its escaping, that it loads nothing, and its atomic writing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report_record import make_record

from pyrostoch.report import html, render, write
from pyrostoch.report.tables import comparison_table, format_number, mode_table, site_table

BARE: dict[str, Any] = {"schema": 1, "kind": "train", "guides": [{"name": "bare"}]}
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects tags, attributes, text and the cells of all tables; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            name = dict(attrs)["class"] or ""
            self._rows = self.tables.setdefault(name, [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"unbalanced </{tag}>"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self._rows[-1][-1] += data
        if "style" not in self.open:
            self.words += data

    def headings(self, level: int) -> int:
        return sum(tag == f"h{level}" for tag, _ in self.tags)


@pytest.fixture(scope="module")
def page() -> tuple[str, Page]:
    text = render(make_record())
    return text, Page(text)


def test_comparison_table_holds_the_record(page: tuple[str, Page]) -> None:
    rows = page[1].tables["all comparison"]
    assert rows[1] == ["ELBO", "Data term", "KL", "mean", "1 sample", "20 samples", "NLL", "ECE"]
    assert [row[0] for row in rows[2:]] == [guide["title"] for guide in make_record()["guides"]]
    assert rows[2] == [
        "Additive N(μ, σ²)",
        "−6,198.0± 0.3",
        "−98.0",
        "6,100.0",
        "97.22± 0.87",
        "96.11± 1.02",
        "97.22± 0.87",
        "0.1156± 0.0130",
        "0.0193",
        "11.7",
    ]
    assert {len(row) for row in rows[2:]} == {10}


def test_best_of_a_column_is_bold() -> None:
    record = make_record(3)
    record["guides"][0]["rows"][0]["accuracy"] = 0.97501  # a tie as printed
    record["guides"][2]["rows"][0]["accuracy"] = math.inf
    cells = re.findall(r'<td class="best">([\d.]+)', comparison_table(record))
    assert cells == ["97.50", "97.50", "96.67", "97.78", "0.1044", "0.0177"]
    assert 'class="best"' not in comparison_table(make_record(1))


def test_page_has_its_sections(page: tuple[str, Page]) -> None:
    text, parsed = page
    identifiers = [attrs["id"] for tag, attrs in parsed.tags if tag == "section"]
    assert identifiers == ["comparison", "training", "samples", *(f"guide-{i}" for i in range(5)), "words"]
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 2 + 2 * 5
    assert "The prior is improper" in text and "constant per weight" in text
    for words in ("LogUniform()", "fc1.weight", "18,110 parameters", "torch 2.13.0", "seed 0", "93.1 s in all"):
        assert words in parsed.words
    links = {attrs["href"] for tag, attrs in parsed.tags if tag == "a"}
    assert links == {f"#guide-{i}" for i in range(5)}


def test_identifiers_are_unique(page: tuple[str, Page]) -> None:
    identifiers = [attrs["id"] for _, attrs in page[1].tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_page_is_self_contained_and_small(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    for _, attrs in parsed.tags:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert len(text.encode()) < 1_500_000
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_note_on_a_variance_network(page: tuple[str, Page]) -> None:
    text = re.sub(r"\s+", " ", page[1].words)
    assert (
        "Variance-only N(0, σ²) scores 10.3 % with mean weights (chance is 10.0 %) and 96.7 % with 20 samples" in text
    )
    assert text.count("not in their means") == 1


def test_units_and_note_of_a_regression() -> None:
    record = make_record(3, regression=True)
    for guide, rmse in zip(record["guides"], (7.9, 8.1, math.nan), strict=True):
        guide["rows"][0]["rmse"], guide["rows"][2]["rmse"] = rmse, 4.0
    text = re.sub(r"\s+", " ", Page(render(record)).words)
    assert "those of the standardized target; RMSE and NLL are in the target's original units" in text
    assert (
        f"{record['guides'][1]['title']} scores an RMSE of 8.1000 with mean weights and 4.0000 with 20 samples" in text
    )
    assert text.count("not in their means") == 1 and "chance" not in text
    assert "standardized" not in render(make_record())


def test_one_guide_renders() -> None:
    parsed = Page(render(make_record(1)))
    assert len(parsed.tables["all comparison"]) == 3
    assert not any(tag == "nav" for tag, _ in parsed.tags)
    assert "Additive N(μ, σ²) on Optical digits, 8 × 8" in parsed.words


def test_regression_has_rmse_and_no_calibration() -> None:
    text = render(make_record(2, regression=True))
    parsed = Page(text)
    assert parsed.tables["all comparison"][1][-1] == "NLL"
    assert "Test RMSE" in text and "Accuracy" not in text and "Calibration" not in text and "ECE" not in text
    assert parsed.tables["modes"][0] == ["Prediction", "RMSE", "NLL, nats", "Seconds"]


@pytest.mark.parametrize(
    "part, heading",
    [
        ("history", "Training</h2>"),
        ("by_samples", "Accuracy against the number"),
        ("reliability", "Calibration"),
        ("posterior", "Posterior noise"),
        ("rows", "Test scores by"),
        ("decomposition", "KL by site"),
    ],
)
def test_sections_of_missing_parts_are_left_out(part: str, heading: str) -> None:
    record = make_record(1)
    guide = record["guides"][0]
    record["guides"] = [{"name": "bare", part: guide[part]}]
    text = render(record)
    assert heading in text
    Page(text)
    record["guides"] = [{"name": "bare"}]
    assert heading not in render(record)


def test_a_bare_record_renders() -> None:
    text = render(BARE)
    assert "bare on a data set" in Page(text).words
    assert "improper" not in text and "<p></p>" not in text


@pytest.mark.parametrize("change", [{"schema": 2}, {"schema": "1"}, {"kind": "other"}, {"guides": []}])
def test_unknown_records_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the record"):
        write(make_record(1) | change, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_every_text_is_escaped() -> None:
    malicious = "<script>alert('&')</script>\""

    def replace_strings(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: replace_strings(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [replace_strings(v) for v in value]
        return malicious if isinstance(value, str) and key not in ("kind", "mode", "task") else value

    record = replace_strings(make_record(1))
    record["versions"] = {malicious: malicious}
    record["guides"][0]["decomposition"]["penalty"] = {malicious: 1.0}
    record["guides"][0]["rows"][1]["mode"] = malicious
    record["guides"][0]["reliability"][malicious] = record["guides"][0]["reliability"].pop("mean")
    text = render(record)
    parsed = Page(text)
    assert "<script" not in text and not any(tag == "script" for tag, _ in parsed.tags)
    assert text.count("&lt;script&gt;") > 15
    assert malicious in parsed.words


def test_missing_and_infinite_numbers_are_shown() -> None:
    record = make_record(1)
    record["guides"][0]["decomposition"] |= {"elbo": -math.inf, "data": "nan", "kl": None}
    record["guides"][0]["rows"][2] |= {"nll": math.inf, "accuracy": math.nan, "ece": None}
    row = Page(render(record)).tables["all comparison"][2]
    assert row[1:4] == ["−∞± 0.3", "NaN", "–"]
    assert row[6:9] == ["NaN± 0.87", "∞± 0.0130", "–"]


@pytest.mark.parametrize(
    "value, digits, scale, expected",
    [
        (1234567.891, 1, 1.0, "1,234,567.9"),
        (-0.04, 1, 1.0, "0.0"),
        (-5, 0, 1.0, "−5"),
        (0.97222, 2, 100.0, "97.22"),
        (None, 2, 1.0, "–"),
        ("-inf", 2, 1.0, '<span class="bad">−∞</span>'),
        (math.nan, 2, 1.0, '<span class="bad">NaN</span>'),
    ],
)
def test_numbers_are_formatted(value: Any, digits: int, scale: float, expected: str) -> None:
    assert format_number(value, digits, scale) == expected


def test_site_table_shows_kl_and_treatment_of_each_site() -> None:
    decomposition = make_record(1)["guides"][0]["decomposition"] | {"penalty": {"bn.weight": 2.5}}
    rows = Page(site_table(decomposition)).tables["sites"]
    assert rows[0][-2:] == ["KL method", "Treatment"]
    assert rows[1] == ["fc1.weight", "6,400", "2,243.7", "0.351", "exact", "local (exact)"]
    assert rows[3] == ["head.weight", "1,000", "350.6± 1.7", "0.351", "Monte Carlo", "local (exact)"]
    assert rows[4] == ["bn.weight", "", "2.5", "", "penalty", ""]
    assert site_table({}) == "" == mode_table(make_record(1), {"name": "bare"})


def test_write_creates_the_folder_and_leaves_no_other_files(tmp_path: Path) -> None:
    first, second = make_record(1), make_record(1)
    second["guides"] = [{"name": "later"}]
    path = write(first, str(tmp_path / "runs" / "a" / "report.html"))
    assert path == tmp_path / "runs" / "a" / "report.html"
    assert path.read_text(encoding="utf-8") == render(first)
    write(second, path)
    assert path.read_text(encoding="utf-8") == render(second)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stage", ["render", "fsync", "replace"])
def test_a_failure_keeps_the_previous_report(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("previous")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    def unencodable_page(_: Mapping[str, Any]) -> str:
        return "half a page \ud800"  # cannot be encoded as UTF-8, so that writing fails

    if stage == "render":
        monkeypatch.setattr(html, "render", unencodable_page)
    else:
        monkeypatch.setattr(*{"fsync": (html.os, "fsync"), "replace": (Path, "replace")}[stage], fail)
    with pytest.raises((OSError, UnicodeEncodeError)):
        write(BARE, path)
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]


def test_the_record_is_not_changed() -> None:
    record = make_record(2)
    render(record)
    assert record == make_record(2)
