"""A tenth of the zoo, another one for each seed; `make zoo` measures all of it."""

import os
from pathlib import Path

import pytest

from . import ZOO
from .measure import MODES, STRUCTURED
from .table import measured

_SEED = int(os.environ.get("PYROSTOCH_TEST_SEED", "0"))
_WITHOUT_EXTRAS = [name for name, entry in ZOO.items() if not entry.requires]


@pytest.mark.parametrize("name", _WITHOUT_EXTRAS[_SEED % 10 :: 10])
def test_variances_and_data_terms_are_those_of_whole_networks(name):
    rows = measured(name, 300, _SEED)
    assert [row.mode for row in rows] == list(MODES)
    for row in rows:
        if row.is_exact and not ZOO[name].approximate:
            assert row.agrees, str(row)
        elif not row.refused and "moments" in row.treatments:
            assert 0.4 < row.ratio < 2.5, str(row)


@pytest.mark.parametrize("name", _WITHOUT_EXTRAS[(_SEED + 5) % 10 :: 10])
def test_weights_that_depend_on_each_other(name):
    kinds = list(STRUCTURED)
    kind = kinds[(_WITHOUT_EXTRAS.index(name) // 10 + _SEED) % len(kinds)]
    try:
        rows = measured(name, 300, _SEED, STRUCTURED[kind])
    except ValueError as error:  # such weights are refused by name
        assert "without constant entries" in str(error)
        return
    for row in rows:
        if row.is_exact and not ZOO[name].approximate:
            assert row.agrees, f"{kind}: {row}"


def test_the_zoo_is_large_and_its_table_has_every_network():
    assert len(ZOO) >= 40
    table = (Path(__file__).parent / "RESULTS.md").read_text(encoding="utf-8")
    assert [name for name in ZOO if f"\n| {name} | " not in table] == []
