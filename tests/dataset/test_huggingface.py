import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmc.dataset.huggingface import HuggingFace
from lmc.errors import UserError


@pytest.fixture
def hub_folder(parquet, pictures, png, tmp_path):
    """Four training and two test images of two classes, as the hub lays them out."""
    blobs = [png(pixels) for pixels in pictures(6, 4, 4, 3)]
    parquet("toy/data/train-00000-of-00002.parquet", blobs[:3], [0, 1, 1])
    parquet("toy/data/train-00001-of-00002.parquet", blobs[3:4], [0])
    parquet("toy/data/test-00000-of-00001.parquet", blobs[4:], [1, 0])
    return tmp_path / "toy"


def test_rows_are_read_in_the_order_of_files_and_rows(hub_folder, pictures):
    dataset = HuggingFace(path=str(hub_folder)).load()
    expected = pictures(6, 4, 4, 3).transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.train.images.numpy(), expected[:4])
    assert np.array_equal(dataset.test.images.numpy(), expected[4:])
    assert dataset.train.labels.tolist() == [0, 1, 1, 0]
    assert dataset.test.labels.tolist() == [1, 0]
    assert (dataset.name, dataset.classes) == ("toy", 2)


def test_files_can_be_named_one_by_one(hub_folder):
    files = sorted(str(file) for file in hub_folder.rglob("*.parquet"))
    assert HuggingFace(path=files).load().checksum == HuggingFace(path=str(hub_folder)).load().checksum


@pytest.mark.parametrize("names", [("image", "labels"), ("img", "fine_label"), ("picture", "kind")])
@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_columns_of_bytes_and_of_structs_are_found(parquet, pictures, png, tmp_path, names, kind):
    image, label = names
    blobs = [png(pixels) for pixels in pictures(2, 4, 4)]
    column = {
        "struct": pa.array([{"bytes": blob} for blob in blobs]),
        "binary": pa.array(blobs, pa.binary()),
        "large_binary": pa.array(blobs, pa.large_binary()),
    }[kind]
    for split in ("train", "test"):
        parquet(
            f"{split}.parquet",
            [],
            [],
            {"id": pa.array(["a", "b"]), label: pa.array([1, 0], pa.int8()), image: column},
        )
    stated = {"image_column": image, "label_column": label} if image == "picture" else {}
    dataset = HuggingFace(path=str(tmp_path), **stated).load()
    assert np.array_equal(dataset.train.images.numpy()[:, 0], pictures(2, 4, 4))
    assert dataset.train.labels.tolist() == [1, 0]


def test_split_is_the_word_in_the_name_of_the_file_or_its_folder(parquet, pictures, png, tmp_path):
    blobs = [png(pixels) for pixels in pictures(4, 4, 4)]
    parquet("default/train/0000.parquet", blobs[:1] * 2, [0, 1])
    parquet("default/validation/0000.parquet", blobs[1:], [0, 1, 1])
    found = HuggingFace(path=str(tmp_path), test_split="validation").load()
    assert (len(found.train), len(found.test)) == (2, 3)
    parquet("default/train/contest.parquet", blobs, [0, 1, 0, 1])  # no word of its own: the folder says it
    assert len(HuggingFace(path=str(tmp_path), test_split="validation").load().train) == 6


def test_the_name_of_the_folder_that_was_given_says_nothing(parquet, pictures, png, tmp_path):
    """Else the training file in a folder called my-test would serve as test split too."""
    blobs = [png(pixels) for pixels in pictures(2, 4, 4)]
    parquet("my-test/train.parquet", blobs, [0, 1])
    parquet("my-test/0000.parquet", blobs, [0, 1])
    for path in ([str(tmp_path / "my-test")], str(tmp_path / "my-test"), str(tmp_path / "my-test" / "train.parquet")):
        with pytest.raises(UserError, match=r"no Parquet file of 'test' among"):
            HuggingFace(path=path).load()


def test_declared_classes_count_even_where_the_images_show_fewer(parquet, pictures, png, tmp_path):
    features = {"img": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    for split in ("train", "test"):
        path = parquet(f"{split}.parquet", [png(pixels) for pixels in pictures(2, 4, 4)], [0, 1])
        table = pq.read_table(path)
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
        )
    assert HuggingFace(path=str(tmp_path)).load().classes == 3
    assert HuggingFace(path=str(tmp_path), classes=7).load().classes == 7


def test_a_changed_file_is_read_again(parquet, pictures, png, tmp_path):
    first, second = (png(pixels) for pixels in pictures(2, 4, 4))
    for split in ("train", "test"):
        parquet(f"{split}.parquet", [first, first], [0, 1])
    before = HuggingFace(path=str(tmp_path)).load()
    parquet("train.parquet", [first, second], [0, 1])
    after = HuggingFace(path=str(tmp_path)).load()
    assert before.checksum != after.checksum
    assert before.test.images is HuggingFace(path=str(tmp_path)).load().test.images  # and an unchanged one is not


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"nothing to read: set dataset\.path to a folder of Parquet files, or dataset\.hub=OWNER/NAME"),
        ({"path": "nowhere"}, r"dataset path nowhere does not exist; set dataset\.path"),
        ({"path": []}, r"dataset\.path is an empty list"),
        ({"train_split": "Test"}, r"dataset\.train_split and dataset\.test_split are both 'test'; make them differ"),
    ],
)
def test_nothing_to_read_is_said(settings, message):
    with pytest.raises(UserError, match=message):
        HuggingFace(**settings).load()


