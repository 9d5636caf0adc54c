"""Every test starts from the same seeds and leaves the settings of torch, Pyro and NumPy as it found them."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

# A test holds under any seed: `make test SEED=3` runs all of them under another one.
SEED = int(os.environ.get("PYROSTOCH_TEST_SEED", "0"))
# The tests' tensors are small: more threads only add noise and overhead.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


class Isolation:
    """A plugin and not a fixture of this file, because the doctests of the package need it as well."""

    @pytest.fixture(autouse=True)
    def isolated(self) -> Iterator[None]:
        """Seed everything, clear Pyro's parameter store; afterwards restore every global setting."""
        pyro_settings = pyro.settings.get()
        numpy_errors = np.geterr()
        dtype = torch.get_default_dtype()
        deterministic = torch.are_deterministic_algorithms_enabled()
        matmul = torch.get_float32_matmul_precision()
        if torch.get_num_threads() != THREADS:
            torch.set_num_threads(THREADS)
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        pyro.clear_param_store()
        try:
            yield
        finally:
            os.environ.pop("PYROSTOCH_DOCS", None)
            if "matplotlib.pyplot" in sys.modules:
                sys.modules["matplotlib.pyplot"].close("all")
            pyro.clear_param_store()
            pyro.settings.set(**pyro_settings)
            np.seterr(**numpy_errors)
            torch.set_default_dtype(dtype)
            torch.set_default_device(None)
            torch.use_deterministic_algorithms(deterministic)
            torch.set_float32_matmul_precision(matmul)
            torch.set_grad_enabled(True)
            torch.autograd.set_detect_anomaly(False)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with no data set but the bundled one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    monkeypatch.delenv("PYROSTOCH_DEBUG", raising=False)
    return tmp_path


def pytest_configure(config: pytest.Config) -> None:
    os.environ.pop("PYROSTOCH_DOCS", None)  # error messages would name a reader's own site
    config.pluginmanager.register(Isolation(), "pyrostoch-isolation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def float64() -> None:
    """Make float64 the default dtype for one test; `isolated` restores it."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of the real data sets, or skip."""
    folder = os.environ.get("PYROSTOCH_DATA")
    if not folder:
        pytest.skip("PYROSTOCH_DATA is not set: no real data sets")
    if not Path(folder).is_dir():
        pytest.skip(f"PYROSTOCH_DATA={folder} is no folder: no real data sets")
    return Path(folder).resolve()
