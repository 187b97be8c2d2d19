"""The causal language model and its decoding: cached = recomputed, both frameworks draw the same tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxarch import catalog, state
from jaxarch.convert import load_state_dict
from jaxarch.errors import DataError, UsageError
from jaxarch.generate import choose, generate
from torchref.generate import choose as torch_choose
from torchref.generate import generate as torch_generate

NAME = "advanced_transformer"
CASES = catalog.page(NAME).cases
BOUND = 1e-10
B, T, V = 3, 12, 40


def error(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@functools.cache
def pair(variant="tiny", **overrides):
    torch.manual_seed(0)
    t = catalog.create_model(NAME, variant, package="torchref", **overrides).double().eval()
    with torch.no_grad():
        for p in t.parameters():
            p.normal_(std=0.3)
    j = catalog.create_model(NAME, variant, **overrides)
    load_state_dict(j, t.state_dict())
    j.eval()
    return t, j


def tokens(seed=0, length=T):
    return np.random.default_rng(seed).integers(0, V, (B, length))


@pytest.mark.parametrize("variant", CASES)
def test_cached_steps_equal_recomputation(variant):
    """Each step, in both frameworks; prompts of 5, then single tokens, then 2 at once."""
    t, j = pair(variant)
    ids = tokens()
    graph, params, rest = state.split(j)
    full = jax.jit(lambda ids: state.merge(graph, params, rest)(ids)["logits"])(jnp.asarray(ids))
    step = jax.jit(lambda ids, cache: state.merge(graph, params, rest).decode(ids, cache))
    cache, old = j.init_cache(B, 14), t.init_cache(B, 14)
    for i, n in ((0, 5), (5, 1), (6, 1), (7, 1), (8, 2), (10, 2)):
        got, cache = step(jnp.asarray(ids[:, i : i + n]), cache)
        with torch.no_grad():
            also, old = t.decode(torch.tensor(ids[:, i : i + n]), old)
        assert error(got, full[:, i : i + n]) < BOUND
        assert error(also, full[:, i : i + n]) < BOUND


@pytest.mark.parametrize("variant", CASES)
def test_both_frameworks_write_the_same_tokens(variant):
    t, j = pair(variant)
    ids = tokens(1, 6)
    greedy = generate(j, jnp.asarray(ids), 8)
    assert np.array_equal(greedy, torch_generate(t, torch.tensor(ids), 8))
    with torch.no_grad():
        for i in range(8):
            assert np.array_equal(
                t(torch.tensor(np.asarray(greedy)[:, : 6 + i]))["logits"][:, -1].argmax(-1), greedy[:, 6 + i]
            )
    u = np.random.default_rng(2).random((B, 8))
    settings = {"temperature": 1.3, "top_k": 30, "top_p": 0.95}
    sampled = generate(j, jnp.asarray(ids), 8, **settings, uniforms=jnp.asarray(u))
    assert np.array_equal(
        sampled, torch_generate(t, torch.tensor(ids), 8, **settings, uniforms=torch.tensor(u))
    )
    assert not np.array_equal(sampled, greedy)


def test_end_of_sequence_and_keys():
    """After the end every row repeats it; what came before is what would have come anyway."""
    t, j = pair()
    ids, u = tokens(1, 6), np.random.default_rng(5).random((B, 8))
    free = np.asarray(generate(j, jnp.asarray(ids), 8, temperature=3.0, uniforms=jnp.asarray(u)))
    want, eos = free.copy(), int(free[0, 8])
    for row in want:
        if eos in row[6:]:
            row[6 + list(row[6:]).index(eos) :] = eos
    assert (want != free).any()
    settings = {"temperature": 3.0, "eos_token_id": eos}
    assert np.array_equal(generate(j, jnp.asarray(ids), 8, **settings, uniforms=jnp.asarray(u)), want)
    assert np.array_equal(torch_generate(t, torch.tensor(ids), 8, **settings, uniforms=torch.tensor(u)), want)
    a, b, c = (generate(j, jnp.asarray(ids), 8, temperature=2.0, key=jax.random.key(s)) for s in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    a, b = (
        torch_generate(t, torch.tensor(ids), 8, temperature=2.0, key=torch.Generator().manual_seed(0))
        for _ in "ab"
    )
    assert torch.equal(a, b)


def test_one_compilation_serves_all_steps():
    from jaxarch.generate import _run

    _, j = pair("tiny_local")
    before = _run._cache_size()
    for seed in (3, 4):
        generate(j, jnp.asarray(tokens(seed, 5)), 6)
    assert _run._cache_size() == before + 1


def test_choice():
    """The inverse of the cumulative distribution, over the tokens that top-k and top-p leave."""
    p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = np.log(p)[None]
    for settings, kept in (
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.7}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),
        ({"top_p": 1e-9}, [1]),
    ):
        settings = {**settings, "top_p": settings["top_p"] - 1e-12} if "top_p" in settings else settings
        cdf = np.cumsum(p[kept]) / p[kept].sum()
        for u in (0.0, 0.2, 0.55, 0.9, 1 - 1e-16):
            want = kept[min(int(np.searchsorted(cdf, u, "right")), len(kept) - 1)]
            assert choose(jnp.asarray(logits), jnp.asarray([u]), **settings)[0] == want
            assert (
                torch_choose(torch.tensor(logits), torch.tensor([u], dtype=torch.float64), **settings)[0]
                == want
            )
    cold = choose(jnp.asarray(logits), jnp.asarray([0.5]), 1e-3)
    assert cold[0] == choose(jnp.asarray(logits), jnp.asarray([0.5]), 0.0)[0] == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0}, "key or uniforms"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"top_k": 3}, "no effect"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 20}, r"26.*16"),
    ],
)
def test_bad_requests(settings, text):
    t, j = pair()
    settings = {"max_new_tokens": 4, **settings}
    with pytest.raises((UsageError, DataError), match=text):
        generate(j, jnp.asarray(tokens(1, 6)), **settings)
    with pytest.raises(ValueError, match=text):
        torch_generate(t, torch.tensor(tokens(1, 6)), **settings)


def loss_of(model, *arrays):
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return float(model(*map(torch.tensor, arrays))["loss"])
    return float(model(*map(jnp.asarray, arrays))["loss"])


def test_loss_is_shifted_smoothed_and_focal():
    ids = tokens()
    mask = np.ones_like(ids, bool)
    labels = np.where(np.random.default_rng(3).random(ids.shape) < 0.3, -100, ids)
    for alpha, gamma, smoothing in ((1.0, 0.0, 0.0), (1.0, 0.0, 0.2), (0.5, 2.0, 0.1)):
        names = ("focal_loss_alpha", "focal_loss_gamma", "label_smoothing")
        t, j = pair(n_layers=1, **dict(zip(names, (alpha, gamma, smoothing), strict=True)))
        with torch.no_grad():
            logits = t(torch.tensor(ids))["logits"][:, :-1].flatten(0, 1)
        target = torch.tensor(labels)[:, 1:].flatten()
        ce = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        pt = logits.softmax(-1).gather(1, target.clamp(min=0)[:, None])[:, 0]
        want = (alpha * (1 - pt) ** gamma * ce).sum() / (target != -100).sum()
        for model in (t, j):
            assert abs(loss_of(model, ids, mask, labels) / want - 1) < BOUND
            assert loss_of(model, ids, mask, np.full_like(labels, -100)) == 0


def test_checkpointing_changes_nothing():
    """Loss and gradients with recomputed activations, in train mode, with the same keys of dropout."""
    ids, mask = jnp.asarray(tokens()), jnp.ones((B, T), bool)
    results = []
    for remat in (False, True):
        _, j = pair("tiny", n_layers=1, gradient_checkpointing=remat)
        j.train()
        graph, params, rest = state.split(j)
        run = jax.jit(
            jax.value_and_grad(lambda p, g=graph, r=rest: state.merge(g, p, r)(ids, mask, ids)["loss"])
        )
        results.append(run(params))
        j.eval()
    (a, ga), (b, gb) = results
    assert error(a, b) < BOUND
    assert all(error(gb[k], ga[k]) < 1e-8 for k in ga if np.linalg.norm(ga[k]) > 1e-9)
    assert np.isfinite(a)


def test_bad_calls():
    t, j = pair()
    ids = tokens()
    for model, array in ((t, torch.tensor), (j, jnp.asarray)):
        with pytest.raises(ValueError, match=r"17.*16"):
            model(array(tokens(length=17)))
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(array(ids), array(np.ones((B, T + 1), bool)))
        with pytest.raises(ValueError, match="labels has shape"):
            model(array(ids), None, array(ids[:, 1:]))
        with pytest.raises((ValueError, IndexError), match="out of range"):
            model(array(ids + V))
    with pytest.raises(DataError, match=r"label 99.*40"):
        j(jnp.asarray(ids), None, jnp.asarray(np.full_like(ids, 99)))


@pytest.mark.parametrize("package", ["jaxarch", "torchref"])
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rope": True, "encoding_type": "learnable"},
        {"use_rope": False, "use_relative_pos": True, "attention_type": "local"},
        {"label_smoothing": 1.0},
        {"focal_loss_gamma": -1.0},
        {"use_relative_pos": True, "use_flash_attention": True},
        {"attention_type": "globl"},
        {"use_rope": False, "use_learnable": False, "encoding_type": "rotary"},
    ],
)
def test_contradictory_settings(package, settings):
    with pytest.raises(ValueError, match=r"contradicts|smoothing|focal|fused|globl|rotary"):
        catalog.create_model(NAME, "tiny", package=package, **settings)


def test_xformers_is_flash():
    for package in ("jaxarch", "torchref"):
        for name in ("use_xformers", "use_flash_attention"):
            model = catalog.create_model(NAME, "tiny", package=package, **{name: True})
            assert model.layers[0].attention.use_flash_attention
