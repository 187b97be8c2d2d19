"""Transformer and its parts = torch.nn's, beyond PyTorch's samples: stacks of several layers, hints, dropout, memory of
another length, the inference fast path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torchref.nn as reference
from comparison import assert_close, assert_same_vjp, jax_vjp, torch_vjp
from jaxarch import nn
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import DataError

N, S, T, D = 2, 3, 5, 8
SIZES = (D, 2, 12)
PADDED = {"src": np.array([[0, 0, 0], [0, 1, 1]], bool), "tgt": np.arange(T) >= np.array([[5], [3]])}
CAUSAL = {n: np.triu(np.full((n, n), -np.inf), 1) for n in (S, T)}

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def spread(module):
    """Weights away from their initial values, which are equal in every copy of a layer."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


def built(build):
    """torch.nn's, torchref's and ours, with the same weights; `build` takes a package and its extra arguments."""
    theirs = spread(build(torch.nn, {}).double())
    twin = build(reference, {}).double()
    twin.load_state_dict(theirs.state_dict())
    ours = build(nn, {"rngs": nnx.Rngs(0)})
    load_state_dict(ours, theirs.state_dict())
    return theirs, twin, ours


def assert_all_agree(build, inputs, call):
    theirs, twin, ours = built(build)
    expected, cotangents = torch_vjp(theirs, inputs, call=call)
    assert_same_vjp(torch_vjp(twin, inputs, call=call)[0], expected)
    assert_same_vjp(jax_vjp(ours, call)(inputs, cotangents), expected)


def called(layer, **inputs):
    return {"y": layer(**inputs)}


def test_encoder():
    """Two layers before a norm, batch first, with another activation, eps and both masks."""

    def build(package, rngs):
        layer = package.TransformerEncoderLayer(
            *SIZES, 0.0, "gelu", 1e-3, batch_first=True, norm_first=True, **rngs
        )
        return package.TransformerEncoder(layer, 2, package.LayerNorm(D, **rngs))

    inputs = {
        "src": draw(0, N, S, D),
        "mask": CAUSAL[S],
        "src_key_padding_mask": np.where(PADDED["src"], -1e9, 0),
    }
    assert_all_agree(build, inputs, called)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder(norm_first):
    """Two layers and a norm, memory of another length, a mask for each head, and padding."""

    def build(package, rngs):
        layer = package.TransformerDecoderLayer(*SIZES, 0.0, norm_first=norm_first, bias=norm_first, **rngs)
        return package.TransformerDecoder(layer, 2, package.LayerNorm(D, bias=False, **rngs))

    inputs = {
        "tgt": draw(0, T, N, D),
        "memory": draw(1, S, N, D),
        "memory_mask": np.random.default_rng(2).random((2 * N, T, S)) < 0.2,
        "tgt_mask": CAUSAL[T] < 0,
        "tgt_key_padding_mask": PADDED["tgt"],
    }
    assert_all_agree(build, inputs, called)
    hinted = {k: inputs[k] for k in ("tgt", "memory", "tgt_mask")}
    assert_all_agree(build, hinted, lambda layer, **inputs: {"y": layer(**inputs, tgt_is_causal=True)})


def test_transformer():
    """Every argument of the call at once, encoder and decoder of different depth."""

    def build(package, rngs):
        return package.Transformer(D, 2, 1, 2, 12, 0.0, batch_first=True, **rngs)

    causal = build(nn, {"rngs": nnx.Rngs(0)}).generate_square_subsequent_mask
    for n in (S, T):
        np.testing.assert_array_equal(causal(n), torch.nn.Transformer.generate_square_subsequent_mask(n))
    assert causal(2, jnp.float32).dtype == jnp.float32
    inputs = {
        "src": draw(0, N, S, D),
        "tgt": draw(1, N, T, D),
        "src_mask": CAUSAL[S],
        "tgt_mask": CAUSAL[T],
        "memory_mask": draw(2, T, S),
        **{f"{k}_key_padding_mask": np.where(v, -np.inf, 0.0) for k, v in PADDED.items()},
        "memory_key_padding_mask": np.where(PADDED["src"], -np.inf, 0.0),
    }
    assert_all_agree(build, inputs, called)
    del inputs["src_key_padding_mask"]
    assert_all_agree(build, inputs, lambda layer, **inputs: {"y": layer(**inputs, src_is_causal=True)})


