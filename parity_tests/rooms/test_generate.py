"""The causal language model and its decoding: cached = recomputed, both frameworks draw the same tokens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
import transformers

from comparison import BOUND, error
from jaxarch import catalog, state
from jaxarch.convert import load_state_dict
from jaxarch.decoding import beam_search, choose, penalize, sample
from jaxarch.errors import DataError
from jaxarch.generate import generate
from jaxarch.parity.catalog_cases import unweighted
from torchref.decoding import choose as torch_choose
from torchref.generate import generate as torch_generate

NAME = "advanced_transformer"
CASES = catalog.page(NAME).cases
B, T, V = 3, 12, 40


@functools.cache
def pair(variant="tiny", **overrides):
    torch.manual_seed(21)  # of this model's beams some end early and some do not
    t = catalog.create_model(NAME, variant, package="torchref", **overrides).double().eval()
    with torch.no_grad():
        for p in t.parameters():
            p.normal_(std=0.3)
    j = unweighted(lambda: catalog.create_model(NAME, variant, **overrides))
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
def test_both_frameworks_generate_the_same_tokens(variant):
    t, j = pair(variant)
    ids = tokens(1, 6)
    greedy = generate(j, jnp.asarray(ids), 8)
    assert np.array_equal(greedy, torch_generate(t, torch.tensor(ids), 8))
    with torch.no_grad():
        for i in range(8):
            assert np.array_equal(
                t(torch.tensor(np.asarray(greedy)[:, : 6 + i]))["logits"][:, -1].argmax(-1), greedy[:, 6 + i]
            )
    if variant != "tiny":
        return  # the draws know nothing of the model
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


def both(t, j, ids, new, **settings):
    """What jaxarch generates, which is what torchref generates."""
    arrays = {k: jnp.asarray(v) for k, v in settings.items() if isinstance(v, np.ndarray)}
    tensors = {k: torch.tensor(v) for k, v in settings.items() if isinstance(v, np.ndarray)}
    plain = {k: v for k, v in settings.items() if k not in arrays}
    got = np.asarray(generate(j, jnp.asarray(ids), new, **plain, **arrays))
    assert np.array_equal(got, torch_generate(t, torch.tensor(ids), new, **plain, **tensors))
    return got


LENGTHS = np.array([4, 6, 1])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 3.0, "repetition_penalty": 1.7, "eos_token_id": [3, 7, 20, 21]},
        {"beam_size": 3, "length_penalty": 1.0, "eos_token_id": [3, 7, 20, 21]},
    ],
    ids=["sampled", "beams"],
)
def test_prompts_of_unequal_length_go_on_as_if_alone(settings):
    """Also under one compilation, whatever the prompts, lengths and draws; padding is never read."""
    t, j = pair("tiny_relative")
    counted = beam_search if "beam_size" in settings else sample
    before, seen = counted._cache_size(), set()
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        ids, draws, lengths = rng.integers(0, V, (B, 6)), rng.random((B, 5)), np.roll(LENGTHS, seed)
        given = {"uniforms": draws} if "temperature" in settings else {}
        rows = both(t, j, ids, 5, **settings, **given, lengths=lengths)
        noise = np.where(np.arange(6) < lengths[:, None], ids, -100)
        assert np.array_equal(both(t, j, noise, 5, **settings, **given, lengths=lengths), rows)
        assert counted._cache_size() == before + 1
        for i, n in enumerate(lengths):
            one = {"uniforms": torch.tensor(draws[i : i + 1])} if given else {}
            alone = torch_generate(t, torch.tensor(ids[i : i + 1, :n]), 5, **settings, **one)[0]
            assert np.array_equal(rows[i, : n + 5], alone)
            assert (rows[i, n + 5 :] == 3).all()
            new = [int(x) for x in alone[n:]]
            ends = [k for k, x in enumerate(new) if x in settings["eos_token_id"]]
            if ends:
                assert set(new[ends[0] + 1 :]) <= {3}
                seen |= set(new[: ends[0] + 1]) & set(settings["eos_token_id"])
    assert seen - {3}, "no row ended early, so this shows nothing"


def test_transformers_generates_the_same_tokens():
    """Greedy with a repetition penalty, and beams, on GPT-2 of Hugging Face."""
    arguments = catalog.arguments("gpt2", "tiny")
    sizes = {k: arguments[k] for k in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=None)
    torch.manual_seed(0)
    witness = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in witness.parameters():
            p.normal_(std=0.4)
    t = catalog.create_model("gpt2", "tiny", package="torchref").double().eval()
    t.load_state_dict({k: v for k, v in witness.state_dict().items() if k != "lm_head.weight"})
    j = unweighted(lambda: catalog.create_model("gpt2", "tiny"))
    load_state_dict(j, t.state_dict())
    ids = tokens(3, 4)
    asked = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones(ids.shape, dtype=torch.long)
    seen = []
    for ours, theirs in (
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"beam_size": 4}, {"num_beams": 4, "length_penalty": 0.0}),
    ):
        want = witness.generate(torch.tensor(ids), attention_mask=mask, **asked, **theirs).numpy()
        assert np.array_equal(both(t, j, ids, 9, **ours), want)
        seen.append(want)
    greedy = torch_generate(t, torch.tensor(ids), 9)
    assert not any(np.array_equal(greedy, x) for x in seen)


def test_transformers_has_the_same_penalty_and_filters():
    ids, logits = tokens(3, 4), 2 * np.random.default_rng(0).normal(size=(B, V))
    logits[:, 5] = logits[:, 6]  # what ties with the last one stays
    given = torch.tensor(logits)
    named = transformers.RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor(ids), given)
    written = jnp.ones((1, 4), bool)
    assert error(penalize(jnp.asarray(logits), jnp.asarray(ids), written, 1.8), named) < 1e-15
    u = np.random.default_rng(1).random((200, B))
    for settings, filters in (
        ({"top_k": 7}, [transformers.TopKLogitsWarper(7)]),
        ({"top_p": 0.6}, [transformers.TopPLogitsWarper(0.6)]),
        ({"top_k": 9, "top_p": 0.5}, [transformers.TopKLogitsWarper(9), transformers.TopPLogitsWarper(0.5)]),
    ):
        left = given / 1.3
        for f in filters:
            left = f(torch.tensor(ids), left)
        draw = jax.vmap(lambda u, s=settings: choose(jnp.asarray(logits), u, 1.3, **s))(jnp.asarray(u))
        assert set(map(int, np.asarray(draw)[:, 0])) == set(left[0].isfinite().nonzero()[:, 0].tolist())


def test_a_wide_beam_finds_the_best_continuation():
    t, j = pair("tiny", vocab_size=4, n_layers=1)
    ids = np.array([[1, 2], [3, 0], [2, 2]])
    got = both(t, j, ids, 3, beam_size=16, eos_token_id=0, length_penalty=1.0)
    for row, found in zip(ids, got[:, 2:], strict=True):
        best, top = None, -np.inf
        for words in itertools.product(range(4), repeat=3):
            words = words[: words.index(0) + 1] if 0 in words else words
            with torch.no_grad():
                full = torch.tensor([[*row, *words]])
                log_p = t(full)["logits"][0, 1:-1].log_softmax(-1).gather(1, full[0, 2:, None]).sum()
            score = float(log_p) / ((5 + len(words)) / 6)
            best, top = (words, score) if score > top else (best, top)
        assert tuple(found[: len(best)]) == best
        assert not found[len(best) :].any()


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
        ({"max_new_tokens": 20}, r"26.*17"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 2, "temperature": 1.0}, "contradicts"),
        ({"length_penalty": 1.0}, "no effect"),
        ({"beam_size": 2, "length_penalty": -1.0}, "length_penalty"),
        ({"eos_token_id": [1, 40]}, r"eos_token_id 40.*40"),
        ({"lengths": np.array([1, 7, 2])}, r"\[1, 6\].*7"),
        ({"lengths": np.array([1, 2])}, r"lengths must be 3 integers"),
        ({"lengths": np.array([1.0, 2.0, 3.0])}, r"lengths must be 3 integers"),
    ],
)
def test_bad_requests(settings, text):
    t, j = pair()
    settings = {"max_new_tokens": 4, **settings}
    for call, model, array in ((generate, j, jnp.asarray), (torch_generate, t, torch.tensor)):
        given = {k: array(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
        with pytest.raises(ValueError, match=text):
            call(model, array(tokens(1, 6)), **given)
        with pytest.raises((ValueError, IndexError), match="out of range"):
            call(model, array(tokens(1, 6) + V), 4)
        with pytest.raises(ValueError, match="empty"):
            call(model, array(tokens(1, 6)[:, :0]), 4)


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
        with pytest.raises(ValueError, match=r"18.*17"):
            model(array(tokens(length=18)))
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(array(ids), array(np.ones((B, T + 1), bool)))
        with pytest.raises(ValueError, match="labels has shape"):
            model(array(ids), None, array(ids[:, 1:]))
        with pytest.raises((ValueError, IndexError), match="out of range"):
            model(array(ids + V))
    with pytest.raises(DataError, match=r"label 99.*40"):
        j(jnp.asarray(ids), None, jnp.asarray(np.full_like(ids, 99)))


@pytest.mark.parametrize("which", [NAME, "gpt2", "bert_for_masked_lm"])
def test_wrong_dtypes(which, monkeypatch):
    """As a user sees them, whose annotations nobody checks; under jit too."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = unweighted(lambda: catalog.create_model(which, "tiny"))
    graph, params, rest = state.split(model)
    ids = jnp.ones((2, 4), int)
    for key, text in (
        ("input_ids", "every id must"),
        ("labels", "every label must"),
    ):
        given = {"input_ids": ids, key: ids.astype(float)}
        with pytest.raises(DataError, match=rf"{text} be .*not float64"):
            jax.eval_shape(lambda p, given=given: state.merge(graph, p, rest)(**given), params)


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
