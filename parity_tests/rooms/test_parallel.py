"""Meshes and rules: what goes where, and what is refused."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxarch import catalog, state
from jaxarch.errors import UsageError
from jaxarch.parallel import batch_sharding, describe, make_mesh, parse_mesh, shardings, size


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(parse_mesh("data=2,fsdp=2,tensor=2"))


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_meshes_are_read():
    assert parse_mesh("tensor=2,data=4") == {"data": 4, "fsdp": 1, "tensor": 2}
    assert size(parse_mesh("data=2,fsdp=2,tensor=2")) == 8
    for text, says in {
        "dta=2": "did you mean 'data'",
        "data=0": "positive",
        "data=x": "positive",
        "data=2,data=2": "once",
    }.items():
        with pytest.raises(UsageError, match=says):
            parse_mesh(text)
    with pytest.raises(UsageError, match="takes 4 devices, there are 8"):
        make_mesh(parse_mesh("data=4"))


def test_rules(mesh):
    shapes = {
        "layers.0.attention.w_q.weight": shape(64, 64),
        "layers.0.attention.w_o.weight": shape(64, 64),
        "layers.0.attention.w_q.bias": shape(64),
        "layers.0.ff.0.weight": shape(64, 256),
        "layers.0.ff.3.weight": shape(256, 64),
        "word_embedding.weight": shape(128, 64),
        "fc.weight": shape(63, 64),
        "odd.weight": shape(63, 65),
        "fc.bias": shape(10),
    }
    specs = {k: v.spec for k, v in shardings(shapes, mesh).items()}
    assert specs["layers.0.attention.w_q.weight"] == P("fsdp", "tensor")
    assert specs["layers.0.attention.w_o.weight"] == P("tensor", "fsdp")
    assert specs["layers.0.attention.w_q.bias"] == P("tensor")
    assert specs["layers.0.ff.0.weight"] == P("fsdp", "tensor")
    assert specs["layers.0.ff.3.weight"] == P("tensor", "fsdp")
    assert specs["word_embedding.weight"] == P(("tensor", "fsdp"), None)
    assert specs["fc.weight"] == P(None, "fsdp")
    assert specs["odd.weight"] == P(None, None)
    assert specs["fc.bias"] == P(None)
    excepted = shardings(shapes, mesh, {"fc.weight": (None, "tensor")})
    assert excepted["fc.weight"].spec == P(None, "tensor")
    rows = {r["path"]: r for r in describe(shapes, shardings(shapes, mesh))}
    assert rows["word_embedding.weight"]["bytes"] == 128 * 64 * 4 // 4
    assert rows["fc.bias"]["spec"] == "-"


@pytest.mark.parametrize(
    ("path", "sizes", "exceptions", "says"),
    [
        (
            "layers.0.ff.0.weight",
            (64, 255),
            {},
            r"0\.ff\.0\.weight: dimension 255 is not divisible by tensor=2",
        ),
        ("word_embedding.weight", (50257, 64), {}, r"dimension 50257 is not divisible by tensor\*fsdp=4"),
        ("a.weight", (4, 4), {"b.*": ("data", None)}, "'b.*' matches no parameter"),
        ("a.weight", (4, 4), {"a.*": ("tnsor", None)}, "names axis 'tnsor'"),
        ("a.weight", (4, 4), {"a.*": ("tensor",)}, r"1 axes for shape \[4, 4\]"),
    ],
)
def test_what_does_not_fit_is_named(mesh, path, sizes, exceptions, says):
    with pytest.raises(UsageError, match=says):
        shardings({path: shape(*sizes)}, mesh, exceptions)


def test_batches(mesh):
    assert batch_sharding(mesh, 8).spec == P(("data", "fsdp"))
    with pytest.raises(UsageError, match=r"batch size 6 is not divisible by data\*fsdp=4"):
        batch_sharding(mesh, 6)


def test_every_page_names_paths_that_exist(name):
    entry = catalog.page(name)
    for variant in entry.cases[:1]:
        params = state.split(nnx.eval_shape(lambda v=variant: catalog.create_model(name, v))).params
        shardings(params, make_mesh(parse_mesh("data=8")), entry.sharding)


def test_no_involuntary_rematerialization(tmp_path, capfd):
    """The partitioner must never have to replicate an activation: it says so on stderr when it does."""
    from jaxarch.train import step
    from jaxarch.train.plan import prepare

    settings = {"model.vocab_size": "512", "train.steps": "2", "train.batch_size": "8"}
    run = prepare(
        "advanced_transformer", variant=None, settings=settings, mesh="data=2,fsdp=2,tensor=2", out=tmp_path
    )
    batch = run.place(run.source.batch(0, 0, 8))
    advance = step.make_train_step(
        run.graph, run.task, run.optimizers, shardings=jax.tree.map(lambda x: x.sharding, run.abstract)
    )
    compiled = advance.lower(run.abstract, batch).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "all-gather" in text
    assert "rematerialization" not in capfd.readouterr().err
