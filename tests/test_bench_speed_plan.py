"""The bench `speed`: rounds, medians and ratios, what is not run, and the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bench_cli import call
from test_bench_results import trial_record

import pyrostoch as ps
from pyrostoch.bench import Bench, Case, Setting
from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.recipe import Recipe
from pyrostoch.bench.results import collect
from pyrostoch.bench.speed import SPEED, driver, measures, summary
from pyrostoch.bench.speed.driver import Times, Worker, measure, peer_python
from pyrostoch.bench.speed.implementations import IMPLEMENTATIONS, NETWORKS, RATIOS, TARGETS
from pyrostoch.bench.speed.workers import adapters_worker
from pyrostoch.bench.speed.workers.task import Task
from pyrostoch.bench.tables import section, tables
from pyrostoch.bench.trial import run_trial

ROOT = Path(__file__).resolve().parent.parent
TINY = Task("torch", (5, 4, 3), examples=4)


def context_of(case: str, tmp_path: Path, preset: str = "cpu", device: str = "cpu", **changes: Any) -> TrialContext:
    found = SPEED.case(case)
    recipe = dataclasses.replace(found.recipes[preset], **changes)
    return TrialContext(found, recipe, Setting(preset, tmp_path, device), 3, lambda row: None)


def test_medians_and_ratios_of_made_up_times() -> None:
    seconds = {
        # Round medians 2, 4, 9 and 1, 8, 3.
        "a": [[0.002, 0.001, 0.5], [0.004], [0.009, 0.009]],
        "b": [[0.001], [0.008, 0.008, 0.1], [0.002, 0.004]],
    }
    found = summary.milliseconds(seconds)
    assert found == pytest.approx({"ms/a": 4.0, "ms/b": 3.0})
    found = summary.ratios(seconds, [("a", "b"), ("b", "gone")])
    # The median of the rounds' ratios 2, 0.5 and 3, not the ratio of the medians.
    assert found == pytest.approx({"ratio/a/b": 2.0, "ratio/a/b/low": 0.5, "ratio/a/b/high": 3.0})


class FakeWorker:
    """A worker without a process, which logs its calls."""

    log: list[str]

    def __init__(self, task: Task, python: Path | None = None) -> None:
        self.name, self.missing = task.implementation, "no module x" if task.implementation == "tyxe" else None
        self.log.append(f"start {self.name}")

    def run(self, blocks: int, steps: int) -> dict[str, Any]:
        self.log.append(self.name)
        if self.name == "hand" and blocks == 0:
            raise RuntimeError("implementation 'hand' failed")
        return {"seconds": [0.001 * steps] * blocks, "peak": 2**20}

    def close(self) -> None:
        self.log.append(f"end {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(driver, "Worker", FakeWorker)
    FakeWorker.log = []
    return FakeWorker.log


def test_implementations_take_turns_in_changing_orders(log: list[str]) -> None:
    names = ("torch", "hand", "tyxe", "pyro")
    rows: list[dict[str, Any]] = []
    tasks = {name: (dataclasses.replace(TINY, implementation=name), None) for name in names}
    found = measure(tasks, rounds=8, blocks=2, steps=3, seed=1, progress=rows.append)
    assert found.missing == {"tyxe": "no module x"} and found.seconds.keys() == {"torch", "hand", "pyro"}
    assert all(rounds == [[0.003, 0.003]] * 8 for rounds in found.seconds.values())
    assert log[:5] == ["start torch", "start hand", "start tyxe", "end tyxe", "start pyro"]
    orders = [tuple(log[i : i + 3]) for i in range(5, 29, 3)]
    assert all(sorted(order) == ["hand", "pyro", "torch"] for order in orders) and len(set(orders)) > 2
    assert sorted(log[29:]) == ["end hand", "end pyro", "end torch"]
    assert [row["epoch"] for row in rows if row["epoch"]] == list(range(1, 9))


def test_all_processes_end_when_one_fails(log: list[str]) -> None:
    tasks = {name: (dataclasses.replace(TINY, implementation=name), None) for name in ("torch", "hand", "pyro")}
    with pytest.raises(RuntimeError, match="'hand' failed"):
        measure(tasks, rounds=1, blocks=0, steps=1)
    assert {"end torch", "end hand", "end pyro"} <= set(log)


def test_worker_runs_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker(TINY) as worker:
        assert worker.missing is None
        assert len(worker.run(2, 3)["seconds"]) == 2 and worker.run(1, 1)["peak"] > 2**20
        process = worker._process
    assert process.poll() is not None
    with pytest.raises(RuntimeError, match=r"(?s)implementation 'nothing' failed with exit status 1.*KeyError"):
        Worker(dataclasses.replace(TINY, implementation="nothing"))


def requested_tasks(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrialContext], dict[str, Any]]:
    """A function that returns the tasks that `steps` passes to the driver."""
    requested: dict[str, Any] = {}

    def remember(tasks: Any, **settings: Any) -> Times:
        requested.clear()
        requested.update(tasks)
        return Times()

    monkeypatch.setattr(measures, "measure", remember)
    monkeypatch.setattr(measures, "missing", lambda device: None)
    return lambda context: measures.steps(context) or dict(requested)


def test_what_is_not_installed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks_of = requested_tasks(monkeypatch)
    monkeypatch.setenv("PYROSTOCH_PEERS", str(tmp_path))
    assert peer_python() is None
    without_peers = tasks_of(context_of("step/mlp", tmp_path))
    assert without_peers.keys() == {one.name for one in IMPLEMENTATIONS if one.peer is None}
    assert all(python is None for _, python in without_peers.values())

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    every = tasks_of(context_of("step/deep", tmp_path))
    assert every.keys() == {one.name for one in IMPLEMENTATIONS}
    for one in IMPLEMENTATIONS:
        task, python = every[one.name]
        assert python == (tmp_path / "bin" / "python" if one.peer else None)
        assert (task.widths, task.random, task.examples, task.seed) == (NETWORKS["deep"].widths, "all", 100, 3)
    on_gpu = tasks_of(context_of("step/lenet5", tmp_path, device="cuda:0"))
    assert every.keys() - on_gpu.keys() == {"numpyro"} and on_gpu["hand"][0].device == "cuda:0"

    monkeypatch.setattr(measures, "missing", lambda device: "no compiler")
    assert {name for name in every.keys() - tasks_of(context_of("step/mlp", tmp_path)).keys()} == {
        *("hand-compiled", "pyrostoch-compiled-local", "pyrostoch-compiled-shared")
    }


def test_quick_preset_runs_the_implementations_of_pyrostoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = requested_tasks(monkeypatch)(context_of("step/mlp", tmp_path, "quick"))
    assert len(tasks) == 4 and all(name.startswith("pyrostoch-") for name in tasks)


def test_environment_beside_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYROSTOCH_PEERS", raising=False)
    monkeypatch.chdir(tmp_path)
    python = tmp_path / ".venv-peers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peer_python() == python


def test_adapters_take_turns_and_their_memory_is_reported(tmp_path: Path, log: list[str]) -> None:
    found = measures.adapters(context_of("adapters", tmp_path, epochs=2))
    assert sorted(log[:2]) == ["start adapters-plain", "start adapters-random"]
    assert sorted(log[2:4]) == sorted(log[4:6]) == ["adapters-plain", "adapters-random"]
    assert found["ratio/adapters-random/adapters-plain"] == 1.0
    assert found["mib/adapters-random"] == found["mib/adapters-plain"] == 1.0


def test_steps_of_both_kinds_of_adapters_train_the_same_network() -> None:
    for name in measures.ADAPTERS:
        step = adapters_worker.build(Task(name, examples=2)).step
        losses = [step(0).item() for _ in range(6)]
        assert losses[-1] < losses[0]
    model = ps.BayesianModel(
        adapters_worker.Encoder(),
        prior={"*.lora_[AB].weight": ps.priors.Normal(0, 0.1)},
        likelihood=ps.likelihoods.Categorical(),
        num_data=2,
    )
    assert len(model.sites) == 24 and all(".lora_" in name for name in model.sites)
    assert [n for n, p in model.net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_memory_is_measured_in_new_processes_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[int] = []

    class PeakWorker(FakeWorker):
        log: list[str] = []

        def __init__(self, task: Task) -> None:
            draws.append(task.draws)
            self.peak = (200 if task.draws == 100 else 100 + 60 * (len(draws) > 2)) * 2**20

        def __enter__(self) -> PeakWorker:
            return self

        def __exit__(self, *error: Any) -> None:
            pass

        def run(self, blocks: int, steps: int) -> dict[str, Any]:
            return {"seconds": [1.0], "peak": self.peak}

    monkeypatch.setattr(measures, "Worker", PeakWorker)
    found = measures.memory(context_of("memory", tmp_path, epochs=2))
    assert draws == [10, 100, 100, 10]
    assert found["mib/mc:100"] == 200 and found["mib/mc:10"] == 130
    assert (found["ratio/mc:100/mc:10/low"], found["ratio/mc:100/mc:10/high"]) == (1.25, 2.0)


def test_import_is_timed_in_new_processes(tmp_path: Path) -> None:
    record = run_trial(SPEED, SPEED.case("import"), 0, Setting("quick", tmp_path), None)
    found = record["metrics"]
    assert found["seconds/both"] - found["seconds/pyro"] == pytest.approx(found["seconds/added"])
    assert record["device"].startswith("cpu (") and record["settings"]["recipe"]["epochs"] == 1


def test_recipe_of_another_kind_is_refused(tmp_path: Path) -> None:
    context = dataclasses.replace(context_of("step/mlp", tmp_path), recipe=Recipe(epochs=1))
    with pytest.raises(TypeError, match="step/mlp: expected a Timing as its recipe, got Recipe"):
        measures.steps(context)


def entries(case: str, **metrics: float) -> list[dict[str, Any]]:
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    return collect([trial_record(0, values, case=case)])


SMALL = Bench(
    name="small",
    title="Small",
    cases=tuple(
        Case(name, title, None, {"cpu": Recipe(epochs=1), "full": Recipe(epochs=2)})
        for name, title in (("step/one", "One"), ("step/two", "Two"), ("memory", "Peak"))
    ),
    columns=(("ms/a", "a, ms"), ("ms/b", "b, ms"), ("ratio/a/b", "a / b"), ("ratio/a/c", "a / c"), ("mib/x", "x")),
    published={},
    notes=("A note.",),
    source="",
    transposed=True,
    targets={"step/two": {"ratio/a/b": 0.65, "ms/b": 1.0}},
)

TABLE = """\
### Preset `cpu`

