import shutil
from pathlib import Path

import numpy as np
import pytest

from lmc.dataset.image_folder import ImageFolder
from lmc.errors import UserError


@pytest.fixture
def folder(tmp_path, pictures, png) -> Path:
    """train/{cat,dog}: 6 and 3 images of 5 x 5 with the class in the first pixel; test: 1 and 1."""
    for split, counts in (("train", {"cat": 6, "dog": 3}), ("test", {"cat": 1, "dog": 1})):
        for label, (name, count) in enumerate(counts.items()):
            (tmp_path / split / name).mkdir(parents=True)
            for i, pixels in enumerate(pictures(count, 5, 5, 3, seed=label)):
                pixels[0, 0] = label
                (tmp_path / split / name / f"{i}.png").write_bytes(png(pixels))
    return tmp_path


def test_folders_are_classes_in_the_order_of_their_names(folder):
    dataset = ImageFolder(root=str(folder)).load()
    assert (dataset.name, dataset.classes, dataset.input_shape) == (folder.name, 2, (3, 5, 5))
    for split, counts in ((dataset.train, [6, 3]), (dataset.test, [1, 1])):
        assert split.labels.bincount().tolist() == counts
        assert split.images[:, 0, 0, 0].tolist() == split.labels.tolist()


def test_classes_are_mixed(folder):
    """Six cats and three dogs: a dog in every three."""
    labels = ImageFolder(root=str(folder)).load().train.labels
    assert labels.view(3, 3).sum(1).tolist() == [1, 1, 1]


def test_order_and_checksum_do_not_depend_on_where_the_folder_is(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, copy)
    assert ImageFolder(root=str(copy)).load().checksum == ImageFolder(root=str(folder)).load().checksum


def test_size_and_channels_bring_all_to_one_shape(folder, png, pictures):
    (folder / "train" / "cat" / "large.jpg").write_bytes(png(pictures(1, 40, 30)[0], "jpeg"))
    assert ImageFolder(root=str(folder), size=8, channels=3).load().input_shape == (3, 8, 8)
    assert ImageFolder(root=str(folder), size=8, channels=1).load().input_shape == (1, 8, 8)


def test_hidden_files_are_not_seen(folder):
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / ".cache").mkdir()
    assert len(ImageFolder(root=str(folder)).load().train) == 9


def remove_class(folder):
    for file in (folder / "train").rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f, png: (f / "train").rename(f / "tr"),
            r"folder .*/train does not exist; set dataset\.root to a folder with",
        ),
        (lambda f, png: (f / "test").rename(f / "te"), r"folder .*/test does not exist; set dataset\.root"),
        (lambda f, png: remove_class(f), r"folder .*/train holds no image; put images into .*train/CLASS/"),
        (
            lambda f, png: (f / "train/cat/notes.txt").write_text("x"),
            r"train/cat/notes\.txt is not an image file \(\.png,",
        ),
        (lambda f, png: (f / "train/cat/more").mkdir(), r"train/cat/more is not an image file"),
        (
            lambda f, png: (f / "train/bird.png").write_text("x"),
            r"train/bird\.png is a file where a folder of one class",
        ),
        (
            lambda f, png: (f / "test/bird").mkdir(),
            r"test/bird is a class that .*/train does not have; add training images",
        ),
        (
            lambda f, png: (f / "train/dog/1.png").write_bytes(b"junk"),
            r"file .*train/dog/1\.png: the image is damaged or not an image \(no known image format\); rep",
        ),
        (
            lambda f, png: (f / "train/dog/1.png").write_bytes(png(np.zeros((6, 5, 3), np.uint8))),
            r"file .*train/dog/1\.png: the image is 6 x 5 pixels where file .*0\.png is 5 x 5; set",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(folder, png, damage, message):
    damage(folder, png)
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(root=str(folder)).load()
    assert "\n" not in str(caught.value)


def test_a_missing_root_is_named():
    with pytest.raises(UserError, match=r"dataset folder nowhere does not exist; set dataset\.root"):
        ImageFolder(root="nowhere").load()


def test_splits_of_different_sizes_are_refused(folder, png):
    for file in (folder / "test").rglob("*.png"):
        file.write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(UserError, match=r"training images are 3 x 5 x 5, test images 3 x 4 x 4; .* set dataset\.size"):
        ImageFolder(root=str(folder)).load()
