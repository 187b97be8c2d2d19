"""Attention, positions and the transformer block: torch = jax, and each against its own definition."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.utils.flop_counter import FlopCounterMode

import jaxarch.nn as nn
import torchref.nn as tnn
from comparison import BOUND, JaxCall, TorchCall, assert_twins_agree, error
from jaxarch import state
from jaxarch.convert import load_state_dict
from jaxarch.convert.layout import layout
from jaxarch.errors import DataError, UsageError
from jaxarch.nn.kernels.attention import block_attention, exact_attention, fused_attention, pattern
from jaxarch.nn.masks import expand_mask
from jaxarch.parity import check
from torchref.nn.attention import block_attention as torch_block
from torchref.nn.attention import pattern as torch_pattern

B, T, D, H, W = 3, 11, 16, 4, 2


CONFIGS = {"MultiHeadAttention": "AttentionConfig", "TransformerBlock": "TransformerBlockConfig"}


def build(package, cls, *args, **kwargs):
    """A layer; the settings that are fields of its config go there."""
    if cls in CONFIGS:
        config = getattr(package, CONFIGS[cls])
        fields = {f.name for f in dataclasses.fields(config)} & kwargs.keys()
        kwargs["config"] = config(**{k: kwargs.pop(k) for k in fields})
    return getattr(package, cls)(*args, **kwargs)


def pair(cls, *args, seed=0, mode="eval", **kwargs):
    """The twins of a layer with the same random weights, in float64."""
    torch.manual_seed(seed)
    t = build(tnn, cls, *args, **kwargs).double()
    j = build(nn, cls, *args, **kwargs, rngs=nnx.Rngs(seed))
    with torch.no_grad():
        for p in t.parameters():
            p.normal_(std=0.4)
    load_state_dict(j, t.state_dict())
    getattr(t, mode)()
    getattr(j, mode)()
    return t, j


def with_masks(layer, x, prefix, pairs):
    """The layer without a mask, with one of keys and with one of pairs, so that one compilation serves all."""
    return {"none": layer(x), "prefix": layer(x, mask=prefix), "pairs": layer(x, mask=pairs)}


def inputs_with_masks():
    _, prefix, pairs = masks()
    return {"x": numbers(B, T, D), "prefix": prefix, "pairs": pairs}


def masks(hidden_row=True):
    rng = np.random.default_rng(2)
    prefix = np.arange(T) < np.array([T, 4, 0 if hidden_row else 1])[:, None]
    full = rng.random((B, T, T)) < 0.5
    full[1, 3] = not hidden_row
    return [None, prefix, full]


def numbers(*shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape)


SETTINGS = {
    "standard": {},
    "causal": {"causal": True},
    "relative": {"attention_type": "relative", "max_relative_position": W},
    "local": {"attention_type": "local", "max_relative_position": W},
    "sparse": {"attention_type": "sparse", "max_relative_position": W, "causal": True},
    "flash": {"use_flash_attention": True, "causal": True},
    "rope": {"position": "rope", "use_learnable": True, "causal": True},
    "rotate_half": {"position": "rope", "rope_layout": "rotate_half"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_multi_head_attention_is_torchs(name):
    t, j = pair("MultiHeadAttention", D, H, **SETTINGS[name])
    assert_twins_agree(t, j, inputs_with_masks(), call=with_masks)


@pytest.mark.parametrize("norm_first", [False, True])
def test_block_is_torchs_with_injected_masks(norm_first):
    """In train mode; attention's dropout, ff's, and the residual one, which is called twice."""
    kwargs = {"norm_first": norm_first, "use_relative_pos": norm_first, "max_relative_position": W}
    t, j = pair("TransformerBlock", D, H, 2 * D, 0.3, "relu", ff_dropout=0.5, mode="train", **kwargs)
    assert nn.label_dropouts(j) == ["attention.dropout", "dropout", "ff.2"]
    calls = TorchCall(t, with_masks), JaxCall(j, with_masks)
    result = check(*calls, inputs_with_masks(), modes=("train",))
    assert result.ok, result.detail


def test_names_and_shapes_of_post_norm_attention():
    square = {
        f"w_{x}.{leaf}": [16, 16] if leaf == "weight" else [16] for x in "qkvo" for leaf in ("weight", "bias")
    }
    block = {
        **{f"attention.{k}": v for k, v in square.items()},
        **{f"norm{i}.{leaf}": [16] for i in (1, 2) for leaf in ("weight", "bias")},
        **{"ff.0.weight": [32, 16], "ff.0.bias": [32], "ff.3.weight": [16, 32], "ff.3.bias": [16]},
    }
    for cls, args, want in (
        ("MultiHeadAttention", (16, 4), square),
        ("TransformerBlock", (16, 4, 32), block),
        ("PositionalEncoding", (16, 50), {"pe": [50, 1, 16]}),
    ):
        t, j = pair(cls, *args)
        assert {k: list(v.shape) for k, v in t.state_dict().items()} == want
        state_dict = {
            r.torch: list(np.asarray(v).shape) for r in layout(j) for v in [t.state_dict()[r.torch]]
        }
        assert state_dict == want


def test_attention_by_slices_of_the_width():
    """Scaled dot-product attention written out: heads are slices of the width, masked scores are -1e9."""
    t, j = pair("MultiHeadAttention", D, H)
    x, mask = numbers(B, T, D), masks()[1]
    w = {k: v.numpy() for k, v in t.state_dict().items()}
    q, k, v = (x @ w[f"w_{n}.weight"].T + w[f"w_{n}.bias"] for n in "qkv")
    heads = []
    for i in range(0, D, D // H):
        s = slice(i, i + D // H)
        scores = np.where(mask[:, None], q[..., s] @ k[..., s].swapaxes(1, 2) / math.sqrt(D // H), -1e9)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ v[..., s])
    want = np.concatenate(heads, -1) @ w["w_o.weight"].T + w["w_o.bias"]
    assert error(j(jnp.asarray(x), mask=jnp.asarray(mask)), want) < BOUND
    assert error(t(torch.tensor(x), mask=torch.tensor(mask)).detach(), want) < BOUND
    four = jnp.asarray(mask)[:, None, None].astype(jnp.int32)
    assert error(j(jnp.asarray(x), mask=four), want) < BOUND


def test_a_hidden_row_is_the_mean_of_what_the_pattern_allows():
    v = numbers(1, 2, T, 4)
    q = numbers(1, 2, T, 4, seed=5)
    none = np.zeros((1, T), bool)
    means = np.cumsum(v, 2) / np.arange(1, T + 1)[:, None]
    for causal, want in ((False, np.broadcast_to(v.mean(2, keepdims=True), v.shape)), (True, means)):
        got = nn.scaled_dot_product_attention(*map(jnp.asarray, (q, q, v, none)), causal=causal)
        also = tnn.scaled_dot_product_attention(*map(torch.tensor, (q, q, v, none)), causal=causal)
        assert error(got, want) < BOUND
        assert error(also, want) < BOUND


@pytest.mark.parametrize("name", ["causal", "sparse", "flash", "relative", "local"])
def test_a_causal_layer_never_sees_the_future(name):
    """Exactly zero gradient, also where the mask hides every key that a query could see."""
    kwargs = {**SETTINGS[name], "causal": True}
    t, j = pair("MultiHeadAttention", D, H, **kwargs)
    x = numbers(1, T, D)
    left = np.arange(T)[None] >= 7
    at = 6

    graph, params, rest = state.split(j)

    def head(x, mask):
        return state.merge(graph, params, rest)(x, mask=mask)[0, at].sum()

    for mask in (None, left):
        g = jax.jit(jax.grad(head))(jnp.asarray(x), None if mask is None else jnp.asarray(mask))
        tx = torch.tensor(x, requires_grad=True)
        t(tx, mask=None if mask is None else torch.tensor(mask))[0, at].sum().backward()
        for grad in (np.asarray(g[0]), tx.grad[0].numpy()):
            assert not grad[at + 1 :].any()
            assert grad[: at + 1].any()


def test_patterns():
    at = jnp.arange(7)
    distance = np.arange(7)[:, None] - np.arange(7)
    local = np.abs(distance) <= 2
    sparse = local | np.isin(distance, [-6, -4, 4, 6])
    for kind, want in (("local", local), ("sparse", sparse)):
        for causal in (False, True):
            full = want & (distance >= 0) if causal else want
            assert np.array_equal(pattern(at, at, kind, 2, causal), full)
            assert np.array_equal(torch_pattern(torch.arange(7), torch.arange(7), kind, 2, causal), full)


def test_relative_attention_is_shaws():
    """e_ij = q_i (k_j + a_ij) / sqrt(d); z_i = sum_j w_ij (v_j + b_ij); a and b by clipped j - i."""
    t, j = pair("MultiHeadAttention", 4, 1, **SETTINGS["relative"])
    x = numbers(1, 7, 4)
    w = {k: v.numpy() for k, v in t.state_dict().items()}
    q, k, v = (x[0] @ w[f"w_{n}.weight"].T + w[f"w_{n}.bias"] for n in "qkv")
    near = np.clip(np.arange(7) - np.arange(7)[:, None], -W, W) + W
    e = (
        np.array(
            [[q[i] @ (k[m] + w["relative_keys.weight"][near[i, m]]) for m in range(7)] for i in range(7)]
        )
        / 2
    )
    p = np.exp(e) / np.exp(e).sum(1, keepdims=True)
    z = [sum(p[i, m] * (v[m] + w["relative_values.weight"][near[i, m]]) for m in range(7)) for i in range(7)]
    want = np.array(z) @ w["w_o.weight"].T + w["w_o.bias"]
    got, weights = j(jnp.asarray(x), return_weights=True)
    assert error(got[0], want) < BOUND
    assert error(weights[0, 0], p) < BOUND
    assert nn.MultiHeadAttentionWithRelativePosition(8, 2, rngs=nnx.Rngs(0)).relative_values is not None
    assert nn.AdvancedMultiHeadAttention is nn.MultiHeadAttention


@pytest.mark.parametrize("strided", [False, True])
def test_blocks_equal_masking(strided):
    kind = "sparse" if strided else "local"
    q, k, v, c = (jnp.asarray(numbers(2, 2, 13, 4, seed=s)) for s in range(4))
    keep = jnp.asarray(np.arange(13) < np.array([9, 0])[:, None])[:, None, None]

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def both(window, causal, masked, q, k, v):
        mask = keep if masked else None
        seen = pattern(jnp.arange(13), jnp.arange(13), kind, window, causal)
        blocks = lambda q, k, v: block_attention(q, k, v, mask, window, strided, causal)  # noqa: E731
        plain = lambda q, k, v: exact_attention(q, k, v, mask, seen)[0]  # noqa: E731
        results = []
        for f in (blocks, plain):
            y, pull = jax.vjp(f, q, k, v)
            results.append((y, *pull(c)))
        return results

    for window, causal, masked in ((1, True, True), (3, False, True), (4, True, False), (6, False, False)):
        for a, b in zip(*both(window, causal, masked, q, k, v), strict=True):
            assert error(a, b, 1e-3) < BOUND


@pytest.mark.parametrize(("kind", "least"), [("local", 20), ("sparse", 5)])
def test_blocks_cost_less(kind, least):
    """FLOPs of the compiled program at 2,048 tokens and a window of 32."""
    q = jax.ShapeDtypeStruct((1, 2, 2048, 16), jnp.float32)

    def cost(f):
        return jax.jit(f).lower(q, q, q).cost_analysis()["flops"]

    seen = pattern(jnp.arange(2048), jnp.arange(2048), kind, 32, True)
    blocks = cost(lambda q, k, v: block_attention(q, k, v, None, 32, kind == "sparse", True))
    assert cost(lambda q, k, v: exact_attention(q, k, v, None, seen)[0]) > least * blocks


@pytest.mark.parametrize(("kind", "causal"), [("local", False), ("sparse", True)])
def test_blocks_drop_what_masking_drops(kind, causal):
    """One dropout mask of all pairs, cut into blocks, gives the blocks what it gives the T^2 weights."""
    n, count = 6, 2 if causal else 3  # blocks of 11 positions and a window of 2
    q, k, v = (numbers(B, H, T, 4, seed=s) for s in range(3))
    kept = np.random.default_rng(5).random((B, H, T, T)) < 0.6
    padded = np.pad(kept, ((0, 0), (0, 0), (0, W * n - T), (W, 2 * W)))
    rows = [padded[:, :, i * W : (i + 1) * W] for i in range(n)]
    near = np.stack([row[..., i * W : (i + count) * W] for i, row in enumerate(rows)], 2)
    columns = np.stack([padded[:, :, a::W, W + a : W + a + n * W : W] for a in range(W)], 3)
    blocks = np.concatenate((near, columns), -1) if kind == "sparse" else near
    keep = np.arange(T) < np.array([T, 4, 0])[:, None]

    def dropout(mask, where):
        return lambda weights: where(mask, weights / 0.6, 0.0)

    seen = pattern(jnp.arange(T), jnp.arange(T), kind, W, causal)
    arrays = [jnp.asarray(x) for x in (q, k, v, keep[:, None, None])]
    expected, _ = exact_attention(*arrays, seen, dropout(kept, jnp.where))
    settings = W, kind == "sparse", causal
    assert error(block_attention(*arrays, *settings, dropout(blocks, jnp.where)), expected) < BOUND
    tensors = [torch.tensor(np.asarray(x)) for x in arrays]
    assert (
        error(torch_block(*tensors, *settings, dropout(torch.tensor(blocks), torch.where)), expected) < BOUND
    )


@pytest.mark.parametrize("name", ["local", "sparse"])
def test_blocks_with_dropout_are_torchs(name):
    """In train mode both packages drop weights in blocks, by masks of the same shape."""
    t, j = pair("MultiHeadAttention", D, H, 0.4, **SETTINGS[name], mode="train")
    nn.label_dropouts(j)
    with nn.record_masks() as shapes:
        j(jnp.asarray(numbers(B, T, D)))
    assert shapes == {"dropout": [(B, H, 6, W, 3 * W if name == "local" else 2 * W + 6)]}
    result = check(TorchCall(t), JaxCall(j), {"query": numbers(B, T, D)}, modes=("train",))
    assert result.ok, result.detail


@pytest.mark.parametrize("kind", ["local", "sparse"])
def test_training_with_dropout_costs_blocks(kind):
    """FLOPs at 1,024 tokens over those at 512, with dropout active: all pairs would cost four times as many."""
    t, j = pair("MultiHeadAttention", 8, 2, 0.4, attention_type=kind, max_relative_position=64, mode="train")
    graph, params, rest = state.split(j)

    def jax_cost(length):
        x = jax.ShapeDtypeStruct((1, length, 8), float)
        step = jax.jit(lambda p, x: state.merge(graph, p, rest)(x).sum())
        return step.lower(params, x).cost_analysis()["flops"]

    def torch_cost(length):
        with FlopCounterMode(display=False) as counter:
            t(torch.zeros(1, length, 8, dtype=torch.float64)).sum().backward()
        return counter.get_total_flops()

    for cost in (jax_cost, torch_cost):
        assert cost(1024) < 2.6 * cost(512)


@pytest.mark.parametrize("name", ["standard", "causal", "local", "sparse"])
def test_fused_equals_exact(name):
    kwargs = SETTINGS[name]
    t, j = pair("MultiHeadAttention", D, H, **kwargs)
    fused_t, fused_j = pair("MultiHeadAttention", D, H, **kwargs, use_flash_attention=True)
    for x in (numbers(B, T, D), numbers(B, 2 * W, D)):
        n = x.shape[1]
        for mask in masks():
            cut = None if mask is None else mask[:, :n] if mask.ndim == 2 else mask[:, :n, :n]
            for exact, fused, array in ((t, fused_t, torch.tensor), (j, fused_j, jnp.asarray)):
                given = None if cut is None else array(cut)
                with torch.no_grad():
                    a, b = exact(array(x), mask=given), fused(array(x), mask=given)
                assert error(b, a) < BOUND


@pytest.mark.parametrize("causal", [False, True])
def test_fused_kernel_in_lower_precision(causal):
    """float64 takes the exact path in JAX, so jax.nn.dot_product_attention shows in float32 and bfloat16."""
    q, k, v = (numbers(B, 2, T, 8, seed=s) for s in range(3))
    seen = pattern(jnp.arange(T), jnp.arange(T), "standard", 1, causal)
    for dtype, bound in ((jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)):
        low = [jnp.asarray(x, dtype) for x in (q, k, v)]
        for mask in masks():
            wide = expand_mask(None if mask is None else jnp.asarray(mask), (B, 2, T, T))
            want = exact_attention(*map(jnp.asarray, (q, k, v)), wide, seen)[0]
            got = fused_attention(*low, wide, causal=causal)
            also = nn.scaled_dot_product_attention(*low, wide, causal=causal)
            assert got.dtype == also.dtype == dtype
            assert error(got, want) < bound
            assert error(also, want) < bound


def test_attention_function():
    """torch's own kernel as the witness; fewer queries than keys are the last of the positions."""
    q, k, v = (numbers(2, 2, 5, 4, seed=s) for s in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), is_causal=True)
    for n in (5, 2):
        got = nn.scaled_dot_product_attention(*map(jnp.asarray, (q[:, :, -n:], k, v)), causal=True)
        also = tnn.scaled_dot_product_attention(*map(torch.tensor, (q[:, :, -n:], k, v)), causal=True)
        assert error(got, want[:, :, -n:]) < 1e-15
        assert error(also, want[:, :, -n:]) < 1e-15


