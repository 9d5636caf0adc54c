"""What the words of a report mean, each with the page of the documentation that says more."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from pyrostoch._manual import address
from pyrostoch.report.record import is_regression

__all__ = ["WORDS", "words_list"]


class Word(NamedTuple):
    """A word of the report: what it means, and the page that says more."""

    word: str
    meaning: str
    page: str


_ELBO, _RESULTS, _USAGE = "gallery/reading_an_elbo", "how-to/read_results", "theory/usage_analysis"
_CLASSES = (
    Word("Accuracy", "The share of test examples whose most probable class is the right one.", "glossary"),
    Word("Brier", "The mean squared distance between probabilities and classes, 0 at best and 2 at worst.", "glossary"),
    Word("ECE", "The expected calibration error: the mean gap between confidence and accuracy over bins.", _RESULTS),
)
_VALUES = (Word("RMSE", "The root mean squared error of the predictive mean.", "glossary"),)

#: The words of every report; those of the scores come in addition.
WORDS = (
    Word("Guide", "The family of distributions of the weights that is fitted to the posterior.", "how-to/choose_guide"),
    Word("Prior", "The distribution of the weights before any data.", "how-to/write_a_prior"),
    Word("ELBO", "The data term minus the KL: a lower bound on the log evidence under a proper prior.", _ELBO),
    Word("Data term", "The expected log-likelihood of the whole training set under the guide.", _ELBO),
    Word("KL", "The divergence of the guide from the prior: what the weights have learned, in nats.", _ELBO),
    Word(
        "Rate", "What a stochastic layer can let through of an example, at most, in nats.", "how-to/stochastic_layers"
    ),
    Word("Mean", "A prediction by one pass with every weight at its mean.", _RESULTS),
    Word("Moments", "A prediction by means and variances, carried through the network in one pass.", "theory/moments"),
    Word("Samples", "A prediction averaged over draws of the weights.", _RESULTS),
    Word(
        "Estimator",
        "How the weights are drawn in training; it changes the noise of the gradient only.",
        "how-to/choose_estimator",
    ),
    Word("Treatment", "How the draws of one weight were made: its own, or those of its layer's output.", _USAGE),
    Word("NLL", "The mean negative log-likelihood of the test targets.", "glossary"),
    Word("α", "The variance of a weight divided by its squared mean.", "theory/variance_networks"),
)

_AUDITED = (
    Word(
        "Audit", "Attackers that read what a layer sends, beside a guess by the answer alone.", "how-to/audit_a_layer"
    ),
)


def words_list(results: Mapping[str, Any]) -> str:
    """The words of a report with their meanings; each is a link where the address of the documentation is known.

    Args:
        results: The record.

    Returns:
        HTML.

    Example:
        >>> "Guide" in words_list({"schema": 1, "kind": "train", "guides": [{"name": "additive"}]})
        True
    """
    scores, audited = _VALUES if is_regression(results) else _CLASSES, _AUDITED if results.get("audits") else ()
    words = sorted((*WORDS, *scores, *audited), key=lambda word: word.word.lower())
    rows = []
    for word, meaning, page in words:
        link = address(page)
        more = f'<a href="{escape(link)}">{escape(page)}</a>' if link else f"<code>{escape(page)}</code>"
        rows.append(f"<dt>{escape(word)}</dt><dd>{escape(meaning)} More: {more}.</dd>")
    return f"<dl>{''.join(rows)}</dl>"
