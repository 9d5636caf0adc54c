"""Downloads from a local server that works, breaks off, sends wrong bytes, or refuses."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pyrostoch.data import DownloadError, download, load
from pyrostoch.data import download as download_function
from pyrostoch.data.download import SOURCES, RemoteFile, Source

module = __import__("sys").modules[download_function.__module__]


def small_set() -> dict[str, bytes]:
    """Return four valid gzip files of a few images, by name."""
    files = {}
    for part, count in (("train", 400), ("t10k", 3)):
        pixels = bytes(os.urandom(count * 28 * 28))
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + pixels)
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(count))
    return files


FILES = small_set()
FIRST = next(iter(FILES))


class Handler(BaseHTTPRequestHandler):
    """The first part of the path selects how the server behaves; requests are recorded."""

    requests: list[str] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        behavior, name = self.path.strip("/").split("/")
        body = FILES[name]
        if behavior == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if behavior != "unsized":
            self.send_header("Content-Length", str(len(body) + (1 if behavior == "long" else 0)))
        self.end_headers()
        if behavior == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        elif behavior == "long":
            body += b"x"
        elif behavior in ("short", "unsized"):
            body = body[: len(body) // 2]
        elif behavior == "reset":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class QuietServer(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    remote = tuple(
        RemoteFile(name, len(body), hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest())
        for name, body in FILES.items()
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Handler, "requests", [])
    http = QuietServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setitem(SOURCES, "mnist", Source((f"{url}/good/",), remote))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield url
    http.shutdown()
    thread.join()
    http.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_good_mirror_delivers_a_set_that_loads(server: str, tmp_path: Path) -> None:
    folder = download("mnist", tmp_path, progress=False)
    assert folder == tmp_path / "MNIST" / "raw" and names(tmp_path) == sorted(FILES)
    assert all((folder / name).read_bytes() == body for name, body in FILES.items())
    assert load("mnist", tmp_path).x_train.shape == (400, 1, 28, 28)


REASONS = {
    "missing": "the server answers 404",
    "short": r"bytes, found \d+|the connection broke after",
    "unsized": r"expected \d+ bytes, found \d+",
    "reset": r"the connection broke after|bytes, found \d+",
    "long": r"expected \d+ bytes, found more than \d+",
    "wrong": "wrong MD5 checksum",
}


@pytest.mark.parametrize("behavior", REASONS)
def test_a_failing_mirror_leaves_nothing_behind(server: str, tmp_path: Path, behavior: str) -> None:
    with pytest.raises(DownloadError, match=REASONS[behavior]) as caught:
        download("mnist", tmp_path, base_urls=[f"{server}/{behavior}"], progress=False)
    assert f"{server}/{behavior}/{FIRST}" in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("behavior", REASONS)
def test_the_next_mirror_is_tried(server: str, tmp_path: Path, behavior: str) -> None:
    mirrors = [f"{server}/{behavior}/", f"{server}/good"]
    folder = download("mnist", tmp_path, base_urls=mirrors, progress=False)
    assert names(folder) == sorted(FILES)
    assert Handler.requests[:2] == [f"/{behavior}/{FIRST}", f"/good/{FIRST}"]
    assert (folder / FIRST).read_bytes() == FILES[FIRST]


def test_a_mirror_that_does_not_answer_is_passed_over(server: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match="no answer"):
            download("mnist", tmp_path, base_urls=[dead], progress=False)
        assert names(download("mnist", tmp_path, base_urls=[dead, f"{server}/good"], progress=False)) == sorted(FILES)


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_checksum_names_both_sums(
    server: str, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = FILES[FIRST]
    sums = {"md5": hashlib.md5(body).hexdigest(), "sha256": hashlib.sha256(body).hexdigest()}
    found, sums[kind] = sums[kind], "0" * len(sums[kind])
    remote = RemoteFile(FIRST, len(body), sums["md5"], sums["sha256"])
    monkeypatch.setitem(SOURCES, "mnist", Source(SOURCES["mnist"].mirrors, (remote,)))
    with pytest.raises(DownloadError, match=f"checksum: expected {sums[kind]}, found {found}"):
        download("mnist", tmp_path, progress=False)
    assert names(tmp_path) == []


def test_valid_files_are_kept_and_the_rest_is_fetched(server: str, tmp_path: Path) -> None:
    folder = download("mnist", tmp_path, progress=False)
    Handler.requests.clear()
    assert download("mnist", tmp_path, progress=False) == folder and Handler.requests == []
    absent, damaged, short = list(FILES)[1:]
    (folder / absent).unlink()
    (folder / damaged).write_bytes(FILES[damaged][:-1] + b"?")
    (folder / short).write_bytes(FILES[short][:-1])
    download("mnist", tmp_path, progress=False)
    assert Handler.requests == [f"/good/{name}" for name in (absent, damaged, short)]
    assert all((folder / name).read_bytes() == body for name, body in FILES.items())


def test_a_failed_refresh_keeps_the_file_that_was_there(server: str, tmp_path: Path) -> None:
    folder = download("mnist", tmp_path, progress=False)
    (folder / FIRST).write_bytes(b"mine")
    with pytest.raises(DownloadError):
        download("mnist", tmp_path, base_urls=[f"{server}/short"], progress=False)
    assert (folder / FIRST).read_bytes() == b"mine" and names(tmp_path) == sorted(FILES)


def test_an_endless_answer_is_cut_off(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def endless(response: object, received: int, size: int) -> bytes:
        calls.append(received)
        return b"x" * size if len(calls) < 10 else b""

    monkeypatch.setattr(module, "_read", endless)
    with pytest.raises(DownloadError, match="found more than"):
        download("mnist", tmp_path, progress=False)
    assert len(calls) == 2 and names(tmp_path) == []


def test_an_interrupt_removes_the_temporary_file(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def interrupt(response: object, received: int, size: int) -> bytes:
        seen.extend(names(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download("mnist", tmp_path, progress=False)
    assert len(seen) == 1 and seen[0].endswith(".part") and names(tmp_path) == []


def test_a_full_disk_is_not_an_error_of_the_mirror(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        download("mnist", tmp_path, base_urls=[f"{server}/good", f"{server}/good"], progress=False)
    assert caught.value.errno == errno.ENOSPC and not isinstance(caught.value, DownloadError)
    assert FIRST in str(caught.value) and names(tmp_path) == [] and len(Handler.requests) == 1


def test_progress_can_be_shown_and_silenced(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download("mnist", tmp_path / "silent", progress=False)
    assert capsys.readouterr().err == ""
    download("mnist", tmp_path / "shown")
    shown = capsys.readouterr().err
    assert all(name in shown for name in FILES)


BAD_CALLS = {
    "bundled": ("digits", None, "Only mnist and fashion-mnist can be downloaded, got 'digits'"),
    "not http": ("mnist", ["file:///etc/"], "http or https address, got 'file:///etc/'"),
    "no mirror": ("mnist", [], "base_urls is empty"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused(tmp_path: Path, case: str) -> None:
    name, mirrors, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        download(name, tmp_path, base_urls=mirrors)
    assert names(tmp_path) == []


def test_the_public_table_is_complete() -> None:
    for source in SOURCES.values():
        assert len(source.mirrors) >= 2 and len(source.files) == 4
        assert all(len(file.md5) == 32 and len(file.sha256) == 64 and file.size > 4000 for file in source.files)
