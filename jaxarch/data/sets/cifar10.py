"""CIFAR-10 from its python archive. Krizhevsky 2009, Learning multiple layers of features from tiny images."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch
from jaxarch.errors import DataError, UsageError

FOLDER = "cifar-10-batches-py"
TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], "test_batch"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LARGEST = 1 << 26  # bytes; a batch of the real archive has 31 million


def load(*, path: str = "", crop: int = 4, flip: bool = True) -> ArraySource:
    """Images (B, 32, 32, 3), each channel normalised by the training set's mean and deviation.

    `path` is `cifar-10-python.tar.gz` or the folder it unpacks to. Training images are shifted by up to
    `crop` pixels over a black border and, with `flip`, mirrored half of the time.

    Raises:
        UsageError: no path, or a crop below 0.
        DataError: a file is missing, damaged or of another format; pickled code is never run.
    """
    if not path:
        raise UsageError("cifar10 is read from disk: --set train.options.path=cifar-10-python.tar.gz")
    if crop < 0:
        raise UsageError(f"crop must be at least 0, not {crop}")
    parts = read_archive(Path(path))
    train = [_decoded(parts[name], name) for name in TRAIN]
    images = np.concatenate([x for x, _ in train])
    labels = np.concatenate([y for _, y in train])
    test_images, test_labels = _decoded(parts[TEST], TEST)

    def augment(batch: Batch, rng: np.random.Generator) -> Batch:
        x = batch["x"]
        x = shifted(x, crop, -np.array(MEAN, x.dtype) / np.array(STD, x.dtype), rng)
        return {**batch, "x": mirrored(x, rng) if flip else x}

    return ArraySource(
        train={"x": normalized(images), "label": labels},
        test={"x": normalized(test_images), "label": test_labels},
        classes=10,
        unit="images",
        augment=augment,
    )


def normalized(images: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) -> float32 with mean 0 and deviation 1 over the training set."""
    return ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def shifted(x: np.ndarray, most: int, black: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image of (B, H, W, C) cut out of itself with a black border, up to `most` pixels off centre."""
    if not most:
        return x
    count, height, width, channels = x.shape
    bordered = np.broadcast_to(black, (count, height + 2 * most, width + 2 * most, channels)).copy()
    bordered[:, most : most + height, most : most + width] = x
    corners = rng.integers(0, 2 * most + 1, (len(x), 2))
    return np.stack([b[i : i + height, j : j + width] for b, (i, j) in zip(bordered, corners, strict=True)])


def mirrored(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images of (B, H, W, C), drawn at random, left to right."""
    return np.where(rng.random(len(x))[:, None, None, None] < 0.5, x[:, :, ::-1], x)


def read_archive(path: Path) -> dict[str, bytes]:
    """The six batch files of an archive or of its folder.

    Raises:
        DataError: one of them is missing or larger than any batch is, or the archive is damaged.
    """
    names = [*TRAIN, TEST]
    if path.is_dir():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise DataError(f"{folder} holds no {missing[0]}: unpack cifar-10-python.tar.gz there")
        return {n: (folder / n).read_bytes() for n in names}
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isfile() and member.size <= LARGEST:
                    contents[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; download cifar-10-python.tar.gz there") from None
    except (tarfile.TarError, OSError, EOFError) as e:
        raise DataError(f"{path} is no intact tar archive: {e}") from None
    if missing := [n for n in names if n not in contents]:
        raise DataError(f"{path} holds no {missing[0]}: it is not cifar-10-python.tar.gz")
    return contents


ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _Plain(pickle.Unpickler):
    """Builds arrays and nothing else, so that no archive can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _decoded(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = _Plain(io.BytesIO(content), encoding="bytes").load()
        pixels = np.asarray(table[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(table[b"labels"], np.int32)
    except Exception as e:  # damaged pickles raise errors of every type
        raise DataError(f"{name} is not a batch of CIFAR-10: {type(e).__name__}: {e}") from None
    if labels.shape != pixels.shape[:1] or not ((labels >= 0) & (labels < 10)).all():
        raise DataError(f"{name} is not a batch of CIFAR-10: it has no label of 0 to 9 for each image")
    return pixels.transpose(0, 2, 3, 1), labels
