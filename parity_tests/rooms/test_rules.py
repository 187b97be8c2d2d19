"""Rules between names and layouts: each kind there and back, on arrays of numpy, of JAX in a trace, and not loaded."""

import itertools
import math
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxarch.convert.reshaping import reshape
from jaxarch.convert.rules_file import parse_rules, read_rules
from jaxarch.convert.templates import Template, from_regex
from jaxarch.convert.tensors import Tensor
from jaxarch.errors import ConversionError, UsageError, listed

D, H, K = 5, 3, 2  # width, heads, size of a head


def numbered(shapes):
    """Arrays of different numbers, under names."""
    count = itertools.count(1)
    return {
        k: np.array([next(count) for _ in range(math.prod(s))], np.float32).reshape(s)
        for k, s in shapes.items()
    }


QKV = {f"h.{i}.{n}.weight": (H * K, D) for i in range(2) for n in "qkv"}
# name -> the rules, torch's shapes, and the shapes that JAX has
KINDS = {
    "rename": (
        [{"torch": "net.{i*2}.{w}", "jax": "layers.{i}.{w}"}],
        {"net.0.weight": (2, 3), "net.2.weight": (4, 2), "net.2.bias": (4,)},
        {"layers.0.weight": (2, 3), "layers.1.weight": (4, 2), "layers.1.bias": (4,)},
    ),
    "permute": (
        [{"torch": "fc.weight", "jax": "fc.kernel", "permute": [1, 0]}],
        {"fc.weight": (2, 3)},
        {"fc.kernel": (3, 2)},
    ),
    "einsum kernels": (
        [{"torch": "{a*}.weight", "jax": "{a*}.kernel", "reshape": "(h k) d -> d h k", "sizes": {"h": H}}],
        {"h.0.q.weight": (H * K, D)},
        {"h.0.q.kernel": (D, H, K)},
    ),
    "split": (
        [
            {
                "torch": "h.{i}.qkv.weight",
                "jax": [f"h.{{i}}.{n}.kernel" for n in "qkv"],
                "split": 0,
                "reshape": "(h k) d -> d h k",
                "sizes": {"h": "heads"},
            }
        ],
        {"h.0.qkv.weight": (3 * H * K, D), "h.1.qkv.weight": (3 * H * K, D)},
        {f"h.{i}.{n}.kernel": (D, H, K) for i in range(2) for n in "qkv"},
    ),
    "grouped split": (
        [{"torch": "qkv", "jax": ["q", "k", "v"], "split": {"axis": 0, "sizes": [6, 2, 2]}}],
        {"qkv": (10, D)},
        {"q": (6, D), "k": (2, D), "v": (2, D)},
    ),
    "interleaved qkv": (
        [
            {
                "torch": "qkv",
                "jax": ["q", "k", "v"],
                "reshape": "(h c k) d -> c d h k",
                "sizes": {"h": H, "c": 3},
                "unstack": 0,
            }
        ],
        {"qkv": (3 * H * K, D)},
        {"q": (D, H, K), "k": (D, H, K), "v": (D, H, K)},
    ),
    "fuse": (
        [
            {
                "torch": [f"h.{{i}}.{n}.weight" for n in "qkv"],
                "jax": "h.{i}.qkv",
                "stack": 0,
                "reshape": "c (h k) d -> d c h k",
                "sizes": {"k": K},
            }
        ],
        QKV,
        {"h.0.qkv": (D, 3, H, K), "h.1.qkv": (D, 3, H, K)},
    ),
    "concat": (
        [{"torch": ["a", "b"], "jax": "ab", "concat": {"axis": 1, "sizes": [2, 3]}, "permute": [1, 0]}],
        {"a": (4, 2), "b": (4, 3)},
        {"ab": (5, 4)},
    ),
    "scanned layers": (
        [{"torch": "h.{i}.{w*}", "jax": "stack.{w*}", "stack": 1}],
        {f"h.{i}.fc.weight": (2, 3) for i in range(12)},
        {"stack.fc.weight": (2, 12, 3)},
    ),
    "experts": (
        [{"torch": "experts.weight", "jax": "expert.{e}.kernel", "unstack": 0, "permute": [1, 0]}],
        {"experts.weight": (4, 2, 3)},
        {f"expert.{e}.kernel": (3, 2) for e in range(4)},
    ),
    "constant": (
        [
            {
                "torch": "h.{i}.mask",
                "constant": "tril",
                "shape": [1, 4, 4],
                "dtype": "bool",
                "beside": "h.{i}.w",
            },
            {"jax": "h.{i}.scale", "constant": 1.0, "shape": ["heads"], "beside": "h.{i}.w"},
            {"torch": "ids", "constant": "arange", "shape": [1, 4], "dtype": "int64"},
        ],
        {"h.0.mask": (1, 4, 4), "h.1.mask": (1, 4, 4), "ids": (1, 4), "h.0.w": (2,), "h.1.w": (2,)},
        {"h.0.w": (2,), "h.1.w": (2,), "h.0.scale": (H,), "h.1.scale": (H,)},
    ),
}


