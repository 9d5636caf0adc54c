"""A likelihood given as a function is told apart by its source and the values it uses, in every process."""

from __future__ import annotations

import functools
import importlib.util
import operator
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from torch import nn

import pyrostoch as ps
from pyrostoch._descriptions import describe_function
from pyrostoch.models import DetectionLoss
from pyrostoch.safefile import CheckpointError, read_file

SCALE = 0.5
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def build(likelihood: Any) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(0)
    model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=likelihood, num_data=6)
    return model, ps.guides.Additive(model)


def scaled(s: Any) -> Callable[[Any], Any]:
    return lambda out: dist.Normal(out, s)


def with_default(out: Any, scale: float = 0.1) -> Any:
    return dist.Normal(out, scale)


def with_keyword(out: Any, *, scale: float = 0.1) -> Any:
    return dist.Normal(out, scale)


def with_global(out: Any) -> Any:
    def inner(value: Any) -> Any:
        return dist.Normal(value, SCALE)

    return inner(out)


def by_helper(helper: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda out: dist.Normal(helper(out), 1.0)


class Made:
    """Makes a likelihood by a method, or when it is called."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def method(self, out: Any) -> Any:
        return dist.Normal(out, self.scale)

    def __call__(self, out: Any) -> Any:
        return dist.Normal(out, self.scale)


class Own(ps.likelihoods.Likelihood):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def distribution(self, output: Any, **quantities: Any) -> Any:
        return ps.likelihoods.per_example(dist.Normal(output, self.scale))


def scaled_by(holder: Any) -> Callable[[Any], Any]:
    return lambda out: dist.Normal(out, holder.s)


ONE, TWO = lambda out: dist.Normal(out, 1.0), lambda out: dist.Normal(out, 2.0)  # noqa: E731
SPREAD = [
    lambda out: dist.Normal(  # a comment
        out,
        1.0,
    )
]  # fmt: skip

PAIRS: dict[str, tuple[Any, Any]] = {
    "source": (lambda out: dist.Normal(out, 1.0), lambda out: dist.Laplace(out, 1.0)),
    "one line": (ONE, TWO),
    "closure": (scaled(1.0), scaled(2.0)),
    "closure of another type": (scaled(1), scaled(1.0)),
    "closure of a tensor": (scaled(torch.ones(1)), scaled(torch.full((1,), 2.0))),
    "closure of a large tensor": (scaled(torch.zeros(50)), scaled(torch.eye(50)[3])),
    "closure of a list": (scaled([1.0, {"a": 2}]), scaled([1.0, {"a": 3}])),
    "closure of a function": (by_helper(torch.nn.functional.softplus), by_helper(lambda out: out)),
    "default": (with_default, functools.partial(with_default, scale=0.2)),
    "partial": (functools.partial(with_default, scale=0.1), functools.partial(with_default, scale=0.2)),
    "name": (with_default, with_keyword),
    "object": (Made(1.0), Made(2.0)),
    "method": (Made(1.0).method, Made(2.0).method),
    "a record of the library": (DetectionLoss(1.0), DetectionLoss(2.0)),
    "closure of an object": (scaled_by(types.SimpleNamespace(s=1.0)), scaled_by(types.SimpleNamespace(s=2.0))),
    "closure of an array": (scaled(np.float32(1.0)), scaled(np.float32(2.0))),
    "closure of a set": (by_helper(functools.partial(max, {1.0})), by_helper(functools.partial(max, {2.0}))),
    "closure of a distribution": (
        by_helper(dist.Normal(torch.zeros(30), 1.0).log_prob),
        by_helper(dist.Normal(torch.ones(30), 1.0).log_prob),
    ),
    "closure of a builtin": (by_helper(torch.exp), by_helper(torch.sigmoid)),
    "class of one's own": (Own(0.1), Own(0.2)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_two_functions_are_not_taken_for_one(kind: str, tmp_path: Path) -> None:
    for one, other in (PAIRS[kind], PAIRS[kind][::-1]):
        assert build(one)[0].likelihood.not_described() == build(other)[0].likelihood.not_described() == []
        ps.save(tmp_path / "net", *build(one))
        with pytest.raises(CheckpointError, match="(?s)expected the likelihood (FromOutput|Own).*, got (From|Own)"):
            ps.load(tmp_path / "net", *build(other))
        ps.load(tmp_path / "net", *build(one))


def test_changed_defaults_and_globals_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [describe_function(function)[0] for function in (with_default, with_keyword, with_global)]
    assert before[2].endswith("; SCALE=0.5")
    monkeypatch.setattr(with_default, "__defaults__", (0.2,))
    monkeypatch.setattr(with_keyword, "__kwdefaults__", {"scale": 0.2})
    monkeypatch.setitem(globals(), "SCALE", 0.6)
    after = [describe_function(function)[0] for function in (with_default, with_keyword, with_global)]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_comments_and_line_breaks_do_not_matter() -> None:
    assert describe_function(SPREAD[0]) == describe_function(ONE) == ("lambda out: dist.Normal(out, 1.0)", [])


def long_one(out: Any) -> Any:
    """Normal noise about the output, described at such a length that nobody would want to read all of it in a message.

    It goes on: the scale is one half, the mean is the network's output, and the first axis of both counts the examples.
    """
    return dist.Normal(out, 0.5)


def long_two(out: Any) -> Any:
    """Normal noise about the output, described at such a length that nobody would want to read all of it in a message.

    It goes on: the scale is one half, the mean is the network's output, and the first axis of both counts the examples.
    """
    return dist.Normal(out, 0.6)


def test_long_sources_are_told_apart_by_their_checksum() -> None:
    one, two = describe_function(long_one)[0], describe_function(long_two)[0]
    assert one.startswith("long_one with source ") and len(one) < 50
    assert one.removeprefix("long_one") != two.removeprefix("long_two")


def typed(text: str) -> Any:
    return eval(text)


UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "eval": (lambda: typed("lambda out: dist.Normal(out, 1.0)"), "the source of '<lambda>' cannot be had"),
    "closure of a module": (lambda: by_helper(nn.Identity()), "the value of 'helper', a Identity"),
    "closure of a library's object": (
        lambda: by_helper(operator.attrgetter("real")),
        "the value of 'helper', a attrgetter",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.parametrize("by", ["load", "resume"])
def test_what_cannot_be_compared_is_said(kind: str, by: str, tmp_path: Path) -> None:
    make, phrase = UNKNOWN[kind]
    options: dict[str, Any] = {"checkpoint": tmp_path / "net", "progress": False, "seed": 0}
    ps.fit(*build(make()), (X, X[:, :1]), epochs=1, **options)
    with pytest.warns(UserWarning, match=f"cannot be told whether its likelihood is that of this model: {phrase}"):
        if by == "load":
            ps.load(tmp_path / "net", *build(make()))
        else:
            ps.fit(*build(make()), (X, X[:, :1]), epochs=1, resume=True, **options)


def test_an_undescribed_function_is_still_no_other_one(tmp_path: Path) -> None:
    ps.save(tmp_path / "net", *build(Made(1.0)))
    with pytest.raises(CheckpointError, match="expected the likelihood FromOutput.<lambda>.*, got FromOutput.Made"):
        ps.load(tmp_path / "net", *build(typed("lambda out: dist.Normal(out, 1.0)")))


def test_a_function_that_refers_to_itself_is_described(tmp_path: Path) -> None:
    def again(out: Any, depth: int = 1) -> Any:
        return again(out, depth - 1) if depth else dist.Normal(out, 1.0)

    text, unknown = describe_function(again)
    assert text.startswith("def again(") and unknown == []


CODE = """
import sys, torch, pyrostoch as ps
from pathlib import Path
from pyro import distributions as dist
from torch import nn

def make(s):
    shift = [0.0, 1e-3]
    return lambda out: dist.Normal(out + shift[0], s * torch.ones(30))  # the noise

def build(s):
    return ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=make(s), num_data=6)
