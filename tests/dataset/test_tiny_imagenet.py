"""Tiny ImageNet from a small folder of the published layout, and its download from a local file."""

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from lmc.dataset.tiny_imagenet import TinyImageNet
from lmc.errors import UserError

CLASSES = ("n03", "n01", "n02")  # in the order of wnids.txt, which is not that of the names


def jpeg(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "jpeg", quality=95)


def decoded(path: Path) -> np.ndarray:
    """(3, H, W), by PIL alone."""
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).transpose(2, 0, 1)


def write(home: Path, pictures) -> Path:
    """Three classes with 4 training images each, the first of each grey, and 5 validation images, the last grey."""
    for label, name in enumerate(CLASSES):
        colour, grey = pictures(4, 8, 8, 3, seed=label), pictures(1, 8, 8, seed=10 + label)
        for i in range(4):
            jpeg(home / "train" / name / "images" / f"{name}_{i}.JPEG", grey[0] if i == 0 else colour[i])
        (home / "train" / name / f"{name}_boxes.txt").write_text("boxes\n")
    for i, pixels in enumerate(pictures(5, 8, 8, 3, seed=99)):
        jpeg(home / "val" / "images" / f"val_{i}.JPEG", pixels[:, :, 0] if i == 4 else pixels)
    lines = [f"val_{i}.JPEG\t{CLASSES[i % 3]}\t0\t32\t44\t62\n" for i in range(5)]
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    (home / "wnids.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (home / "words.txt").write_text("n01\tgoldfish\n")
    jpeg(home / "test" / "images" / "test_0.JPEG", pictures(1, 8, 8, 3)[0])
    return home


@pytest.fixture
def home(tmp_path, pictures) -> Path:
    return write(tmp_path / "tiny-imagenet-200", pictures)


def load(home: Path):
    return TinyImageNet(root=str(home.parent), download=False).load()


def test_every_image_is_read_with_its_class_and_in_colour(home):
    dataset = load(home)
    assert (dataset.name, dataset.classes, dataset.input_shape) == ("tiny_imagenet", 3, (3, 8, 8))
    labels = {name: number for number, name in enumerate(sorted(CLASSES))}
    expected = {
        (decoded(file).tobytes(), labels[name])
        for name in CLASSES
        for file in (home / "train" / name / "images").iterdir()
    }
    train = zip(dataset.train.images.numpy(), dataset.train.labels.tolist(), strict=True)
    assert {(pixels.tobytes(), label) for pixels, label in train} == expected
    assert len(dataset.train) == len(expected) == 12
    test = zip(dataset.test.images.numpy(), dataset.test.labels.tolist(), strict=True)
    assert {(pixels.tobytes(), label) for pixels, label in test} == {
        (decoded(home / "val" / "images" / f"val_{i}.JPEG").tobytes(), labels[CLASSES[i % 3]]) for i in range(5)
    }
    grey = decoded(home / "train" / "n01" / "images" / "n01_0.JPEG")
    assert (grey[0] == grey[1]).all()
    assert (grey[1] == grey[2]).all()


def test_classes_are_mixed(home):
    assert sorted(load(home).train.labels[:3].tolist()) == [0, 1, 2]
    assert sorted(load(home).train.labels[3:6].tolist()) == [0, 1, 2]


def test_the_normalisation_is_computed_from_the_training_images(home):
    dataset = load(home)
    pixels = dataset.train.images.numpy() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3)))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    message = r"not in .*tiny-imagenet-200; unpack https://.*zip there, set dataset\.root .* dataset\.download=true"
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "tiny-imagenet-200")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def drawn(height: int, width: int) -> Callable[[Path], None]:
    return lambda path: jpeg(path, np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "place", "message"),
    [
        (removed, "wnids.txt", r"wnids\.txt cannot be read \(No such file or directory\); get the files again"),
        (removed, "train/n02", r"folder .*train/n02/images does not exist"),
        (removed, "val/images", r"folder .*val/images does not exist"),
        (removed, "val/val_annotations.txt", r"val_annotations\.txt cannot be read"),
        (removed, "val/images/val_3.JPEG", r"validation image .*val_3\.JPEG is annotated but does not exist"),
        (
            lambda folder: [removed(file) for file in folder.iterdir()],
            "train/n02/images",
            r"train/n02/images has no \.JPEG file",
        ),
        (drawn(8, 8), "val/images/val_9.JPEG", r"validation image .*val_9\.JPEG has no class in val_annotations\.txt"),
        (drawn(9, 8), "train/n01/images/n01_3.JPEG", r"n01_3\.JPEG: the image is 9 x 8 pixels where"),
        (written(b""), "wnids.txt", r"wnids\.txt is empty"),
        (written(b"\xff\xfe"), "wnids.txt", r"wnids\.txt cannot be read \(it is no text\)"),
        (written(b"n01\nn02\nn01\n"), "wnids.txt", r"wnids\.txt lists the class n01 twice"),
        (
            written(b"n01\nn02\n"),
            "wnids.txt",
            r"line 1 of .*val_annotations\.txt names the class 'n03', which wnids\.txt lacks",
        ),
        (written(b"val_0.JPEG n01\n"), "val/val_annotations.txt", r"line 1 of .* names the class ''"),
        (
            written(b"<html>404</html>"),
            "train/n01/images/n01_2.JPEG",
            r"n01_2\.JPEG: the image is damaged or not an image",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(home, spoil, place, message):
    spoil(home / place)
    with pytest.raises(UserError, match=message) as caught:
        load(home)
    assert "\n" not in str(caught.value)


@pytest.fixture
def published(tmp_path, pictures, monkeypatch) -> Path:
    """A zip file of the small folder, in the place of the published one."""
    made = write(tmp_path / "made" / "tiny-imagenet-200", pictures)
    archive = Path(shutil.make_archive(str(tmp_path / "published"), "zip", made.parent))
    monkeypatch.setattr(TinyImageNet, "url", archive.as_uri())
    monkeypatch.setattr(TinyImageNet, "md5", hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest())
    return archive


def test_a_download_is_moved_in_whole_and_not_repeated(tmp_path, published):
    first = TinyImageNet(root=str(tmp_path / "new")).load()
    assert first.checksum == load(tmp_path / "made" / "tiny-imagenet-200").checksum
    assert sorted(path.name for path in (tmp_path / "new").iterdir() if path.is_dir()) == ["tiny-imagenet-200"]
    published.unlink()
    assert TinyImageNet(root=str(tmp_path / "new")).load().checksum == first.checksum


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name != ".tiny-imagenet-200.lock"]


def test_a_download_with_another_checksum_is_thrown_away(tmp_path, published, monkeypatch):
    monkeypatch.setattr(TinyImageNet, "md5", "0" * 32)
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(what came has the MD5 \w{32}, not 0{32}\); unpack .* by hand"
    ):
        TinyImageNet(root=str(tmp_path / "new")).load()
    assert left(tmp_path / "new") == []


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*no route to host.*\); unpack https://") as caught:
        TinyImageNet(root=str(tmp_path / "new")).load()
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "new") == []


def test_the_published_checksum_is_that_of_the_published_file():
    assert TinyImageNet.url == "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert TinyImageNet.md5 == "90528d7ca1a48142e341f4ef8d21d0de"
