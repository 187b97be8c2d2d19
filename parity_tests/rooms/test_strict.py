"""Weights that do not fit a model are refused with all problems at once, whatever their number and their names."""

import time

import numpy as np
import pytest
import torch
from flax import nnx

from jaxarch import nn, state
from jaxarch.catalog import create_model
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.strict import Names, check_names, differences
from jaxarch.errors import ConversionError


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return dict(create_model("mlp", "tiny", package="torchref").double().state_dict())


def refusal(weights) -> str:
    with pytest.raises(ConversionError) as error:
        load_state_dict(create_model("mlp", "tiny"), weights)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_shapes_and_dtypes_are_refused_together(weights):
    weights["network.0.wieght"] = weights.pop("network.0.weight")
    weights["network.0.bias"] = weights["network.0.bias"][1:]
    last = list(weights)[-2]
    weights[last] = weights[last].int()
    text = refusal(weights)
    for part in (
        "4 problems: ",
        "missing: network.0.weight (nearest: network.0.wieght)",
        "unexpected: network.0.wieght (nearest: network.0.weight)",
        "network.0.bias has shape (15,), the model needs (16,)",
        f"{last} is int32, the model needs float64",
    ):
        assert part in text


def test_twenty_problems_and_a_count(weights):
    more = {f"extra.{i}.weight": torch.zeros(1) for i in range(100)}
    text = refusal({**weights, **more})
    assert text.count("unexpected: ") == 20
    assert "100 problems: " in text
    assert text.endswith("; and 80 more")


def test_control_characters_are_escaped_and_long_names_cut(weights):
    text = refusal({**weights, "a\n\x1b[31mb\x00\u202e": torch.zeros(1), "x" * 5000: torch.zeros(1)})
    assert r"unexpected: a\n\x1b[31mb\x00\u202e" in text
    assert text.isprintable()
    assert len(text) < 1000


def test_many_names_take_linear_time():
    # As of a mixture of experts. The nearest of all names to each of them took a minute for 576.
    names = [
        f"model.layers.{i}.mlp.experts.{j}.{k}_proj.weight"
        for i in range(60)
        for j in range(128)
        for k in "gud"
    ]
    start = time.perf_counter()
    lines = differences(names, [f"module.{k}" for k in names])
    assert time.perf_counter() - start < 5
    assert len(lines) == 2 * len(names)
    assert lines[0] == f"missing: {min(names)} (nearest: module.{min(names)})"


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        ("layers.10.attn.query.weight", "layers.10.attention.query.weight"),
        ("module.layers.3.attention.key.bias", "layers.3.attention.key.bias"),
        ("layers.7.attention.valeu.weight", "layers.7.attention.value.weight"),
        ("completely_different", None),
    ],
)
def test_the_nearest_name(typo, near):
    leaves = [f"{p}.{q}" for p in ("query", "key", "value") for q in ("weight", "bias")]
    assert Names(f"layers.{i}.attention.{k}" for i in range(12) for k in leaves).nearest(typo) == near


def test_no_difference_is_no_error():
    check_names({"a", "b"}, ["b", "a"])


def test_quantized_numbers_are_not_cast(weights):
    weights["network.0.bias"] = weights["network.0.bias"].to(torch.float8_e4m3fn)
    text = refusal(weights)
    assert "network.0.bias is float8_e4m3fn, the model needs float64: multiply its block scales first" in text


def test_numbers_that_overflow_are_refused(weights):
    model = create_model("mlp", "tiny", rngs=0)
    state.update(model, {k: v.astype("float32") for k, v in state.flat(nnx.state(model, nnx.Param)).items()})
    weights["network.0.bias"][3] = 1e300
    with pytest.raises(ConversionError, match=r"network\.0\.bias holds numbers that do not fit float32"):
        load_state_dict(model, weights)
    weights["network.0.bias"][3] = torch.inf
    load_state_dict(model, weights)
    assert np.isinf(to_state_dict(model)["network.0.bias"]).sum() == 1


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_tensors_that_are_not_dense_are_named(weights):
    weights["network.0.weight"] = weights["network.0.weight"].to_sparse()
    weights["network.0.bias"] = weights["network.0.bias"].to("meta")
    text = refusal(weights)
    assert "network.0.weight: a sparse, quantized, nested or meta tensor" in text
    assert "network.0.bias: a sparse" in text


class Tied(nnx.Module):
    """A model that holds a matrix under two paths, and a whole layer under two."""

    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.embed = nn.Embedding(7, 4, rngs=rngs)
        self.first = nn.Linear(4, 4, rngs=rngs)
        self.second = self.first
        self.head = nn.Embedding(7, 4, rngs=rngs)
        self.head.weight = self.embed.weight


def test_tied_weights_of_any_model():
    first, second = Tied(0), Tied(1)
    tensors = to_state_dict(first)
    assert set(tensors) == {"embed.weight", "head.weight"} | {
        f"{k}.{p}" for k in ("first", "second") for p in ("weight", "bias")
    }
    for absent in ([], ["head.weight"], ["embed.weight"], ["first.weight", "second.bias"]):
        load_state_dict(second, {k: v for k, v in tensors.items() if k not in absent})
        assert all(v.tobytes() == tensors[k].tobytes() for k, v in to_state_dict(second).items())
        second = Tied(2)
    with pytest.raises(ConversionError, match=r"missing: embed\.weight"):
        load_state_dict(
            second, {k: v for k, v in tensors.items() if not k.endswith(("embed.weight", "head.weight"))}
        )
    with pytest.raises(
        ConversionError, match=r"(head|embed)\.weight differs from \w+\.weight, but the model ties them"
    ):
        load_state_dict(second, {**tensors, "head.weight": tensors["head.weight"] + 1})
