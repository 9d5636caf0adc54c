"""From a folder of images to predictions, in Python and on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image

from pyrostoch.data import load_images

rng = np.random.default_rng(0)


def write(path: Path | str, pixels: Any, mode: str = "L") -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).convert(mode).save(path)


def stripes(folder: str, count: int, mode: str = "L") -> None:
    """Images of upright and lying stripes under noise."""
    for index in range(count):
        line = 120.0 * (np.arange(8) % 2)
        clean = np.tile(line, (8, 1)) if index % 2 else np.tile(line[:, None], (1, 8))
        pixels = clean + rng.uniform(0, 100, (8, 8))
        write(f"{folder}/{'upright' if index % 2 else 'lying'}/{index:03}.png", pixels, mode)


pytestmark = pytest.mark.usefixtures("own_folder")


def test_two_commands_lead_from_images_to_predictions() -> None:
    stripes("images", 120)
    given = ("--hidden", "16", "--prior", "normal", "--lr", "0.01", "--random", "fc1.weight", "--epochs", "15")
    call("train", "--data", "images", *given, "--out", "run")
    record = json.loads(Path("run/results.json").read_text())
    assert (record["data"]["train"], record["data"]["test"], record["data"]["classes"]) == (96, 24, 2)
    assert record["guides"][0]["rows"][0]["accuracy"] > 0.9
    assert "additive" in call("evaluate", "run", "--modes", "mean")
    stripes("new", 20)
    Path("images").rename("gone")  # the run has all that it needs
    Path("new/notes.txt").write_text("no image")
    output = call("predict", "run", "new", "--out", "p.csv", "--samples", "5")
    assert "1 file(s) that are no images were left out." in output and "Wrote p.csv" in output
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "p(lying)", "p(upright)", "entropy", "epistemic_share"]
    assert sum(row["class"] == Path(row["file"]).parent.name for row in rows) >= 18
    call("predict", "run", "new/lying/000.png", "--out", "one.csv", "--samples", "5")
    assert len(Path("one.csv").read_text().splitlines()) == 2
    write("large.png", np.zeros((9, 8)))
    assert "it is 8 x 9, other images are 8 x 8" in call("predict", "run", "large.png", "--out", "q.csv", code=2)
    assert not Path("q.csv").exists()


def test_numbers_are_those_of_the_files() -> None:
    gray, colors = rng.integers(0, 256, (2, 5, 6)), rng.integers(0, 256, (2, 5, 6, 3))
    for index, (one, several) in enumerate(zip(gray, colors, strict=True)):
        for part in ("train", "test"):
            write(f"gray/{part}/{'ab'[index]}/x.png", one)
            Path(f"colors/{part}/{'ab'[index]}").mkdir(parents=True)
            Image.fromarray(several.astype(np.uint8)).save(f"colors/{part}/{'ab'[index]}/x.png")
    split = load_images("gray", dtype=torch.float64)
    assert (split.x_train[:, 0] * 255).round().int().tolist() == gray.tolist()
    assert split.y_test.tolist() == [0, 1]
    assert split.input_shape == (1, 5, 6)
    split = load_images("colors", dtype=torch.float64)
    assert (split.x_test.permute(0, 2, 3, 1) * 255).round().int().tolist() == colors.tolist()


def test_the_test_part_has_a_share_of_every_class_by_the_seed() -> None:
    for name, count in (("a", 30), ("b", 10)):
        for index in range(count):
            write(f"images/{name}/{index}.png", np.full((2, 2), index))
    split = load_images("images", test=0.2)
    assert torch.bincount(split.y_test).tolist() == [6, 2]
    again, other = load_images("images", test=0.2), load_images("images", test=0.2, seed=1)
    assert torch.equal(split.x_test, again.x_test)
    assert not torch.equal(split.x_test, other.x_test)
    both = torch.cat([split.x_train[split.y_train == 0], split.x_test[split.y_test == 0]])[:, 0, 0, 0]
    assert sorted((both * 255).round().int().tolist()) == list(range(30))


def test_images_of_several_sizes_need_a_size() -> None:
    write("images/a/1.png", np.zeros((4, 4)))
    write("images/b/2.png", np.full((6, 9), 128))
    write("images/b/3.png", np.full((6, 9), 128))
    with pytest.raises(ValueError, match=r"b/2.png: it is 9 x 6, other images are 4 x 4; give one size .*image_size"):
        load_images("images", test=0.34)
    split = load_images("images", test=0.34, image_size=3)
    assert split.input_shape == (1, 3, 3)
    assert sorted({round(float(v)) for v in torch.cat([split.x_train, split.x_test]).flatten() * 255}) == [0, 128]
    assert "--image-size 32" in call("train", "--data", "images", "--test", "0.34", code=2)


def test_images_that_cannot_be_taken_as_they_are_are_refused_by_name() -> None:
    write("images/a/1.png", np.zeros((4, 4)))
    write("images/b/1.png", np.zeros((4, 4)))
    bad = Path("images/b/2.png")

    def refused() -> str:
        with pytest.raises(ValueError) as caught:
            load_images("images")
        return str(caught.value)

    bad.write_bytes(b"no image")
    assert "2.png: it is no image" in refused()
    transparent = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(transparent).save(bad)
    assert "2.png: it has transparent parts" in refused()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(bad)
    assert "2.png: it has more than 8 bits" in refused()
    frames = [Image.new("L", (4, 4), value) for value in (0, 99)]
    bad.unlink()
    frames[0].save("images/b/2.gif", save_all=True, append_images=frames[1:])
    assert "2.gif: it has 2 frames" in refused()
    Path("images/b/2.gif").unlink()
    Path("images/b/notes.txt").write_text("")
    assert "notes.txt: expected images only" in refused()
    Path("images/b/notes.txt").unlink()
    write("images/stray.png", np.zeros((4, 4)))
    assert "stray.png: an image that is in no class's folder" in refused()
    Path("images/stray.png").unlink()
    Path("images/c").mkdir()
    assert "c: the class has no image" in refused()


def test_folders_that_hold_no_classes() -> None:
    write("one/a/1.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="a folder of images for each class, got 'a'"):
        load_images("one")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_images("none")
    for part, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            write(f"parts/{part}/{name}/1.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"class\(es\) 'c' are not among those of"):
        load_images("parts")
    write("one/b/1.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="no training image"):
        load_images("one", test=0.5)
    assert "target: it is for a CSV file" in call("train", "--data", "one", "--target", "y", code=2)
    assert "image_size: it is for a folder of images" in call("train", "--data", "digits", "--image-size", "3", code=2)
    assert "a fraction for a folder of images" in call("train", "--data", "one", "--test", "part", code=2)


def test_turned_photographs_are_upright() -> None:
    for name in "ab":
        write(f"images/{name}/1.jpg", np.tile(np.linspace(0, 255, 8), (16, 1)))
    image = Image.open("images/a/1.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save("images/a/1.jpg", exif=exif, quality=95)
    with pytest.raises(ValueError, match="16 x 8"):
        load_images("images", test=0.5)


def sixteen_bits(path: str) -> None:
    """A PNG with colors of 16 bits, which Pillow can read but not write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">6H", *[200] * 6) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_colors_of_sixteen_bits_are_not_cut() -> None:
    for name in "ab":
        write(f"images/{name}/1.png", np.zeros((2, 2)))
    sixteen_bits("images/b/2.png")
    with pytest.raises(ValueError, match="2.png: it has more than 8 bits"):
        load_images("images")


def test_folders_beside_train_and_test_are_refused() -> None:
    for part in ("train", "test", "val"):
        for name in "ab":
            write(f"images/{part}/{name}/1.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="beside train and test there is 'val'"):
        load_images("images")
    for size in ((3, 2, 1), 3.5, 0):
        with pytest.raises(ValueError, match="image_size"):
            load_images("images/val", image_size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating"):
        load_images("images/val", dtype=torch.uint8)
