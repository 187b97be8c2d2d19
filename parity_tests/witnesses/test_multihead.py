"""MultiheadAttention = torch.nn's in a batch, beyond PyTorch's samples: sizes that differ, both mask types, dropout."""

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
from jaxarch.errors import DataError, UsageError

N, L, S, E, HEADS = 2, 3, 5, 6, 3
SIZES = {"kdim": 4, "vdim": 7}
EVERYTHING = {"add_bias_kv": True, "add_zero_attn": True, **SIZES}
BLOCKED = np.random.default_rng(4).random((N * HEADS, L, S)) < 0.3
PADDED = np.array([[0, 0, 1, 0, 1], [0, 1, 1, 1, 1]], bool)
CAUSAL = np.triu(np.ones((L, S), bool), 1)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def build(**arguments):
    """The same layer three times: torch.nn's own, torchref's and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(E, HEADS, **arguments).double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))
    twin = reference.MultiheadAttention(E, HEADS, **arguments).double()
    twin.load_state_dict(theirs.state_dict())
    ours = nn.MultiheadAttention(E, HEADS, **arguments, rngs=nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    return theirs, twin, ours


def inputs_of(layer, **masks):
    shapes = ((L, N, E), (S, N, layer.kdim), (S, N, layer.vdim))
    arrays = [draw(i, *shape) for i, shape in enumerate(shapes)]
    if layer.batch_first:
        arrays = [x.swapaxes(0, 1) for x in arrays]
    return {**dict(zip(("query", "key", "value"), arrays, strict=True)), **masks}


def caller(**options):
    def call(layer, **inputs):
        outputs = dict(zip(("y", "weights"), layer(**inputs, **options), strict=True))
        return {k: v for k, v in outputs.items() if v is not None}

    return call


CASES = {
    "sizes": (EVERYTHING, {}, {"attn_mask": BLOCKED, "key_padding_mask": PADDED}),
    "separate": ({**SIZES, "bias": False, "batch_first": True}, {"average_attn_weights": False}, {}),
    "floats": ({"batch_first": True}, {}, {"attn_mask": draw(5, L, S), "key_padding_mask": draw(6, N, S)}),
    "no weights": (
        EVERYTHING,
        {"need_weights": False},
        {"attn_mask": BLOCKED[0], "key_padding_mask": PADDED},
    ),
    "floats only": ({}, {"need_weights": False}, {"attn_mask": draw(5, N * HEADS, L, S)}),
    "hint": ({}, {"need_weights": False, "is_causal": True}, {"attn_mask": CAUSAL}),
    "hint read": (EVERYTHING, {"is_causal": True}, {"attn_mask": CAUSAL}),
    "hint with all": (EVERYTHING, {"need_weights": False, "is_causal": True}, {"attn_mask": CAUSAL}),
}


@pytest.mark.parametrize("case", CASES)
def test_torch_equals_jax(case):
    arguments, options, masks = CASES[case]
    theirs, twin, ours = build(**arguments)
    inputs, call = inputs_of(theirs, **masks), caller(**options)
    expected, cotangents = torch_vjp(theirs, inputs, call=call)
    assert_same_vjp(torch_vjp(twin, inputs, call=call)[0], expected)
    assert_same_vjp(jax_vjp(ours, call)(inputs, cotangents), expected)
    alone = {
        k: v[0] if (len(v) == N and theirs.batch_first) or k == "key_padding_mask" else v
        for k, v in inputs.items()
    }
    if not theirs.batch_first:
        alone |= {k: inputs[k][:, 0] for k in ("query", "key", "value")}
    if "attn_mask" in alone and alone["attn_mask"].ndim == 3:
        alone["attn_mask"] = alone["attn_mask"][:HEADS]
    tensors, arrays = jax.tree.map(torch.tensor, alone), jax.tree.map(jnp.asarray, alone)
    assert_close(call(ours, **arrays), call(theirs, **tensors))
    assert_close(call(twin, **tensors), call(theirs, **tensors))


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_with_every_key_blocked(need_weights):
    """NaN where the weights are asked for, 0 before the output projection where not, as in torch with gradients."""
    theirs, twin, ours = build(batch_first=True)
    blocked = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], bool)
    inputs, call = inputs_of(theirs, key_padding_mask=blocked), caller(need_weights=need_weights)
    expected, cotangents = torch_vjp(theirs, inputs, call=call)
    assert np.isnan(expected.outputs["y"][0]).all() == need_weights
    for actual in (torch_vjp(twin, inputs, call=call)[0], jax_vjp(ours, call)(inputs, cotangents)):
        for a, b in zip(actual, expected, strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), a, b)
    floats = {k: v.astype(np.float64) for k, v in inputs.items() if v.dtype != bool}
    added = {"key_padding_mask": np.where(blocked, -np.inf, 0.0)}
    actual = jax_vjp(ours, call)({**floats, **added}, cotangents).outputs["y"]
    np.testing.assert_allclose(actual, expected.outputs["y"], rtol=1e-10)


def test_the_fused_kernel_is_the_plain_computation():
    """In float32, where `jax.nn.dot_product_attention` runs: masks, a query without keys, the causal pattern."""
    ours = nn.MultiheadAttention(E, HEADS, batch_first=True, rngs=nnx.Rngs(0))
    weights = {k: v.astype(np.float32) for k, v in to_state_dict(ours).items()}
    graph, values = nnx.split(ours)
    ours = nnx.merge(graph, jax.tree.map(lambda v: v.astype(jnp.float32) if v.dtype == float else v, values))
    theirs = torch.nn.MultiheadAttention(E, HEADS, batch_first=True)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    x = draw(0, N, L, E).astype(np.float32)
    padding = np.array([[1, 1, 1], [0, 0, 1]], bool)
    causal = np.triu(np.ones((L, L), bool), 1)
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True},
    ):
        given = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in masks.items()}
        tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in masks.items()}
        y, none = ours(*(jnp.asarray(x),) * 3, need_weights=False, **given)
        expected, _ = theirs(*(torch.tensor(x),) * 3, need_weights=False, **tensors)
        assert none is None
        assert_close(y, expected, 1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout(need_weights):
    """The mask is one element for each weight of each head; returned weights are those after dropout."""
    _, twin, ours = build(dropout=0.4, add_zero_attn=True, batch_first=True)
    inputs = inputs_of(twin, attn_mask=BLOCKED)
    call = caller(need_weights=need_weights, average_attn_weights=False)
    kept = np.random.default_rng(3).random((N, HEADS, L, S + 1)) < 0.6
    twin.dropout.forward = lambda w: w * torch.tensor(kept) / 0.6
    expected = call(twin.train(), **jax.tree.map(torch.tensor, inputs))
    nn.label_dropouts(ours)
    ours.train()
    with nn.inject_masks({"dropout": [jnp.asarray(kept)]}):
        actual = call(ours, **jax.tree.map(jnp.asarray, inputs))
    assert_close(actual, expected)
    assert ("weights" in actual) == need_weights


def test_initialisers_are_torchs():
    torch.manual_seed(0)
    for sizes in ({}, {"kdim": 40, "vdim": 90}):
        theirs = torch.nn.MultiheadAttention(60, 3, add_bias_kv=True, **sizes)
        ours = to_state_dict(nn.MultiheadAttention(60, 3, add_bias_kv=True, **sizes, rngs=nnx.Rngs(0)))
        for key, value in theirs.state_dict().items():
            a, b = ours[key], value.numpy()
            assert a.shape == b.shape, key
            assert abs(a.std() - b.std()) <= (0.05 if a.size > 100 else 0.4) * b.std(), key


def test_errors():
    layer = nn.MultiheadAttention(E, HEADS, rngs=nnx.Rngs(0))
    q, k = jnp.zeros((L, N, E)), jnp.zeros((S, N, E))
    with pytest.raises(UsageError, match="num_heads 3 does not divide embed_dim 8"):
        nn.MultiheadAttention(8, 3, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="give the mask as well"):
        layer(q, k, k, is_causal=True)
    with pytest.raises(DataError, match="value has shape"):
        layer(q, k, k[..., :4])
    with pytest.raises(DataError, match="the same length"):
        layer(q, k, k[:2])
    with pytest.raises(DataError, match=r"attn_mask has shape \(3, 4\), it must be \(6, 3, 5\) or \(3, 5\)"):
        layer(q, k, k, attn_mask=jnp.zeros((L, 4)))
    with pytest.raises(DataError, match=r"key_padding_mask has shape \(5, 2\), it must be \(2, 5\)"):
        layer(q, k, k, jnp.zeros((S, N)))
    with pytest.raises(DataError, match="key_padding_mask must be bool, True where blocked, or floats"):
        layer(q, k, k, jnp.zeros((N, S), int))
    with pytest.raises(DataError, match="3 axes, or 2 without a batch"):
        layer(q[None], k, k)