def test_custom_parts_and_a_function():
    """A custom decoder, and the activation as a function."""
    given = {"torch": torch.nn.functional.silu, "torchref": torch.nn.functional.silu, "jaxarch": jax.nn.silu}

    def build(package, rngs):
        activation = given[package.__name__.split(".")[0]]
        layer = package.TransformerDecoderLayer(*SIZES, 0.0, activation, **rngs)
        decoder = package.TransformerDecoder(layer, 1)
        return package.Transformer(D, 2, 1, 9, 12, 0.0, activation, custom_decoder=decoder, **rngs)

    assert_all_agree(build, {"src": draw(0, S, N, D), "tgt": draw(1, T, N, D)}, called)


def test_the_fast_path_differs_in_padding_only():
    """Without gradients, in eval mode, torch zeroes padded states before the norm; every valid state is ours."""

    def build(package, rngs):
        layer = package.TransformerEncoderLayer(*SIZES, batch_first=True, **rngs)
        return package.TransformerEncoder(layer, 2)

    theirs, _, ours = built(build)
    theirs.eval()
    ours.eval()
    x, padded = draw(0, N, S, D), PADDED["src"]
    with torch.no_grad():
        fast = theirs(torch.tensor(x), src_key_padding_mask=torch.tensor(padded)).numpy()
    actual = np.asarray(ours(jnp.asarray(x), src_key_padding_mask=jnp.asarray(padded)))
    assert not fast[padded].any()
    assert actual[padded].all()
    assert_close(actual[~padded], fast[~padded])


def test_dropout_of_every_layer():
    """Each copy asks for masks of its own, at the same places as the twin; with them the two agree."""
    twin = reference.TransformerEncoder(reference.TransformerEncoderLayer(*SIZES, 0.3), 2).double().train()
    ours = nn.TransformerEncoder(nn.TransformerEncoderLayer(*SIZES, 0.3, rngs=nnx.Rngs(0)), 2)
    load_state_dict(ours, spread(twin).state_dict())
    nn.label_dropouts(ours)
    ours.train()
    x = draw(0, S, N, D)
    first = ours(jnp.asarray(x))
    with nn.record_masks() as shapes:
        ours(jnp.asarray(x))
    assert len(shapes) == 8
    rng = np.random.default_rng(1)
    kept = {k: [rng.random(shape) < 0.7 for shape in v] for k, v in shapes.items()}
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.forward = lambda y, m=kept[name][0]: y * torch.tensor(m) / 0.7
    with nn.inject_masks({k: [jnp.asarray(m) for m in v] for k, v in kept.items()}):
        assert_close(ours(jnp.asarray(x)), twin(torch.tensor(x)))
    # The copies have the same weights at first, and other keys.
    one, two = ours.layers
    assert not jnp.array_equal(one.dropout.rngs.key[...], two.dropout.rngs.key[...])
    assert not np.allclose(first, ours(jnp.asarray(x)))


def test_initialisers_are_torchs():
    """Copies start alike in a stack alone, and every matrix is drawn by Xavier in the whole."""
    torch.manual_seed(0)
    theirs = torch.nn.Transformer(32, 2, 1, 2, 48)
    ours = to_state_dict(nn.Transformer(32, 2, 1, 2, 48, rngs=nnx.Rngs(0)))
    assert set(ours) == set(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        a, b = ours[key], value.numpy()
        if b.ndim > 1:
            assert abs(np.abs(a).max() / np.abs(b).max() - 1) < 0.05, key
            assert abs(a.std() / b.std() - 1) < 0.1, key
        elif "linear" not in key:
            np.testing.assert_array_equal(a, b)
    first, second = (ours[f"decoder.layers.{i}.linear1.weight"] for i in (0, 1))
    assert not np.allclose(first, second)
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(*SIZES, rngs=nnx.Rngs(0)), 2)
    weights = to_state_dict(stack)
    np.testing.assert_array_equal(weights["layers.0.linear1.weight"], weights["layers.1.linear1.weight"])


def test_errors():
    model = nn.Transformer(D, 2, 1, 1, 12, rngs=nnx.Rngs(0))
    x = jnp.zeros((S, N, D))
    with pytest.raises(
        DataError, match=r"src \(3, 2, 8\) and tgt \(3, 1, 8\) need the same batch, on axis 1"
    ):
        model(x, x[:, :1])
    with pytest.raises(DataError, match="need the width d_model 8"):
        model(x[..., :4], x[..., :4])
