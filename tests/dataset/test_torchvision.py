import hashlib
import pickle
import struct
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from lmc.dataset.torchvision import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST
from lmc.errors import UserError


def write_idx(folder, pixels, labels):
    """The IDX files of MNIST (http://yann.lecun.com/exdb/mnist: magic number, sizes as big-endian int32, bytes)."""
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + bytes(labels))


def write_cifar10(folder, pixels, labels):
    folder.mkdir(parents=True)
    batch = {"data": pixels.reshape(len(labels), -1), "labels": labels}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


@pytest.fixture
def digits(pictures):
    return pictures(8, 28, 28), [0, 1, 2, 3, 4, 5, 6, 9]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(("option", "folder"), [(MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw")])
def test_idx_files_are_read_as_they_are(tmp_path, digits, option, folder):
    pixels, labels = digits
    write_idx(tmp_path / folder, pixels, labels)
    dataset = option(root=str(tmp_path), download=False).load()
    for split in (dataset.train, dataset.test):
        assert np.array_equal(split.images.numpy(), pixels[:, None])
        assert split.labels.tolist() == labels
    assert dataset.classes == 10


def test_cifar_batches_are_read_with_channels_first(tmp_path, pictures, monkeypatch):
    pixels, labels = pictures(4, 3, 32, 32), [0, 9, 5, 5]
    write_cifar10(tmp_path / "cifar-10-batches-py", pixels, labels)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    dataset = CIFAR10(root=str(tmp_path), download=False).load()
    assert np.array_equal(dataset.test.images.numpy(), pixels)
    assert np.array_equal(dataset.train.images.numpy(), np.concatenate([pixels] * 5))
    assert dataset.train.images.is_contiguous()
    assert dataset.test.labels.tolist() == labels


def test_cifar_batches_that_are_not_the_published_ones_are_never_unpickled(tmp_path, pictures):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    write_cifar10(tmp_path / "cifar-10-batches-py", pictures(4, 3, 32, 32), [0, 1, 2, 3])
    for file in (tmp_path / "cifar-10-batches-py").iterdir():
        file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        UserError, match=r"cifar10: the training files in .*cifar-10-batches-py are damaged \(.*\); delete"
    ):
        CIFAR10(root=str(tmp_path), download=False).load()


def test_svhn_files_are_read_with_zero_as_class_zero(tmp_path, pictures, monkeypatch):
    pixels = pictures(5, 3, 32, 32)
    for split in ("train", "test"):  # the files hold (H, W, C, N) and call a zero 10
        content = {"X": pixels.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [2], [9], [10]], dtype=np.uint8)}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", content)
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    dataset = SVHN(root=str(tmp_path), download=False).load()
    assert np.array_equal(dataset.train.images.numpy(), pixels)
    assert dataset.train.labels.tolist() == [0, 1, 2, 9, 0]


@pytest.mark.parametrize(
    ("option", "listing"),
    [
        (MNIST, "MNIST/raw; put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "),
        (FashionMNIST, "FashionMNIST/raw; put train-images-idx3-ubyte"),
        (CIFAR10, "cifar-10-batches-py; put data_batch_1, .*, data_batch_5, test_batch, batches.meta there"),
        (CIFAR100, "cifar-100-python; put train, test, meta there"),
        (SVHN, "; put train_32x32.mat, test_32x32.mat there"),
    ],
)
def test_missing_files_are_listed(tmp_path, option, listing):
    with pytest.raises(UserError, match=f"{tmp_path}.*{listing}.*set dataset.root .* dataset.download=true") as caught:
        option(root=str(tmp_path), download=False).load()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN])
def test_a_failed_download_says_what_to_put_where(tmp_path, no_network, option):
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(.*\); put .* there by hand, or set dataset\.root"
    ) as caught:
        option(root=str(tmp_path)).load()
    assert "\n" not in str(caught.value)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    assert left == []


def test_a_download_is_moved_in_whole_and_not_repeated(tmp_path, digits, monkeypatch):
    calls = []

    def download(self):
        if not self._check_exists():
            calls.append(self.root)
            write_idx(Path(self.raw_folder), *digits)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    first = MNIST(root=str(tmp_path / "new")).load()
    again = MNIST(root=str(tmp_path / "new")).load()
    assert first.checksum == again.checksum
    assert len(calls) == 1
    assert calls[0] != str(tmp_path / "new")  # a folder beside the target, gone by now
    assert sorted(path.name for path in (tmp_path / "new").iterdir() if path.is_dir()) == ["MNIST"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"mnist is not in .*file/MNIST/raw and cannot be downloaded"):
        MNIST(root=str(tmp_path / "file")).load()


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_files_are_refused(tmp_path, digits, file, damage):
    write_idx(tmp_path / "MNIST/raw", *digits)
    path = tmp_path / "MNIST/raw" / file
    path.write_bytes({"cut": path.read_bytes()[:-3], "empty": b"", "text": b"<html>404</html>" * 9}[damage])
    split = "training" if "train" in file else "test"
    with pytest.raises(
        UserError, match=rf"mnist: the {split} files in .*raw are damaged \(.+\); delete them"
    ) as caught:
        MNIST(root=str(tmp_path), download=False).load()
    assert "\n" not in str(caught.value)


def test_a_label_out_of_range_is_refused(tmp_path, digits):
    write_idx(tmp_path / "MNIST/raw", digits[0], [0, 1, 2, 3, 4, 5, 6, 11])
    with pytest.raises(UserError, match=r"mnist: train example 7 has the label 11, out of range for 10 classes"):
        MNIST(root=str(tmp_path), download=False).load()


def test_the_real_mnist(real_data):
    dataset = MNIST(root=str(real_data / "mnist"), download=False, mean=(0.1307,), std=(0.3081,)).load()
    computed = MNIST(root=str(real_data / "mnist"), download=False, train_size=None).load()
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    assert dataset.test.images.shape == (10_000, 1, 28, 28)
    # The published file: its header is 16 bytes, its MD5 6bbc9ace898e44ae57da46a324031adb.
    header = struct.pack(">4i", 2051, 60_000, 28, 28)
    digest = hashlib.md5(header + dataset.train.images.numpy().tobytes(), usedforsecurity=False).hexdigest()
    assert digest == "6bbc9ace898e44ae57da46a324031adb"
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # published class counts
    assert [Counter(dataset.train.labels.tolist())[label] for label in range(10)] == counts
    assert computed.mean == pytest.approx((0.1307,), abs=5e-5)
    assert computed.std == pytest.approx((0.3081,), abs=5e-5)
    assert torch.equal(computed.train.images, dataset.train.images)
