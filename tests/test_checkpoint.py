"""save and load: a round trip is exact, wrong files are refused, and a failure changes nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal
from safetensors.torch import save_file
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.safefile import FORMAT, CheckpointError, read_file, write_file
from pyrostoch.training.checkpoint import load, save
from pyrostoch.training.fit import fit

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(-1, keepdim=True)


def build(
    guide: Any = ps.guides.Additive, seed: int = 0, width: int = 4, prior: Any = None, likelihood: Any = None
) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    model = ps.BayesianModel(
        net, prior=prior or ps.priors.Normal(), likelihood=likelihood or ps.likelihoods.Gaussian(0.3), num_data=12
    )
    return model, guide(model)


def state(*modules: nn.Module) -> list[Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def trained(path: Path | None = None, **options: Any) -> tuple[ps.BayesianModel, Any]:
    model, guide = build(**options)
    fit(model, guide, (X, Y), epochs=2, batch_size=6, lr=0.1, seed=0, progress=False, checkpoint=path)
    return model, guide


KINDS: dict[str, dict[str, Any]] = {
    "additive": {},
    "learned noise": {"likelihood": ps.likelihoods.Gaussian(0.3, learn=True)},
    "random noise": {"likelihood": ps.likelihoods.Gaussian(dist.HalfNormal(1.0))},
    "student": {"likelihood": ps.likelihoods.StudentT(df=3.0)},
    "empirical Bayes": {"prior": ps.priors.EmpiricalBayes(0.5)},
    "hierarchical": {"prior": ps.priors.Hierarchical()},
    "log-uniform": {"prior": ps.priors.LogUniform(), "guide": ps.guides.NeuronwiseAlpha},
    "variance": {"prior": ps.priors.LogUniform(), "guide": ps.guides.VarianceOnly},
    "per site": {"guide": lambda m: ps.guides.PerSite(m, {"*": ps.guides.Additive, "2.*": ps.guides.WeightwiseAlpha})},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["save", "fit"])
def test_a_round_trip_is_exact(kind: str, by: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "net.safetensors"
    model, guide = trained(path if by == "fit" else None, **KINDS[kind])
    if by == "save":
        save(path, model, guide, note=["a", 1, None])
    other, other_guide = build(seed=1, **KINDS[kind])
    assert not same(state(model, guide), state(other, other_guide))
    content = load(path, other, other_guide)
    assert same(state(model, guide), state(other, other_guide))
    assert content["extra"] == ({"note": ["a", 1, None]} if by == "save" else {})
    assert content["num_data"] == 12 and content["versions"]["torch"] == torch.__version__
    assert content["sites"].keys() == model.sites.keys()
    assert ("training" in content) == (by == "fit")
    assert os.listdir(path.parent) == ["net.safetensors"]


def test_tied_weights_and_a_lazy_guide_are_restored(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.b(self.a(x).tanh()))

    def make() -> tuple[ps.BayesianModel, AutoNormal]:
        options: Any = {"prior": ps.priors.Normal(), "likelihood": ps.likelihoods.Gaussian(0.3)}
        model = ps.BayesianModel(Tied(), num_data=12, **options)
        return model, AutoNormal(model)

    model, guide = make()
    fit(model, guide, (X, Y), epochs=1, progress=False, checkpoint=tmp_path / "net")
    other, other_guide = make()
    with pytest.raises(CheckpointError, match="call the guide once"):
        load(tmp_path / "net", other, other_guide)
    other_guide(X, Y)
    load(tmp_path / "net", other, other_guide)
    assert same(state(model, guide), state(other, other_guide))
    assert other.net.a.weight is other.net.b.weight


def test_modules_keep_their_dtype(tmp_path: Path) -> None:
    model, guide = trained()
    save(tmp_path / "net", model, guide)
    other, other_guide = build(seed=1)
    other.double(), other_guide.double()
    load(tmp_path / "net", other, other_guide)
    for mine, theirs in zip(state(model, guide), state(other, other_guide), strict=True):
        assert theirs.dtype == (torch.float64 if mine.is_floating_point() else mine.dtype)
        assert torch.equal(mine.to(theirs.dtype), theirs)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "guide": ({"guide": ps.guides.WeightwiseAlpha}, r"expected the guide WeightwiseAlpha\(\), got Additive\(\)"),
    "width": ({"width": 5}, r"site '0.weight': expected the shape \[5, 3\], got \[4, 3\]"),
    "sites": (
        {"prior": {"2.*": ps.priors.Normal()}},
        r"expected the random sites '2.weight', '2.bias', got '0.weight'",
    ),
    "prior": (
        {"prior": ps.priors.Laplace()},
        r"site '0.weight': expected the prior Laplace\(.*got Normal\(loc=0, scale=1\)",
    ),
    "prior's scale": ({"prior": ps.priors.Normal(0.0, 2.0)}, r"expected the prior Normal\(loc=0, scale=2\)"),
    "likelihood": (
        {"likelihood": ps.likelihoods.StudentT()},
        r"expected the likelihood StudentT\(df=4, scale=1\), got Gaussian\(",
    ),
    "noise": (
        {"likelihood": ps.likelihoods.Gaussian(0.3, learn=True)},
        r"expected the likelihood Gaussian\(scale=learned\)",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_another_model_is_refused_and_nothing_changes(what: str, tmp_path: Path) -> None:
    options, message = OTHERS[what]
    save(tmp_path / "net", *build())
    model, guide = build(seed=1, **options)
    before = state(model, guide)
    with pytest.raises(CheckpointError, match=message) as info:
        load(tmp_path / "net", model, guide)
    assert str(tmp_path / "net") in str(info.value) and "Nothing was changed" in str(info.value)
    assert same(before, state(model, guide))


def test_settings_of_a_guide_or_likelihood_other_than_tensors_are_compared(tmp_path: Path) -> None:
    prior = ps.priors.LogUniform()
    save(tmp_path / "net", *build(lambda m: ps.guides.VarianceOnly(m, family="gaussian"), prior=prior))
    with pytest.raises(CheckpointError, match="family='uniform'.*family='gaussian'"):
        load(tmp_path / "net", *build(lambda m: ps.guides.VarianceOnly(m, family="uniform"), prior=prior))
    save(tmp_path / "net", *build(likelihood=ps.likelihoods.StudentT(df=3.0)))
    with pytest.raises(CheckpointError, match=r"StudentT\(df=5, scale=1\), got StudentT\(df=3, scale=1\)"):
        load(tmp_path / "net", *build(likelihood=ps.likelihoods.StudentT(df=5.0)))


class Bomb:
    """Unpickling it would leave a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb()}, buffer)
    return buffer.getvalue()


