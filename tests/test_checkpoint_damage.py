"""A checkpoint that is damaged, or well-formed with wrong content, is refused by name before anything is replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    REFUSED,
    Case,
    RestoredError,
    interrupted,
    only_restore,
    parts_of,
    rewritten,
    with_checksum,
)
from torch import Tensor

import pyrostoch as ps
from pyrostoch.safefile import read_file
from pyrostoch.training.run import Run

WEIGHT = "guide.parameters_of.last/weight.loc"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return interrupted(tmp_path_factory.mktemp("good") / "run")


def position_of(file: bytes, name: str) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end."""
    start = 8 + int.from_bytes(file[:8], "little")
    begin, end = json.loads(file[8:start])[name]["data_offsets"]
    return start + begin, start + end


def refuse(path: Path, message: str, by: str = "both") -> None:
    """Check that `load` and a resumed run refuse a file by a message, and that nothing has changed then."""
    case = Case(seed=5)
    before, file = case.bits(), path.read_bytes() if path.is_file() else b""
    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: ps.load(path, case.model, case.guide),
        "resume": lambda: case.fit(path),
    }
    for call in [by] if by != "both" else list(calls):
        with pytest.raises(REFUSED, match=message) as info:
            calls[call]()
        assert str(path) in str(info.value)
        assert case.bits() == before, f"{call} has changed something"
        assert all(not parameter.grad_fn and parameter.requires_grad for parameter in case.guide.parameters())
    assert not path.is_file() or path.read_bytes() == file
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]


def test_one_flipped_bit_of_a_weight_is_seen(good: bytes, tmp_path: Path) -> None:
    begin, end = position_of(good, WEIGHT)
    file = bytearray(good)
    file[begin + 3] ^= 0x40
    (tmp_path / "run").write_bytes(file)
    refuse(tmp_path / "run", "the file is damaged: expected the checksum [0-9a-f]{64}, got .*; restore it from a copy")


@pytest.mark.parametrize("name", ["rng.cpu", "rng.loader.0", f"optimizer.exp_avg.{WEIGHT}", f"best.{WEIGHT}"])
def test_zeros_in_what_only_a_resumed_run_needs_are_seen(name: str, good: bytes, tmp_path: Path) -> None:
    begin, end = position_of(good, name)
    assert any(good[begin:end])
    (tmp_path / "run").write_bytes(good[:begin] + bytes(end - begin) + good[end:])
    refuse(tmp_path / "run", "the file is damaged")


def test_metadata_are_under_the_checksum(good: bytes, tmp_path: Path) -> None:
    for old, new in (
        (b'\\"num_data\\": 24', b'\\"num_data\\": 25'),
        (b'\\"coalesced\\": true', b'\\"coalesced\\": fals '),
    ):
        if old in good:  # the mixing matrix of this case is not coalesced
            (tmp_path / "run").write_bytes(good.replace(old, new))
            refuse(tmp_path / "run", "the file is damaged")
    tensors, metadata = parts_of(good)
    (tmp_path / "run").write_bytes(with_checksum(tensors, metadata).replace(b'"checksum"', b'"checksun"'))
    refuse(tmp_path / "run", "the file is damaged: expected the checksum None")


def drop(name: str) -> Callable[[dict[str, Tensor], Any], Any]:
    return lambda tensors, content: tensors.__delitem__(name)


def retype(name: str, dtype: torch.dtype) -> Callable[[dict[str, Tensor], Any], Any]:
    return lambda tensors, content: tensors.update({name: tensors[name].to(dtype)})


def put(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], Any], Any]:
    return lambda tensors, content: tensors.update({name: make(tensors[name])})


def edit(*path: str, value: Any) -> Callable[[dict[str, Tensor], Any], Any]:
    """Change an entry of the plain data; `...` removes it."""

    def change(tensors: dict[str, Tensor], content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        if value is ...:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


STEP, SQUARES = f"optimizer.step.{WEIGHT}", f"optimizer.exp_avg_sq.{WEIGHT}"
DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]

