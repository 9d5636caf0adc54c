"""The server: rounds over all data holders, scores on clean digits that it has itself, and the report."""

import json
from pathlib import Path

from flwr.serverapp import ServerApp
from task import SETTINGS, build, load

from pyrostoch.federated import QuorumError, serve
from pyrostoch.obfuscate import Screening

app = ServerApp()


@app.main()
def main(grid, context) -> None:
    run = context.run_config
    split = load(run)
    held_out = split.x_test, split.y_test
    model, guide = build(split.x_test)
    send, folder = str(run["send"]), Path(str(run["folder"]))
    learning = {"epochs": 10, "screening": Screening(0.25, patch=2), **SETTINGS} if send == "examples" else {}
    try:
        report = serve(
            grid,
            model,
            guide,
            send=send,
            holders=int(run["holders"]),
            quorum=int(run["quorum"]),
            validation=held_out,
            rounds=int(run["rounds"]),
            timeout=float(run["timeout"]),
            wait=120.0,
            seed=int(run["seed"]),
            folder=folder,
            resume=True,
            **learning,
        )
    except QuorumError as error:
        write(folder, error.report)
        raise
    write(folder, report)


def write(folder: Path, report) -> None:
    """The report as text and as plain data."""
    (folder / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
