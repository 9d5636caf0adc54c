"""The order of the tutorials: from the first network to special cases."""

from __future__ import annotations

__all__ = ["Order"]

_NAMES = (
    "three_pictures",
    "toy_regression",
    "posteriors_in_a_gap",
    "reading_an_elbo",
    "variance_networks",
    "moments_in_one_pass",
    "predictions_of_a_server",
    "prune_and_convert",
    "arviz_diagnostics",
    "svi_script",
    "graph_nodes",
    "padded_sentences",
    "house_prices",
    "turned_digits",
    "continual_digits",
    "ternary_network",
    "information_bottleneck",
    "conditional_classification",
    "detect_hidden_digits",
    "attack_hidden_digits",
    "homeostasis_of_noise",
    "lightning_mnist",
)


class Order:
    """Sorts the files of the gallery; one without a place is an error.

    Args:
        folder: Their folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, name: str) -> int:
        """The place of a file."""
        return _NAMES.index(name.removesuffix(".py"))
