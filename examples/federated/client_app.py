"""A data holder: it trains on its own digits, and sends weights, or digits under noise that it drew once."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from task import SETTINGS, build, load, part_of

from pyrostoch.federated import Holder, client_app

# For weights a little in each round; for examples all at once, since the layer is trained by the holder alone.
EPOCHS = {
    "weights": {"clean": 2, "classes": 1, "selection": 1},
    "examples": {"clean": 20, "classes": 10, "selection": 1},
}


def holder(node: Mapping[str, Any], run: Mapping[str, Any]) -> Holder:
    """The holder of one part of the data."""
    number, split = int(node["partition-id"]), load(run)
    rows = part_of(run, split.y_train, number)
    x, y = split.x_train[rows], split.y_train[rows]
    model, guide = build(x)
    time.sleep(float(run["pause"]))  # a slower holder, for trials in which one is killed
    # What leaves a holder is for the holder to say: run.sh starts each node with its consent.
    send = str(node["send"])
    return Holder(
        str(number),
        model,
        guide,
        (x, y),
        epochs=EPOCHS[send],
        send=send,
        settings=SETTINGS,
        steps={"classes": {"noise_weight": 0.1}},
        labels_in_clear=send == "examples",
        least_noise=0.3,
        sent=Path(str(node["keeps"])) / f"sent-{run['skew']}-{number}.safetensors",
    )


app = client_app(holder)