"""
LOAD = """
import warnings
warnings.simplefilter("error")
for scale in (0.3, 0.4):
    model = build(scale)
    try:
        ps.load("net", model, ps.guides.Additive(model))
        print("loaded")
    except ps.training.CheckpointError:
        print("refused")
"""


def test_the_same_code_in_another_process_passes(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("one", tmp_path / "one.py")
    assert spec is not None and spec.loader is not None
    one = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(one)
    model = one.build(0.3)
    ps.save(tmp_path / "net", model, ps.guides.Additive(model))
    assert "s=0.3" in read_file(tmp_path / "net")[1]["likelihood"]
    # The same code at another place in another file.
    (tmp_path / "two.py").write_text("# A comment.\n\n" + CODE + LOAD)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "two.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["loaded", "refused"], done.stderr


def test_other_likelihoods_are_described_in_full(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for likelihood in (ps.likelihoods.Gaussian(0.3), ps.likelihoods.StudentT()):
            assert likelihood.not_described() == []
            ps.save(tmp_path / "net", *build(likelihood))
            ps.load(tmp_path / "net", *build(likelihood))


CONFIG, LINK = types.SimpleNamespace(scale=1.0), torch.exp
OTHER = types.ModuleType("other")
OTHER.scale, OTHER.unused = 1.0, object()


class Config:
    scale = 1.0


def reads_globals(out: Any) -> Any:
    return dist.Normal(LINK(out), CONFIG.scale + Config.scale + OTHER.scale)


@pytest.mark.parametrize("holder", [CONFIG, Config, OTHER, None])
def test_global_objects_classes_modules_and_other_names_are_seen(holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, unknown = describe_function(reads_globals)
    assert unknown == []
    if holder is None:
        monkeypatch.setitem(globals(), "LINK", torch.sigmoid)
    else:
        monkeypatch.setattr(holder, "scale", 2.0)
    assert describe_function(reads_globals)[0] != before


def test_objects_that_hold_themselves_are_described() -> None:
    items: list[Any] = [1.0]
    items.append(items)
    assert "holds itself" in describe_function(scaled(items))[0]


TRAINED: dict[str, Callable[[], Any]] = {
    "a parameter": lambda: scaled(nn.Parameter(torch.ones(()))),
    "a module": lambda: by_helper(nn.Linear(1, 1)),
    "a method of a module": lambda: by_helper(nn.Linear(1, 1).forward),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_parameters_of_functions_are_refused_since_nothing_would_train_them(kind: str) -> None:
    model, guide = build(TRAINED[kind]())
    with pytest.raises(ValueError, match="fit: the likelihood function uses parameter.*which nothing would train"):
        ps.fit(model, guide, (X, X[:, :1]), epochs=1, progress=False)


def test_a_function_may_use_parameters_of_the_network() -> None:
    net = nn.Linear(2, 1)
    extra = net.bias
    model = ps.BayesianModel(
        net, prior=ps.priors.Normal(), likelihood=lambda out: dist.Normal(out, extra.exp()), num_data=6
    )
    ps.fit(model, ps.guides.Additive(model), (X, X[:, :1]), epochs=1, progress=False)
