"""Random damage of a checkpoint: it is refused and nothing has changed, or what is loaded is what the file says.

`PYROSTOCH_FUZZ` is the number of mutations; `make fuzz` makes many.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import REFUSED, Case, RestoredError, bits_of, interrupted, only_restore, parts_of, with_checksum
from torch import Tensor

import pyrostoch as ps
from pyrostoch.safefile import read_file
from pyrostoch.training.run import Run
from pyrostoch.training.state import module_state

COUNT = int(os.environ.get("PYROSTOCH_FUZZ", "160"))
SEED = int(os.environ.get("PYROSTOCH_TEST_SEED", "0"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return interrupted(tmp_path_factory.mktemp("good") / "run")


def flip(file: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        file[rng.randrange(len(file))] ^= 1 << rng.randrange(8)


def zero(file: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(file))
    end = min(len(file), start + rng.choice((1, 8, 64, 512, 4096)))
    file[start:end] = bytes(end - start)


def cut(file: bytearray, rng: random.Random) -> None:
    del file[rng.choice((rng.randrange(16), rng.randrange(len(file)), len(file) - rng.randrange(1, 9))) :]


def insert(file: bytearray, rng: random.Random) -> None:
    where = rng.choice((0, 8, len(file), rng.randrange(len(file))))
    file[where:where] = rng.randbytes(rng.choice((1, 4, 100)))


def remove(file: bytearray, rng: random.Random) -> None:
    where = rng.randrange(len(file))
    del file[where : where + rng.choice((1, 4, 100))]


def swap(file: bytearray, rng: random.Random) -> None:
    size = rng.choice((4, 64, 512))
    a, b = rng.randrange(len(file) - size), rng.randrange(len(file) - size)
    file[a : a + size], file[b : b + size] = file[b : b + size], file[a : a + size]


def edit_header(file: bytearray, rng: random.Random) -> None:
    length = int.from_bytes(file[:8], "little")
    where = 8 + rng.randrange(length)
    file[where] = rng.choice(b'0123456789{}[]",:\\F \xff')


def edit_length(file: bytearray, rng: random.Random) -> None:
    file[:8] = rng.choice((0, 1, 2**20, 2**31, 2**63, 2**64 - 1, len(file))).to_bytes(8, "little")


RAW: list[Callable[[bytearray, random.Random], None]] = [
    *(flip, zero, cut, insert, remove, swap, edit_header, edit_length),
]

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        1.5,
        -0.0,
        float("nan"),
        float("inf"),
        10**30,
        2**63,
        "",
        "x",
        "finished",
        "é",
    ),
    *([], [None], [1.0, 2.0], {}, {"a": 1}, [[[[[]]]]], "early stopping at epoch 2", "constant", "float32"),
]


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every list and dictionary of plain data, with each of its keys."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [(content, key) for key in keys] + [place for key in keys for place in places(content[key])]


def edit_json(content: Any, rng: random.Random) -> Any:
    spots = places(content)
    # A run's own entries are few among those of its history.
    holder, key = rng.choice(spots if rng.random() < 0.5 else [s for s in spots if isinstance(s[0], dict)] or spots)
    action = rng.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice(("unknown", "", "epoch"))] = copy.deepcopy(rng.choice(VALUES))
    elif action == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(rng.choice(VALUES)))
    elif action == 3 and rng.random() < 0.1:
        return copy.deepcopy(rng.choice(VALUES))
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def edit_tensor(tensors: dict[str, Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    action = rng.randrange(7)
    if action == 0:
        del tensors[name]
    elif action == 1:
        dtypes = (torch.complex64, torch.bool, torch.int32, torch.int64, torch.float64, torch.float16, torch.uint8)
        tensors[name] = value.to(rng.choice(dtypes))
    elif action == 2:
        tensors[name] = rng.choice((value.reshape(-1), value[None], value.reshape(-1)[:1], torch.zeros(0)))
    elif action == 3:
        tensors[rng.choice(("model.unknown", "unknown", "rng.loader.7", "best.x", name + "."))] = tensors.pop(name)
    elif action == 4:
        tensors["optimizer.step.unknown"] = value.clone()
    elif action == 5:
        value.fill_(rng.choice((float("nan"), float("inf"), -1.0)) if value.is_floating_point() else 1)
    else:
        raw = value.reshape(-1).view(torch.uint8)
        if raw.numel():
            raw[rng.randrange(raw.numel())] ^= 1 << rng.randrange(8)


def well_formed(file: bytes, rng: random.Random) -> bytes:
    tensors, metadata = parts_of(file)
    kind = rng.randrange(10)
    if kind < 5:
        content = edit_json(json.loads(metadata["content"]), rng)
        metadata["content"] = json.dumps(content)
    elif kind < 8:
        edit_tensor(tensors, rng)
    elif kind == 8:
        metadata["sparse"] = json.dumps(edit_json(json.loads(metadata["sparse"]), rng))
    else:
        name = rng.choice(("content", "sparse", "version", "format", "unknown"))
        texts = ("", "[]", "{", "1e999", "null", "[" * 5000, "9" * 5000, '{"a": 1}', '"\\ud800"', "2", "²")
        metadata[name] = rng.choice(texts)
    return with_checksum(tensors, metadata)


class Trial:
    """Reads mutated files into one model and guide, which are made anew only after a file was accepted."""

    def __init__(self, path: Path) -> None:
        self.path, self.accepted, self.refused = path, 0, 0
        self.renew()

    def renew(self) -> None:
        self.case = Case(seed=5)
        self.before = self.case.bits()

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """What `load` has put into model and guide, and what it returned; `None` if it has refused the file."""
        try:
            content = ps.load(self.path, self.case.model, self.case.guide)
        except REFUSED:
            return self._refuse()
        self.accepted += 1
        return module_state(self.case.model, self.case.guide), content

    def resume(self) -> RestoredError | None:
        """The restored run; `None` if the file was refused."""
        try:
            self.case.fit(self.path)
        except REFUSED:
            return self._refuse()
        except RestoredError as restored:
            self.accepted += 1
            return restored
        raise AssertionError("neither refused nor restored")

    def _refuse(self) -> None:
        assert self.case.bits() == self.before, "refused, but something has changed"
        self.refused += 1


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(Run, "finish", only_restore)
    return Trial(tmp_path / "run")


def test_the_undamaged_file_is_restored(good: bytes, trial: Trial) -> None:
    trial.path.write_bytes(good)
    tensors, content = read_file(trial.path)
    loaded, restored = trial.load(), trial.resume()
    assert loaded is not None and restored is not None
    assert bits_of(loaded[0]) == {n: b for n, b in bits_of(tensors).items() if n.startswith(("model.", "guide."))}
    assert restored.bits == {n: b for n, b in bits_of(tensors).items() if not n.startswith("best.")}
    assert {n for n in tensors if n.startswith("best.")} and restored.run.done == 2 == content["training"]["epoch"]


def test_damaged_bytes_are_refused_or_change_nothing(good: bytes, trial: Trial) -> None:
    rng = random.Random(SEED)
    trial.path.write_bytes(good)
    whole, content = read_file(trial.path)
    expected = bits_of(whole)
    modules = {name: value for name, value in expected.items() if name.startswith(("model.", "guide."))}
    for index in range(COUNT // 2):
        file = bytearray(good)
        mutate = RAW[index % len(RAW)]
        mutate(file, rng)
        trial.path.write_bytes(file)
        if (loaded := trial.load()) is not None:
            assert bits_of(loaded[0]) == modules and loaded[1] == content, mutate
            trial.renew()
        if (restored := trial.resume()) is not None:
            assert restored.bits == {n: b for n, b in expected.items() if not n.startswith("best.")}, mutate
            trial.renew()
    # Of these, a file that is not the same any more passes only where a header's unused bytes differ.
    assert trial.refused > 0.9 * (trial.accepted + trial.refused) > 0
    print(f"damaged bytes: {trial.refused} refused, {trial.accepted} the same as undamaged")


def test_a_well_formed_file_is_refused_or_loaded_as_it_is(good: bytes, trial: Trial) -> None:
    rng = random.Random(SEED)
    for _ in range(COUNT // 2):
        trial.path.write_bytes(well_formed(good, rng))
        if (loaded := trial.load()) is not None:
            tensors, content = read_file(trial.path)
            given = {name: tensors[name].to(value.dtype) for name, value in loaded[0].items()}
            assert bits_of(loaded[0]) == bits_of(given) and same(loaded[1], content)
            trial.renew()
        if (restored := trial.resume()) is not None:
            tensors, content = read_file(trial.path)
            run, training = restored.run, content["training"]
            assert restored.bits == {n: b for n, b in bits_of(tensors).items() if not n.startswith("best.")}
            assert bits_of(run.best) == {n[5:]: b for n, b in bits_of(tensors).items() if n.startswith("best.")}
            names = {"epoch": run.done, "history": run.history, "stopped": run.stopped, "best_loss": run.best_loss}
            names |= {"best_epoch": run.best_epoch, "order_seed": run.trainer.order_seed}
            assert same(names, {name: training[name] for name in names})
            trial.renew()
    assert trial.refused > 0 < trial.accepted
    print(f"well-formed: {trial.refused} refused, {trial.accepted} loaded as they are")


def same(one: Any, other: Any) -> bool:
    """Whether plain data are equal, NaN to NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