def tensors_of_kind(kind):
    table, torch_shapes, jax_shapes = KINDS[kind]
    rules = parse_rules({"rule": table, "rest": "keep" if kind == "constant" else "error"}, {"heads": H})
    tensors = numbered(torch_shapes)
    if kind == "constant":
        mask = np.tril(np.ones((1, 4, 4), bool))
        tensors |= {"h.0.mask": mask, "h.1.mask": mask, "ids": np.arange(4)[None]}
    return rules, tensors, jax_shapes


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_there_and_back(kind):
    """On numpy's arrays, bitwise; JAX's in a trace and tensors not loaded give the same, whole and in parts."""
    rules, tensors, jax_shapes = tensors_of_kind(kind)
    rules.prove({k: v.shape for k, v in tensors.items()})
    there = rules.apply(tensors)
    assert {k: v.shape for k, v in there.items()} == jax_shapes
    back = rules.inverse().apply(there)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)
    if kind != "constant":  # a traced array cannot be compared with one
        traced = jax.jit(rules.apply)({k: jnp.asarray(v) for k, v in tensors.items()})
        assert all(np.array_equal(traced[k], v) for k, v in there.items())
    lazy = rules.apply({k: Tensor.of(v) for k, v in tensors.items()})
    for key, value in there.items():
        if isinstance(lazy[key], np.ndarray):  # a constant
            continue
        np.testing.assert_array_equal(lazy[key].read(), value)
        for start in range(value.shape[0]):
            for index in ((slice(start, start + 2),), (slice(None), slice(start, start + 1))[: value.ndim]):
                np.testing.assert_array_equal(lazy[key].read(index), value[index])


