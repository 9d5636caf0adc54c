"""The architecture: layers of imports, sizes of files, what code must not hold, and an import that changes nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

# A package may import packages of lower layers, and itself. A package of its own inside another has its own entry.
LAYERS: dict[str, int] = {
    **dict.fromkeys(
        [
            "_checks",
            "_descriptions",
            "_fixed_entries",
            "_inputs",
            "_manual",
            "_ops",
            "_precision",
            "_seeds",
            "_structure",
            "_targets",
            "_tracing",
            "_user_file",
            "_version",
        ],
        0,
    ),
    **dict.fromkeys(["data", "protocols", "records", "safefile"], 0),
    **dict.fromkeys(["distributions", "metrics", "moments"], 1),
    **dict.fromkeys(["effects"], 2),
    **dict.fromkeys(["priors", "likelihoods", "sites", "model", "layers"], 3),
    **dict.fromkeys(["estimators", "guides", "models", "quantize", "staging"], 4),
    **dict.fromkeys(["infer"], 5),
    **dict.fromkeys(["prediction"], 6),
    **dict.fromkeys(["training"], 7),
    **dict.fromkeys(["diagnose", "federated", "lightning", "obfuscate", "sklearn"], 8),
    **dict.fromkeys(["bench", "report", "runs"], 9),
    **dict.fromkeys(["bench.published"], 10),
    **dict.fromkeys(["cli", "__main__"], 11),
    **dict.fromkeys(["__init__"], 12),
}

# Packages that may import another one of their own layer.
SAME_LAYER = {
    ("_inputs", "protocols"),
    ("_inputs", "_structure"),
    ("_inputs", "_targets"),
    ("_targets", "_checks"),
    ("_targets", "_manual"),
    ("_user_file", "_checks"),
    ("_user_file", "_manual"),
    ("_structure", "protocols"),
    ("_structure", "_checks"),
    # Within layer 3: priors, then likelihoods and sites, then the model, then layers.
    ("likelihoods", "priors"),
    ("layers", "priors"),
    ("layers", "likelihoods"),
    ("layers", "model"),
    ("layers", "sites"),
    ("model", "priors"),
    ("model", "likelihoods"),
    ("model", "sites"),
    # An export leaves out what a model does to its inputs in training only.
    ("quantize", "models"),
    # A download that fails removes the folders made for it.
    ("data", "safefile"),
    ("data", "_checks"),
    ("data", "_manual"),
    # The benchmarks draw their figures.
    ("bench", "report"),
    # Data holders obfuscate examples, and a server learns from them.
    ("federated", "obfuscate"),
    # The page of a model that was fitted in Python has the scores of a run.
    ("report", "runs"),
    ("__main__", "cli"),
}

# Results are read, not called: their docstring needs no example.
RESULT_CLASSES = {"Comparison", "Decomposition", "Diagnosis", "Fit", "LaplaceFit", "MomentsError", "Prediction"}

# Imported inside the functions that need them; what torch and Pyro load by themselves does not count.
HEAVY = {
    *("PIL", "arviz", "arviz_base", "flwr", "h5netcdf", "h5py", "lightning", "matplotlib", "pandas", "rich", "scipy"),
    *("pyarrow", "sklearn", "sympy", "torch._dynamo", "torch._inductor", "torchvision", "typer", "xarray"),
}

MAX_LINES = 400
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyrostoch"


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """Return the dotted name of a file of the package; a package is named without its `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """Return the package with an entry in LAYERS that holds a module: `pyrostoch.data.idx` lies in `data`."""
    parts = module.split(".")
    inner = ".".join(parts[1:3])
    return inner if inner in LAYERS else parts[1] if len(parts) > 1 else "__init__"


def imports_of(tree: ast.Module, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, imported module) for every import of pyrostoch, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        yield from ((node.lineno, name) for name in targets if name.split(".")[0] == "pyrostoch")


@cache
def import_graph() -> dict[str, list[tuple[int, str]]]:
    known = {name_of(path) for path in files_of("pyrostoch")}
    return {
        name_of(path): list(imports_of(tree_of(path), name_of(path), path.name == "__init__.py", known))
        for path in files_of("pyrostoch")
    }


def layer_faults(graph: dict[str, list[tuple[int, str]]]) -> list[str]:
    faults = []
    for module, imports in graph.items():
        for line, target in imports:
            here, there = package_of(module), package_of(target)
            if here != there and (here, there) not in SAME_LAYER and LAYERS[there] >= LAYERS[here]:
                faults.append(f"{module}:{line} (layer {LAYERS[here]}) imports {target} (layer {LAYERS[there]})")
    return faults


def find_circle(graph: dict[str, list[tuple[int, str]]]) -> list[str]:
    """Return one circle of imports, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or module not in graph:
            return []
        for _, target in graph[module]:
            if target != module and (circle := visit(target, [*path, module])):
                return circle
        done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def test_every_module_has_a_layer() -> None:
    unknown = sorted({package_of(module) for module in import_graph()} - set(LAYERS))
    assert not unknown, f"no layer is given to {unknown}: add it to LAYERS"


def test_imports_go_down_only() -> None:
    assert not layer_faults(import_graph())


def test_no_circular_imports() -> None:
    assert not find_circle(import_graph())


@pytest.mark.parametrize(
    ("module", "source", "targets"),
    [
        ("pyrostoch.guides.alpha", "from .base import Guide", ["pyrostoch.guides.base"]),
        ("pyrostoch.guides.alpha", "from . import base", ["pyrostoch.guides.base"]),
        ("pyrostoch.guides.alpha", "from .. import models", ["pyrostoch.models"]),
        ("pyrostoch.guides", "from .base import Guide", ["pyrostoch.guides.base"]),
        ("pyrostoch.guides", "from .. import fit", ["pyrostoch"]),
        ("pyrostoch.model", "from pyrostoch import models, fit", ["pyrostoch.models", "pyrostoch"]),
        ("pyrostoch.model", "import torch, pyrostoch.models as m", ["pyrostoch.models"]),
        ("pyrostoch.model", "def f():\n    import pyrostoch.models", ["pyrostoch.models"]),
        ("pyrostoch.model", "import_module('pyrostoch.models')", ["pyrostoch.models"]),
        ("pyrostoch.model", "if TYPE_CHECKING:\n    import pyrostoch.models", ["pyrostoch.models"]),
    ],
)
def test_reader_of_imports(module: str, source: str, targets: list[str]) -> None:
    known = {"pyrostoch", "pyrostoch.guides", "pyrostoch.guides.base", "pyrostoch.models"}
    found = imports_of(ast.parse(source), module, module in known, known)
    assert [target for _, target in found] == targets


def test_upward_imports_and_circles_are_seen() -> None:
    graph = {
        "pyrostoch.model": [(1, "pyrostoch.priors"), (2, "pyrostoch.guides.base"), (3, "pyrostoch.layers")],
        "pyrostoch.guides.base": [(4, "pyrostoch.models"), (5, "pyrostoch.model"), (6, "pyrostoch")],
    }
    assert [fault.split(" ")[0] for fault in layer_faults(graph)] == [
        "pyrostoch.model:2",
        "pyrostoch.model:3",
        "pyrostoch.guides.base:4",
        "pyrostoch.guides.base:6",
    ]
    assert find_circle(graph) == ["pyrostoch.model", "pyrostoch.guides.base", "pyrostoch.model"]


@pytest.mark.parametrize("path", files_of("pyrostoch", "tests", "examples"), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_small_and_has_a_subject(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: a second idea opens a second file"
    assert path.stem not in {"util", "utils"}, "name the file after its idea"


def forbidden_in(source: str) -> list[str]:
    """Return what a file of the package must not hold, with its line."""
    found = [
        f"{number}: {word}"
        for number, line in enumerate(source.splitlines(), 1)
        for word in re.findall(r"\b(?:TODO|FIXME|XXX)\b", line)
    ]
    loaders = {f"{module}.{name}" for module in ("pickle", "torch", "joblib", "dill") for name in ("load", "loads")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            found.append(f"{node.lineno}: assert")
        elif isinstance(node, ast.Raise) and node.exc and "NotImplementedError" in ast.unparse(node.exc):
            found.append(f"{node.lineno}: raise NotImplementedError")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in loaders:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.extend(f"{node.lineno}: {name}" for name in sorted(names & loaders))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"{node.value.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize("path", files_of("pyrostoch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_forbidden(path: Path) -> None:
    assert not forbidden_in(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "assert True",
        "x = pickle.load(f)",
        "x = torch.load(f)",
        "from pickle import loads",
        "x = np.load(f, allow_pickle=True)",
        "raise NotImplementedError",
        "pass  # TO" + "DO",
    ],
)
def test_forbidden_things_are_seen(source: str) -> None:
    assert len(forbidden_in(source)) == 1


# Runs in a process of its own: settings before and after the import, and what the import loaded.
IMPORT_PROBE = """
import hashlib, json, logging, os, random, sys, warnings
import numpy, pyro, pyro.distributions, pyro.infer, torch

def digest(state):
    return hashlib.sha256(repr(state).encode()).hexdigest()

def settings():
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch threads": torch.get_num_threads(),
        "torch interop threads": torch.get_num_interop_threads(),
        "torch grad mode": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch anomaly mode": torch.is_anomaly_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "torch cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "torch mkldnn": torch.backends.mkldnn.enabled,
        "torch function modes": torch._C._len_torch_function_stack(),
        "torch random state": digest(torch.random.get_rng_state().tolist()),
        "torch print options": vars(torch._tensor_str.PRINT_OPTS),
        "pyro settings": pyro.settings.get(),
        "pyro parameters": sorted(pyro.get_param_store()),
        "pyro handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "numpy errors": numpy.geterr(),
        "numpy print options": numpy.get_printoptions(),
        "numpy random state": digest(numpy.random.get_state(legacy=False)["state"]["key"].tolist()),
        "python random state": digest(random.getstate()),
        "warning filters": warnings.filters,
        "root logger": (logging.root.level, logging.root.handlers),
        "environment": dict(os.environ),
        "import path": sys.path,
    }

before, loaded = {k: repr(v) for k, v in settings().items()}, set(sys.modules)
import pyrostoch
after = {k: repr(v) for k, v in settings().items()}
changed = {k: [before[k], after[k]] for k in before if before[k] != after[k]}
print(json.dumps({"changed": changed, "loaded": sorted(set(sys.modules) - loaded)}))
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the repository's root, which is then first on its path."""
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


@cache
def import_effects() -> dict[str, object]:
    result = run_python(IMPORT_PROBE)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_import_changes_no_setting() -> None:
    assert import_effects()["changed"] == {}


def test_import_loads_nothing_heavy() -> None:
    loaded = import_effects()["loaded"]
    assert "pyrostoch" in loaded
    assert sorted(HEAVY.intersection(loaded)) == []


def public_names() -> list[str]:
    try:
        return sorted(importlib.import_module("pyrostoch").__all__)
    except (ImportError, AttributeError):
        return []


def test_package_names_its_public_things() -> None:
    package = importlib.import_module("pyrostoch")
    assert package.__all__, "pyrostoch.__all__ is empty"
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_documented(name: str) -> None:
    thing = getattr(importlib.import_module("pyrostoch"), name)
    if isinstance(thing, str):
        return
    text = (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__) or ""
    assert text.strip(), f"{name} has no docstring"
    if not isinstance(thing, types.ModuleType) and name not in RESULT_CLASSES:
        assert re.search(r"^\s*Examples?:\s*$", text, re.MULTILINE), f"the docstring of {name} has no Example section"
        assert ">>> " in text, f"the example of {name} does not run as a doctest"


@pytest.mark.parametrize("package", ["guides", "models"])
def test_root_link(package: str) -> None:
    link = ROOT / package
    assert link.is_symlink()
    assert Path(os.readlink(link)).as_posix() == f"pyrostoch/{package}"
    assert link.resolve() == PACKAGE / package
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("package", ["guides", "models"])
def test_root_link_is_no_second_package(package: str) -> None:
    result = run_python(f"import {package}")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and f"pyrostoch.{package}" in last
