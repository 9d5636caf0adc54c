"""Download MNIST and Fashion-MNIST from their public mirrors, verified by size and checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyrostoch.data.errors import DownloadError
from pyrostoch.data.mnist import FOLDERS
from pyrostoch.safefile import made_folders

__all__ = ["SOURCES", "RemoteFile", "Source", "download"]

_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, its size in bytes and its hexadecimal checksums."""

    name: str
    size: int
    md5: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: its mirrors, in order of preference, and its files."""

    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


SOURCES = {
    "mnist": Source(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            RemoteFile(
                "train-images-idx3-ubyte.gz",
                9912422,
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            RemoteFile(
                "train-labels-idx1-ubyte.gz",
                28881,
                "d53e105ee54ea40749a09fcbcd1e9432",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte.gz",
                1648877,
                "9fb629c4189551a2d022fa330f9573f3",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte.gz",
                4542,
                "ec29112dd5afa0611ce80d1b7f02629c",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
    ),
    "fashion-mnist": Source(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        files=(
            RemoteFile(
                "train-images-idx3-ubyte.gz",
                26421880,
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            RemoteFile(
                "train-labels-idx1-ubyte.gz",
                29515,
                "25c81989df183df01b3e8a0aad5dffbe",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte.gz",
                4422102,
                "bef4ecab320f06d8554ea6380940ec79",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte.gz",
                5148,
                "bb300cfdad3c16e7a12a480ee83cd310",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
    ),
}


class _MirrorError(Exception):
    """One mirror did not deliver; the text is the reason."""


def download(
    name: str, data_dir: str | os.PathLike[str], *, base_urls: Sequence[str] | None = None, progress: bool = True
) -> Path:
    """Download a data set into `data_dir`, in torchvision's layout.

    Each file is streamed to a temporary file in the same folder, checked (size, MD5, SHA-256), and only then renamed,
    so that a file under its final name is always complete. If a mirror fails, the next one is tried. Valid files that
    are already there are not downloaded again. A call that delivers nothing leaves no empty folder.

    Args:
        name: `"mnist"` or `"fashion-mnist"`.
        data_dir: The data folder; `MNIST/raw` or `FashionMNIST/raw` is created in it.
        base_urls: Mirrors to use instead of the public ones (`http` or `https`); a file's name is appended to each.
        progress: Whether to show a progress bar for each file.

    Returns:
        The folder with the files.

    Raises:
        ValueError: If the data set cannot be downloaded, or a mirror is not an http or https address.
        DownloadError: If no mirror delivers a file. The message gives the reason for each mirror, and for a wrong
            checksum the expected and the found one.
        OSError: If the folder or a file cannot be written (no permission, disk full).
    """
    key = name.strip().lower()
    if key not in SOURCES:
        raise ValueError(
            f"Only {' and '.join(SOURCES)} can be downloaded, got {name!r}. The digits are bundled; for other data "
            "sets put the files in the data folder: the error of load() lists the files it looks for."
        )
    source = SOURCES[key]
    mirrors = source.mirrors if base_urls is None else tuple(base_urls)
    for url in mirrors:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"A mirror of {key} must be an http or https address, got {url!r}.")
    if not mirrors:
        raise ValueError(f"No mirror of {key} was given: base_urls is empty. Leave it out for the public mirrors.")
    folder = Path(data_dir).expanduser() / FOLDERS[key] / "raw"
    with made_folders(folder):
        for remote in source.files:
            if not _is_valid(folder / remote.name, remote):
                _fetch(remote, folder, mirrors, progress)
    return folder


def _is_valid(path: Path, remote: RemoteFile) -> bool:
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == remote.sha256


def _fetch(remote: RemoteFile, folder: Path, mirrors: Sequence[str], progress: bool) -> None:
    """Download one file from the first mirror that delivers it."""
    reasons = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{remote.name}"
        partial = folder / f".{remote.name}.{secrets.token_hex(4)}.part"
        try:
            with partial.open("xb") as stream:
                _stream(url, remote, stream, progress)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, folder / remote.name)
            return
        except _MirrorError as reason:
            reasons.append(f"  {url}: {reason}")
        except OSError as error:
            # Another mirror does not help if the disk is full or the folder is not writable.
            raise OSError(error.errno, f"Cannot write {remote.name}: {error.strerror or error}", str(folder)) from error
        finally:
            partial.unlink(missing_ok=True)
    raise DownloadError("\n".join([f"{remote.name} could not be downloaded; nothing was kept.", *reasons]))


def _stream(url: str, remote: RemoteFile, stream: BinaryIO, progress: bool) -> None:
    """Copy the response to `stream`, and check its size and checksums."""
    from tqdm import tqdm

    md5, sha256, received = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with (
        _open(url) as response,
        tqdm(total=remote.size, unit="B", unit_scale=True, desc=remote.name, disable=not progress) as bar,
    ):
        while received <= remote.size and (chunk := _read(response, received, remote.size)):
            stream.write(chunk)
            md5.update(chunk)
            sha256.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if received != remote.size:
        found_size = f"{received}" if received < remote.size else f"more than {remote.size}"
        raise _MirrorError(f"expected {remote.size} bytes, found {found_size}")
    for kind, found, expected in (("MD5", md5, remote.md5), ("SHA-256", sha256, remote.sha256)):
        if found.hexdigest() != expected:
            raise _MirrorError(f"wrong {kind} checksum: expected {expected}, found {found.hexdigest()}")


def _open(url: str) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _MirrorError(f"no answer ({getattr(error, 'reason', error)})") from error


def _read(response: Any, received: int, size: int) -> bytes:
    try:
        return bytes(response.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _MirrorError(
            f"the connection broke after {received} of {size} bytes ({str(error) or type(error).__name__})"
        ) from error
