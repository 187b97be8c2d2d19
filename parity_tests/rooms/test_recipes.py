"""Recipes of every page can run; their data is read, augmented and refused as documented."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from jaxarch import catalog, data
from jaxarch.data.sets import cifar10
from jaxarch.errors import CheckpointError, DataError, UsageError
from jaxarch.train import fit, tasks
from jaxarch.train.recipe import recipe_of, schedule_of


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small archive of the real one's format: bytes as keys, rows of 3,072 numbers, Python 2's protocol."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("cifar") / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in (*cifar10.TRAIN, cifar10.TEST):
            labels = [int(i) for i in rng.permutation(20) % 10]
            pixels = rng.integers(0, 80, (20, 3072)) + 17 * np.array(labels)[:, None]
            table = {b"data": pixels.astype(np.uint8), b"labels": labels, b"batch_label": b"x"}
            content = pickle.dumps(table, protocol=2)
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def options(path, **more):
    return {"out": path.parent, "arguments": {}, "options": {"path": str(path), **more}}


def test_cifar_is_read_and_augmented(archive):
    source = data.load("cifar10", **options(archive))
    assert source.train["x"].shape == (100, 32, 32, 3)
    assert source.train["x"].dtype == np.float32
    plain = data.load("cifar10", **options(archive, crop=0, flip=False)).batch(0, 3, 16)
    first, again = source.batch(0, 3, 16), source.batch(0, 3, 16)
    np.testing.assert_array_equal(first["x"], again["x"])
    np.testing.assert_array_equal(first["label"], plain["label"])
    # Every augmented image is a window of the bordered one, mirrored or not.
    black = -np.array(cifar10.MEAN, np.float32) / np.array(cifar10.STD, np.float32)
    for ours, raw in zip(first["x"], plain["x"], strict=True):
        bordered = np.broadcast_to(black, (40, 40, 3)).copy()
        bordered[4:36, 4:36] = raw
        windows = [bordered[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any((w == ours).all() or (w[:, ::-1] == ours).all() for w in windows)
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    unpacked = data.load("cifar10", **options(archive.parent))
    np.testing.assert_array_equal(unpacked.test["x"], source.test["x"])


def test_digits_are_shifted(tmp_path):
    given = {"out": tmp_path, "arguments": {}}
    plain = data.load("digits", **given, options={"upscale": 2, "signed": True}).batch(0, 3, 8)["x"]
    source = data.load("digits", **given, options={"upscale": 2, "signed": True, "shift": 1})
    bordered = np.pad(plain, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-1)
    augmented = source.batch(0, 3, 8)["x"]
    places = [(i, j) for i in range(3) for j in range(3)]
    found = [
        [(m == b[i : i + 16, j : j + 16]).all() for i, j in places]
        for m, b in zip(augmented, bordered, strict=True)
    ]
    assert np.any(found, 1).all()
    assert (augmented != plain).any()
    with pytest.raises(UsageError, match="shift 1 must be"):
        data.load("digits", **given, options={"flatten": True, "shift": 1})


def test_archives_that_are_none(archive, tmp_path):
    with pytest.raises(UsageError, match=r"train\.options\.path"):
        data.load("cifar10", out=tmp_path, arguments={}, options={})
    with pytest.raises(DataError, match="no such file"):
        data.load("cifar10", **options(tmp_path / "none.tar.gz"))
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(DataError, match="no intact tar archive"):
        data.load("cifar10", **options(tmp_path / "text"))
    with pytest.raises(DataError, match="holds no data_batch_1"):
        data.load("cifar10", **options(tmp_path))
    for name in (*cifar10.TRAIN, cifar10.TEST):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(DataError, match=r"asks for os\.system"):
        data.load("cifar10", **options(tmp_path))


def test_cifar_recipe_runs(archive, tmp_path):
    """OneCycle, label smoothing, bfloat16 compute, an average of the weights, and augmentation together."""
    settings = {
        "train.options.path": str(archive),
        "train.steps": "4",
        "train.batch_size": "8",
        "train.eval_every": "2",
        "model.base_channels": "4",
    }
    run = fit("resnet", recipe="cifar10", settings=settings, out=tmp_path / "run", progress=False)
    assert run.run.recipe.ema > 0
    assert {"accuracy", "loss"} <= run.metrics.keys()
    params, average = run.state.params, run.state.ema_params
    assert params.keys() == average.keys()
    assert any((np.asarray(params[k]) != np.asarray(average[k])).any() for k in params)


def test_a_student_learns_from_its_teacher(tmp_path):
    quick = {"train.steps": "3", "train.eval_every": "3", "train.batch_size": "16"}
    fit("mlp", settings=quick, out=tmp_path / "teacher", progress=False)
    small = {**quick, "train.task_options.teacher": str(tmp_path / "teacher")}
    run = fit("mlp", recipe="distilled", settings=small, out=tmp_path / "student", progress=False)
    assert run.run.recipe.task == "distillation"
    with pytest.raises(UsageError, match="teacher=DIR"):
        fit("mlp", recipe="distilled", settings=quick, out=tmp_path / "alone", progress=False)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        tasks.task("distillation", teacher=str(tmp_path / "nothing"))


def recipes():
    for name in catalog.list_models():
        entry = catalog.page(name)
        if entry.train:
            yield name, None
        yield from ((name, recipe) for recipe in entry.recipes)


@pytest.mark.parametrize(("model", "recipe"), list(recipes()))
def test_recipes_name_what_exists(model, recipe):
    made, _ = recipe_of(model, None, {}, recipe)
    catalog.arguments(model, made.variant)
    schedule_of(made)
    assert made.task in {m.name for m in __import__("pkgutil").iter_modules(tasks.__path__)}
    assert made.data in {m.name for m in __import__("pkgutil").iter_modules(data.sets.__path__)}


def test_unknown_recipes():
    with pytest.raises(UsageError, match="cifar10"):
        recipe_of("resnet", None, {}, "cifar")
    with pytest.raises(UsageError, match=r"no recipe: add a \[train\] table"):
        recipe_of(next(n for n in catalog.list_models() if not catalog.page(n).train), None, {})
