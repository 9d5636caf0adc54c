"""A predictor outside of this library: a torch.export program and an ONNX file, of means, fixed draws and moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_predictor import LIKELIHOODS, Heads, convolutions, made, mlp
from test_predictor_changes import Odd
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.prediction import Predictor, exported, predict

FORMATS = ["torch", "onnx"]
MODES = {
    "mean": {},
    "moments": {},
    "moments:closed": {},
    "mc:4": {"draws": "fixed", "seed": 3},
    "mc:12": {"draws": "fixed", "seed": 3},
}


def run(path: Path, names: tuple[str, ...], *inputs: Tensor) -> dict[str, Tensor]:
    if path.suffix == ".pt2":
        with torch.no_grad():
            return dict(zip(names, torch.export.load(path).module()(*inputs), strict=True))
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = dict(zip([one.name for one in session.get_inputs()], [value.numpy() for value in inputs], strict=True))
    return dict(zip(names, map(torch.from_numpy, session.run(list(names), given)), strict=True))


def written(predictor: Predictor, folder: Path, format: str) -> tuple[Path, tuple[str, ...]]:
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    path = folder / ("net.onnx" if format == "onnx" else "net.pt2")
    return path, predictor.export(path, format=format)  # type: ignore[arg-type]


# Writing ONNX takes ten seconds and more.
CASES = [(net, mode, "torch") for net in (mlp, convolutions) for mode in MODES]
CASES += [(mlp, "moments", "onnx"), (mlp, "mc:12", "onnx"), (convolutions, "moments:closed", "onnx")]


@pytest.mark.parametrize(("net", "mode", "format"), CASES)
def test_modes(net: Any, mode: str, format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, guide = made(net())
    predictor = Predictor(model, guide, mode=mode, example=torch.randn(6, 4), **MODES[mode])
    path, names = written(predictor, tmp_path, format)
    assert names[0] == "probs"
    settings = {"joint": True, "seed": 3} if mode.startswith("mc") else {}
    for count in (1, 2, 9, 40):
        x = torch.randn(count, 4)
        expected, found = predict(model, guide, x, mode=mode, **settings), run(path, names, x)
        torch.testing.assert_close(found["probs"], expected.probs, rtol=1e-5, atol=1e-6)
        for name in names[1:]:
            torch.testing.assert_close(found[name], getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "format"),
    [(name, "torch") for name in ("gaussian", "heteroscedastic", "bernoulli", "poisson")] + [("poisson", "onnx")],
)
def test_likelihoods(name: str, format: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    likelihood, outputs = LIKELIHOODS[name]
    model, guide = made(mlp(outputs), likelihood)
    predictor = Predictor(model, guide, mode="moments", example=torch.randn(6, 4))
    path, names = written(predictor, tmp_path, format)
    x = torch.randn(11, 4)
    expected, found = predict(model, guide, x, mode="moments"), run(path, names, x)
    for field in names:
        torch.testing.assert_close(found[field], getattr(expected, field), rtol=1e-4, atol=1e-5, msg=field)


@pytest.mark.parametrize("format", FORMATS)
def test_heads_and_inputs_by_name(format: str, tmp_path: Path) -> None:
    class Named(Heads):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(torch.cat([a, b], 1))

    torch.manual_seed(2)
    model, guide = made(Named(), LIKELIHOODS["heads"][0])
    x = {"a": torch.randn(6, 1), "b": torch.randn(6, 3)}
    path, names = written(Predictor(model, guide, mode="mean", example=x), tmp_path, format)
    found, expected = run(path, names, x["a"], x["b"]), predict(model, guide, x, mode="mean")
    assert expected.heads is not None
    torch.testing.assert_close(found["kind.probs"], expected.heads["kind"].probs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["size.mean"], expected.heads["size"].mean, rtol=1e-5, atol=1e-6)
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        assert [one.name for one in session.get_inputs()] == ["a", "b"]
        about = json.loads(session.get_modelmeta().custom_metadata_map["pyrostoch"])
        assert about["mode"] == "mean" and about["outputs"] == list(names)


def test_the_program_has_the_present_parameters(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, guide = made(mlp())
    x = torch.randn(6, 4)
    predictor = Predictor(model, guide, mode="moments", example=x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.7)
    path, names = written(predictor, tmp_path, "torch")
    expected = predict(model, guide, x, mode="moments").probs
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.1)
    torch.testing.assert_close(run(path, names, x)["probs"], expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    model, guide = made(mlp())
    x, path = torch.randn(6, 4), tmp_path / "net.pt2"
    with pytest.raises(ValueError, match="example="):
        Predictor(model, guide, mode="mean").export(path)
    with pytest.raises(ValueError, match="draws='fixed'"):
        Predictor(model, guide, mode="mc:3", example=x).export(path)
    with pytest.raises(ValueError, match="reads a tensor's value"):
        Predictor(*made(Odd("value")), mode="mean", example=x).export(path)
    with pytest.raises(ValueError, match="1 example"):
        Predictor(*made(Odd("one")), mode="mean", example=x).export(path)
    dropout, own = made(nn.Sequential(nn.Linear(4, 8), ps.layers.MCDropout(0.5), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="random"):
        Predictor(dropout, own, mode="mc:3", draws="fixed", example=x).export(path)
    with pytest.raises(ValueError, match="format"):
        Predictor(model, guide, mode="mean", example=x).export(path, format="tflite")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"before")
    monkeypatch.setattr(exported, "_TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="not written"):
        Predictor(model, guide, mode="mean", example=x).export(path)
    assert path.read_bytes() == b"before"
    monkeypatch.setattr(exported, "_NEEDED", ("onnx_that_is_not_there",))
    with pytest.raises(ImportError, match=r"pyrostoch\[onnx\]"):
        Predictor(model, guide, mode="mean", example=x).export(path, format="onnx")


def test_the_root_that_is_written_out() -> None:
    torch.manual_seed(5)
    factor = torch.randn(7, 5, 5, dtype=torch.float64)
    covariance = factor @ factor.mT
    found, _ = exported._cholesky(covariance)
    torch.testing.assert_close(found, torch.linalg.cholesky(covariance), rtol=1e-10, atol=1e-12)
    assert np.isfinite(exported._cholesky(torch.zeros(2, 3, 3))[0].numpy()).all()
    with pytest.raises(ValueError, match="moments:closed"):
        exported._cholesky(torch.eye(40).unsqueeze(0))
