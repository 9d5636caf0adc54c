"""A trial that is cut short, by Ctrl-C, SIGKILL or a crash, ends as if it had not been, and so does its course.

Run as a script it is the process that kills itself: see `test_killed_trial_goes_on_to_the_same_end`.
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
from test_bench_trial import EPOCHS, SHORT, carry, case, distribution, folder, press, refuse, result
from torch import nn

from pyrostoch.bench import Recipe, follow, trial
from pyrostoch.bench.follow import log_alphas
from pyrostoch.guides import Additive, VarianceOnly, WeightwiseAlpha
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.priors import LogUniform, Normal


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a trial carried out in one go."""
    return carry(tmp_path_factory.mktemp("whole"))


def press_while_looking(out: Path, epoch: int) -> None:
    """Ctrl-C after the checkpoint of an epoch is written and before its line is."""
    with pytest.MonkeyPatch.context() as patch:
        looks = iter(range(1, EPOCHS + 1))

        def compare(*args: Any, **options: Any) -> Any:
            if next(looks) == epoch:
                raise KeyboardInterrupt
            return original(*args, **options)

        original = follow.compare
        patch.setattr(follow, "compare", compare)
        carry(out)


def crash(out: Path, place: str) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, place, fail)
        carry(out)


def tear(out: Path, keep: float, also: str = "") -> None:
    """Leave a part of the last line, as a process does that is killed while it writes."""
    path = folder(out) / "curve.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][: int(keep * len(lines[-1]))] + also)


def glue(out: Path) -> None:
    """Leave a half line with the next one behind it, as a process did that wrote on where another had been killed."""
    tear(out, 0.5, (folder(out) / "curve.jsonl").read_text().splitlines()[-1] + "\n")


CUTS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "after the first epoch": (lambda out: carry(out, progress=press(1)),),
    "after the last epoch": (lambda out: carry(out, progress=press(EPOCHS)),),
    "while it looks at the second epoch": (lambda out: press_while_looking(out, 2),),
    "twice": (lambda out: carry(out, progress=press(2)), lambda out: carry(out, progress=press(4))),
    "between training and scoring": (lambda out: crash(out, "score"),),
    "between scoring and the ELBO": (lambda out: crash(out, "decompose"),),
    "while the record is written": (lambda out: crash(out, "versions"),),
}
WOUNDS: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "half a line": (2, lambda out: tear(out, 0.5)),
    "a line without its end": (2, lambda out: tear(out, 0.999)),
    "half a line of an epoch without a look": (3, lambda out: tear(out, 0.5)),
    "no line": (4, lambda out: tear(out, 0.0)),
    "two lines in one": (4, glue),
    "a line twice": (4, lambda out: tear(out, 1.0, (folder(out) / "curve.jsonl").read_text().splitlines()[-1] + "\n")),
}


def check_curve_file(out: Path) -> None:
    lines = [json.loads(text) for text in (folder(out) / "curve.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("cut", CUTS)
def test_resumed_trial_is_the_uninterrupted_one(cut: str, whole: dict[str, Any], tmp_path: Path) -> None:
    for stop in CUTS[cut]:
        with pytest.raises(KeyboardInterrupt):
            stop(tmp_path)
        assert "metrics" not in json.loads((folder(tmp_path) / "trial.json").read_text())
    seen: list[int] = []
    assert result(carry(tmp_path, progress=lambda row: seen.append(row["epoch"]))) == result(whole)
    assert seen == list(range(EPOCHS - len(seen) + 1, EPOCHS + 1)) and len(seen) < EPOCHS
    check_curve_file(tmp_path)


@pytest.mark.parametrize("wound", WOUNDS)
def test_torn_curve_is_mended(wound: str, whole: dict[str, Any], tmp_path: Path) -> None:
    epoch, hurt = WOUNDS[wound]
    with pytest.raises(KeyboardInterrupt):
        carry(tmp_path, progress=press(epoch))
    hurt(tmp_path)
    assert result(carry(tmp_path)) == result(whole)
    check_curve_file(tmp_path)


def test_lost_curve_has_its_terms_still(whole: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry(tmp_path, progress=press(4))
    (folder(tmp_path) / "curve.jsonl").unlink()
    curve, there = carry(tmp_path)["curve"], whole["curve"]
    assert {name: curve[name] for name in ("epoch", "elbo", "data", "kl")} == {
        name: there[name] for name in ("epoch", "elbo", "data", "kl")
    }
    for name in curve.keys() - {"epoch", "elbo", "data", "kl"}:
        assert curve[name] == [None, None, None, there[name][3], None]


def test_killed_trial_goes_on_to_the_same_end(whole: dict[str, Any], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    torn = (folder(tmp_path) / "curve.jsonl").read_text()
    assert torn.count("\n") == 3 and not torn.endswith("\n")
    assert result(carry(tmp_path)) == result(whole)
    check_curve_file(tmp_path)


def test_curve_of_a_guide_with_zero_means(tmp_path: Path) -> None:
    def zero(model: BayesianModel, recipe: Recipe, origin: Any) -> nn.Module:
        return Additive(model, init_loc=0.0)

    record = carry(
        tmp_path, case("net/zero", zero, recipes={"quick": SHORT}, curve=True, random={"*.weight": Normal()})
    )
    assert record["curve"]["epoch"] == [1, 2]
    json.loads(next(tmp_path.glob("**/trial.json")).read_text(), parse_constant=refuse)


@pytest.mark.parametrize("guide", [Additive, WeightwiseAlpha, VarianceOnly])
def test_log_alphas_against_numpy(guide: Any) -> None:
    prior = {"0.*": LogUniform() if guide is not Additive else Normal(), "2.weight": LogUniform()}
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model = BayesianModel(net, prior=prior, likelihood=Categorical(), num_data=9)
    made = guide(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    found = log_alphas(SimpleNamespace(model=model, guide=made))  # type: ignore[arg-type]
    if guide is VarianceOnly:
        assert found == {}
        return
    distributions = [distribution(made, name) for name in ("0.weight", "2.weight")]
    values = np.concatenate([(w.variance / w.mean**2).log().detach().numpy().ravel() for w in distributions])
    expected = [np.median(values), *np.percentile(values, [25, 75])]
    assert [found[f"log_alpha{part}"] for part in ("", "/lower", "/upper")] == pytest.approx(expected, rel=1e-9)


if __name__ == "__main__":

    def kill(line: Any) -> str:
        text = json.dumps(line) + "\n"
        if line["epoch"] == 4:
            path = folder(Path(sys.argv[1])) / "curve.jsonl"
            with path.open("a", encoding="utf-8") as file:
                file.write(text[:40])
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    torch.set_num_threads(1)
    follow._text = kill
    carry(Path(sys.argv[1]))
