"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = [
    "Batch",
    "Categorical",
    "Conditional",
    "ConfigFile",
    "Data",
    "DataDir",
    "Device",
    "Drop",
    "Dtype",
    "Epochs",
    "DrawSeed",
    "Estimator",
    "Hidden",
    "ImageSize",
    "InitLogAlpha",
    "Labels",
    "Lr",
    "LrAlpha",
    "Model",
    "ModelArgs",
    "Name",
    "NoBar",
    "OneGuide",
    "Out",
    "Prior",
    "Quiet",
    "Random",
    "Resume",
    "RunName",
    "Seed",
    "RateWeight",
    "SomeGuides",
    "Split",
    "Stochastic",
    "Target",
    "Task",
    "Test",
]

_TRAIN = "Training"
_RUN = "Run"

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits (default), mnist, fashion-mnist, cifar10, cifar100-coarse, cifar100-fine, uci:<name>, or the path "
        "of a CSV or Parquet file, with --target, or of a folder of images by class.",
        metavar="NAME",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir", help="Folder of the data; default: the environment variable PYROSTOCH_DATA.", metavar="DIR"
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", help="Of a CSV file, the column of the target.", metavar="COLUMN")
]
Task = Annotated[
    Literal["classification", "regression"] | None,
    typer.Option("--task", help="Of a CSV file; default: regression for numbers, else classification."),
]
Drop = Annotated[
    str | None,
    typer.Option("--drop", help="Of a CSV file, columns to leave out, separated by commas.", metavar="COLUMNS"),
]
Categorical = Annotated[
    str | None,
    typer.Option(
        "--categorical", help="Of a CSV file, columns of numbers that stand for categories.", metavar="COLUMNS"
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        "--test",
        help="Of a CSV file, its test part: a fraction (default 0.2), a column with train and test, or another file. "
        "Of images, a fraction.",
        metavar="PART",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="Pixels to which images of a folder are resized.", min=1, metavar="PIXELS"),
]
Split = Annotated[
    int | None,
    typer.Option(
        "--split", help="Number of the train/test split of a UCI set, from 0; seed of that of a CSV file or images."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Network: mlp (default), lenet5, vgg, vgg-narrow, or a function in a file of yours, nets.py:make_net.",
        metavar="NAME",
    ),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", help="Argument of that function, such as hidden=50; may be repeated.", metavar="NAME=VALUE"
    ),
]
Hidden = Annotated[
    str | None, typer.Option("--hidden", help="Widths of an MLP's hidden layers, such as 100,100.", metavar="WIDTHS")
]
Random = Annotated[
    str | None,
    typer.Option(
        "--random",
        help="Name patterns of the random weights, separated by commas; default: a hidden layer, fc2.weight for mlp. "
        "'none' is for networks with --stochastic or --conditional layers.",
        metavar="PATTERN",
    ),
]
Stochastic = Annotated[
    str | None,
    typer.Option(
        "--stochastic",
        help="Layers whose outputs are drawn, separated by commas, such as conv1; see --rate-weight.",
        metavar="NAME",
    ),
]
Conditional = Annotated[
    str | None,
    typer.Option(
        "--conditional",
        help="Layers of which every class has its own, separated by commas; trained in two steps.",
        metavar="NAME",
    ),
]
RateWeight = Annotated[
    float | None,
    typer.Option(
        "--rate-weight",
        help="Weight of the rate of stochastic layers, which limits the information they let through; default: 1.",
        rich_help_panel=_TRAIN,
    ),
]
Labels = Annotated[
    Literal["known"] | None,
    typer.Option(
        "--labels",
        help="known: give the labels to layers that are conditional on the class; such scores are marked.",
        metavar="known",
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        "--prior",
        help="log-uniform (default), normal[:scale], laplace[:scale], ard, empirical-bayes[:scale], hierarchical.",
        metavar="NAME",
    ),
]
Estimator = Annotated[
    str | None,
    typer.Option(
        "--estimator",
        help="local (default), shared, flipout, marginal or moments.",
        metavar="NAME",
        rich_help_panel=_TRAIN,
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Passes through the training data.", min=1, rich_help_panel=_TRAIN)
]
Batch = Annotated[int | None, typer.Option("--batch-size", help="Examples per step.", min=1, rich_help_panel=_TRAIN)]
Lr = Annotated[
    float | None, typer.Option("--lr", help="Initial learning rate, falling linearly to 0.", rich_help_panel=_TRAIN)
]
LrAlpha = Annotated[
    float | None, typer.Option("--lr-alpha", help="Initial learning rate of the log alphas.", rich_help_panel=_TRAIN)
]
InitLogAlpha = Annotated[
    float | None, typer.Option("--init-log-alpha", help="Initial value of the log alphas.", rich_help_panel=_TRAIN)
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of the initial network, order of the data and noise.", min=0, rich_help_panel=_TRAIN
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto (default), cpu or cuda.", metavar="NAME", rich_help_panel=_TRAIN)
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32 (default) or float64.", metavar="NAME", rich_help_panel=_TRAIN)
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Folder of the run; default: runs/<name>.", metavar="DIR", rich_help_panel=_RUN),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="TOML file with settings, as the config.toml of a run; options given here come first.",
        metavar="FILE",
        rich_help_panel=_RUN,
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Name of the run's folder in runs/.", metavar="NAME", rich_help_panel=_RUN),
]
# The metavar is empty, since the help would show the type as the value of the flag, which takes none.
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume an interrupted run: the one in --out, else the last one with this name and these settings.",
        metavar="",
        rich_help_panel=_RUN,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the final table only.", metavar="", rich_help_panel=_RUN)
]
NoBar = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.", metavar="")]
DrawSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of the draws of the weights; default: that of the run.", min=0),
]
OneGuide = Annotated[
    str | None,
    typer.Option(
        "--guide",
        help="additive (default), weightwise, neuronwise, layerwise, low-rank, matrix-normal, variance, "
        "variance-bernoulli, variance-uniform, or a class in a file of yours, my_guides.py:MyGuide.",
        metavar="NAME",
    ),
]
SomeGuides = Annotated[
    list[str] | None, typer.Option("--guide", help="Only this guide; may be repeated.", metavar="NAME")
]
RunName = Annotated[str, typer.Argument(help="Folder of a run, or its name in runs/.", metavar="RUN")]