def test_cross_attention_and_cached_steps():
    t, j = pair("MultiHeadAttention", D, H)
    x, memory, value = numbers(B, 4, D), numbers(B, T, D, seed=6), numbers(B, T, D, seed=7)
    mask = masks()[1]
    for rest in ((memory,), (memory, value)):
        got = j(jnp.asarray(x), *map(jnp.asarray, rest), mask=jnp.asarray(mask))
        want = t(torch.tensor(x), *map(torch.tensor, rest), mask=torch.tensor(mask)).detach()
        assert error(got, want) < BOUND
    with pytest.raises(UsageError, match="causal=True"):
        j(jnp.asarray(x), cache=j.init_cache(B, 8))
    with pytest.raises(ValueError, match="causal=True"):
        t(torch.tensor(x), cache=t.init_cache(B, 8))
    # A mask over the cache's positions hides the same keys at every step.
    t, j = pair("MultiHeadAttention", D, H, causal=True)
    whole = j(jnp.asarray(memory), mask=jnp.asarray(mask))
    cache, old = j.init_cache(B, T), t.init_cache(B, T)
    for i, n in ((0, 6), (6, 1), (7, 4)):
        step = memory[:, i : i + n]
        got, cache = j(jnp.asarray(step), mask=jnp.asarray(mask), cache=cache)
        also, old = t(torch.tensor(step), mask=torch.tensor(mask), cache=old)
        assert error(also.detach(), whole[:, i : i + n]) < BOUND
        assert error(got, whole[:, i : i + n]) < BOUND


