"""`fit` in two processes, started by torchrun: the same result as in one, and none waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyrostoch as ps
from pyrostoch._seeds import mixed_seed
from pyrostoch.effects.active import active_call
from pyrostoch.infer.parallel import Ranks

ROOT = Path(__file__).resolve().parent.parent
# Batches of ten, and a last one of one example, of which one of two ranks gets none.
COUNT, BATCH, EPOCHS = 41, 10, 3
SETTINGS: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05, "seed": 3, "progress": False}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(4, 3, generator=generator, dtype=torch.float64)).argmax(-1)


def build(scale: float = 1e-9, seed: int = 0) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model = ps.BayesianModel(
        net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT, penalty=size_of_biases
    )
    return model, ps.guides.Additive(model, init_scale=scale)


def size_of_biases(net: nn.Module) -> Tensor:
    return sum((p.square().sum() for name, p in net.named_parameters() if "bias" in name), torch.zeros(()))


def outcome(result: Any, model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    kept = {f"history.{name}": torch.tensor(values) for name, values in result.history.items() if name != "seconds"}
    parts = {
        f"{i}.{name}": p.detach().clone() for i, m in enumerate((model, guide)) for name, p in m.named_parameters()
    }
    return kept | parts


class CutShortError(Exception):
    """Stops a run after an epoch."""


def still(folder: Path) -> dict[str, Tensor]:
    """Almost no noise; the ranks start with different parameters, and gradients are clipped."""
    model, guide = build(seed=int(os.environ.get("RANK", "0")))
    return outcome(ps.fit(model, guide, data(), clip=1e3, **SETTINGS), model, guide)


def in_parts(folder: Path) -> dict[str, Tensor]:
    """Each rank computes its part of a batch in three parts; of the last batch, of one example, there is one."""
    model, guide = build(seed=int(os.environ.get("RANK", "0")))
    return outcome(ps.fit(model, guide, data(), clip=1e3, accumulate=3, **SETTINGS), model, guide)


def noisy(folder: Path, **options: Any) -> dict[str, Tensor]:
    model, guide = build(0.1)
    return outcome(ps.fit(model, guide, data(), **{**SETTINGS, **options}), model, guide)


def interrupted(folder: Path) -> dict[str, Tensor]:
    """The first rank's callback fails after an epoch: both stop, and both resume from the checkpoint."""
    path = folder / "cut.safetensors"

    def stop(row: dict[str, Any]) -> None:
        raise CutShortError

    try:
        noisy(folder, checkpoint=path, callback=stop)
    except CutShortError:
        told = 0
    except RuntimeError as error:
        told = 1 if "rank 0 has failed: CutShortError" in str(error) else 2
    return noisy(folder, checkpoint=path, resume=True) | {"told": torch.tensor(told)}


def held_out(folder: Path) -> dict[str, Tensor]:
    return noisy(folder, validation=data(), patience=1, epochs=30, lr=1.0, schedule="constant")


def loaded(folder: Path) -> dict[str, Tensor]:
    dataset = TensorDataset(*data())
    model, guide = build(0.1)
    try:
        ps.fit(model, guide, DataLoader(dataset, batch_size=5), **SETTINGS)
        refused = 0
    except ValueError as error:
        refused = int("DistributedSampler" in str(error))
    sampler: Any = DistributedSampler(dataset, seed=1)
    result = ps.fit(model, guide, DataLoader(dataset, batch_size=5, sampler=sampler), **SETTINGS)
    return outcome(result, model, guide) | {"refused": torch.tensor(refused)}


def broken(folder: Path) -> dict[str, Tensor]:
    """An input of the second rank makes the loss infinite: both ranks stop."""
    model, guide = build(0.1)
    forward, calls = model.net.forward, []

    def spoilt(x: Tensor) -> Tensor:
        if active_call() is not None:  # no pass of the analysis of weight usage
            calls.append(len(x))
        out: Tensor = forward(x)
        # From the second epoch on.
        return out * (float("inf") if len(calls) > 7 and os.environ["RANK"] == "1" else 1.0)

    model.net.forward = spoilt  # type: ignore[method-assign]
    try:
        ps.fit(model, guide, data(), **SETTINGS)
    except ps.training.NonFiniteLossError as error:
        return {"epoch": torch.tensor(error.epoch), **outcome(type("", (), {"history": {}}), model, guide)}
    return {}


