"""A trial that was interrupted, by Ctrl-C, SIGKILL or a crash, is resumed to the same scores and the same curve.

Run as a script, this file is the process that kills itself in `test_killed_trial_is_resumed_to_the_same_end`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_bench_trial import (
    EPOCHS,
    SHORT,
    case,
    distribution,
    fail_on_constant,
    folder_of,
    interrupt_at,
    run_one,
    without_times,
)
from torch import nn

from pyrostoch.bench import Recipe, curve, trial
from pyrostoch.bench.curve import log_alphas
from pyrostoch.guides import Additive, VarianceOnly, WeightwiseAlpha
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.priors import LogUniform, Normal


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a trial that was not interrupted."""
    return run_one(tmp_path_factory.mktemp("whole"))


def interrupt_while_scoring(out: Path, epoch: int) -> None:
    """Ctrl-C after the checkpoint of an epoch is written and before the line of its curve."""
    with pytest.MonkeyPatch.context() as patch:
        epochs = iter(range(1, EPOCHS + 1))

        def compare(*args: Any, **options: Any) -> Any:
            if next(epochs) == epoch:
                raise KeyboardInterrupt
            return original(*args, **options)

        original = curve.compare
        patch.setattr(curve, "compare", compare)
        run_one(out)


def crash(out: Path, place: str) -> None:
    """Interrupt a trial at the call of a function."""

    def fail(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, place, fail)
        run_one(out)


def truncate_last_line(out: Path, keep: float, also: str = "") -> None:
    """Keep a part of the last line, as a process that is killed while it writes."""
    path = folder_of(out) / "curve.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][: int(keep * len(lines[-1]))] + also)


def append_to_truncated_line(out: Path) -> None:
    """Half a line followed by a whole one, as if another process had appended to the file of a killed one."""
    truncate_last_line(out, 0.5, (folder_of(out) / "curve.jsonl").read_text().splitlines()[-1] + "\n")


INTERRUPTIONS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "after the first epoch": (lambda out: run_one(out, progress=interrupt_at(1)),),
    "after the last epoch": (lambda out: run_one(out, progress=interrupt_at(EPOCHS)),),
    "while the second epoch is scored": (lambda out: interrupt_while_scoring(out, 2),),
    "twice": (lambda out: run_one(out, progress=interrupt_at(2)), lambda out: run_one(out, progress=interrupt_at(4))),
    "between training and scoring": (lambda out: crash(out, "score"),),
    "between scoring and the ELBO": (lambda out: crash(out, "decompose"),),
    "while the record is written": (lambda out: crash(out, "versions"),),
}
# The epoch of the interruption, and what happens to the file of the curve.
DAMAGES: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "half a line": (2, lambda out: truncate_last_line(out, 0.5)),
    "a line without its end": (2, lambda out: truncate_last_line(out, 0.999)),
    "half a line of an epoch without scores": (3, lambda out: truncate_last_line(out, 0.5)),
    "no line": (4, lambda out: truncate_last_line(out, 0.0)),
    "two lines in one": (4, append_to_truncated_line),
    "a line twice": (
        4,
        lambda out: truncate_last_line(out, 1.0, (folder_of(out) / "curve.jsonl").read_text().splitlines()[-1] + "\n"),
    ),
}


def check_curve_file(out: Path) -> None:
    lines = [json.loads(text) for text in (folder_of(out) / "curve.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_resumed_trial_equals_the_uninterrupted_one(interruption: str, whole: dict[str, Any], tmp_path: Path) -> None:
    for stop in INTERRUPTIONS[interruption]:
        with pytest.raises(KeyboardInterrupt):
            stop(tmp_path)
        assert "metrics" not in json.loads((folder_of(tmp_path) / "trial.json").read_text())
    seen: list[int] = []
    assert without_times(run_one(tmp_path, progress=lambda row: seen.append(row["epoch"]))) == without_times(whole)
    assert seen == list(range(EPOCHS - len(seen) + 1, EPOCHS + 1)) and len(seen) < EPOCHS
    check_curve_file(tmp_path)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_curve_is_repaired(kind: str, whole: dict[str, Any], tmp_path: Path) -> None:
    epoch, damage = DAMAGES[kind]
    with pytest.raises(KeyboardInterrupt):
        run_one(tmp_path, progress=interrupt_at(epoch))
    damage(tmp_path)
    assert without_times(run_one(tmp_path)) == without_times(whole)
    check_curve_file(tmp_path)


def test_lost_curve_still_has_the_terms_of_the_elbo(whole: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_one(tmp_path, progress=interrupt_at(4))
    (folder_of(tmp_path) / "curve.jsonl").unlink()
    columns, expected = run_one(tmp_path)["curve"], whole["curve"]
    terms = ("epoch", "elbo", "data", "kl")
    assert {name: columns[name] for name in terms} == {name: expected[name] for name in terms}
    for name in columns.keys() - set(terms):
        assert columns[name] == [None, None, None, expected[name][3], None]


def test_killed_trial_is_resumed_to_the_same_end(whole: dict[str, Any], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    text = (folder_of(tmp_path) / "curve.jsonl").read_text()
    assert text.count("\n") == 3 and not text.endswith("\n")
    assert without_times(run_one(tmp_path)) == without_times(whole)
    check_curve_file(tmp_path)


def test_curve_of_a_guide_with_zero_means(tmp_path: Path) -> None:
    def zero(model: BayesianModel, recipe: Recipe, origin: Any) -> nn.Module:
        return Additive(model, init_loc=0.0)

    record = run_one(
        tmp_path, case("net/zero", zero, recipes={"quick": SHORT}, curve=True, random={"*.weight": Normal()})
    )
    assert record["curve"]["epoch"] == [1, 2]
    json.loads(next(tmp_path.glob("**/trial.json")).read_text(), parse_constant=fail_on_constant)


@pytest.mark.parametrize("guide", [Additive, WeightwiseAlpha, VarianceOnly])
def test_log_alphas_against_numpy(guide: Any) -> None:
    prior = {"0.*": LogUniform() if guide is not Additive else Normal(), "2.weight": LogUniform()}
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model = BayesianModel(net, prior=prior, likelihood=Categorical(), num_data=9)
    fitted = guide(model)
    with torch.no_grad():
        for parameter in fitted.parameters():
            parameter.normal_()
    found = log_alphas(SimpleNamespace(model=model, guide=fitted))  # type: ignore[arg-type]
    if guide is VarianceOnly:
        assert found == {}
        return
    distributions = [distribution(fitted, name) for name in ("0.weight", "2.weight")]
    values = np.concatenate([(w.variance / w.mean**2).log().detach().numpy().ravel() for w in distributions])
    expected = [np.median(values), *np.percentile(values, [25, 75])]
    assert [found[f"log_alpha{part}"] for part in ("", "/lower", "/upper")] == pytest.approx(expected, rel=1e-9)


if __name__ == "__main__":

    def kill(line: Any) -> str:
        text = json.dumps(line) + "\n"
        if line["epoch"] == 4:
            path = folder_of(Path(sys.argv[1])) / "curve.jsonl"
            with path.open("a", encoding="utf-8") as file:
                file.write(text[:40])
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    torch.set_num_threads(1)
    curve._text = kill
    run_one(Path(sys.argv[1]))
