"""Text transformers and efficient attention: checkpoints' names, reach of attention, exactness, errors."""

import copy
import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxarch.nn as nn
import torchref.nn as tnn
from comparison import BOUND, assert_twins_agree, error
from jaxarch import catalog, state
from jaxarch.bench import attention as bench
from jaxarch.convert import load_state_dict
from jaxarch.errors import DataError, UsageError
from jaxarch.generate import translate
from jaxarch.models import advanced_transformer as advanced
from jaxarch.nn import long_attention
from jaxarch.nn.kernels import lsh_attention, random_features
from jaxarch.nn.kernels.random_features import favor_attention
from jaxarch.parity.catalog_cases import unweighted
from torchref.generate import translate as torch_translate
from torchref.nn.long_attention import favor_attention as torch_favor

REFUSED = (ValueError, IndexError)  # jaxarch's errors are ValueErrors


def same_weights(t, j, std=0.4, seed=0):
    """Both with the same random parameters, in float64 and eval mode; buffers are the torch model's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in t.double().parameters():
            p.normal_(std=std, generator=generator)
    load_state_dict(j, t.state_dict())
    j.eval()
    return t.eval(), j


@functools.cache
def layers(cls, *args, std=0.4, **kwargs):
    kwargs = dict(kwargs)
    torch.manual_seed(0)
    j = unweighted(lambda: getattr(nn, cls)(*args, **kwargs, rngs=nnx.Rngs(1)))
    return same_weights(getattr(tnn, cls)(*args, **kwargs), j, std)


@functools.cache
def models(name, variant="tiny", std=0.4, **overrides):
    torch.manual_seed(0)
    t = catalog.create_model(name, variant, package="torchref", **overrides)
    return same_weights(t, unweighted(lambda: catalog.create_model(name, variant, **overrides)), std)


def compare(t, j, *arrays, call=None):
    """Both agree on a call of positional arrays, None among them. Returns the outputs."""
    named = {f"argument{i}": a for i, a in enumerate(arrays) if a is not None}

    def positional(model, **given):
        full = [given.get(f"argument{i}") for i in range(len(arrays))]
        return call(model, *full) if call else model(*full)

    return assert_twins_agree(t, j, named, call=positional)


def run(j, *arrays, **named):
    """A forward pass in one compilation, which is faster than one for each operation."""
    graph, params, rest = state.split(j)
    arrays, named = jax.tree.map(jnp.asarray, (arrays, named))
    return jax.jit(lambda p, a, n: state.merge(graph, p, rest)(*a, **n))(params, arrays, named)


# Names and shapes of checkpoints


LINEAR = "weight bias"


def keys(prefix, shapes):
    return {f"{prefix}{k}": v for k, v in shapes.items()}


ATTENTION_KEYS = {
    f"attention.w_{n}.{leaf}": (16, 16)[: 2 - (leaf == "bias")] for n in "qkvo" for leaf in LINEAR.split()
}
BLOCK_KEYS = {
    **ATTENTION_KEYS,
    **{f"norm{n}.{leaf}": (16,) for n in (1, 2) for leaf in LINEAR.split()},
    "ff.0.weight": (32, 16),
    "ff.0.bias": (32,),
    "ff.3.weight": (16, 32),
    "ff.3.bias": (16,),
}
HALF_KEYS = {
    "word_embedding.weight": (50, 16),
    "positional_encoding.pe": (20, 1, 16),
    **keys("layers.0.", BLOCK_KEYS),
}
UNBIASED_ATTENTION_KEYS = {
    "values.weight": (4, 4),
    "keys.weight": (4, 4),
    "queries.weight": (4, 4),
    "fc_out.weight": (16, 16),
    "fc_out.bias": (16,),
}
CHECKPOINTS = {
    "PositionalEncoding": ((16, 50), {"pe": (50, 1, 16)}),
    "PositionalEncoding batch first": ((16, 100, 0.1, "sinusoidal", False, True), {"pe": (1, 100, 16)}),
    "MultiHeadAttention": ((16, 4), {k.removeprefix("attention."): v for k, v in ATTENTION_KEYS.items()}),
    "TransformerBlock": ((16, 4, 32), BLOCK_KEYS),
    "SelfAttention": ((16, 4), UNBIASED_ATTENTION_KEYS),
    "SelfAttentionBlock": (
        (16, 4, 0.1, 4),
        {
            **keys("attention.", UNBIASED_ATTENTION_KEYS),
            **{f"norm{n}.{leaf}": (16,) for n in (1, 2) for leaf in LINEAR.split()},
            "ff.0.weight": (64, 16),
            "ff.0.bias": (64,),
            "ff.2.weight": (16, 64),
            "ff.2.bias": (16,),
        },
    ),
    "Transformer": (
        None,
        {
            **keys("encoder.", HALF_KEYS),
            **keys("decoder.", HALF_KEYS),
            "output_layer.weight": (50, 16),
            "output_layer.bias": (50,),
        },
    ),
}


def transformer_without_cross_attention(**overrides):
    sizes = {"vocab_size": 50, "d_model": 16, "n_heads": 4, "n_layers": 1, "d_ff": 32, "max_seq_len": 20}
    return models("transformer", pad_token_id=0, **{**sizes, "cross_attention": False, **overrides})


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_state_dicts_load_strictly(which):
    args, shapes = CHECKPOINTS[which]
    t, j = transformer_without_cross_attention() if args is None else layers(which.split()[0], *args)
    assert {k: tuple(v.shape) for k, v in t.state_dict().items()} == shapes
    given = {k: torch.randn(s, dtype=torch.float64) for k, s in shapes.items()}
    load_state_dict(nnx.clone(j), given)
    with pytest.raises(ValueError, match="extra"):
        load_state_dict(nnx.clone(j), {**given, "extra": torch.zeros(1)})


def post_norm_block(x, sd, hidden):
    """The post-norm block by its formulas; `hidden` (B, 1, Tq, Tk) scores -1e9."""

    def linear(x, name):
        return x @ sd[f"{name}.weight"].T + sd[f"{name}.bias"]

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], sd[f"{name}.weight"], sd[f"{name}.bias"])

    q, k, v = (linear(x, f"attention.w_{n}").unflatten(-1, (4, 4)).transpose(1, 2) for n in "qkv")
    w = ((q @ k.mT) / 2).masked_fill(hidden, -1e9).softmax(-1)
    x = norm(x + linear((w @ v).transpose(1, 2).flatten(2), "attention.w_o"), "norm1")
    return norm(x + linear(linear(x, "ff.0").relu(), "ff.3"), "norm2")


def test_transformer_without_cross_attention_is_its_formulas():
    t, j = transformer_without_cross_attention()
    rng = np.random.default_rng(0)
    src, tgt = rng.integers(1, 50, (3, 7)), rng.integers(1, 50, (3, 6))
    src[0, 4:] = src[1, 6:] = tgt[2, 3:] = 0
    sd = {k.removeprefix("decoder."): v for k, v in t.state_dict().items()}
    ids = torch.tensor(tgt)
    x = sd["word_embedding.weight"][ids] + sd["positional_encoding.pe"][:6, 0]
    hidden = (ids == 0)[:, None, None] | torch.ones(6, 6, dtype=torch.bool).triu(1)
    x = post_norm_block(x, {k.removeprefix("layers.0."): v for k, v in sd.items()}, hidden)
    want = x @ sd["output_layer.weight"].T + sd["output_layer.bias"]
    assert error(t(torch.tensor(src), ids), want) < BOUND
    assert error(run(j, src, tgt), want) < BOUND


def test_attention_without_biases_is_its_formulas():
    rng = np.random.default_rng(0)
    value, key, query = (rng.normal(size=(2, n, 16)) for n in (5, 5, 3))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]], bool)
    t, j = layers("SelfAttention", 16, 4)
    got = compare(t, j, value, key, query, mask)
    sd = {k: v.numpy() for k, v in t.state_dict().items()}
    v, k, q = (
        x.reshape(2, -1, 4, 4) @ sd[f"{n}.weight"].T
        for x, n in ((value, "values"), (key, "keys"), (query, "queries"))
    )
    e = np.where(mask[:, None, None], np.einsum("bqhd,bkhd->bhqk", q, k), -1e20) / math.sqrt(16)
    w = np.exp(e - e.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    want = np.einsum("bhqk,bkhd->bqhd", w, v).reshape(2, 3, 16) @ sd["fc_out.weight"].T + sd["fc_out.bias"]
    assert error(got, want) < BOUND
    block = layers("SelfAttentionBlock", 16, 4)
    compare(*block, value, key, query, mask)
    # A row with every key hidden is the mean of all values.
    blind = run(j, value, key, query, np.zeros((2, 5), bool))
    mean = v.mean(1).reshape(2, 1, 16) @ sd["fc_out.weight"].T + sd["fc_out.bias"]
    assert error(blind, np.broadcast_to(mean, (2, 3, 16))) < BOUND


# Which positions attend to which


SRC, TGT = np.array([[5, 6, 7, 0, 8, 0]]), np.array([[9, 10, 11, 12]])


def reach(j):
    """|d logits at t / d embedding| for the tables of encoder and decoder, and for the encoder's output."""
    c = jnp.asarray(np.random.default_rng(0).normal(size=j.config.vocab_size))
    graph, params, rest = state.split(j)
    names = ("encoder.word_embedding.weight", "decoder.word_embedding.weight")

    def logits(tables):
        model = state.merge(graph, {**params, **dict(zip(names, tables, strict=True))}, rest)
        return model(jnp.asarray(SRC), jnp.asarray(TGT))[0] @ c

    def late(memory):
        model = state.merge(graph, params, rest)
        x = model.decoder(jnp.asarray(TGT), memory, None, jnp.asarray(SRC != 0))
        return model.output_layer(x)[0] @ c

    @jax.jit
    def jacobians(tables):
        memory, _ = state.merge(graph, params, rest).encode(jnp.asarray(SRC))
        return *jax.jacrev(logits)(tables), jax.jacrev(late)(memory)[:, 0]

    found = jacobians([params[n] for n in names])
    return tuple(np.linalg.norm(np.asarray(x), axis=-1) for x in found)


