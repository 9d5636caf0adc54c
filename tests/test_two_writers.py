"""Two runs on one path: the second is refused by name, nothing is damaged, and a dead writer is no hindrance."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Case, interrupted
from typer.testing import CliRunner

import pyrostoch as ps
from pyrostoch.cli import app
from pyrostoch.runs import RunCallback, execute, fill_defaults
from pyrostoch.safefile import made_folders, names, only_writer_of, read_file, temporary_name
from pyrostoch.safefile.names import remove_abandoned

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
ROOT = Path(__file__).resolve().parents[1]

# A process that has imported everything, and runs what it is sent in children, which are ready at once.
SERVER = """
import json, os, signal, sys
import torch._dynamo, pyrostoch as ps
from pathlib import Path
from pyrostoch.runs.folder import only_run_in
from pyrostoch.safefile import only_writer_of
torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            exec(json.loads(line), globals())
        finally:
            os._exit(0)
"""


class Server:
    """Starts processes that write."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", SERVER]
        self.process: Any = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def run(self, code: str) -> None:
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        return str(self.process.stdout.readline()).strip()

    def hold(self, lock: str, path: Path) -> int:
        """Start a process that holds a lock, and return its number."""
        self.run(f"with {lock}(Path({str(path)!r})):\n  print(os.getpid(), flush=True)\n  signal.pause()")
        return int(self.answer())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    os.killpg(server.process.pid, signal.SIGKILL)  # with the children of a test that has failed
    server.process.communicate()


def end(pid: int, by: int = signal.SIGTERM) -> None:
    os.kill(pid, by)
    while names.is_running(pid):
        time.sleep(0.005)


def writer(pid: int) -> str:
    return f"process {pid} on host {socket.gethostname()} is writing it"


