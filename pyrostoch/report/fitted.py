"""The report page of a model that was fitted in Python."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from pyrostoch._checks import check_positive, name_list
from pyrostoch._manual import see
from pyrostoch._version import versions
from pyrostoch.likelihoods.parts import is_loss
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.decompose import decompose
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import batches_for, check_guide, device_of, seeded
from pyrostoch.protocols import Data
from pyrostoch.report.html import write
from pyrostoch.runs.experiment import Experiment
from pyrostoch.runs.folder import RECORD_FILE, SCHEMA, RunError, check_writable, read_record, write_record
from pyrostoch.runs.scores import CURVE_SAMPLES, modes_with_rules, posterior_histograms, score
from pyrostoch.safefile import made_folders
from pyrostoch.training.history import Fit

__all__ = ["write_report"]


def write_report(
    model: BayesianModel,
    guide: nn.Module,
    train: Data,
    test: Data,
    *,
    out: str | Path,
    fit: Fit | None = None,
    title: str = "",
    target_std: float = 1.0,
    num_samples: int = 10,
    seed: int = 0,
) -> Path:
    """Score a fitted model, decompose its ELBO, and write a page of figures and tables, as a run of the command line.

    The folder then holds `report.html` and the numbers in it, `results.json`; what `write_report` wrote there before is
    replaced. Model and guide are not saved: that is `pyrostoch.save`.

    Args:
        model: The model.
        guide: Its guide.
        train: The training data, whose ELBO is decomposed.
        test: Held-out data, which are scored.
        out: The folder.
        fit: What `fit` returned, for the curves of the training.
        title: Name of the data.
        target_std: Standard deviation by which the targets of a regression were divided; RMSE and NLL are then those in
            the original units.
        num_samples: Draws for the data term of the ELBO.
        seed: Seed of the draws.

    Returns:
        The page.

    Raises:
        TypeError: The model is no `BayesianModel`.
        ValueError: The likelihood has several heads, or is a loss: the page has one kind of scores.
        RunError: The folder holds another run.

    Example:
        >>> import tempfile, torch, pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(2, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=20)
        >>> x = torch.randn(40, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(model, ps.guides.Additive(model), (x[:20], y[:20]), (x[20:], y[20:]), out=folder)
        ...     page.name
        'report.html'
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(f"write_report: expected a BayesianModel, got {type(model).__name__}")
    check_guide(guide)
    check_positive("target_std", target_std)
    if heads := model.likelihood.head_names:
        raise ValueError(
            f"write_report: the likelihood has heads {name_list(heads)}, and a page has one kind of scores; print "
            f"compare and decompose, which have those of each{see('how-to/several_heads')}"
        )
    if is_loss(model.likelihood):
        raise ValueError("write_report: the likelihood is a loss, for which there are no scores; print compare")
    folder = Path(out).expanduser()
    _check_folder(folder)
    with made_folders(folder):
        check_writable(folder)
        record = _record(model, guide, train, test, fit, title, target_std, num_samples, seed)
        write_record(folder, record)
    return write(record, folder / "report.html")


def _check_folder(folder: Path) -> None:
    """Raise an error where the folder holds a run of the command line."""
    if (folder / RECORD_FILE).exists() and read_record(folder)["kind"] != "python":
        raise RunError(f"write_report: {folder} holds a run of the command line; choose another folder")


def _record(
    model: BayesianModel,
    guide: Any,
    train: Data,
    test: Data,
    fit: Fit | None,
    title: str,
    target_std: float,
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    device = device_of(model, guide)
    first, targets = batches_for(model, test, 2, "test").first()
    modes, reason = modes_with_rules(model, guide, first)
    parts: Any = train, test
    found = score(Experiment(model, guide, parts[0], parts[1], target_std), modes, seed=seed, curve=CURVE_SAMPLES)
    with seeded(seed, device):
        terms = decompose(model, guide, train, num_samples=num_samples)
        shown = predict(model, guide, first, y=targets, mode=modes[0], device=device)
    if target_std != 1.0 and (shown.mean is None or shown.mean.shape[1:].numel() != 1 or model.likelihood.missing):
        raise ValueError("write_report: target_std is for a single output, none of which is missing; leave it out")
    random = [name for name, site in model.sites.items() if site.role != "scale"]
    priors = list(dict.fromkeys(repr(model.prior(name)) for name in random))
    history = {} if fit is None else fit.history
    result = {
        "name": type(guide).__name__,
        "title": type(guide).__name__,
        "seconds": None if fit is None else fit.seconds,
        "decomposition": terms.to_dict(),
        "rows": found.rows,
        "history": {key: history[key] for key in ("epoch", "elbo", "data", "kl", "kl_weight") if key in history},
        "reliability": {mode: bins for mode, bins in found.reliability.items() if mode != "mc:1"},
        "by_samples": found.curve,
        "posterior": posterior_histograms(guide, random),
        "without_moments": reason,
    }
    classes = None if shown.log_probs is None else shown.log_probs.shape[-1]
    return {
        "schema": SCHEMA,
        "kind": "python",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0 if fit is None else fit.seconds,
        "versions": versions(),
        "device": str(device),
        "seed": seed,
        "config": {},
        "data": {
            "title": title or "data",
            "train": model.num_data,
            "test": batches_for(model, test, 2, "test").num_data,
            "classes": classes,
            "task": "regression" if classes is None else "classification",
            "standardized": target_std != 1.0,
        },
        "model": {
            "name": type(model.net).__name__,
            "description": f"likelihood {model.likelihood.identity()}",
            "random": random,
            "parameters": sum(parameter.numel() for parameter in model.net.parameters()),
        },
        "prior": {"text": ", ".join(priors) or "none", "improper": model.improper},
        **({} if fit is None else {"epochs": fit.epochs}),
        "posterior_of": None,
        "guides": [result],
    }