def check_reach(j):
    source, target, memory = reach(j)
    real = SRC[0] != 0
    assert (source[:, SRC[0][real]] > 1e-8).all()
    assert (source[:, 0] == 0).all()
    assert (memory[:, real] > 1e-8).all()
    assert (memory[:, ~real] == 0).all()
    seen = target[:, TGT[0]]
    assert (seen[np.tril_indices(4)] > 1e-8).all()
    assert (seen[np.triu_indices(4, 1)] == 0).all()


def test_decoder_attends_to_all_of_the_source_and_to_no_padding_and_no_future():
    _, j = models("transformer")
    check_reach(j)


@pytest.mark.parametrize("mutant", ["future", "padding", "deaf"])
def test_reach_mutants_are_caught(mutant, monkeypatch):
    _, j = models("transformer", cross_attention=mutant != "deaf")
    j = nnx.clone(j)
    if mutant == "future":
        j.decoder.layers[0].attention.causal = False
    if mutant == "padding":
        monkeypatch.setattr(type(j), "_real", lambda self, ids: jnp.ones_like(ids, bool))
    with pytest.raises(AssertionError):
        check_reach(j)


def jitted(j, mask_name):
    graph, params, rest = state.split(j)
    return jax.jit(lambda ids, mask: state.merge(graph, params, rest)(ids, **{mask_name: mask}))


ENCODERS = {
    "custom_transformer": "mask",
    "custom_seo_model": "attention_mask",
    "custom_multi_task_seo_model": "attention_mask",
    "multi_task_model": "mask",
    "transformer_cnn": "mask",
}