@pytest.mark.parametrize("layout_name", ["interleaved", "rotate_half"])
def test_rotary_on_500_tokens(layout_name):
    """Against rotation of complex numbers; the layouts look alike on short prompts."""
    t, j = (
        tnn.RotaryEmbedding(8, 500, layout=layout_name),
        nn.RotaryEmbedding(8, 500, layout=layout_name, rngs=nnx.Rngs(0)),
    )
    q, k = numbers(2, 2, 500, 8), numbers(2, 2, 500, 8, seed=8)
    turn = np.exp(1j * np.arange(500)[:, None] * 10000.0 ** (-np.arange(4) / 4))
    if layout_name == "interleaved":
        z = (q[..., 0::2] + 1j * q[..., 1::2]) * turn
        want = np.stack((z.real, z.imag), -1).reshape(q.shape)
    else:
        z = (q[..., :4] + 1j * q[..., 4:]) * turn
        want = np.concatenate((z.real, z.imag), -1)
    for a, b in zip(j(jnp.asarray(q), jnp.asarray(k)), t(torch.tensor(q), torch.tensor(k)), strict=True):
        assert error(a, b) < BOUND
    assert error(j.rotate(jnp.asarray(q)), want) < BOUND
    assert error(j.rotate(jnp.asarray(q[:, :, 300:]), 300), want[:, :, 300:]) < BOUND
    with pytest.raises(DataError, match=r"501.*500"):
        j.rotate(jnp.asarray(q), 1)