def test_a_folder_without_parquet_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"folder {tmp_path} holds no \.parquet file; set dataset\.path"):
        HuggingFace(path=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"pixels": 1, "label": 1}, {}, r"has none of image, img for the image; .*image_column to one of pix"),
        ({"img": 1, "kind": 1}, {}, r"has none of label, labels, fine_label for the label; "),
        ({"img": 1, "label": 1}, {"image_column": "imgs"}, r"has no column 'imgs' for the image; .* one of img, label"),
        ({"img": 1, "label": 1}, {"label_column": "lable"}, r"has no column 'lable' for the label"),
        ({"img": pa.array([1, 2]), "label": 1}, {}, r"image column 'img' is of type int64, not bytes or a struct"),
        ({"img": 1, "label": pa.array(["a", "b"])}, {}, r"label column 'label' is of type string, not whole numbers"),
        ({"img": 1, "label": pa.array([0, None])}, {}, r"row 1 of .*train\.parquet has no label; remove the row"),
        ({"img": 1, "label": pa.array([0, -1])}, {}, r"train example 1 has the label -1, out of range for"),
        ({"img": 1, "label": pa.array([0, 5])}, {"classes": 3}, r"example 1 has the label 5, out of range for 3 c"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_named_in_one_line(parquet, pictures, png, tmp_path, columns, settings, message):
    good = {"img": pa.array([png(pixels) for pixels in pictures(2, 4, 4)]), "label": pa.array([0, 1])}
    table = {
        name: value if isinstance(value, pa.Array) else good.get(name, good["img" if name == "pixels" else "label"])
        for name, value in columns.items()
    }
    for split in ("train", "test"):
        parquet(f"{split}.parquet", [], [], table)
    with pytest.raises(UserError, match=message) as caught:
        HuggingFace(path=str(tmp_path), **settings).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"junk", r"row 2 of .*train\.parquet: the image is damaged or not an image \(no known image format\)"),
        (None, r"row 2 of .*train\.parquet holds no image bytes; remove the row"),
        ("wide", r"row 2 of .*: the image is 4 x 9 pixels where row 0 of .* is 4 x 4; set dataset\.size=PIXELS"),
    ],
)
def test_a_row_that_is_no_image_is_named(parquet, pictures, png, tmp_path, blob, message):
    good = [png(pixels) for pixels in pictures(2, 4, 4)]
    parquet("train.parquet", [*good, png(pictures(1, 4, 9)[0]) if blob == "wide" else blob], [0, 1, 0])
    parquet("test.parquet", good, [0, 1])
    with pytest.raises(UserError, match=message):
        HuggingFace(path=str(tmp_path)).load()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "middle"])
def test_a_damaged_file_is_named(hub_folder, damage):
    path = hub_folder / "data" / "train-00000-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-20],
            "empty": b"",
            "text": b"version https://git-lfs.github.com/spec/v1",
            "middle": content[:4] + bytes(len(content) // 3) + content[4 + len(content) // 3 :],
        }[damage]
    )
    with pytest.raises(UserError, match=rf"{path} is damaged or not a Parquet file \(.*\); get it again") as caught:
        HuggingFace(path=str(hub_folder)).load()
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_a_missing_split_are_named(parquet, pictures, png, tmp_path):
    parquet("train.parquet", [], [])
    with pytest.raises(UserError, match=r"train\.parquet holds no row; give a file with images"):
        HuggingFace(path=str(tmp_path)).load()
    parquet("train.parquet", [png(pictures(1, 4, 4)[0])], [0])
    with pytest.raises(
        UserError, match=r"no Parquet file of 'test' among train\.parquet; .*set dataset\.train_split and"
    ):
        HuggingFace(path=str(tmp_path)).load()


def test_a_split_in_several_folders_is_not_mixed(parquet, pictures, png, tmp_path):
    for config in ("plain", "noisy"):
        parquet(f"{config}/train.parquet", [png(pictures(1, 4, 4)[0])], [0])
    with pytest.raises(
        UserError, match=r"'train' files lie in several folders: .*noisy, .*plain; set dataset\.path to one"
    ):
        HuggingFace(path=str(tmp_path)).load()


def test_without_the_package_the_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"hub=a/b needs the package huggingface_hub; run pip install huggingface_hub, or"
    ):
        HuggingFace(hub="a/b").load()


def test_the_hub_is_asked_for_parquet_and_then_read_as_a_folder(monkeypatch, hub_folder):
    asked = []

    def snapshot_download(repo, **options):
        asked.append((repo, options))
        return str(hub_folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    dataset = HuggingFace(hub="owner/toy", revision="v1").load()
    assert asked == [("owner/toy", {"repo_type": "dataset", "revision": "v1", "allow_patterns": "*.parquet"})]
    assert dataset.name == "owner/toy"
    assert dataset.checksum == HuggingFace(path=str(hub_folder)).load().checksum


def test_a_failed_download_says_how_to_go_on(monkeypatch):
    def snapshot_download(*args, **options):
        raise OSError("no route to host\nmore")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(
        UserError, match=r"hub=a/b cannot be downloaded \(no route to host\); check the name and the network"
    ):
        HuggingFace(hub="a/b").load()


def test_the_real_cifar10(real_data):
    dataset = HuggingFace(path=str(real_data / "cifar10-jpeg")).load()
    assert dataset.train.images.shape == (50_000, 3, 32, 32)
    assert dataset.test.images.shape == (10_000, 3, 32, 32)
    assert dataset.classes == 10
    assert dataset.train.labels.bincount().tolist() == [5_000] * 10
    assert dataset.test.labels.bincount().tolist() == [1_000] * 10
    # The published statistics of CIFAR-10; coding as JPEG moved them by little.
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert dataset.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)
