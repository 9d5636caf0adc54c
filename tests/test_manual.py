"""Pages that errors and reports name: they exist, and every how-to is named by a refusal."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch._manual import SITE, address, see
from pyrostoch.report.words import WORDS, words_list

ROOT = Path(__file__).resolve().parent.parent
RECORD = {"schema": 1, "kind": "train", "guides": [{"name": "additive"}]}


def pages_of_errors() -> set[str]:
    """The pages given to `see` in the package, which must be written out there."""
    pages: set[str] = set()
    for path in (ROOT / "pyrostoch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "see":
                assert isinstance(node.args[0], ast.Constant), path
                pages.add(str(node.args[0].value))
    return pages


def exists(page: str) -> bool:
    """Whether a page is written, or is made from an example."""
    folder, _, name = page.rpartition("/")
    source = ROOT / "examples" / f"{name}.py" if folder == "gallery" else ROOT / "docs" / f"{page}.md"
    return source.is_file()


def test_pages_exist() -> None:
    named = pages_of_errors() | {word.page for word in WORDS}
    assert len(named) > 12
    assert [page for page in sorted(named) if not exists(page)] == []


def test_every_how_to_is_named_by_a_refusal() -> None:
    how_tos = {f"how-to/{path.stem}" for path in (ROOT / "docs" / "how-to").glob("*.md")}
    # Coming from another library and reading results are no remedies for an error.
    assert how_tos - pages_of_errors() == {"how-to/index", "how-to/coming_from", "how-to/read_results"}


def test_an_error_names_the_page_and_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def message() -> str:
        with pytest.raises(ValueError) as caught:
            ps.BayesianModel(
                nn.Linear(2, 1), prior={"no": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(), num_data=1
            )
        return str(caught.value)

    assert message().endswith("(documentation: how-to/convert_network)")
    monkeypatch.setenv(SITE, "https://example.org/")
    assert message().endswith("(documentation: https://example.org/how-to/convert_network.html)")


def test_address_in_a_folder_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "index.html").write_text("here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SITE, "a folder")
    found = address("index")
    assert found is not None and found == (tmp_path / "a folder" / "index.html").as_uri()


def test_address_is_that_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    class Described:
        def get_all(self, name: str) -> list[str] | None:
            return ["Source, https://code.example", "Documentation, https://docs.example/v1"]

    monkeypatch.setattr(metadata, "metadata", lambda name: Described())
    assert address("tour") == "https://docs.example/v1/tour.html"

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    assert address("tour") is None and see("tour") == " (documentation: tour)"


def test_words_of_a_report_are_links_where_the_site_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "href" not in words_list(RECORD) and "<code>how-to/choose_guide</code>" in words_list(RECORD)
    monkeypatch.setenv(SITE, "https://example.org/?a=1&b=")
    assert '<a href="https://example.org/?a=1&amp;b=/how-to/choose_guide.html">' in words_list(RECORD)


def test_words_are_those_of_the_task() -> None:
    classes, values = words_list(RECORD), words_list({**RECORD, "data": {"task": "regression"}})
    assert "calibration error" in classes and "root mean squared" not in classes
    assert "root mean squared" in values and "calibration error" not in values


def test_refusal_of_random_batches_names_its_page() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=0), nn.Linear(3, 1))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=40)
    data = (torch.randn(40, 2), torch.randn(40, 1))
    with pytest.raises(ValueError, match=r"together.*\(documentation: how-to/whole_batches\)$"):
        ps.fit(model, ps.guides.Additive(model), data, epochs=1, batch_size=10)
