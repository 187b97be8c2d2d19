"""Feature maps are those that the model computes, drawn for any image."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread, imsave

from jaxarch import catalog, cli
from jaxarch.commands import features
from jaxarch.train import fit


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.png"
    imsave(path, np.random.default_rng(0).random((20, 30, 3)))
    return path


def test_maps_are_the_modules_outputs():
    model = catalog.create_model("advanced_cnn", "digits")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 1)))
    maps = features.feature_maps(model, {"x": x})
    first = model.conv1(x)
    np.testing.assert_array_equal(maps["conv1"], np.asarray(first[0], np.float32))
    assert maps["layer4"].shape == (1, 1, 128)
    assert maps["attention.excitation"].shape == (1, 128, 1)  # the gates of 128 channels


def test_drawn_from_random_and_from_trained_weights(image, tmp_path, capsys):
    out = tmp_path / "maps.png"
    assert cli.main(["show", "cnn", "--features", str(image), "--out", str(out)]) == 0
    random = imread(out)
    assert random.ndim == 3
    assert random.std() > 0.1
    settings = {"train.steps": "1", "train.eval_every": "1", "train.batch_size": "8"}
    fit("cnn", settings=settings, mesh="data=8", out=tmp_path / "run", progress=False)
    given = ["--features", str(image), "--weights", str(tmp_path / "run"), "--out", str(out)]
    assert cli.main(["show", "cnn", *given]) == 0
    assert not np.array_equal(random, imread(out))
    capsys.readouterr()
    assert cli.main(["show", "resnet", *given]) == 2
    assert "holds a cnn, not a resnet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["advanced_cnn", "--features", "none.png"], 1, "no such file"),
        (["advanced_cnn", "--features", __file__], 1, "not a readable image"),
        (["advanced_cnn", "--features", "x.png", "--out", "x.jpg"], 2, "written as .png"),
        (["lstm_with_attention", "--features", "x.png"], 2, "does not take one image"),
        (["advanced_cnn", "--out", "x.png"], 2, "no effect without --features"),
    ],
)
def test_what_is_wrong_is_said(arguments, status, says, capsys):
    assert cli.main(["show", *arguments]) == status
    assert says in capsys.readouterr().err