def whole_file(folder: Path) -> bytes:
    save(folder / "whole", *build())
    return (folder / "whole").read_bytes()


FOREIGN: dict[str, tuple[Any, str]] = {
    "empty": (lambda folder: b"", "0 bytes that cannot be read"),
    "text": (lambda folder: b"name,value\n" * 20, "the file is truncated or"),
    "truncated": (lambda folder: whole_file(folder)[:-10], "the file is truncated or"),
    "cut in its header": (lambda folder: whole_file(folder)[:100], "the file is truncated or"),
    "header only": (lambda folder: whole_file(folder)[:4], "4 bytes that cannot be read"),
    "torch.save": (lambda folder: torch_file(), "got a pickle"),
    "pickle": (lambda folder: pickle.dumps(Bomb()), "got a pickle"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_damaged_and_foreign_files_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = FOREIGN[kind]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net"
    path.write_bytes(make(tmp_path))
    content = path.read_bytes()
    model, guide = build()
    before = state(model, guide)
    with pytest.raises(CheckpointError, match=message) as info:
        load(path, model, guide)
    assert str(path) in str(info.value) and not (tmp_path / "exploded").exists()
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=message):
            fit(model, guide, (X, Y), epochs=1, checkpoint=path, resume=resume, progress=False)
    assert same(before, state(model, guide)) and path.read_bytes() == content


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net"
    headers: list[tuple[Any, str]] = [
        (None, "a safetensors file of 'another program'"),
        ({"format": "pt"}, "a safetensors file of 'pt'"),
        ({"format": FORMAT, "version": "99", "content": "{}"}, "expected format version 1, got 99"),
        ({"format": FORMAT}, "expected format version 1, got None"),
        ({"format": FORMAT, "version": "1", "content": "{}"}, "damaged: expected the checksum None"),
        ({"format": FORMAT, "version": "1", "content": "{}", "checksum": "0" * 64}, "damaged: expected the checksum 0"),
    ]
    for header, message in headers:
        save_file({"weight": torch.zeros(2)}, path, header)
        with pytest.raises(CheckpointError, match=message):
            load(path, *build())


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    model, guide = build()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path / "none", model, guide)
    with pytest.raises(IsADirectoryError, match="got a folder"):
        load(tmp_path, model, guide)
    with pytest.raises(IsADirectoryError, match="expected the name of a file, got a folder"):
        fit(model, guide, (X, Y), epochs=1, checkpoint=tmp_path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=f"taken cannot be written into the folder {tmp_path}"):
        save(tmp_path / "taken", model, guide)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written into the folder .*file"):
        fit(model, guide, (X, Y), epochs=1, checkpoint=tmp_path / "file" / "net")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_or_closed_folder_leaves_the_old_file(
    call: str, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net"
    model, guide = build()
    save(path, model, guide, version=1)
    content = path.read_bytes()

    def fail(*args: Any) -> Any:
        raise OSError(kind, os.strerror(kind))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=f"net cannot be written into the folder {tmp_path}: ") as info:
            save(path, model, guide, version=2)
    assert info.value.errno == kind and os.strerror(kind) in str(info.value)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["net"]
    save(path, model, guide, version=2)
    assert load(path, model, guide)["extra"] == {"version": 2}