@pytest.mark.parametrize("which", ENCODERS)
def test_padded_is_unpadded_and_wrong_calls_are_refused(which):
    t, j = models(which)
    ids = np.random.default_rng(0).integers(0, 20, (2, 5))
    padded = np.concatenate((ids, np.full((2, 2), 3)), 1)
    mask = np.arange(7)[None].repeat(2, 0) < 5
    run = jitted(j, ENCODERS[which])
    short = jax.tree.map(lambda x: x.detach().numpy(), t(torch.tensor(ids)))
    long, wrong = (run(jnp.asarray(padded), jnp.asarray(m)) for m in (mask, np.ones_like(mask)))
    for a, b, c in zip(*map(jax.tree.leaves, (short, long, wrong)), strict=True):
        cut = b[:, :5] if b.ndim == 3 and b.shape[1] == 7 else b
        assert error(cut, a) < BOUND
        c = c[:, :5] if c.ndim == 3 and c.shape[1] == 7 else c
        assert error(c, a) > 1e-6  # without the mask, padding matters
    for model, array in ((t, torch.tensor), (j, jnp.asarray)):
        with pytest.raises(REFUSED, match="does not fit"):
            model(array(ids), **{ENCODERS[which]: array(mask)})
        with pytest.raises(REFUSED, match="must be 1 where attention is allowed"):
            model(array(ids), **{ENCODERS[which]: array(np.full(ids.shape, 0.5))})
        with pytest.raises(REFUSED, match="out of range"):
            model(array(ids + 23))
        if which != "transformer_cnn":
            with pytest.raises(REFUSED, match=r"14.*13"):
                model(array(np.zeros((1, 14), int)))


# Switches of the SEO models


def seo(**settings):
    return models("custom_seo_model", **{"gradient_checkpointing": False, "dropout_rate": 0.0, **settings})


IDS = np.random.default_rng(3).integers(0, 20, (2, 6))


def test_each_switch_changes_what_it_names():
    base = np.asarray(seo()[1](jnp.asarray(IDS)))
    for switch in ("use_layer_norm", "use_residual_connections"):
        t, j = seo(**{switch: False})
        got = j(jnp.asarray(IDS))
        assert error(got, t(torch.tensor(IDS))) < BOUND
        assert error(got, base) > 1e-3
        assert any("norm" in k for k in t.state_dict()) == (switch != "use_layer_norm")
    t, j = seo()
    seen, t, j = [], copy.deepcopy(t), nnx.clone(j)
    for name in sorted(set(nn.ACTIVATIONS) - {"glu"}):  # which halves the features
        built = nnx.eval_shape(
            lambda n=name: catalog.create_model("custom_seo_model", "tiny", activation_function=n)
        )
        for model, made in ((t, tnn.Activation(name)), (j, built.encoder.layers[0].ff[1])):
            model.encoder.layers[0].ff[1] = made
        assert error(np.asarray(j(jnp.asarray(IDS))), t(torch.tensor(IDS))) < BOUND
        seen.append(np.asarray(nn.get_activation(name)(jnp.linspace(-30, 30, 241))))
    # swish is silu, and celu is elu with alpha 1; all others differ.
    assert len({x.tobytes() for x in seen}) == len(seen) - 2


@pytest.mark.parametrize("which", nn.INITIALIZERS)
def test_initialisation_method(which):
    sizes = {"vocab_size": 20, "hidden_size": 64, "num_layers": 1, "num_heads": 4}

    def drawn(package):
        settings = {**sizes, "initialization_method": which}
        model = catalog.create_model("custom_seo_model", "tiny", package=package, **settings)
        first = model.encoder.layers[0].ff[0]
        return first.weight, first.bias, model.encoder.word_embedding.weight

    ours = jax.jit(lambda: [x[...] for x in drawn("jaxarch")])()
    for w, bias, table in ([x.detach().numpy() for x in drawn("torchref")], map(np.asarray, ours)):
        w = w.T if w.shape == (64, 256) else w
        want = {
            "xavier": math.sqrt(2 / 320),
            "he": math.sqrt(2 / 64),
            "kaiming": math.sqrt(2 / 64),
            "he_fan_out": math.sqrt(2 / 256),
            "kaiming_fan_out": math.sqrt(2 / 256),
            "normal": 0.02,
            "orthogonal": 1 / 16,
        }[which]
        assert abs(w.std() / want - 1) < 0.05
        if which == "orthogonal":
            assert np.allclose(w.T @ w, np.eye(64), atol=1e-5)
        assert not bias.any()
        assert abs(table.std() / 0.02 - 1) < 0.1


def test_checkpointing_changes_nothing_and_dropout_acts():
    results = []
    for remat in (False, True):
        t, j = models("custom_seo_model", gradient_checkpointing=remat, dropout_rate=0.2)
        t.train(), t.zero_grad()
        torch.manual_seed(0)
        t(torch.tensor(IDS)).square().sum().backward()
        theirs = {k: p.grad.numpy().copy() for k, p in t.named_parameters()}
        j.train()
        graph, params, rest = state.split(j)
        run = jax.jit(
            jax.value_and_grad(lambda p, g=graph, r=rest: (state.merge(g, p, r)(jnp.asarray(IDS)) ** 2).sum())
        )
        results.append((theirs, *run(params)))
        t.eval(), j.eval()
        assert error(results[-1][1], t(torch.tensor(IDS)).square().sum()) > 1e-6
    (ta, la, ga), (tb, lb, gb) = results
    assert error(la, lb) < BOUND
    for a, b in ((ta, tb), (ga, gb)):
        scale = max(np.linalg.norm(x) for x in a.values())
        assert all(np.linalg.norm(np.asarray(a[k]) - np.asarray(b[k])) < BOUND * scale for k in a)


