"""From a CSV file to predictions for other rows, on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import call

SMALL = ("--hidden", "12", "--device", "cpu", "--quiet")


pytestmark = pytest.mark.usefixtures("own_folder")


def houses(path: str, count: int, seed: int) -> list[float]:
    """Write a table of houses, and return their prices."""
    generator = np.random.default_rng(seed)
    rooms, area = generator.integers(1, 9, count), generator.uniform(20, 200, count)
    city = generator.choice(["Berlin", "Paris"], count)
    price = 50.0 + 20.0 * rooms + 1.5 * area + 40.0 * (city == "Paris") + 20.0 * generator.normal(size=count)
    rows = [f"{r},{a:.3f},{c},{p:.3f}" for r, a, c, p in zip(rooms, area, city, price, strict=True)]
    Path(path).write_text("\n".join(["rooms,area,city,price", *rows]))
    return [float(p) for p in price]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_two_commands_lead_to_intervals_that_cover() -> None:
    houses("houses.csv", 3000, 0)
    prices = np.array(houses("new.csv", 2000, 1))
    given = ("--data", "houses.csv", "--target", "price", "--prior", "normal", "--epochs", "60", "--out", "run")
    call("train", *given, *SMALL)
    Path("houses.csv").unlink()  # the run has all that it needs
    assert "Wrote predictions.csv, by guide additive." in call("predict", "run", "new.csv", "--out", "predictions.csv")
    rows = table("predictions.csv")
    assert list(rows[0]) == ["mean", "sd", "q05", "q25", "q50", "q75", "q95", "epistemic_share"]
    found = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    assert len(prices) == len(rows) == 2000
    covered = ((found["q05"] < prices) & (prices < found["q95"])).mean()
    assert 0.85 < covered < 0.95
    assert np.sqrt(((found["mean"] - prices) ** 2).mean()) < 26.0
    assert ((found["epistemic_share"] > 0) & (found["epistemic_share"] < 1)).all()
    assert (np.diff([found[name] for name in ("q05", "q25", "q50", "q75", "q95")], axis=0) > 0).all()
    record = json.loads(Path("run/results.json").read_text())
    assert record["data"]["schema"]["target"] == "price" and record["config"]["target"] == "price"
    call("predict", "run", "new.csv", "--out", "again.csv")
    assert Path("again.csv").read_text() == Path("predictions.csv").read_text()


def test_classes_and_what_is_new_in_the_rows() -> None:
    rows = [f"{i % 7},{'AB'[i % 2]},{i},{'yes' if i % 7 > 3 else 'no'}" for i in range(200)]
    Path("data.csv").write_text("\n".join(["x,kind,id,answer", *rows]))
    settings = ("--data", "data.csv", "--target", "answer", "--drop", "id", "--epochs", "30", "--out", "run", *SMALL)
    call("train", *settings)
    Path("new.csv").write_text("kind,more,x\nA,1,0\nC,2,6\nA,,\n")
    message = call("predict", "run", "new.csv", "--out", "p.csv", "--samples", "20", code=2)
    assert (
        "new.csv, row 3, column 'x': the value is missing, and none was in training" in message
        and not Path("p.csv").exists()
    )
    Path("new.csv").write_text("kind,more,x\nA,1,0\nB,1,6\nC,2,6\n")
    message = call("predict", "run", "new.csv", "--out", "p.csv", "--samples", "20")
    assert "Column kind: no training row had C; they count as none of its categories." in message
    found = table("p.csv")
    assert [row["class"] for row in found[:2]] == ["no", "yes"]
    assert all(abs(float(row["p(no)"]) + float(row["p(yes)"]) - 1.0) < 1e-5 for row in found)
    assert "additive mean" in call("evaluate", "run")
    Path("lacks.csv").write_text("kind\nA\n")
    message = call("predict", "run", "lacks.csv", "--out", "q.csv", code=2)
    assert "no column(s) 'x', which the network was trained on" in message
    assert "nowhere.csv: no such file" in call("predict", "run", "nowhere.csv", "--out", "q.csv", code=2)
    Path("none.csv").write_text("kind,x\n")
    assert "it has a header, but no rows" in call("predict", "run", "none.csv", "--out", "q.csv", code=2)


def test_a_run_on_a_table_is_resumed_and_its_settings_are_kept() -> None:
    houses("houses.csv", 200, 0)
    begun = ("train", "--data", "houses.csv", "--target", "price", "--test", "0.3", "--split", "4", "--epochs", "1")
    call(*begun, "--out", "run", *SMALL)
    record = json.loads(Path("run/results.json").read_text())
    assert record["data"]["test"] == 60 and Path(record["config"]["data"]).is_absolute()
    assert "Already finished" not in call("train", "--resume", "--out", "run", "--quiet")
    assert "settings" in call(*begun, "--test", "0.5", "--resume", "--out", "run", *SMALL, code=2)


def test_options_that_do_not_fit_are_refused() -> None:
    houses("houses.csv", 60, 0)
    assert "say which column is the target" in call("train", "--data", "houses.csv", code=2)
    message = call("train", "--data", "houses.csv", "--target", "prize", code=2)
    assert "no target 'prize'" in message and "did you mean 'price'" in message
    assert "target: it is for a CSV file" in call("train", "--target", "price", code=2)
    assert "no.csv: no such file" in call("train", "--data", "no.csv", "--target", "y", code=2)
    message = call("train", "--data", "houses.csv", "--target", "price", "--model", "lenet5", "--epochs", "1", code=2)
    assert "lenet5" in message or "image" in message
    call("train", "--epochs", "1", "--hidden", "8", "--out", "digits", "--quiet")
    assert "only a network that was trained on a CSV file" in call(
        "predict", "digits", "houses.csv", "--out", "o.csv", code=2
    )
