"""Any source of batches trains, padding never counts, and loaders get what they take and no more."""

import ast
import importlib
import inspect
import pkgutil
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxarch import data
from jaxarch.data import sets
from jaxarch.data.sets import digits
from jaxarch.errors import DataError, UsageError
from jaxarch.train import checkpoint, fit, step, tasks
from jaxarch.train.plan import prepare

SETS = [m.name for m in pkgutil.iter_modules(sets.__path__)]

pytestmark = pytest.mark.usefixtures("first_devices")


class Rings:
    """Points (B, 64), their class by their norm, drawn when they are asked for."""

    classes, items, unit = 3, 1, "points"
    extra: ClassVar[dict[str, str]] = {}

    def batch(self, seed, step, size):
        return self.points(np.random.default_rng((seed, step)), size)

    def evaluation(self, size):
        for start in range(0, 20, size):
            rows = np.arange(start, start + size)
            yield {**self.points(np.random.default_rng(start), size), "valid": rows < 20}

    @staticmethod
    def points(rng, count):
        label = rng.integers(0, 3, count)
        x = rng.normal(size=(count, 64))
        return {"x": x / np.linalg.norm(x, axis=1, keepdims=True) * (1 + label[:, None]), "label": label}


def test_a_source_of_ones_own_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "load", lambda *, flatten: Rings())
    settings = {
        "train.steps": "4",
        "train.eval_every": "2",
        "train.batch_size": "8",
        "model.hidden_dims": "[8]",
    }
    run = fit("mlp", settings=settings, mesh="data=1", out=tmp_path / "run", progress=False)
    assert not isinstance(run.run.source, data.ArraySource)
    again = {"settings": settings, "mesh": "data=1", "out": tmp_path / "again", "progress": False}
    fit("mlp", **again, stop_at=2)
    assert fit("mlp", **again, resume=True).history == run.history
    model = checkpoint.load(run.out).model()
    model.eval()
    correct = [
        np.asarray(model(jnp.asarray(b["x"]))).argmax(1)[b["valid"]] == b["label"][b["valid"]]
        for b in Rings().evaluation(8)
    ]
    assert run.metrics["accuracy"] == pytest.approx(np.concatenate(correct).mean())


# One recipe of each task whose batches can have padding, small, with a batch size that leaves some.
TINY_TRANSFORMER = {"model.d_model": "8", "model.n_layers": "1", "model.d_ff": "8"}
PADDED = {
    "mlp": {},
    "gru_forecaster": {},
    "conv_lstm": {
        "train.options.frames": "3",
        "train.options.count": "100",
        "model.hidden_channels": "2",
    },
    "neural_ode": {"train.options.count": "100"},
    "seq2seq_rnn": {"train.options.count": "100", "model.hidden_size": "4", "model.embed_dim": "3"},
    "transformer": {"train.options.count": "100", **TINY_TRANSFORMER},
    "bi_lstm": {"model.vocab_size": "258", "model.hidden_size": "4", "train.options.length": "2048"},
    "advanced_transformer": {
        "model.vocab_size": "257",
        "model.max_seq_len": "2048",
        **TINY_TRANSFORMER,
    },
    "custom_multi_task_seo_model": {"model.hidden_size": "8", "model.max_length": "8"},
    "gnn molecules": {"train.options.count": "200", "train.options.most_atoms": "12"},
    "graph_generator additive": {"train.options.copies": "1"},
    "vae": {},
    "vq_vae": {},
    "generator": {},
    "diffusion_unet": {
        "model.base_channels": "8",
        "model.multipliers": "(1,)",
        "model.attention_levels": "()",
    },
}


@pytest.mark.parametrize("recipe", PADDED)
def test_padding_does_not_count(recipe, tmp_path):
    """The sums over a batch are the same whatever its padding holds, and are not where padding counts."""
    name, _, recipe_name = recipe.partition(" ")
    settings = {"train.batch_size": "7", **PADDED[recipe]}
    run = prepare(
        name, variant=None, settings=settings, mesh="data=1", out=tmp_path, recipe=recipe_name or None
    )
    *_, batch = run.source.evaluation(7)
    valid = batch.pop("valid")
    assert 0 < valid.sum() < 7
    assert "label" not in batch or len(np.unique(batch["label"])) > 1
    assert all((np.asarray(v) != -100).all() for v in batch.values())

    def rows_of(array, padding):
        return np.where(valid.reshape(-1, *(1,) * (array.ndim - 1)), array, padding)

    first = {k: v[:1] for k, v in batch.items()}
    last = {k: v[valid][-1:] for k, v in batch.items()}
    state, evaluate = run.init(), step.make_eval_step(run.eval_graph, run.task)

    def sums(padding, valid):
        filled = {k: rows_of(v, padding[k]) for k, v in batch.items()}
        return evaluate(state.params, state.rest, run.place({**filled, "valid": valid}), 0)

    right = sums(first, valid)
    jax.tree.map(np.testing.assert_array_equal, right, sums(last, valid))
    wrong = sums(first, np.ones(7, bool))
    assert any((np.asarray(wrong[k]) != np.asarray(right[k])).any() for k in right)


def test_evaluation_covers_every_row_once():
    rows = {"x": np.arange(10.0), "label": np.arange(10)}
    source = data.ArraySource(train=rows, test=rows, classes=10)
    batches = list(source.evaluation(4))
    assert [len(b["x"]) for b in batches] == [4, 4, 4]
    valid = np.concatenate([b["valid"] for b in batches])
    assert valid.dtype == bool
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches])[valid], np.arange(10))
    assert "valid" not in source.batch(0, 0, 4)
    assert tasks.inputs_of(batches[0]).keys() == {"x"}


def test_an_evaluation_says_what_is_valid():
    task = tasks.task("classification")
    with pytest.raises(DataError, match='lacks "valid"'):
        task.tally(lambda x: x, {"x": jnp.ones((2, 3)), "label": jnp.zeros(2, int)})


def test_a_loss_of_its_own_smooths_its_own_labels(tmp_path):
    settings = {"train.label_smoothing": "0.3", **PADDED["advanced_transformer"]}
    with pytest.raises(UsageError, match=r"set model\.label_smoothing, which is 0\.0"):
        prepare("advanced_transformer", variant=None, settings=settings, mesh="data=1", out=tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_loaders_take_what_they_use(name):
    loader = importlib.import_module(f"{sets.__name__}.{name}").load
    function = ast.parse(inspect.getsource(loader)).body[0]
    assert isinstance(function, ast.FunctionDef)
    used = {n.id for node in function.body for n in ast.walk(node) if isinstance(n, ast.Name)}
    assert set(inspect.signature(loader).parameters) <= used


def test_loaders_get_what_they_take(monkeypatch, tmp_path):
    context = {"out": tmp_path, "arguments": {"width": 3}}
    received = []

    def load(*, arguments, shift=0):
        received.append((arguments, shift))

    monkeypatch.setattr(digits, "load", load)
    data.load("digits", **context, options={"shift": 2})
    assert received == [({"width": 3}, 2)]
    for option, says in (
        ("shfit", "did you mean 'shift'"),
        ("out", "unknown option"),
        ("seed", "known: shift"),
    ):
        with pytest.raises(UsageError, match=says):
            data.load("digits", **context, options={option: 1})
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        data.load("digit", **context, options={})