POSITIONS = {
    "sinusoidal": {},
    "offset": {"use_learnable": True},
    "learnable": {"encoding_type": "learnable"},
    "rope": {"encoding_type": "rope"},
    "frequencies": {"encoding_type": "rope", "use_learnable": True},
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positional_encoding_is_torchs(name):
    d = 6 if "rope" in POSITIONS[name].values() else 7
    t, j = pair("PositionalEncoding", d, 20, **POSITIONS[name])

    x = numbers(B, T, d)
    assert_twins_agree(t, j, {"x": x})
    ty = t(torch.tensor(x))
    assert error(j(jnp.asarray(x[0])), ty[0].detach()) < BOUND
    assert error(j(jnp.asarray(x[:, 4:]), 4), ty[:, 4:].detach()) < BOUND
    with pytest.raises(DataError, match=r"21.*20"):
        j(jnp.zeros((1, 21, d)))
    with pytest.raises(ValueError, match=r"21.*20"):
        t(torch.zeros(1, 21, d))


def test_sinusoids():
    pe = nn.PositionalEncoding(5, 30, rngs=nnx.Rngs(0)).pe[...][:, 0]
    for i in (0, 1, 29):
        want = [f(i / 10000 ** (2 * m / 5)) for m in range(3) for f in (math.sin, math.cos)][:5]
        assert error(pe[i], np.array(want)) < 1e-14
    assert nn.AdvancedPositionalEncoding is nn.PositionalEncoding


def test_flash_keeps_dropout_injectable():
    """While dropout is active the exact path runs: the same masks give the same numbers."""
    x = jnp.asarray(numbers(B, T, D))
    keep = {"dropout": [jnp.asarray(np.random.default_rng(0).random((B, H, T, T)) < 0.5)]}
    results = []
    for flash in (False, True):
        _, j = pair("MultiHeadAttention", D, H, 0.5, use_flash_attention=flash, mode="train")
        nn.label_dropouts(j)
        with nn.inject_masks(keep):
            results.append(j(x))
    assert error(*results) < BOUND


def test_low_precision_keeps_its_dtype():
    x, mask = numbers(B, T, D), jnp.asarray(masks()[1])
    for kwargs in (SETTINGS["relative"], {**SETTINGS["sparse"], "position": "rope"}, SETTINGS["flash"]):
        _, j = pair("TransformerBlock", D, H, D, **kwargs)
        graph, params, rest = state.split(j)

        @jax.jit
        def call(params, x, graph=graph, rest=rest):
            return state.merge(graph, params, rest)(x, mask=mask)

        want = call(params, jnp.asarray(x))
        for dtype, bound in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.1)):
            y = call({k: v.astype(dtype) for k, v in params.items()}, jnp.asarray(x, dtype))
            assert y.dtype == dtype
            assert error(y, want) < bound


