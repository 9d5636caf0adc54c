"""Content of the wheel and the source archive: the package, its data, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Calls the build backend directly, without network access and without a second environment.
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools replaces sys.argv
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheel and source archive from a copy with its links, so that the checkout stays clean."""
    copy, out = tmp_path_factory.mktemp("copy") / "pyrostoch", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")
    outputs = {"runs", "build", "dist", "benchmarks"}  # at the root only: the package has a folder runs, too

    def skip(folder: str, names: list[str]) -> set[str]:
        return ignored(folder, names) | (outputs & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=copy, env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.fixture(scope="module")
def wheel(archives: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(archives.glob("*.whl")))


@pytest.fixture(scope="module")
def sdist_names(archives: Path) -> list[str]:
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


def sources() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pyrostoch").rglob("*.py"))


def text_of(wheel: zipfile.ZipFile, name: str) -> str:
    path = next(entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {"pyrostoch/guides/__init__.py", "pyrostoch/models/__init__.py"} <= set(names)
    assert sorted(name for name in names if name.endswith(".py")) == sources()


def test_wheel_holds_data_and_types(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "pyrostoch/py.typed" in names
    digits = [name for name in names if name.startswith("pyrostoch/data/") and "digits" in Path(name).name]
    assert any(name.endswith((".npz", ".gz")) for name in digits), f"no digits in {digits}"
    assert any(name.startswith("pyrostoch/data/") and name.endswith(".md") for name in names), "no attribution"


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    """The links `guides` and `models` at the root, tests and examples are not in the wheel."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert sorted(top for top in tops if not top.endswith(".dist-info")) == ["pyrostoch"]


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    version: dict[str, str] = {}
    exec((ROOT / "pyrostoch" / "_version.py").read_text(encoding="utf-8"), version)
    metadata = Parser().parsestr(text_of(wheel, "METADATA"))
    assert metadata["Version"] == version["__version__"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "pyrostoch = pyrostoch.cli:main" in text_of(wheel, "entry_points.txt")


def test_requirements_are_lower_bounds(wheel: zipfile.ZipFile) -> None:
    """Only constraints.txt pins versions; upper bounds could conflict with those of other libraries."""
    requirements = Parser().parsestr(text_of(wheel, "METADATA")).get_all("Requires-Dist")
    assert any(line.startswith("torch>=") for line in requirements)
    for line in requirements:
        bound = line.split(";")[0]
        assert ">=" in bound and not any(sign in bound for sign in ("==", "<", "~=")), line


def test_source_archive_can_build_the_wheel(sdist_names: list[str]) -> None:
    assert {*sources(), "pyproject.toml", "LICENSE", "README.md", "pyrostoch/py.typed"} <= set(sdist_names)
    assert any(name.startswith("pyrostoch/data/") and name.endswith((".npz", ".gz")) for name in sdist_names)


def test_source_archive_has_each_package_once(sdist_names: list[str]) -> None:
    assert [name for name in sdist_names if name.split("/")[0] in {"guides", "models"}] == []
