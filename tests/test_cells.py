"""All cells of stochastic layers in small: each is drawn and differentiated, or refused by name; and their table."""

from __future__ import annotations

import pytest
from cells import ARCHITECTURES, TABLE, cells


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cells_are_drawn_and_differentiated(architecture: str) -> None:
    outcomes = {(cell.kind, cell.distribution, cell.embodiment): cell.outcome() for cell in cells(architecture)}
    refused = {reason for reason in outcomes.values() if reason}
    if architecture == "StochasticAdditive":
        assert refused == {"StochasticAdditive: its noise is Gaussian"}
        assert not any(outcomes[key] for key in outcomes if key[1] == "Gaussian")
    else:
        assert not refused


def test_the_table_has_every_architecture() -> None:
    text = TABLE.read_text(encoding="utf-8")
    counts = {name: sum(1 for _ in cells(name)) for name in ARCHITECTURES}
    assert f"{sum(counts.values())} cells" in text
    assert all(f"| {name} |" in text for name in ARCHITECTURES)
