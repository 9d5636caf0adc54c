"""SVIModule on two processes: compared with a plain loop over both ranks, and with one process and the joint batch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyrostoch as ps
from pyrostoch._seeds import forked, mixed_seed
from pyrostoch.training.schedule import rate_factor

pytest.importorskip("lightning.pytorch", reason="needs pyrostoch[lightning]")

from lightning.pytorch import Trainer

from pyrostoch.lightning import SVIModule

ROOT = Path(__file__).resolve().parent.parent
COUNT, BATCH, EPOCHS, SEED, LR, LR_ALPHA = 40, 10, 3, 7, 0.05, 0.1

# Much noise; and almost none, so that a loss equals its expectation.
GUIDES: dict[str, Any] = {
    "noisy": lambda model: ps.guides.LayerwiseAlpha(model, init_log_alpha=-1.0),
    "still": lambda model: ps.guides.Additive(model, init_scale=1e-9),
}


def classes() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(x, (x @ torch.randn(4, 3, generator=generator, dtype=torch.float64)).argmax(-1))


def build(guide: str) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    options: dict[str, Any] = {"likelihood": ps.likelihoods.Categorical(), "num_data": COUNT}
    model = ps.BayesianModel(net.double(), prior=ps.priors.Normal(), **options)
    return model, GUIDES[guide](model)


def parameters(*modules: nn.Module) -> dict[str, Tensor]:
    named = ((f"{i}.{name}", p) for i, module in enumerate(modules) for name, p in module.named_parameters())
    return {name: p.detach().clone() for name, p in named}


def share(rank: int, world: int, shuffle: bool) -> DistributedSampler[Any]:
    return DistributedSampler(classes(), num_replicas=world, rank=rank, shuffle=shuffle, seed=0)  # type: ignore[arg-type]


class Writing(SVIModule):
    """Writes its losses, the logged means of the last epoch and its parameters, one file per rank."""

    target, examples, shuffled = Path(), BATCH, True

    def train_dataloader(self) -> DataLoader[Any]:
        if self.shuffled:  # Lightning uses its own sampler
            return DataLoader(classes(), batch_size=self.examples, shuffle=True)
        return DataLoader(
            classes(), batch_size=self.examples, sampler=share(self.global_rank, self.trainer.world_size, shuffle=False)
        )

    def setup(self, stage: str) -> None:
        # Processes started by a launcher without a seed have different seeds.
        self._seed += self.global_rank
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.losses.append(super().training_step(batch, batch_idx))
        return self.losses[-1]

    def on_train_end(self) -> None:
        logged = {name: self.trainer.callback_metrics[name].double() for name in ("elbo", "data", "kl")}
        found = {"losses": torch.stack(self.losses).detach(), **logged, **parameters(self.model, self.guide)}
        save_file(found, f"{self.target}.{self.global_rank}")


def train(devices: int, batch_size: int, guide: str, target: Path) -> None:
    module = Writing(*build(guide), lr=LR, lr_alpha=LR_ALPHA, seed=SEED)
    module.target, module.examples, module.shuffled = target, batch_size, guide == "noisy"
    quiet: dict[str, Any] = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Both starts in two processes, and in one with batches twice as large: the same examples in the same steps."""
    folder = tmp_path_factory.mktemp("ranks")
    # Variables that Lightning's launchers leave in the environment would set ranks and seeds.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Forked from a new process, which has run nothing yet.
    result = subprocess.run(
        [sys.executable, __file__, str(folder)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return {path.name: load_file(path) for path in folder.iterdir()}


def test_ranks_end_with_the_same_parameters(found: dict[str, dict[str, Tensor]]) -> None:
    first, second = found["noisy.0"], found["noisy.1"]
    for name in parameters(*build("noisy")):
        assert torch.equal(first[name], second[name]), name
    assert not torch.isclose(first["losses"], second["losses"]).any()


def test_each_rank_has_its_noise_and_the_mean_of_their_losses_is_minimized(
    found: dict[str, dict[str, Tensor]],
) -> None:
    model, guide = build("noisy")
    x, y = classes().tensors
    groups = guide.parameter_groups()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([{"params": groups["main"] + learned}, {"params": groups["alpha"]}])
    losses: list[list[float]] = []
    for step in range(EPOCHS * 2):
        epoch, index = divmod(step, 2)
        for group, rate in zip(optimizer.param_groups, (LR, LR_ALPHA), strict=True):
            group["lr"] = rate * rate_factor("linear", step, EPOCHS * 2)
        optimizer.zero_grad()
        parts = []
        for rank in range(2):
            sampler = share(rank, 2, shuffle=True)
            sampler.set_epoch(epoch)
            rows = list(sampler)[index * BATCH : (index + 1) * BATCH]
            with forked(torch.device("cpu"), mixed_seed(SEED, 0, rank, epoch, index)):
                terms = ps.ELBO().terms(model, guide, x[rows], y[rows])
            parts.append(terms.kl - terms.data)
        torch.stack(parts).mean().backward()
        optimizer.step()
        losses.append([part.item() for part in parts])
    expected = torch.tensor(losses, dtype=torch.float64)
    for rank in range(2):
        torch.testing.assert_close(found[f"noisy.{rank}"]["losses"], expected[:, rank], rtol=1e-9, atol=0)
    for name, value in parameters(model, guide).items():
        torch.testing.assert_close(found["noisy.0"][name], value, rtol=1e-9, atol=1e-12)


def test_without_noise_two_processes_are_one_with_the_joint_batch(found: dict[str, dict[str, Tensor]]) -> None:
    """The KL counts once and the factor N / B is right; with other factors the steps would differ."""
    first, second, one = found["still.0"], found["still.1"], found["one.0"]
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, one["losses"], rtol=1e-7, atol=0)
    for name in parameters(*build("still")):
        torch.testing.assert_close(first[name], one[name], rtol=1e-6, atol=1e-7)
    for name in ("elbo", "data", "kl"):  # logged in float32, the mean over examples and ranks
        torch.testing.assert_close(first[name], one[name], rtol=1e-6, atol=0)
    assert one["kl"] > 100 and (one["elbo"] - (one["data"] - one["kl"])).abs() < 1e-3


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    there = Path(sys.argv[1])
    train(2, BATCH, "noisy", there / "noisy")
    train(2, BATCH, "still", there / "still")
    train(1, 2 * BATCH, "still", there / "one")