# Of both, or of a resumed run only.
WRONG: dict[str, tuple[Any, str, str]] = {
    "a list": (lambda t, c: [1, 2], "expected a dictionary of plain data, got a list", "both"),
    "deep": (edit("extra", "x", value=DEEP), "at most 100 deep", "both"),
    "no sites": (edit("sites", value=...), "sites: expected a dict of dict, got None", "both"),
    "sites of text": (edit("sites", value="none"), "sites: expected a dict of dict, got none", "both"),
    "a site of text": (edit("sites", "last.weight", value=[3]), "sites: expected a dict of dict", "both"),
    "a guide of numbers": (edit("guide", value=[1]), "guide: expected a list of str", "both"),
    "num_data": (edit("num_data", value=True), "num_data: expected a int, got True", "both"),
    "extra": (edit("extra", value=None), "extra: expected a dict, got None", "both"),
    "complex": (retype(WEIGHT, torch.complex64), "expected torch.float32.*got torch.complex64", "both"),
    "bool": (retype(WEIGHT, torch.bool), "expected torch.float32.*got torch.bool", "both"),
    "int": (retype(f"model.net.first.{'bias'}", torch.int64), "expected torch.float32.*got torch.int64", "both"),
    "float for int": (retype("model.net.norm.num_batches_tracked", torch.float32), "expected torch.int64", "both"),
    "a weight less": (drop(WEIGHT), "missing 'guide.parameters_of.last/weight.loc'", "both"),
    "a tensor more": (lambda t, c: t.update(odd=torch.zeros(1)), "unknown 'odd'", "both"),
    "half a matrix": (drop("model.net.mixing:values"), "the file is whole, but .* KeyError", "both"),
    "indices outside": (put("model.net.mixing:indices", lambda x: x + 7), "size is inconsistent with indices", "both"),
    "training of text": (edit("training", value="yes"), "expected the entries .* of a run, got yes", "both"),
    "training": (edit("training", value=None), "expected one of a training run|expected the description", "both"),
    "no history": (edit("training", "history", value=...), "expected the entries 'epoch'", "both"),
    "short history": (edit("training", "history", "loss", value=[1.0]), "history: expected 2 numbers", "both"),
    "history of texts": (edit("training", "history", "kl", value=["a", "b"]), "history: expected 2 numbers", "both"),
    "history of ints": (edit("training", "history", "kl", value=[10**400, 1]), "history: expected 2 numb", "both"),
    "epoch": (edit("training", "epoch", value=3), "history: expected 3 numbers", "both"),
    "epoch beyond": (edit("training", "epoch", value=99), "epoch: expected a whole number from 1 to 9", "both"),
    "epochs": (edit("training", "settings", "epochs", value="9"), "settings: expected whole epochs", "both"),
    "settings": (edit("training", "settings", value=[]), "settings: expected a dictionary", "both"),
    "a setting less": (edit("training", "settings", "clip", value=...), "'clip' are in one", "resume"),
    "another setting": (edit("training", "settings", "lr", value=0.5), "lr=0.5 and cannot be resumed", "resume"),
    "order_seed": (edit("training", "order_seed", value=-1), "order_seed: expected a whole number", "both"),
    "compiled": (edit("training", "compiled", value=0), "compiled: expected true or false", "both"),
    "stopped": (edit("training", "stopped", value="finished"), "stopped: expected an ending", "both"),
    "stopped early": (edit("training", "stopped", value="early stopping at epoch 1"), "stopped: expected an", "both"),
    "best_epoch": (edit("training", "best_epoch", value=0), "best_epoch: expected null, or with patience", "both"),
    "best_loss": (edit("training", "best_loss", value=0.0), "best_loss: expected .*, as in the history", "both"),
    "optimizer": (edit("training", "optimizer", value=[1]), "optimizer: expected a list of names", "both"),
    "optimizer of another": (edit("training", "optimizer", value=["x"]), "the optimizer's state of 'x'", "resume"),
    "no moments": (drop(SQUARES), f"missing '{SQUARES}'", "resume"),
    "other moments": (put(SQUARES, lambda x: x[:1]), f"'{SQUARES}': expected float32", "resume"),
    "moments of ints": (retype(SQUARES, torch.int32), f"'{SQUARES}': expected float32", "resume"),
    "negative squares": (put(SQUARES, lambda x: -x - 1), "mean squares from 0 up", "resume"),
    "step 0": (put(STEP, lambda x: x * 0), "a step from 1 up", "resume"),
    "step nan": (put(STEP, lambda x: x * float("nan")), "a step from 1 up", "resume"),
    "unknown moments": (lambda t, c: t.update({"optimizer.x": torch.zeros(1)}), "unknown 'optimizer.x'", "resume"),
    "no best": (drop(f"best.{WEIGHT}"), "missing 'best.guide", "resume"),
    "random state": (put("rng.cpu", torch.zeros_like), "'rng.cpu' is no state of a random generator", "resume"),
    "no random state": (drop("rng.cpu"), "missing 'rng.cpu'", "resume"),
    "short random state": (put("rng.cpu", lambda x: x[:-8]), "'rng.cpu': expected uint8 of shape", "resume"),
    "no loader's": (drop("rng.loader.0"), "missing 'rng.loader.0'", "resume"),
    "a loader's": (put("rng.loader.0", torch.zeros_like), "'rng.loader.0' is no state of a random", "resume"),
    "double": (retype(WEIGHT, torch.float64), "expected float32 of shape .*got float64", "resume"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_well_formed_files_with_wrong_content_are_refused(kind: str, good: bytes, tmp_path: Path) -> None:
    change, message, by = WRONG[kind]
    (tmp_path / "run").write_bytes(rewritten(good, change))
    refuse(tmp_path / "run", message, by)


def test_a_rewritten_file_without_a_change_is_restored(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A weight may be NaN: what was saved is loaded.
    change = put(WEIGHT, lambda x: x * float("nan"))
    (tmp_path / "run").write_bytes(rewritten(good, change))
    case = Case(seed=5)
    ps.load(tmp_path / "run", case.model, case.guide)
    assert bool(case.guide.state_dict()[WEIGHT.removeprefix("guide.")].isnan().all())
    (tmp_path / "run").write_bytes(rewritten(good, lambda tensors, content: None))
    monkeypatch.setattr(Run, "finish", only_restore)
    with pytest.raises(RestoredError):
        case.fit(tmp_path / "run")


def test_texts_that_are_no_json_are_refused(good: bytes, tmp_path: Path) -> None:
    tensors, metadata = parts_of(good)
    for text in ("", "{", "[" * 100_000, "9" * 5000, "nul"):
        (tmp_path / "run").write_bytes(with_checksum(tensors, metadata | {"content": text}))
        refuse(tmp_path / "run", "the file is whole, but was not written by pyrostoch as it is")


@pytest.mark.parametrize("length", [0, 1, 2**27, 2**63, 2**64 - 1])
def test_an_impossible_header_is_refused(length: int, good: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(length.to_bytes(8, "little") + good[8:])
    refuse(tmp_path / "run", "expected a whole safetensors file")


def test_the_random_state_of_a_gpu_is_of_no_use_elsewhere(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_cuda(tensors: dict[str, Tensor], content: Any) -> None:
        tensors["rng.cuda"] = torch.zeros(16, dtype=torch.uint8)

    (tmp_path / "run").write_bytes(rewritten(good, with_cuda))
    refuse(tmp_path / "run", "unknown 'rng.cuda'", "resume")
    on_cuda = edit("training", "device", value="cuda")
    (tmp_path / "run").write_bytes(rewritten(rewritten(good, with_cuda), on_cuda))
    monkeypatch.setattr(Run, "finish", only_restore)
    with pytest.raises(RestoredError) as info:
        Case(seed=5).fit(tmp_path / "run")
    assert "rng.cuda" not in info.value.run.trainer.state.capture()


def test_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "expected a file, got a device, a pipe or the like")


def test_links_lead_to_their_file_and_circles_nowhere(good: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refuse(tmp_path / "a", "symbolic links that lead in a circle")
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/run")
    case = Case()
    ps.save(tmp_path / "link", case.model, case.guide)
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "far") == ["run"]
    assert read_file(tmp_path / "far" / "run")[1] == ps.load(tmp_path / "link", case.model, case.guide)
