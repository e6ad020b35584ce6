"""Tiny data sets in torchvision's layout, published on a real server on this machine."""

import gzip
import hashlib
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision.datasets

TRAIN, TEST = 60, 20
SHAPES = {"MNIST": (1, 28, 28), "FashionMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32), "CIFAR100": (3, 32, 32)}
CLASSES = {"MNIST": 10, "FashionMNIST": 10, "CIFAR10": 10, "CIFAR100": 100}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def draw(name):
    """Return {"train": (images, labels), "test": ...}; each image is another one."""
    generator = np.random.default_rng(len(name))
    return {
        part: (
            generator.integers(256, size=(size, *SHAPES[name]), dtype=np.uint8),
            generator.integers(CLASSES[name], size=size),
        )
        for part, size in (("train", TRAIN), ("test", TEST))
    }


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def publish_mnist(name, sets, server, patch):
    dataset, folder = getattr(torchvision.datasets, name), server.folder / name
    folder.mkdir()
    for (images, labels), prefix in ((sets["train"], "train"), (sets["test"], "t10k")):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images[:, 0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    patch.setattr(dataset, "mirrors", [f"{server.url}/{name}/"])
    patch.setattr(dataset, "resources", [(file, md5(folder / file)) for file, _ in dataset.resources])


def publish_cifar(name, sets, server, patch):
    dataset, folder = getattr(torchvision.datasets, name), server.folder / name / "files"
    folder.mkdir(parents=True)
    for part, files in (("train", dataset.train_list), ("test", dataset.test_list)):
        images, labels = (np.array_split(array, len(files)) for array in sets[part])
        for (file, _), pixels, numbers in zip(files, images, labels, strict=True):
            key = "labels" if name == "CIFAR10" else "fine_labels"
            entry = {"data": pixels.reshape(len(pixels), -1), key: numbers.tolist()}
            (folder / file).write_bytes(pickle.dumps(entry))
    meta = dataset.meta
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [f"class {n}" for n in range(CLASSES[name])]}))
    archive = server.folder / name / dataset.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, dataset.base_folder)
    patch.setattr(dataset, "url", f"{server.url}/{name}/{dataset.filename}")
    patch.setattr(dataset, "tgz_md5", md5(archive))
    for table in ("train_list", "test_list"):
        patch.setattr(dataset, table, [[file, md5(folder / file)] for file, _ in getattr(dataset, table)])
    patch.setattr(dataset, "meta", {**meta, "md5": md5(folder / meta["filename"])})


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        self.server.requests.append(self.path)


class Server(ThreadingHTTPServer):
    def handle_error(self, *args):
        pass  # torchvision first asks where it is redirected to, and hangs up


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Serve ``.folder`` at ``.url``; ``.requests`` are the paths that were asked for."""
    folder = tmp_path_factory.mktemp("published")
    http = Server(("127.0.0.1", 0), partial(Handler, directory=folder))
    http.requests = []
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{http.server_port}", requests=http.requests)
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="session")
def published(server):
    """Publish tiny data sets in place of the real ones; return name -> their images and labels."""
    sets = {name: draw(name) for name in SHAPES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        for name in SHAPES:
            publish = publish_mnist if "MNIST" in name else publish_cifar
            publish(name, sets[name], server, patch)
        yield sets


@pytest.fixture
def no_network(published, monkeypatch):
    """Make every address one where nobody answers."""
    for name in SHAPES:
        attribute, address = ("mirrors", ["http://127.0.0.1:9/"]) if "MNIST" in name else ("url", "http://127.0.0.1:9/")
        monkeypatch.setattr(getattr(torchvision.datasets, name), attribute, address)