def test_config_and_creators():
    from jaxarch.models.custom_multi_task_seo_model import create_multi_task_model
    from jaxarch.models.custom_seo_model import CustomModelConfig, create_custom_model
    from torchref.models.custom_multi_task_seo_model import create_multi_task_model as torch_multi
    from torchref.models.custom_seo_model import create_custom_model as torch_custom

    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2}
    tasks = {"topic": {"num_classes": 3}, "quality": {"loss_type": "mse"}}
    for make, rngs in ((torch_custom, {}), (create_custom_model, {"rngs": nnx.Rngs(0)})):
        build = functools.partial(make, "bert-base-cased", 5, **sizes)
        model = nnx.eval_shape(lambda build=build: build(rngs=nnx.Rngs(0))) if rngs else build()
        assert model.encoder.word_embedding.weight.shape == (28996, 8)
        config = dataclasses.replace(CustomModelConfig("of my own", 5), **sizes)
        model = nnx.eval_shape(lambda c=config: create_custom_model(c, rngs=nnx.Rngs(0)))
        assert model.encoder.word_embedding.weight.shape == (30522, 8)
    for make, rngs in ((torch_multi, {}), (create_multi_task_model, {"rngs": nnx.Rngs(0)})):
        model = make("tiny", tasks, vocab_size=9, num_classes=1, uncertainty_weighting=True, **sizes, **rngs)
        assert tuple(model.log_vars.shape) == (2,)
        assert model.heads["topic"].weight.size == 24 if rngs else model.heads["topic"].weight.numel() == 24


# Heads


@pytest.mark.parametrize("strategy", ["mean", "max", "cls", "attention"])
def test_pooling(strategy):
    t, j = layers("Pooling", strategy, 5)
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], bool)
    got = compare(t, j, x, mask)
    for i in (0, 1):
        kept = x[i][mask[i]]
        if strategy == "attention":
            s = kept @ t.attn.weight.detach().numpy()[0]
            want = np.exp(s) / np.exp(s).sum() @ kept
        else:
            want = {"mean": kept.mean(0), "max": kept.max(0), "cls": x[i, 0]}[strategy]
        assert error(got[i], want) < BOUND
    last = {"mean": np.zeros(5), "max": np.zeros(5), "cls": x[2, 0], "attention": x[2].mean(0)}[strategy]
    assert np.allclose(got[2], last, atol=1e-12)
    if strategy != "cls":
        for model, array in ((t, torch.tensor), (j, jnp.asarray)):
            with pytest.raises(ValueError, match="does not fit"):
                model(array(x), array(mask[:, :3]))
        with pytest.raises(UsageError, match=r"pooling.*mean"):
            nn.Pooling("mena", 5, rngs=nnx.Rngs(0))


TASKS = {
    "topic": {"num_classes": 3, "loss_weight": 2.0},
    "tags": {"num_classes": 4, "loss_type": "binary_cross_entropy"},
    "quality": {"num_classes": 1, "loss_type": "mse"},
}


@pytest.mark.parametrize("learned", [False, True])
def test_multi_task_loss(learned):
    t, j = models_with_tasks(learned)
    rng = np.random.default_rng(0)
    targets = {
        "topic": np.array([2, -100, 0]),
        "tags": rng.integers(0, 2, (3, 4)).astype(float),
        "quality": rng.normal(size=3),
    }
    ids = rng.integers(0, 20, (3, 6))

    def loss(model, ids):
        array = jnp.asarray if isinstance(model, nnx.Module) else torch.tensor
        values = {k: array(v) for k, v in targets.items()}
        return model.compute_multi_task_loss(model(ids), values)

    got = compare(t, j, ids, call=loss)
    out = {k: v.detach() for k, v in t(torch.tensor(ids)).items()}
    F = torch.nn.functional
    each = [
        F.cross_entropy(out["topic"], torch.tensor(targets["topic"])),
        F.binary_cross_entropy(out["tags"].sigmoid(), torch.tensor(targets["tags"])),
        F.mse_loss(out["quality"][:, 0], torch.tensor(targets["quality"])),
    ]
    s = t.log_vars.detach() if learned else torch.zeros(3)
    weight = torch.tensor([2.0, 1.0, 0.5 if learned else 1.0]) * torch.exp(-s)
    want = sum(w * x for w, x in zip(weight, each, strict=True)) + s.sum() / 2
    assert error(got, want) < BOUND
    assert learned == bool(s.any())
    outputs = run(j, ids)
    losses = j.task_losses(outputs, {"tags": jnp.asarray(targets["tags"])})
    assert list(losses) == ["tags"]
    for bad, text in (
        ({"tops": jnp.zeros(3)}, r"task.*topic"),
        ({}, "no targets"),
        ({"tags": jnp.zeros((3, 5))}, r"tags|shape"),
        ({"topic": jnp.asarray([0, 1, 3])}, r"target 3.*3"),
    ):
        with pytest.raises((UsageError, DataError), match=text):
            j.compute_multi_task_loss(outputs, bad)


@functools.cache
def models_with_tasks(learned):
    settings = {"task_configs": TASKS, "uncertainty_weighting": learned}
    make = functools.partial(catalog.create_model, "custom_multi_task_seo_model", "tiny", **settings)
    return same_weights(make(package="torchref"), unweighted(make))


@pytest.mark.parametrize("package", ["torchref", "jaxarch"])
@pytest.mark.parametrize(
    ("which", "task", "text"),
    [
        ("custom_multi_task_seo_model", {"loss": "mse"}, r"loss.*loss_type"),
        ("custom_multi_task_seo_model", {"loss_type": "hinge"}, r"hinge.*mse"),
        ("custom_multi_task_seo_model", None, "empty"),
        ("multi_task_model", {"kind": "regression"}, r"kind.*type"),
        ("multi_task_model", {"type": "ranking"}, r"ranking.*sequence"),
        ("multi_task_model", {}, "num_classes"),
        ("multi_task_model", None, "empty"),
    ],
)
def test_bad_tasks(package, which, task, text):
    with pytest.raises(ValueError, match=text):
        catalog.create_model(which, "tiny", package=package, task_configs={} if task is None else {"a": task})


