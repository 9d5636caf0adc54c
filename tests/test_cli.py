"""The command line, inside this process: what it prints, writes and refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import pyrostoch
from pyrostoch.cli import app, screen
from pyrostoch.cli.screen import RunScreen
from pyrostoch.runs.registry import COMPARED_GUIDES, GUIDES

QUICK = ("--epochs", "2", "--hidden", "12,10", "--device", "cpu")


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished comparison, and its output."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    return folder, call("compare", "--data", "digits", *QUICK, "--out", str(folder))


@pytest.fixture
def run(compared: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished comparison, which a test may change."""
    shutil.copytree(compared[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_compare_prints_settings_and_results(compared: tuple[Path, str]) -> None:
    folder, output = compared
    record = json.loads((folder / "results.json").read_text())
    assert "prior LogUniform(), the same for all guides improper" in output
    assert "random fc2.weight" in output and "2 epochs" in output
    assert "guide ELBO data KL mean moments 1 sample 20 samples NLL ECE seconds" in output
    for guide in record["guides"]:
        line = re.search(
            rf" {guide['name']} (-[\d,.]+) (-[\d,.]+) ([\d,.]+) ([\d.]+) [\d.]+ [\d.]+ ([\d.]+) [\d.]+ ", output
        )
        assert line, guide["name"]
        elbo, data, kl, mean, many = (float(text.replace(",", "")) for text in line.groups())
        terms, rows = guide["decomposition"], {row["mode"]: row for row in guide["rows"]}
        assert [elbo, data, kl] == [pytest.approx(terms[key], abs=0.051) for key in ("elbo", "data", "kl")]
        assert [mean, many] == [pytest.approx(100 * rows[key]["accuracy"], abs=0.0051) for key in ("mean", "mc:20")]
    assert "variance: 10.0 % with mean weights (chance: 10 %)" in output or "variance: 9." in output
    assert record["command"].startswith("pyrostoch compare --data digits --epochs 2 --hidden 12,10")
    files = {"results.json", "report.html", "config.toml", "posterior.nc"}
    files |= {f"{guide}.safetensors" for guide in COMPARED_GUIDES}
    assert {path.name for path in folder.iterdir()} == files


def test_evaluate_repeats_the_record(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    record = json.loads((folder / "results.json").read_text())
    output = call("evaluate", str(folder))
    for guide in record["guides"]:
        for row in guide["rows"]:
            numbers = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_stderr']:.2f} {row['nll']:.4f}"
            assert f"{guide['name']} {row['mode']} {numbers}" in output
    selected = call("evaluate", str(folder), "--modes", "mc:3, mean", "--guide", "variance")
    assert re.search(r"variance mc:3 .* variance mean ", selected) and "additive" not in selected


def test_decompose_prints_a_row_per_site(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    output = call("decompose", str(folder), "--samples", "3", "--guide", "layerwise")
    assert "Layer-wise alpha ELBO of 1437 examples, 3 draws, estimator 'marginal'" in output
    assert re.search(r"fc2.weight 120 [\d.]+ exact local \(exact\)", output)


def test_report_is_written_again(run: Path) -> None:
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert "report.html" in call("report", str(run))
    assert (run / "report.html").read_text() == before


def test_train_and_resume_by_default_names(tmp_path: Path) -> None:
    call("train", "--guide", "variance", *QUICK, "--quiet")
    call("train", "--guide", "variance", *QUICK, "--quiet", "--seed", "1")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "digits-mlp-train-variance",
        "digits-mlp-train-variance-2",
    ]
    output = call("train", "--guide", "variance", "--resume")
    assert "Already finished: variance" in output and "seed 1" in output
    assert "variance mc:20" in call("evaluate", "digits-mlp-train-variance")
    record = json.loads(Path("runs/digits-mlp-train-variance/results.json").read_text())
    assert (record["kind"], record["posterior_of"]) == ("train", "variance")


def test_layers_made_stochastic_have_a_rate(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    output = call("train", "--stochastic", "fc1,fc2", "--rate-weight", "0.01", *QUICK, "--out", folder)
    assert "stochastic fc1,fc2; weight of the rate 0.01" in output
    assert "random fc2.kernel.weight" in output and "data KL rate" in output
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    rates = {row["layer"]: row["nats"] for row in record["guides"][0]["decomposition"]["rates"]}
    assert list(rates) == ["fc1", "fc2"] and all(rate > 0 for rate in rates.values())
    assert "Rate by stochastic layer" in (tmp_path / "run" / "report.html").read_text()
    assert "rate, nats/example" in call("decompose", folder, "--samples", "1")
    assert "no module(s) 'conv1'" in call("train", "--stochastic", "conv1", *QUICK, code=2)
    assert "stochastic: make_stochastic: expected linear" in call("train", "--stochastic", "act1", *QUICK, code=2)
    assert "'none' needs a layer that is made stochastic, or conditional" in call(
        "train", "--random", "none", *QUICK, code=2
    )
    assert "there is no rate" in call("train", "--rate-weight", "0.1", *QUICK, code=2)
    fixed = ("train", "--stochastic", "fc1", "--random", "none", *QUICK, "--out", str(tmp_path / "fixed"))
    output = call(*fixed)
    assert "has no Conditional layer" in call("evaluate", folder, "--labels", "known", code=2)
    assert "random none" in output and "posterior.nc" not in output
    assert "Already finished: additive" in call(*fixed, "--resume")


def test_conditional_layers_are_trained_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "run")
    begun = ("train", "--conditional", "fc1,fc2", "--stochastic", "fc1", "--rate-weight", "0.01", *QUICK)
    epochs: list[int] = []
    own = RunScreen.on_epoch_end

    def interrupt(self: Any, row: dict[str, Any]) -> None:
        own(self, row)
        epochs.append(row["epoch"])
        if row["epoch"] == 3:  # the first one of the second step
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunScreen, "on_epoch_end", interrupt)
        output = call(*begun, "--out", folder, code=130)
    assert "conditional fc1,fc2; first the classes, labels known" in output and "2 epochs for each step" in output
    assert "random fc2.classes.0.weight" in output
    call("train", "--resume", "--out", folder)
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    (guide,) = record["guides"]
    assert epochs == [1, 2, 3] and guide["history"]["epoch"] == [1, 2]
    assert [row["mode"] for row in guide["rows"]] == ["mean", "mc:1", "mc:20"]
    assert not any(row.get("labels") for row in guide["rows"])
    assert guide["checkpoint"] == "additive.selection.safetensors" and (tmp_path / "run" / "posterior.nc").is_file()
    assert "mc:2, labels known" in call("evaluate", folder, "--modes", "mc:2", "--labels", "known")
    assert "labels known" not in call("evaluate", folder, "--modes", "mc:2")
    terms = call("decompose", folder, "--samples", "1")
    assert "fc1.activation" in terms and "noise / signal" in terms
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<code>fc1,fc2</code> conditional on the class" in page and "2 epochs for each of two steps" in page
    assert "without parameters" in call("train", "--conditional", "act1", *QUICK, code=2)
    assert "no module(s) 'conv1'" in call("train", "--conditional", "conv1", *QUICK, code=2)


def test_resume_by_name_finds_the_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    train = ("train", "--name", "x", "--hidden", "12,10", "--device", "cpu")
    for seed in ("0", "1"):
        with monkeypatch.context() as patch:
            patch.setattr(RunScreen, "on_epoch_end", interrupt)
            call(*train, "--epochs", "1", "--seed", seed, code=130)
    call(*train, "--epochs", "1", "--quiet")
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"x", "x-2", "x-3"}
    assert "Resuming runs/x. " in call(*train, "--resume", "--seed", "0")
    assert "Resuming runs/x-2. " in call(*train, "--resume")
    # Every run is finished: the last one is shown.
    output = call(*train, "--resume")
    assert "Resuming runs/x-3. " in output and "Already finished: additive" in output


@pytest.mark.parametrize(
    "options",
    [
        ("--prior", "normal:0.5", "--estimator", "flipout", "--dtype", "float64"),
        ("--prior", "hierarchical", "--guide", "weightwise", "--random", "fc1.weight,fc2.*"),
        ("--guide", "variance-bernoulli", "--estimator", "shared"),
        ("--guide", "variance-uniform", "--estimator", "marginal", "--batch-size", "300"),
        ("--guide", "matrix-normal", "--prior", "normal"),
    ],
)
def test_options_are_saved_in_the_record(options: tuple[str, ...]) -> None:
    call("train", *QUICK, "--epochs", "1", "--name", "x", "--quiet", *options)
    config = json.loads(Path("runs/x/results.json").read_text())["config"]
    for key, value in zip(options[::2], options[1::2], strict=True):
        found = config["guides"][0] if key == "--guide" else config[key[2:].replace("-", "_")]
        assert str(found) == value


def test_guide_without_moments_is_scored_by_its_other_modes() -> None:
    call("train", *QUICK, "--epochs", "1", "--name", "x", "--quiet", "--guide", "low-rank", "--prior", "normal")
    output = call("evaluate", "x")
    assert "low-rank mc:20" in output and "low-rank mean" in output and "moments" not in output
    assert "depends on the draws of other sites" in call("evaluate", "x", "--modes", "moments", code=2)


def test_resume_takes_its_settings_from_the_run(run: Path) -> None:
    assert "Already finished: additive" in call("compare", "--resume", "--out", str(run))
    output = call("compare", "--resume", "--out", str(run), "--epochs", "5", code=2)
    assert "epochs was 2 and is now 5" in output
    output = call("train", "--resume", "--out", str(run), code=2)
    assert "holds a run of `pyrostoch compare`, not of `pyrostoch train`" in output


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    call("train", *QUICK, "--epochs", "1", "--quiet", "--resume", "--out", "fresh")
    assert (tmp_path / "fresh" / "additive.safetensors").is_file()


def test_message_after_ctrl_c_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunScreen, "on_epoch_end", interrupt)
        output = call("train", *QUICK, "--out", "mine", code=130)
    assert (
        "interrupted: the results so far are kept in mine; resume the run by: pyrostoch train --resume --out mine"
        in output
    )
    call("evaluate", "mine", code=2)
    assert "additive" in call("train", "--resume", "--out", "mine")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("compare", "--data", "mnsit"), "There is no data set 'mnsit'. Did you mean 'mnist'?"),
        (("compare", "--data", "uci:yach"), "UCI yach (none of the standard sets bostonHousing, "),
        (("compare", "--data", "mnist"), "train-images-idx3-ubyte.gz or train-images-idx3-ubyte"),
        (("compare", "--data", "cifar10", "--data-dir", "nowhere"), "nowhere"),
        (
            ("compare", "--model", "lenet"),
            "model: expected one of 'mlp', 'lenet5', 'vgg', 'vgg-narrow', got 'lenet'; did you mean",
        ),
        (("compare", "--model", "lenet5"), "expected images of at least 16 x 16 pixels, got 8 x 8"),
        (("compare", "--prior", "loguniform"), "did you mean 'log-uniform'?"),
        (("compare", "--estimator", "lokal"), "did you mean 'local'?"),
        (("compare", "--device", "tpu"), "device: expected one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        (("compare", "--dtype", "float16"), "dtype: expected one of 'float32', 'float64', got 'float16'"),
        (("compare", "--lr", "0"), "lr: expected a positive finite number, got 0"),
        (("compare", "--hidden", "10;10"), "hidden: expected whole numbers separated by commas"),
        (("compare", "--random", "fc9.weight"), "fc9.weight"),
        (("compare", "--split", "3"), "digits has one standard split"),
        (("compare", "--batch-size", "1436"), "batch_size=1436 leaves a last batch of one example"),
        (("train", "--guide", "layer"), "guide: expected one of"),
        (("evaluate", "nothing"), "run 'nothing': there is no such folder; runs/ holds no run"),
        (("download", "digits", "--data-dir", "d"), "Only mnist and fashion-mnist can be downloaded"),
        (("download", "mnist"), "no data folder was given: set it with --data-dir"),
    ],
)
def test_wrong_input_is_explained(args: tuple[str, ...], message: str) -> None:
    output = call(*args, code=2)
    assert output.startswith("error: ") or " error: " in output
    assert message in output and "Traceback" not in output