def test_a_checkpoint_in_use_is_refused_by_name_until_its_writer_ends(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "run"
    file = interrupted(path)
    (tmp_path / "alias").symlink_to("run")
    pid = server.hold("only_writer_of", path)
    case = Case(seed=5)
    before = case.bits()
    for name, resume in ((path, True), (path, False), (tmp_path / "alias", True)):
        with pytest.raises(BlockingIOError) as info:
            case.fit(name, resume=resume)
        assert str(info.value).startswith(f"checkpoint {name}: {writer(pid)}; wait until that run has ended, or give")
        assert case.bits() == before and path.read_bytes() == file
    ps.load(path, case.model, case.guide)  # reading is no writing
    end(pid)
    assert case.fit(path).stopped is not None
    assert sorted(os.listdir(tmp_path)) == ["alias", "run"]


def test_the_lock_of_a_killed_process_is_taken_over(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "run"
    interrupted(path)
    pid = server.hold("only_writer_of", path)
    end(pid, signal.SIGKILL)
    left = tmp_path / f".run.{names._host()}-{pid}-00000000-0.tmp"
    left.write_bytes(b"half")
    assert sorted(os.listdir(tmp_path)) == sorted([".run.lock", left.name, "run"])
    assert Case(seed=5).fit(path).epochs > 2
    assert os.listdir(tmp_path) == ["run"]


def test_a_run_in_its_own_callback_is_refused(tmp_path: Path) -> None:
    def again(row: dict[str, Any]) -> None:
        with pytest.raises(BlockingIOError, match="this process is writing it"):
            Case().fit(tmp_path / "run")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Case().fit(tmp_path / "run", callback=again)
    assert os.listdir(tmp_path) == ["run"] and read_file(tmp_path / "run")[1]["training"]["epoch"] == 1


def test_a_forked_child_does_not_give_back_its_parents_lock(server: Server, tmp_path: Path) -> None:
    lines = [
        "signal.signal(signal.SIGCHLD, signal.SIG_DFL)",
        f"with only_writer_of(Path({str(tmp_path / 'run')!r})):",
        "  child = os.fork()",
        "  if child:",
        "    os.waitpid(child, 0)",
        f"    print(os.listdir({str(tmp_path)!r}), flush=True)",
        "    signal.pause()",
        "print('left', os.getpid(), flush=True)",
    ]
    server.run("\n".join(lines))
    child = int(server.answer().removeprefix("left "))
    assert server.answer() == "['.run.lock']"
    with pytest.raises(BlockingIOError) as info:
        Case().fit(tmp_path / "run")
    pid = int(re.findall(r"process (\d+) on host", str(info.value))[0])
    assert pid != child
    end(pid)
    assert os.listdir(tmp_path) == []


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    mine, host = temporary_name(tmp_path / "net"), names._host()
    kept = [
        mine.name,
        f".net.{'0' * 8}-{process.pid}-00000000-0.tmp",  # of another machine
        f".net.{host}-{os.getppid()}-00000000-0.tmp",  # of a process that runs
        ".net.tmp",
        "net",
    ]
    gone = [f".net.{host}-{process.pid}-00000000-0.tmp", f".net.{host}-{os.getpid()}-00000000-3.tmp"]
    other = f".other.{host}-{process.pid}-00000000-0.tmp"
    for name in (*kept, *gone, other):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path, "net")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, other])
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_temporary_names_differ_in_every_write(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    assert len({temporary_name(path) for _ in range(100)}) == 100
    with made_folders(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert os.listdir(tmp_path / "a") == ["file"]


FIT = """
import time
torch.manual_seed(0)
x, y = torch.randn(20, 50), torch.randint(0, 3, (20,))
net = torch.nn.Sequential(torch.nn.Linear(50, 300), torch.nn.ReLU(), torch.nn.Linear(300, 3))
model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=20)
guide = ps.guides.Additive(model)
try:
    while not Path(path, "go").exists():
        time.sleep(0.001)
    log = os.open(path + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    options = {"batch_size": 20, "progress": False, "callback": lambda row: os.write(log, str(seed).encode())}
    ps.fit(model, guide, (x, y), epochs=15, seed=seed, checkpoint=path + "/new/run", **options)
    text = "finished"
except Exception as error:
    text = f"{type(error).__name__}: {error}"
print(json.dumps([os.getpid(), text]), flush=True)
"""


def test_of_two_runs_at_once_one_is_refused_and_every_file_is_whole(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    for seed in (1, 2):
        server.run(f"path, seed = {str(tmp_path)!r}, {seed}\n{FIT}")
    (tmp_path / "go").touch()
    answers: list[tuple[int, str]] = []
    reader = threading.Thread(target=lambda: answers.extend(json.loads(server.answer()) for _ in range(2)))
    reader.start()
    reads = 0
    while reader.is_alive():
        if path.exists():
            read_file(path)  # raises an error where it is not whole
            reads += 1
        time.sleep(0.002)
    reader.join()
    texts = dict(answers)
    refused = [(pid, text) for pid, text in answers if text != "finished"]
    # Both finish where one began after the other had ended; their epochs are never mixed.
    assert (tmp_path / "log").read_text() in {"1" * 15, "2" * 15, "1" * 15 + "2" * 15, "2" * 15 + "1" * 15}
    assert reads > 0 and len(refused) <= 1 and "finished" in texts.values()
    for pid, text in refused:
        other = next(number for number in texts if number != pid)
        assert text.startswith(f"BlockingIOError: checkpoint {path}: {writer(other)}") or "another process" in text
    assert read_file(path)[1]["training"]["stopped"] == "finished" and os.listdir(path.parent) == ["run"]


def test_a_run_folder_in_use_is_refused_by_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    pid = server.hold("only_run_in", folder)
    config = fill_defaults("train", {"epochs": 1, "hidden": (4,), "device": "cpu", "guides": ("additive",)})
    for resume in (False, True):
        with pytest.raises(BlockingIOError) as info:
            execute(config, folder, resume=resume)
        assert str(info.value).startswith(f"run folder {folder}: {writer(pid)}; wait until it has ended, or choose")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", "--epochs", "1", "--out", "run"])
    assert result.exit_code == 2 and f"error: run folder run: {writer(pid)}" in result.output
    assert os.listdir(folder) == [".pyrostoch.lock"]
    end(pid, signal.SIGKILL)

    class Second(RunCallback):
        """Tries to start another run while this one is running."""

        def on_epoch_end(self, row: dict[str, Any]) -> None:
            with pytest.raises(BlockingIOError, match="this process is writing it"):
                execute(config, folder, resume=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, folder, callback=Second())
    assert sorted(os.listdir(folder)) == ["additive.safetensors", "config.toml", "results.json"]


def test_a_single_save_does_not_replace_what_a_run_writes(tmp_path: Path) -> None:
    case = Case()
    ps.save(tmp_path / "net", case.model, case.guide)
    with only_writer_of(tmp_path / "net"):
        with pytest.raises(BlockingIOError, match="this process is writing it"):
            ps.save(tmp_path / "net", case.model, case.guide)
        ps.load(tmp_path / "net", case.model, case.guide)
    ps.save(tmp_path / "net", case.model, case.guide)
    assert os.listdir(tmp_path) == ["net"]