def test_one_task_is_its_part_of_all():
    t, j = models("multi_task_model")
    everything = run(j, IDS)
    assert {k: v.shape for k, v in everything.items()} == {
        "topic": (2, 11),
        "quality": (2, 1),
        "tags": (2, 6, 19),
    }
    for task, want in everything.items():
        assert error(j(jnp.asarray(IDS), task), want) < BOUND
        assert error(t(torch.tensor(IDS), task), want) < BOUND
    for model, array in ((t, torch.tensor), (j, jnp.asarray)):
        with pytest.raises(ValueError, match=r"topik.*topic"):
            model(array(IDS), "topik")


# Translation


def translator():
    return models("transformer", vocab_size=5, max_seq_len=8, std=1.5)


def log_p(t, src, tokens, bos=1):
    """log p of a target without padding, by one full pass."""
    full = torch.tensor([[bos, *tokens]])
    logits = t(torch.tensor(src)[None], full)[0, :-1]
    logits[:, 0] = -torch.inf
    return float(logits.log_softmax(-1).gather(1, full[0, 1:, None]).sum().detach())


def endings(length, eos=2):
    """Every target of at most `length` tokens, ended or full."""
    words = [w for w in range(1, 5) if w != eos]
    for n in range(length):
        yield from (((*w, eos)) for w in itertools.product(words, repeat=n))
    yield from itertools.product(words, repeat=length)


def test_a_wide_beam_finds_the_best_of_all():
    penalty = 1.0
    t, j = translator()
    src = np.random.default_rng(4).integers(1, 5, (8, 6))
    settings = {"bos_token_id": 1, "eos_token_id": 2, "beam_size": 27, "length_penalty": penalty}
    got = np.asarray(translate(j, jnp.asarray(src), 3, **settings))
    assert np.array_equal(got, torch_translate(t, torch.tensor(src), 3, **settings))
    for row, found in zip(src, got, strict=True):
        best = max(endings(3), key=lambda w: log_p(t, row, w) / ((5 + len(w)) / 6) ** penalty)
        assert tuple(found[: len(best)]) == best
        assert not found[len(best) :].any()
    assert len({tuple(x) for x in got}) > 1


def test_one_beam_is_greedy_and_the_same_draws_give_the_same_targets():
    t, j = translator()
    src = np.random.default_rng(2).integers(0, 5, (6, 6))
    settings = {"bos_token_id": 1, "eos_token_id": 2}
    got = np.asarray(translate(j, jnp.asarray(src), 8, **settings))
    assert np.array_equal(got, torch_translate(t, torch.tensor(src), 8, **settings))
    for row, found in zip(src, got, strict=True):
        tokens = [1]
        while len(tokens) < 9 and tokens[-1] != 2:
            logits = t(torch.tensor(row)[None], torch.tensor([tokens]))[0, -1].detach()
            logits[0] = -torch.inf
            tokens.append(int(logits.argmax()))
        assert [*tokens[1:], *[0] * (9 - len(tokens))] == found.tolist()
    draws = np.random.default_rng(4).random((6, 8))
    some = {"temperature": 2.0, "top_k": 3, "top_p": 0.9}
    drawn = translate(j, jnp.asarray(src), 8, **settings, **some, uniforms=jnp.asarray(draws))
    theirs = torch_translate(t, torch.tensor(src), 8, **settings, **some, uniforms=torch.tensor(draws))
    assert np.array_equal(drawn, theirs)
    assert not np.array_equal(drawn, got)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 9}, r"9.*8"),
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 2, "length_penalty": -1.0}, "length_penalty"),
        ({"length_penalty": 1.0}, "no effect"),
        ({"eos_token_id": 0}, "pad_token_id"),
    ],
)
def test_bad_translations(settings, text):
    t, j = translator()
    src = np.ones((2, 3), int)
    settings = {"bos_token_id": 1, "eos_token_id": 2, "max_new_tokens": 4, **settings}
    for call, model, array in ((translate, j, jnp.asarray), (torch_translate, t, torch.tensor)):
        with pytest.raises(ValueError, match=text):
            call(model, array(src), **settings)
        with pytest.raises(ValueError, match="empty"):
            call(model, array(src[:, :0]), 4, bos_token_id=1, eos_token_id=2)


# Efficient attention