SCENES: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    scene.__name__: scene for scene in (still, in_parts, noisy, interrupted, held_out, loaded, broken)
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, __file__, str(folder)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder, {path.name: load_file(path) for path in folder.glob("*.[01]")}


@pytest.mark.parametrize("scene", SCENES)
def test_ranks_end_alike(ranks: Any, scene: str) -> None:
    first, second = ranks[1][f"{scene}.0"], ranks[1][f"{scene}.1"]
    assert first.keys() == second.keys() and first
    for name in first.keys() - {"told"}:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("scene", ["still", "in_parts"])
def test_two_ranks_give_the_result_of_one(ranks: Any, scene: str) -> None:
    """Without noise, the losses, terms and parameters of one process with the same batches."""
    found, expected = ranks[1][f"{scene}.0"], still(Path())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_with_noise_they_agree_in_expectation(ranks: Any) -> None:
    """Two ranks average two draws per step: other parameters, about the same ELBO."""
    found, expected = ranks[1]["noisy.0"], noisy(Path())
    assert not torch.equal(found["history.elbo"], expected["history.elbo"])
    torch.testing.assert_close(found["history.elbo"], expected["history.elbo"], rtol=0.1, atol=0)
    torch.testing.assert_close(found["history.kl"], expected["history.kl"], rtol=0.05, atol=0)


def test_each_rank_and_epoch_has_its_own_noise() -> None:
    seeds = {mixed_seed(seed, epoch, rank) for rank in range(2) for seed in range(3) for epoch in range(4)}
    assert len(seeds) == 24


def test_weighted_parts_have_the_mean_of_the_batch() -> None:
    for size in (2, 3):
        for count in range(1, 8):
            index = torch.arange(count)
            parts = [Ranks(rank, size).share(index) for rank in range(size)]
            assert sorted(i for mine, weight in parts if weight for i in mine.tolist()) == index.tolist()
            # The mean over ranks of weight times mean over the part is the mean over the batch.
            mean = sum(weight * mine.double().mean() for mine, weight in parts) / size
            assert mean == pytest.approx(index.double().mean().item())


def test_a_failure_of_the_first_rank_stops_all_and_the_run_can_be_resumed(ranks: Any) -> None:
    folder, found = ranks
    assert [int(found[f"interrupted.{rank}"]["told"]) for rank in (0, 1)] == [0, 1]
    whole = found["noisy.0"]
    for name, value in whole.items():
        torch.testing.assert_close(found["interrupted.0"][name], value, rtol=0, atol=0, msg=name)


def test_a_run_of_two_ranks_is_resumed_by_one(ranks: Any, tmp_path: Path) -> None:
    model, guide = build(0.1)
    path = tmp_path / "two.safetensors"
    path.write_bytes((ranks[0] / "cut.safetensors").read_bytes())
    result = ps.fit(model, guide, data(), checkpoint=path, resume=True, **SETTINGS)
    assert result.epochs == EPOCHS and result.seconds > 0


def test_ranks_stop_early_together(ranks: Any) -> None:
    epochs = ranks[1]["held_out.0"]["history.epoch"]
    assert 2 <= len(epochs) < 30


def test_a_loader_needs_a_distributed_sampler(ranks: Any) -> None:
    assert int(ranks[1]["loaded.0"]["refused"]) == 1
    assert len(ranks[1]["loaded.0"]["history.elbo"]) == EPOCHS


def test_a_nan_of_one_rank_stops_both_and_restores_the_start_of_the_epoch(ranks: Any) -> None:
    assert int(ranks[1]["broken.0"]["epoch"]) == int(ranks[1]["broken.1"]["epoch"]) == 2


if __name__ == "__main__":
    for name, play in SCENES.items():
        save_file(
            {key: value.contiguous() for key, value in play(Path(sys.argv[1])).items()},
            f"{sys.argv[1]}/{name}.{os.environ['RANK']}",
        )
