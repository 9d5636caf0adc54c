"""Words that the field does not use for these things stay out of docstrings, error messages and the README."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyrostoch"

#: What is not to be written, as whole phrases, and the field's word for it.
RETIRED = {
    r"\blaws?\b(?! of (?:large numbers|total))": "distribution",
    r"\bcensus(?:es)?\b": "weight usage",
    r"\b(?:took|takes|taken) (?:the|which|this|another) route\b": "treatment",
    r"\broutes? (?:through|of) (?:the|a|each) (?:network|site)\b|\bthe route says\b|\bits route\b": "treatment",
    r"\bin(?:side)? (?:this|that|its|the) room\b|\brooms? on floors\b|\b(?:lower|upper|own) floors?\b"
    r"|\bthis room\b|\border of the house\b|\bhouse rules\b": "package, layer, architecture",
    r"\bINDEPENDENT\b": "effects.independent()",
    r"\b(?:would be|is) a fiction\b": "what is computed",
    r"\bbehind the draw's back\b|\bwhat bites\b|\bfurther in has taken\b": "what is computed",
    r"\bsite_law\b|\bbase_law\b|\bINDEPENDENT\b|\btake_census\b|\bquantise\b": "the present name",
}

# One spelling throughout: American, as in the names of torch.
_BRITISH_VERBS = (
    "character|discret|equal|factor|final|general|initial|linear|local|marginal|maxim|memor|minim|normal|optim|organ|parametr"
    "|penal|quant|random|recogn|regular|reparameter|serial|special|stabil|standard|summar|symmetr|synchron|token|util|vector"
    "|visual"
)
BRITISH = {
    rf"\b\w*(?:{_BRITISH_VERBS})is(?:e|es|ed|er|ers|ing|ation|ations)\b": "-ize",
    r"\b\w*(?:colour|behaviour|neighbour|favour|honour|flavour)\w*\b": "-or",
    r"\b(?:un)?(?:centre|centred|centres|grey|greys|spelt|learnt)\b": "American",
    r"\b(?:artefact\w*|catalogue\w*|judgement\w*|analyse[ds]?|analysing)\b": "American",
    r"\b\w*(?:labell|modell|cancell|travell|signall)(?:ed|ing)\b": "one l",
}


def found_in(text: str, words: dict[str, str]) -> list[str]:
    """The phrases of a table that stand in a text."""
    plain = " ".join(text.split())
    return [f"{hit.group(0)!r}: write {good}" for bad, good in words.items() for hit in re.finditer(bad, plain)]


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts of errors and warnings, joined over their pieces."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        if isinstance(node, ast.Raise) or name in {"warnings.warn", "refuse", "error.add_note", "fault.add_note"}:
            constants = (part.value for part in ast.walk(call) if isinstance(part, ast.Constant))
            yield call.lineno, " ".join(value for value in constants if isinstance(value, str))


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_messages_use_the_fields_words(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [*docstrings(tree), *messages(tree)]
    faults = [f"line {line}: {fault}" for line, text in texts for fault in found_in(text, RETIRED | BRITISH)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "benchmarks/RESULTS.md"])
def test_pages_use_the_fields_words(name: str) -> None:
    assert not found_in((ROOT / name).read_text(encoding="utf-8"), RETIRED | BRITISH)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_and_names_are_spelled_in_one_way(path: Path) -> None:
    # "quantis" within a longer name is seen, too.
    assert not found_in(re.sub(r"[_.]", " ", path.read_text(encoding="utf-8")), BRITISH)


@pytest.mark.parametrize(
    "text",
    [
        "torch.floor rounds down; a noise floor of 1e-8; house prices in Boston",
        "by the law of large numbers, the mean of many draws",
        "the law of total variance",
        "two room temperatures, and no room left on the disk",
        "raise ValueError from a precise promise; otherwise exercise, noise, rise, premise, minimum",
        "the route from A to B on a map",
    ],
)
def test_other_uses_of_the_words_pass(text: str) -> None:
    assert not found_in(text, RETIRED | BRITISH)


@pytest.mark.parametrize(
    "text",
    [
        "the law of a weight",
        "all laws",
        "a census of the network",
        "the site took the route of a shared draw",
        "imports of lower floors",
        "where that law would be a fiction",
        "read behind the draw's\nback",
        "normalise, and the optimiser",
        "the behaviour of neighbouring colours",
        "labelled, centred, learnt",
    ],
)
def test_retired_words_are_seen(text: str) -> None:
    assert found_in(text, RETIRED | BRITISH)