def test_usage_errors() -> None:
    assert "No such option: --epoch" in call("compare", "--epoch", "3", code=2)
    assert "compare" in call("--help") and call("--version") == pyrostoch.__version__


def test_help_describes_the_options_of_each_command() -> None:
    output = call("evaluate", "--help")
    assert "Seed of the draws of the weights" in output and "order of data" not in output
    assert "Show no progress bar." in call("download", "--help")
    assert re.search(r"--quiet -q Print the final table only", call("compare", "--help"))


def test_help_names_every_guide() -> None:
    assert set(re.findall(r"[a-z-]+", call("train", "--help"))) >= set(GUIDES)


def test_caption_of_a_regression_names_the_units(tmp_path: Path) -> None:
    guide = {"name": "a", "seconds": 1.0, "decomposition": {"elbo": -2.0, "data": -1.0, "kl": 1.0}}
    guide["rows"] = [{"mode": "mean", "rmse": 1.0, "nll": 1.0}]
    record = {"guides": [guide], "data": {"task": "regression"}}
    assert "RMSE and NLL are in its original units" in str(screen.comparison_table(record).caption)
    record["data"]["task"] = "classification"
    assert "original units" not in str(screen.comparison_table(record).caption)


def test_no_digit_of_a_wide_table_is_lost_on_a_narrow_terminal() -> None:
    guide = {"name": "weight-wise-alpha", "seconds": 12345.6}
    guide["decomposition"] = {"elbo": -12345678.9, "data": -12345600.4, "kl": 78.5}
    guide["rows"] = [
        {"mode": mode, "rmse": 123456.789, "nll": 12.3456} for mode in ("mean", "mc:1", "mc:20", "moments")
    ]
    guide["without_moments"] = "there is no rule"
    shown = io.StringIO()
    record = {"guides": [guide], "data": {"task": "regression"}}
    screen.print_whole(Console(file=shown, width=40), screen.comparison_table(record))
    output = shown.getvalue()
    assert all(number in output for number in ("-12,345,678.9", "-12,345,600.4", "123,457", "12.346"))
    assert "No moments: there is no rule." in " ".join(output.split()) and "…" not in output


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["--debug", "evaluate", "nothing"])
    assert isinstance(result.exception, FileNotFoundError)
    assert isinstance(CliRunner().invoke(app, ["evaluate", "nothing"]).exception, SystemExit)
    monkeypatch.setenv("PYROSTOCH_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["evaluate", "nothing"]).exception, FileNotFoundError)


def test_broken_checkpoints_are_refused(run: Path) -> None:
    path = run / "additive.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "the file is truncated or" in call("evaluate", str(run), code=2)
    torch.save({"a": torch.zeros(1)}, path)
    assert "got a pickle" in call("evaluate", str(run), code=2)
    shutil.copy(run / "weightwise.safetensors", path)
    assert "expected the guide Additive(), got WeightwiseAlpha()" in call("decompose", str(run), code=2)
    path.unlink()
    assert "there is no such file" in call("evaluate", str(run), "--guide", "additive", code=2)
    (run / "results.json").write_text("{")
    assert "results.json is damaged" in call("report", str(run), code=2)


def test_truncated_checkpoint_is_not_resumed_from(run: Path) -> None:
    path = run / "results.json"
    record = json.loads(path.read_text())
    record["guides"] = record["guides"][:1]
    path.write_text(json.dumps(record))
    broken = run / "weightwise.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert "the file is truncated or" in call("compare", "--resume", "--out", str(run), code=2)
    assert [guide["name"] for guide in json.loads(path.read_text())["guides"]] == ["additive"]


def test_folders_that_cannot_be_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "it is not empty; add --resume" in call("compare", "--out", str(run), code=2)
    assert "cannot be written to: Not a directory" in call("compare", "--out", "file/run", code=2)
    assert "there is a file of this name" in call("compare", "--out", "file", code=2)


def test_error_of_a_nan_loss_and_finished_guides_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.guides.alpha.BOUND", 1e38)  # log alpha is not held
    output = call("compare", *QUICK, "--lr-alpha", "1e30", "--out", "run", code=2)
    assert re.search(r"error: epoch 1, step \d+ of 15: NaN or infinite: data term", output)
    assert "Already finished, and kept in run: additive." in output
    assert "the command line has --lr (it was 0.01) and --lr-alpha (1e+30); clip and kl_warmup are arguments" in output
    record = json.loads(Path("run/results.json").read_text())
    assert [guide["name"] for guide in record["guides"]] == ["additive"]
    assert "additive mean" in call("evaluate", "run")


def test_nan_loss_late_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_checkpoint(self: Any, row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            seen.append(load_file("run/additive.safetensors"))

    seen: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(RunScreen, "on_epoch_end", keep_checkpoint)
    output = call("train", *QUICK, "--batch-size", "1437", "--lr", "1e6", "--out", "run", code=2)
    assert "error: epoch 2, step 1 of 1" in output and "KL of site 'fc2.weight'" in output
    assert "The checkpoint run/additive.safetensors holds the end of epoch 1." in output
    now = load_file("run/additive.safetensors")
    assert all(torch.equal(value, now[name]) for name, value in seen[0].items())


def test_info_lists_versions_and_data_sets(tmp_path: Path) -> None:
    output = call("info")
    assert f"pyrostoch {pyrostoch.__version__}" in output and f"torch {torch.__version__.split('+')[0]}" in output
    assert "digits bundled" in output and "mnist not found" in output and "no data folder" in output
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").touch()
    # A long path is wrapped.
    assert re.sub(r"\s", "", f"mnist{raw}") in re.sub(r"\s", "", call("info", "--data-dir", str(tmp_path)))
    assert "(no such folder)" in call("info", "--data-dir", "nowhere")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(screen, "console", lambda: Console(file=shown, force_terminal=True, width=100, highlight=False))
    call("compare", *QUICK, "--out", "run")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"all guides +━+ +10/10 .* left 0:00:00", text)
    for guide in COMPARED_GUIDES:
        assert re.search(rf"{guide} +━+ +2/2 .* left 0:00:00 ELBO -[\d,.]+", text), guide
