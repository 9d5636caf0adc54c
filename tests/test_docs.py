"""The pages of the site: their code runs as it stands, their links lead somewhere, their formulas can be set."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts and "gallery" not in path.parts)
# A block below the comment `<!-- needs: NAME -->` runs where that module is installed.
BLOCK = re.compile(r"(?:<!-- needs: (\w+) -->\n+)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def test_every_kind_of_page_is_there() -> None:
    folders = {path.parent.name for path in PAGES}
    assert {"docs", "how-to", "theory", "reference"} <= folders and len(PAGES) > 30


# The blocks of the tour go on from the README's, and are run by `test_readme.py`.
WITH_CODE = [path for path in PAGES if BLOCK.search(path.read_text("utf-8")) and path.name != "tour.md"]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    torch.manual_seed(0)
    text = page.read_text("utf-8")
    variables: dict[str, object] = {"__name__": "__page__"}
    for match in BLOCK.finditer(text):
        needed, code = match.groups()
        if needed is not None and importlib.util.find_spec(needed) is None:
            continue
        # Empty lines in front, so that an error names the line of the page.
        lines = "\n" * (text[: match.start(2)].count("\n"))
        exec(compile(lines + code, str(page), "exec"), variables)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))) if not link.startswith("http")]
    # The gallery is made while the site is built.
    missing = [link for link in targets if "gallery/" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_formulas_can_be_set(page: Path) -> None:
    latex2mathml = pytest.importorskip("docutils.utils.math.latex2mathml")
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text("utf-8")))
    for display, inline in FORMULA.findall(text):
        assert latex2mathml.tex2mathml(display or inline, as_block=bool(display)).startswith("<math")


def test_fractions_have_braces() -> None:
    # The site's renderer reads such a fraction without braces, 12 x, as 12 over x, and says nothing.
    texts = [*PAGES, *(DOCS.parent / "pyrostoch").rglob("*.py")]
    wrong = [str(path) for path in texts if re.search(r"\\t?frac\d\d", path.read_text("utf-8"))]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_is_in_a_table_of_contents(page: Path) -> None:
    if page == DOCS / "index.md":
        return
    name = page.relative_to(DOCS).with_suffix("").as_posix()
    listed = set()
    for index in PAGES:
        folder = index.parent.relative_to(DOCS).as_posix()
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text("utf-8"), flags=re.DOTALL):
            entries = [line.strip() for line in tree.split("\n") if line.strip() and not line.startswith(":")]
            listed |= {(Path(folder) / entry).as_posix() for entry in entries}
    assert name in listed


def test_docstrings_are_converted() -> None:
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        spec = importlib.util.spec_from_file_location("docs_docstrings", DOCS / "_extensions" / "docstrings.py")
        assert spec is not None and spec.loader is not None
        pytest.importorskip("sphinx")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS / "_extensions"))
    table = ["| a | b |", "| --- | --- |", "| 1 | `2 \\| 3` |", "", "Then $x$s and `$y`."]
    assert module.convert(table) == [
        *(".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", "   * - 1", "     - `2 | 3`"),
        *("", "", "Then :math:`x`\\ s and `$y`."),
    ]