def test_a_disk_that_fills_up_during_a_run_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net"
    model, guide = build()

    def fail(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(row: dict[str, Any]) -> None:
        monkeypatch.setattr(os, "write", fail)

    with pytest.raises(OSError, match="No space left"):
        fit(model, guide, (X, Y), epochs=3, checkpoint=path, callback=fill, progress=False)
    assert read_file(path)[1]["training"]["epoch"] == 1 and os.listdir(tmp_path) == ["net"]


def test_what_cannot_be_saved_is_refused_by_name(tmp_path: Path) -> None:
    model, guide = build()
    with pytest.raises(TypeError, match="save: when is of type Tensor"):
        save(tmp_path / "net", model, guide, when=torch.zeros(1))

    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    odd = ps.BayesianModel(Odd(3, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=12)
    with pytest.raises(TypeError, match="model: the state 'net._extra_state' is a dict"):
        save(tmp_path / "net", odd, ps.guides.Additive(odd))
    assert os.listdir(tmp_path) == []


def test_a_file_holds_tensors_of_every_kind_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    given = {"a": base, "view": base[::2], "same": base, "none": torch.zeros(0, 2), "scalar": torch.tensor(3)}
    given |= {"half": torch.ones(2, dtype=torch.bfloat16), "bool": torch.tensor([True]), "t": base.view(2, 3).t()}
    write_file(tmp_path / "f", given, {"x": [1.5, None, float("nan"), "é"]})
    tensors, content = read_file(tmp_path / "f")
    assert tensors.keys() == given.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in given.items()
    )
    assert json.dumps(content) == json.dumps({"x": [1.5, None, float("nan"), "é"]})