|  | One | Two |
| --- | ---: | ---: |
| a, ms | 12.5 | 3.00 |
| a / b |  | 0.500 (0.250 to 0.750), target 0.65 |

|  | Peak |
| --- | ---: |
| x | 300 |

Run on: cpu (one), torch 2.13.0, pyro-ppl 1.9.2, Python 3.11.7, pyrostoch 0.1.0, 2026-01-02. Not run: b, ms."""


def test_table_has_a_row_for_each_implementation() -> None:
    rows = [
        *entries("step/one", ms__a=12.5),
        *entries("step/two", ms__a=3.0, ratio__a__b=0.5, ratio__a__b__low=0.25, ratio__a__b__high=0.75),
        *entries("memory", mib__x=300.0),
    ]
    assert tables(SMALL, rows) == TABLE
    text = section(SMALL, rows)
    assert "Published" not in text and text.endswith(
        f"{TABLE}\n\nA note.\n\nNot run, preset `full`: step/one; step/two; memory."
    )


def test_plan_names_what_it_measures() -> None:
    assert BENCHES["speed"] is SPEED
    names, columns = {one.name for one in IMPLEMENTATIONS}, dict(SPEED.columns)
    assert {f"ms/{name}" for name in names} <= columns.keys()
    assert all({one, other} <= names for one, other in RATIOS)
    assert len(NETWORKS["deep"].widths) == 32
    for case, metrics in TARGETS.items():
        assert SPEED.case(case).custom_trial is not None and metrics.keys() <= columns.keys()


def test_libraries_are_pinned_where_they_are_installed() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(one.peer in makefile for one in IMPLEMENTATIONS if one.peer)
    assert "/.venv-peers/" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_command_lists_the_rounds() -> None:
    output = call("bench", "speed", "--list", "--device", "cpu")
    assert " step/mlp: 15 rounds " in output and output.endswith(" import: 11 rounds")