def qkv(t=13, s=13, d=4, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return (*(scale * rng.normal(size=(2, 3, n, d)) for n in (t, s)), rng.normal(size=(2, 3, s, d)))


def full(q, k, v, mask=None, seen=None):
    """softmax(q k^T / sqrt(d)) v by its formula."""
    s = np.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    s = s if mask is None else np.where(mask, s, -1e9)
    s = s if seen is None else np.where(seen, s, np.finfo(float).min)
    w = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", w / w.sum(-1, keepdims=True), v)


PREFIX = np.arange(13)[None] < np.array([[9], [0]])  # the second row hides every key


@pytest.mark.parametrize(("mask", "causal"), [(None, False), (None, True), ("keys", False), ("pairs", True)])
def test_chunked_is_full(causal, mask):
    q, k, v = qkv(10 if causal else 13)
    t = q.shape[2]
    masks = {None: None, "keys": PREFIX, "pairs": np.random.default_rng(1).random((2, t, 13)) < 0.5}
    wide = {None: None, "keys": PREFIX[:, None, None], "pairs": masks["pairs"][:, None]}[mask]
    seen = np.arange(13) <= np.arange(t)[:, None] + 13 - t if causal else None
    want = full(q, k, v, wide, seen)
    c = np.random.default_rng(1).normal(size=want.shape)
    bools = None if masks[mask] is None else jnp.asarray(masks[mask])

    def loss(args, function, **settings):
        y = function(*args, bools, causal=causal, **settings)
        return (y * c).sum(), y

    chunked = jax.jit(
        jax.value_and_grad(functools.partial(loss, function=nn.chunked_attention, chunk_size=4), has_aux=True)
    )
    (_, y), grads = chunked((q, k, v))
    plain, _ = jax.grad(functools.partial(loss, function=nn.scaled_dot_product_attention), has_aux=True)(
        (q, k, v)
    )
    assert error(y, want) < 1e-14
    assert all(error(a, b) < 1e-13 for a, b in zip(grads, plain, strict=True))
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    bools = None if masks[mask] is None else torch.tensor(masks[mask])
    theirs = tnn.chunked_attention(*tensors, bools, 4, causal)
    (theirs * torch.tensor(c)).sum().backward()
    assert error(theirs, want) < 1e-14
    assert all(error(a, x.grad) < 1e-13 for a, x in zip(grads, tensors, strict=True))
    with pytest.raises(UsageError, match="chunk_size"):
        nn.chunked_attention(*map(jnp.asarray, (q, k, v)), chunk_size=0)


def test_chunked_counts_no_padding():
    """Causal queries before the first key see none, and take the mean of the keys: not of what pads the last chunk."""
    q, k, v = qkv(16)
    seen = np.arange(13) <= np.arange(16)[:, None] - 3
    want = full(q, k, v, seen=seen)
    assert np.allclose(want[:, :, 0], v.mean(2))
    for module, array in ((nn, jnp.asarray), (tnn, torch.tensor)):
        actual = module.chunked_attention(*map(array, (q, k, v)), chunk_size=4, causal=True)
        assert error(actual, want) < 1e-14


def test_performer_converges_to_softmax_attention():
    """The error falls with more features, masked (one row attends to all) and causal; a biased one would not."""
    q, k, v = (jnp.asarray(x) for x in qkv(scale=0.7))
    mask = np.arange(13)[None] < np.array([[9], [13]])
    tril = np.tril(np.ones((13, 13), bool))
    wants = [full(q, k, v, mask[:, None, None]), full(q, k, v, seen=tril)]
    cases = [(jnp.asarray(mask), False), (None, True)]
    errors = np.zeros((3, 2))
    for i, m in enumerate((16, 256, 4096)):
        for seed in range(3):
            w = nn.PerformerAttention(12, 3, n_features=m, rngs=nnx.Rngs(seed)).projection[...]
            for c, ((mask_, causal), want) in enumerate(zip(cases, wants, strict=True)):
                errors[i, c] += error(favor(q, k, v, w, mask_, causal), want) / 3
    assert (errors[1] < 0.7 * errors[0]).all(), errors
    assert (errors[2] < 0.5 * errors[1]).all(), errors
    assert (errors[2] < 0.1).all(), errors
    for drawn in (w, tnn.PerformerAttention(12, 3, n_features=8).projection):
        block = np.asarray(drawn[:4], np.float64)
        gram = block @ block.T
        assert np.allclose(gram, np.diag(np.diag(gram)), atol=1e-5)


favor = jax.jit(favor_attention, static_argnums=5)


def test_performer_sums_its_features_causally():
    """Prefix sums over several chunks = the same estimate on every prefix; later keys have no gradient."""
    q, k, v = (jnp.asarray(x) for x in qkv(150, 150))
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)))
    y = favor(q, k, v, w, None, True)
    for n in (1, 64, 65, 150):
        assert (
            error(y[:, :, n - 1], favor(q[:, :, :n], k[:, :, :n], v[:, :, :n], w, None, False)[:, :, -1])
            < BOUND
        )
    late = jax.jit(jax.grad(lambda k, v: favor(q, k, v, w, None, True)[:, :, 70].sum(), argnums=(0, 1)))(k, v)
    for g in late:
        assert not np.asarray(g[:, :, 71:]).any()
        assert np.abs(np.asarray(g[:, :, :71])).min() > 0


def favor_by_definition(q, k, v, w, mask, causal):
    """The same estimate in logarithms, pair by pair."""
    lq, lk = (
        x @ w.T / x.shape[-1] ** 0.25 - (x**2).sum(-1, keepdims=True) / (2 * x.shape[-1] ** 0.5)
        for x in (q, k)
    )
    scores = np.logaddexp.reduce(lq[:, :, :, None] + lk[:, :, None], -1)
    seen = mask[:, None, None] & (np.tri(scores.shape[3], dtype=bool) if causal else True)
    scores = np.where(seen, scores, -np.inf)
    highest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(highest), 0, highest))
    return weights @ v / np.maximum(weights.sum(-1, keepdims=True), np.finfo(float).tiny)


@pytest.mark.parametrize(("scale", "causal"), [(1, True), (6, True), (100, False), (100, True)])
def test_no_row_of_performer_underflows(scale, causal):
    """At activations of 100 the features of two keys differ by factors of e^1000 and more, in float32 too."""
    q, k, v = qkv(150, 150, scale=scale)
    w = np.random.default_rng(0).normal(size=(8, q.shape[-1]))
    mask = np.arange(150)[None] >= np.array([[0], [3]])  # without a key at first
    expected = favor_by_definition(q, k, v, w, mask, causal)
    assert causal == (not expected[1, :, :3].any())
    arrays = [jnp.asarray(x) for x in (q, k, v, w, mask)]
    assert error(favor(*arrays, causal), expected) < BOUND
    tensors = [torch.tensor(x, requires_grad=x.dtype == float) for x in (q, k, v, w, mask)]
    theirs = torch_favor(*tensors, causal)
    assert error(theirs, expected) < BOUND
    c = np.random.default_rng(2).normal(size=expected.shape)
    theirs.backward(torch.tensor(c))
    grads = jax.grad(lambda q, k, v: (favor(q, k, v, *arrays[3:], causal) * c).sum(), (0, 1, 2))(*arrays[:3])
    # Where one key outweighs all others the gradients of q and k are rounding: they are measured by v's.
    scale = float(jnp.linalg.norm(grads[2]))
    assert all(error(a, x.grad, scale) < BOUND for a, x in zip(grads, tensors[:3], strict=True))
    single = [x.astype(jnp.float32) if x.dtype == float else x for x in arrays]
    y = np.asarray(favor(*single, causal))
    sees = mask[:, None] & (np.tri(150, dtype=bool) if causal else True)
    assert (np.abs(y).max(-1) > 0)[np.broadcast_to(sees.any(-1)[:, None], y.shape[:3])].all()