@pytest.mark.parametrize("package", [nn, tnn])
def test_bad_settings(package):
    kwargs = {"rngs": nnx.Rngs(0)} if package is nn else {}
    for args, text in (
        ({"attention_type": "lokal"}, "lokal"),
        ({"position": "absolute"}, "absolute"),
        ({"n_heads": 3}, "3 does not divide d_model 16"),
        ({"max_relative_position": 0}, "max_relative_position"),
        ({"attention_type": "relative", "use_flash_attention": True}, "use_flash_attention"),
        ({"use_learnable": True}, "rope"),
    ):
        with pytest.raises(ValueError, match=text):
            build(package, "MultiHeadAttention", **{"d_model": 16, "n_heads": 4, **args}, **kwargs)
    with pytest.raises(ValueError, match="contradicts"):
        build(package, "TransformerBlock", 16, 4, 16, use_relative_pos=True, attention_type="local", **kwargs)
    with pytest.raises(ValueError, match="lernable"):
        package.PositionalEncoding(16, encoding_type="lernable", **kwargs)
    with pytest.raises(ValueError, match="even"):
        package.RotaryEmbedding(5, **kwargs)
    with pytest.raises(ValueError, match="halves"):
        package.RotaryEmbedding(4, layout="halves", **kwargs)
    array = jnp.ones if package is nn else torch.ones
    layer = package.MultiHeadAttention(16, 4, **kwargs)
    for shape in ((2, 5), (5,), (2, 5, 6)):
        with pytest.raises(ValueError, match="does not fit"):
            layer(array((2, 6, 16)), mask=array(shape) > 0)