def test_a_reshaped_tensor_reads_the_rows_that_hold_a_part():
    """Every slice of every pair of shapes; and a part of the first axis does not read the whole."""
    shapes = [(24,), (2, 12), (4, 6), (6, 4), (2, 3, 4), (1, 4, 6), (4, 6, 1), (2, 2, 6), (3, 8)]
    for old, new in itertools.product(shapes, shapes):
        value = np.arange(24).reshape(old)
        view = reshape(Tensor.of(value), new)
        for index in itertools.product(*([slice(0, n), slice(n // 2, n), slice(0, 1)] for n in new)):
            np.testing.assert_array_equal(view.read(index), value.reshape(new)[index])
    read = []
    tensor = Tensor(Tensor.of(np.zeros((8, 6))).info, lambda i: read.append(i) or np.zeros((8, 6))[i])
    reshape(tensor, (4, 2, 6)).read((slice(1, 2),))
    assert read == [(slice(2, 4), slice(0, 6))]


def test_summed_biases_and_aliases():
    rules = parse_rules({"rule": [{"torch": ["b_ih", "b_hh"], "jax": "b", "sum": True}]})
    pair = {"b_ih": np.array([1.0, 2.0]), "b_hh": np.array([3.0, 4.0])}
    assert [b.rule.lossless for b in rules.prove({k: v.shape for k, v in pair.items()})] == [False]
    np.testing.assert_array_equal(rules.apply(pair)["b"], [4, 6])
    back = rules.inverse().apply({"b": np.array([4.0, np.inf])})  # one summand has it all
    np.testing.assert_array_equal(back["b_ih"], [4, np.inf])
    np.testing.assert_array_equal(back["b_hh"], [0, 0])
    rules = parse_rules({"rule": [{"torch": ["wte", "lm_head"], "jax": "embed", "alias": True}]})
    same = np.ones((2, 3))
    rules.prove({"wte": (2, 3), "lm_head": (2, 3)})
    assert list(rules.apply({"wte": same, "lm_head": same})) == ["embed"]
    assert set(rules.inverse().apply({"embed": same})) == {"wte", "lm_head"}
    with pytest.raises(ConversionError, match="wte: tensors that an alias declares to be the same differ"):
        rules.apply({"wte": same, "lm_head": same + 1})


WRONG = [
    ([{"torch": "a", "jax": "b", "permut": [0]}], "unknown key 'permut': did you mean 'permute'"),
    ([{"torch": "a.{i}", "jax": "b"}], "i is on one side: stack joins a single one"),
    ([{"torch": "a", "jax": "b.{i}"}], "i is on one side: unstack joins a single one"),
    ([{"torch": "a", "jax": "b", "permute": [0, 2]}], "is not an order of axes"),
    ([{"torch": "a", "jax": "b", "reshape": "(h k) d -> d h k"}], "give the size of h or k"),
    ([{"torch": "a", "jax": "b", "reshape": "h d -> d"}], "every axis once on each side"),
    ([{"torch": "a", "jax": ["b", "c"]}], "several names need split"),
    ([{"torch": "a.{i", "jax": "b"}], "is not a pattern of names"),
    ([{"torch": "a", "jax": "b", "reshape": "(h k) -> h k", "sizes": {"h": "headz"}}], "unknown argument"),
    ([{"torch": "a"}], "a rule needs torch and jax, or constant"),
    ([{"torch": "a.{i}", "constant": 0, "shape": []}], "needs beside"),
    ([], "holds tables"),
]


@pytest.mark.parametrize(("table", "says"), WRONG, ids=[w[1] for w in WRONG])
def test_malformed_rules(table, says):
    with pytest.raises(UsageError, match=says) as e:
        parse_rules({"rule": table}, {"heads": 3})
    assert "\n" not in str(e.value)


def test_rules_that_do_not_fit_actual_names():
    """Everything that is wrong at once; a rule that loses or doubles a name is refused before anything is read."""

    def says(table, shapes, **rest):
        with pytest.raises(ConversionError) as e:
            parse_rules({"rule": table, **rest}).prove(shapes)
        return str(e.value)

    rename = [{"torch": "a.{i}", "jax": "b.{i}"}]
    assert "c matches no rule; d matches no rule" in says(rename, {"a.0": (2,), "c": (2,), "d": (2,)})
    assert "b.0 is given by two rules" in says(rename, {"a.0": (2,), "b.0": (2,)}, rest="keep")
    fuse = [{"torch": ["{i}.q", "{i}.k"], "jax": "{i}.qk", "concat": 0}]
    assert "0.q lacks {i}.k beside it" in says(fuse, {"0.q": (2,), "1.q": (2,), "1.k": (2,)})
    assert "give their sizes" in says(fuse, {"0.q": (2,), "0.k": (3,)})
    stack = [{"torch": "h.{i}.w", "jax": "w", "stack": 0}]
    assert "the indices to stack are not 0 to 1" in says(stack, {"h.0.w": (2,), "h.2.w": (2,)})
    crossing = [{"torch": "a.{x}", "jax": "{x}.z"}, {"torch": "{y}.b", "jax": "q.{y}"}]
    assert parse_rules({"rule": crossing}).prove({"a.c": (1,), "d.b": (1,)})
    # Arithmetic forgets a leading zero.
    assert "h.01 does not come back" in says([{"torch": "h.{i+1}", "jax": "l.{i}"}], {"h.01": (1,)})
    shapes = {f"x{i}\x1b": (1,) for i in range(30)}
    assert "and 10 more" in (text := says(rename, shapes))
    assert "\\x1b" in text


def test_a_fault_in_a_step_is_seen_by_the_proof(monkeypatch):
    rules = parse_rules(
        {"rule": [{"torch": "a", "jax": "b", "reshape": "(h k) d -> d h k", "sizes": {"h": 2}}]}
    )
    from jaxarch.convert.steps import Reshape

    right = Reshape.apply
    monkeypatch.setattr(Reshape, "apply", lambda s, a: tuple(x[::-1] for x in right(s, a)))
    with pytest.raises(ConversionError, match=r"the rule a -> b does not restore a"):
        rules.prove({"a": (4, 3)})


def test_a_large_shape_is_proven_on_a_smaller_one():
    rule = {"torch": "a", "jax": "b", "reshape": "(h k) d -> d h k", "sizes": {"h": 64}}
    (binding,) = parse_rules({"rule": [rule]}).prove({"a": (8192, 28672)})
    assert binding.target_shapes == ((28672, 64, 128),)


def test_templates_and_regular_expressions():
    template = Template("h.{i*2+1}.{w*}")
    assert template.match("h.7.attn.q") == {"i": "3", "w": "attn.q"}
    assert template.match("h.6.attn.q") is None
    assert template.fill({"i": "3", "w": "x"}) == "h.7.x"
    table = [
        (r"^h\.(\d+)\.attn\.(.*)$", r"layers.\1.mixer.\2", "h.{g1}.attn.{g2*}", "layers.{g1}.mixer.{g2*}"),
        (r"ln_f\.(?P<w>\w+)", r"norm.\g<w>", "ln_f.{w}", "norm.{w}"),
    ]
    for pattern, replacement, torch_side, jax_side in table:
        assert from_regex(pattern, replacement) == (torch_side, jax_side)
    for pattern in (r"a.b", r"(a|b)", r"h\.\d+", r"(x)*"):
        with pytest.raises(UsageError, match="cannot be inverted"):
            from_regex(pattern, "b")


def test_the_examples_of_the_documentation_are_rules():
    text = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()
    blocks = [b for b in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[[rule]]" in b]
    assert len(blocks) == 4
    for block in blocks:
        parse_rules(tomllib.loads(block), {"heads": 3, "n_positions": 4})


def test_a_file_of_rules(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text('[[rule]]\ntorch = "fc.weight"\njax = "fc.kernel"\npermute = [1, 0]\n')
    assert list(read_rules(path).apply({"fc.weight": np.zeros((2, 3))})) == ["fc.kernel"]
    path.write_text("[[rule]\n")
    with pytest.raises(UsageError, match="is not a file of rules"):
        read_rules(path)
    with pytest.raises(UsageError, match="is not a file of rules"):
        read_rules(tmp_path / "absent.toml")
    assert listed(["a", "b\n"], 1) == "a; and 1 more"