X = np.random.default_rng(5).normal(size=(2, 13, 12))


@pytest.mark.parametrize("causal", [False, True])
def test_performer_twins(causal):
    t, j = layers("PerformerAttention", 12, 3, n_features=10, causal=causal)
    assert error(j.projection[...], t.projection) == 0  # the buffer converts
    got = compare(t, j, X, None, None, PREFIX)
    assert np.allclose(got[1], t.w_o.bias.detach().numpy())  # every key hidden: zero
    if causal:
        for model, array in ((t, torch.tensor), (j, jnp.asarray)):
            with pytest.raises(ValueError, match="as many keys"):
                model(array(X[:, :5]), array(X))


def test_linformer():
    t, j = layers("LinformerAttention", 12, 3, proj_len=5, max_len=16)
    compare(t, j, X, None, None, PREFIX)
    # With the identity for projections it is full attention, here of 16 keys.
    t, j = layers("LinformerAttention", 12, 3, proj_len=16, max_len=16, std=0.5)
    eye = {"proj_k.weight": torch.eye(16), "proj_v.weight": torch.eye(16)}
    j = nnx.clone(j)
    load_state_dict(j, {**t.state_dict(), **eye})
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 12)))
    heads = [layer(x).reshape(2, 16, 3, 4).transpose(0, 2, 1, 3) for layer in (j.w_q, j.w_k, j.w_v)]
    want = j.w_o(jnp.asarray(full(*heads)).transpose(0, 2, 1, 3).reshape(2, 16, 12))
    assert error(run(j, x), want) < BOUND
    for model, array in ((t, torch.tensor), (j, jnp.asarray)):
        with pytest.raises(ValueError, match=r"17.*16"):
            model(array(np.zeros((1, 17, 12))))


def reformer_by_definition(q, v, rotations, width, mask, causal):
    """Softmax over the union of what each round's chunks show, itself only if alone."""
    (b, h, t, d), rounds = q.shape, rotations.shape[1]
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    y = np.zeros_like(v)
    for i, n in itertools.product(range(b), range(h)):
        sees = np.zeros((t, t), bool)
        for r in range(rounds):
            bucket = np.zeros(t, int)
            for part in rotations[:, r].swapaxes(0, 1):
                turned = q[i, n] @ part
                bucket = 2 * part.shape[-1] * bucket + np.concatenate((turned, -turned), -1).argmax(-1)
            bucket = np.where(mask[i], bucket, 10**6)
            rank = np.lexsort((np.arange(t), bucket)).argsort()
            chunk = rank // width
            sees |= (chunk[:, None] == chunk) | (chunk[:, None] == chunk + 1)
        s = q[i, n] @ k[i, n].T / math.sqrt(d)
        s[np.diag_indices(t)] = -1e5
        s = np.where(mask[i], s, -1e9)
        sees &= np.tril(np.ones((t, t), bool)) if causal else True
        s = np.where(sees, s, -np.inf)
        w = np.exp(s - s.max(-1, keepdims=True))
        y[i, n] = w / w.sum(-1, keepdims=True) @ v[i, n]
    return y


@pytest.mark.parametrize(("causal", "width", "parts"), [(True, 3, 1), (False, 2, 2)])
def test_reformer(causal, width, parts):
    """Six buckets of one hash, and sixteen of two, since eight would be more than two for each position."""
    t, j = layers("ReformerAttention", 12, 3, bucket_size=width, n_hashes=3, max_len=20, causal=causal)
    assert error(j.rotations[...], t.rotations) == 0
    mask = np.arange(13)[None] < np.array([[9], [13]])
    got = compare(t, j, X, mask)
    q, v = (
        np.asarray(layer(jnp.asarray(X))).reshape(2, 13, 3, 4).transpose(0, 2, 1, 3)
        for layer in (j.w_qk, j.w_v)
    )
    columns = 3 if parts == 1 else 4
    rotations = np.asarray(j.rotations[...])[..., :columns].reshape(4, 3, parts, -1)
    assert long_attention.split_buckets(13, width) == rotations.shape[2:]
    y = reformer_by_definition(q, v, rotations, width, mask, causal)
    want = np.asarray(j.w_o(jnp.asarray(y.transpose(0, 2, 1, 3).reshape(2, 13, 12))))
    assert error(got[mask], want[mask]) < BOUND
    sparse = reformer_by_definition(q, v, rotations[:, :1], width, mask, causal)
    assert error(sparse, y) > 1e-3  # the rounds do matter
    assert np.isfinite(np.asarray(run(j, X, np.zeros((2, 13), bool)))).all()
    for n in (1, 12, 13, 40, 500):
        each, half = long_attention.split_buckets(n, width)
        assert n / width <= (2 * half) ** each
        assert each * half <= long_attention.most_columns(500, width)
        assert half <= width
    # One chunk holds all: full attention but for itself.
    t, j = layers("ReformerAttention", 12, 3, bucket_size=16, n_hashes=2, max_len=20, causal=causal)
    q, v = (
        np.asarray(layer(jnp.asarray(X))).reshape(2, 13, 3, 4).transpose(0, 2, 1, 3)
        for layer in (j.w_qk, j.w_v)
    )
    seen = ~np.eye(13, dtype=bool) & (np.tril(np.ones((13, 13), bool)) if causal else True)
    seen[0, 0] |= causal
    y = full(q, q / np.linalg.norm(q, axis=-1, keepdims=True), v, seen=seen)
    want = j.w_o(jnp.asarray(y.transpose(0, 2, 1, 3).reshape(2, 13, 12)))
    assert error(run(j, X), want) < BOUND
    for model, array in ((t, torch.tensor), (j, jnp.asarray)):
        with pytest.raises(ValueError, match=r"21.*20"):
            model(array(np.zeros((1, 21, 12))))


@pytest.mark.parametrize("cls", ["PerformerAttention", "LinformerAttention", "ReformerAttention"])
def test_efficient_layers_refuse(cls):
    t, j = layers(cls, 12, 3, **({"max_len": 20} if cls != "PerformerAttention" else {}))
    for model, array in ((t, torch.tensor), (j, jnp.asarray)):
        with pytest.raises(ValueError, match="does not fit"):
            model(array(X), mask=array(np.ones((2, 13, 13), bool)))
    with pytest.raises(UsageError, match="does not divide"):
        getattr(nn, cls)(12, 5, rngs=nnx.Rngs(0))
    # float32 and bf16 run, and stay what they are.
    graph, params, rest = state.split(j)
    run = jax.jit(lambda p, x: state.merge(graph, p, rest)(x, mask=jnp.asarray(PREFIX)))
    for dtype, bound in ((jnp.float32, 1e-4), (jnp.bfloat16, 0.1)):
        y = run({k: v.astype(dtype) for k, v in params.items()}, jnp.asarray(X, dtype))
        assert y.dtype == dtype
        if cls != "ReformerAttention":  # whose hashes may fall into another bucket
            assert error(y[0], t(torch.tensor(X), mask=torch.tensor(PREFIX))[0]) < bound
        assert np.isfinite(np.asarray(y, float)).all()


def scaled(change):
    """f with what it returns changed."""
    return lambda f: lambda *args: change(f(*args), *args)


EFFICIENT = {
    "performer": lambda: layers("PerformerAttention", 12, 3, n_features=10),
    "causal": lambda: layers("PerformerAttention", 12, 3, n_features=10, causal=True),
    "linformer": lambda: layers("LinformerAttention", 12, 3, proj_len=5, max_len=16),
    "reformer": lambda: layers(
        "ReformerAttention", 12, 3, bucket_size=3, n_hashes=3, max_len=20, causal=False
    ),
}
MUTANTS = {
    "features without the norm": (
        "performer",
        "log_features",
        scaled(lambda y, x, w: y + 0.25 * (x**2).sum(-1)[..., None]),
    ),
    "padding among the keys": ("performer", "key_mask", lambda f: lambda mask, k: None),
    "a key too late": (
        "causal",
        "causal_sums",
        lambda f: lambda q, k, v: f(q, jnp.roll(k, -1, 2), jnp.roll(v, -1, 2)),
    ),
    "padding projected": ("linformer", "key_mask", lambda f: lambda mask, k: None),
    "pairs counted once a round": ("reformer", "shared_rounds", scaled(lambda y, *_: jnp.ones_like(y))),
    "the chunk after": (
        "reformer",
        "with_previous",
        lambda f: lambda x: jnp.concatenate((jnp.roll(x, -1, 3), x), 4),
    ),
    "keys with their length": ("reformer", "normalize", lambda f: lambda x: x),
    "half of the buckets": ("reformer", "hash_buckets", scaled(lambda y, x, r: y % r.shape[-1])),
    "itself at full weight": ("reformer", "SELF_SCORE", lambda f: 1.0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_efficient_attention_are_caught(mutant, monkeypatch):
    """Each is red in the comparison with torchref, which is green above."""
    which, name, change = MUTANTS[mutant]
    t, j = EFFICIENT[which]()
    mask = np.arange(13)[None] < np.array([[9], [13]])
    graph, params, rest = state.split(j)
    module = next(m for m in (long_attention, random_features, lsh_attention) if hasattr(m, name))
    monkeypatch.setattr(module, name, change(getattr(module, name)))
    y = jax.jit(lambda p, x: state.merge(graph, p, rest)(x, mask=jnp.asarray(mask)))(params, jnp.asarray(X))
    want = t(torch.tensor(X), mask=torch.tensor(mask)).detach().numpy()
    assert error(np.where(mask[..., None], y, 0), np.where(mask[..., None], want, 0)) > 1e-6


def test_cost_grows_with_the_length_and_not_with_its_square():
    """FLOPs at 2,048 tokens over those at 1,024, as JAX counts them before it compiles; full attention's are 4."""

    def cost(call, weights, length):
        x = jax.ShapeDtypeStruct((1, length, bench.WIDTH), jnp.result_type(float))
        return jax.jit(call).lower(weights, x).cost_analysis()["flops"]

    for name in ("full", "local", "performer", "reformer"):
        made = bench.forward(name)
        ratio = cost(*made, 2048) / cost(*made, 1024)
        assert (ratio > 3.3) == (name == "full")
        assert ratio > 3.3 or ratio < 2.3, name


def test_every_option_has_a_variant():
    """Of the language model and the SEO model; activations, initialisers and poolings have tests of their own."""
    made = [catalog.arguments("advanced_transformer", v) for v in catalog.page("advanced_transformer").cases]
    configs = [advanced.ModelConfig(**settings) for settings in made]
    assert {c.attention for c in configs} == {"standard", "relative", "local", "sparse"}
    learned = {(c.encoding, c.use_learnable) for c in configs}
    assert learned >= {(e, u) for e in ("sinusoidal", "rope") for u in (False, True)} | {("learnable", False)}
    for switch in ("norm_first", "use_flash_attention", "gradient_checkpointing", "tie_word_embeddings"):
        assert {getattr(c, switch) for c in configs} == {False, True}, switch
