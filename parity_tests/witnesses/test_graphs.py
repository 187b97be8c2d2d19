"""Graphs: PyTorch Geometric as a third witness, permutations, padding, batches, sampling, sharding."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torchref.nn as tnn
from comparison import assert_close, assert_same_vjp, jax_vjp, torch_vjp
from jaxarch import catalog, graphs, nn, state
from jaxarch.convert import load_state_dict
from jaxarch.errors import DataError, UsageError
from jaxarch.nn.kernels import edge_sums
from jaxarch.parity.catalog_cases import draw_inputs, randomize

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import uses what torch deprecates
    from torch_geometric import nn as pyg

# Directed and undirected edges, two self loops at node 2, parallel edges 0 -> 1; no edge enters node 7, node 5
# is alone.
EDGES = np.array(
    [[0, 0, 1, 2, 2, 2, 3, 4, 1, 3, 0, 6, 4, 7], [1, 1, 0, 2, 2, 3, 2, 1, 4, 0, 3, 6, 4, 0]], np.int64
)
NODES, COUNT, RELATIONS = 8, EDGES.shape[1], 3
ALONE = np.zeros((2, 0), np.int64)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


X, ATTR = drawn(NODES, 6), drawn(COUNT, 3, seed=1)
WEIGHT = np.random.default_rng(2).random(COUNT) + 0.2
TYPE = np.asarray(np.random.default_rng(3).integers(0, RELATIONS, COUNT))
TYPE[:2] = 1  # the parallel edges are of one relation

CONVOLUTIONS = {
    "gcn": ("GCNConv", (6, 4), {}, {}),
    "gcn-weights": ("GCNConv", (6, 4), {"improved": True}, {"edge_weight": WEIGHT}),
    "gcn-no-loops": ("GCNConv", (6, 4), {"add_self_loops": False}, {"edge_weight": WEIGHT}),
    "gcn-sum": ("GCNConv", (6, 4), {"normalize": False, "bias": False}, {}),
    "gat": ("GATConv", (6, 4), {"heads": 3}, {}),
    "gat-mean": ("GATConv", (6, 4), {"heads": 2, "concat": False, "edge_dim": 3}, {"edge_attr": ATTR}),
    "gat-fill": (
        "GATConv",
        (6, 4, 2),
        {"edge_dim": 3, "fill_value": 0.5, "bias": False},
        {"edge_attr": ATTR},
    ),
    "gat-max": ("GATConv", (6, 4, 2), {"edge_dim": 3, "fill_value": "max"}, {"edge_attr": ATTR}),
    "gat-no-loops": (
        "GATConv",
        (6, 4, 2),
        {"edge_dim": 3, "add_self_loops": False, "negative_slope": 0.05, "residual": True},
        {"edge_attr": ATTR},
    ),
    "rgcn": ("RGCNConv", (6, 4, RELATIONS), {}, {"edge_type": TYPE}),
    "rgcn-bases": ("RGCNConv", (6, 4, RELATIONS), {"num_bases": 2}, {"edge_type": TYPE}),
    "rgcn-blocks": ("RGCNConv", (6, 4, RELATIONS), {"num_blocks": 2, "bias": False}, {"edge_type": TYPE}),
    "rgcn-max": ("RGCNConv", (6, 4, RELATIONS), {"aggr": "max", "root_weight": False}, {"edge_type": TYPE}),
}


def built(make, weights):
    """Our module with torch's weights, without drawing its own."""
    model = nnx.eval_shape(make)
    streams = state.flat(nnx.state(model, nnx.RngState))
    keys = {
        k: jax.random.key(0) if k.endswith("key") else jnp.zeros(v.shape, v.dtype) for k, v in streams.items()
    }
    state.update(model, keys)
    load_state_dict(model, weights)
    return model


def twin(name, *args, **kwargs):
    """Our layer with random weights of torch's."""
    weights = getattr(tnn, name)(*args, **kwargs).state_dict()
    return built(lambda: getattr(nn, name)(*args, **kwargs, rngs=nnx.Rngs(0)), weights)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_are_pygs(case):
    name, args, kwargs, features = CONVOLUTIONS[case]
    torch.manual_seed(0)
    witness = getattr(pyg, name)(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in witness.parameters():
            parameter.normal_(std=0.5)
    theirs = getattr(tnn, name)(*args, **kwargs).double()
    theirs.load_state_dict(witness.state_dict(), strict=True)
    ours = built(lambda: getattr(nn, name)(*args, **kwargs, rngs=nnx.Rngs(0)), witness.state_dict())
    arrays = {"x": X, "edge_index": EDGES, **features}
    expected, cotangents = torch_vjp(witness, arrays)
    if "edge_weight" in features and kwargs.get("add_self_loops", True):
        # Of several self loops at a node the last counts, but PyG gives its gradient to the others too.
        expected.inputs["edge_weight"][3] = 0
    # A graph without edges, and a single node.
    empty = [{"x": x, "edge_index": ALONE, **{k: v[:0] for k, v in features.items()}} for x in (X, X[:1])]
    assert_same_vjp(torch_vjp(theirs, arrays)[0], expected)
    assert_same_vjp(jax_vjp(ours)(arrays, cotangents), expected)
    for inputs in empty:
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
        want = witness(**tensors).detach().numpy()
        np.testing.assert_allclose(theirs(**tensors).detach().numpy(), want, atol=1e-14)
        np.testing.assert_allclose(ours(**jax.tree.map(jnp.asarray, inputs)), want, atol=1e-14)


def test_sorted_edges_are_the_same_graph():
    order = np.argsort(EDGES[1], kind="stable")

    layers = twin("GCNConv", 6, 4), twin("GATConv", 6, 4, 2)

    @jax.jit
    def run(edges, ordered):
        x = jnp.asarray(X)
        return [(layer(x, edges), layer(x, ordered, indices_are_sorted=True)) for layer in layers]

    for y, again in run(EDGES, EDGES[:, order]):
        np.testing.assert_allclose(again, y, atol=1e-13)


def test_blocks_of_edges_are_all_edges(monkeypatch):
    """Sums and gradients over blocks, the last of them not full, as one process on one CPU takes them."""
    monkeypatch.setattr(edge_sums, "BLOCK", 4)
    assert COUNT % 4
    edges = jnp.asarray(EDGES[:, np.argsort(EDGES[1], kind="stable")])
    inputs = jnp.asarray(drawn(COUNT, 2)), jnp.asarray(drawn(NODES, 2, 3, seed=1))

    @jax.jit
    def run(inputs):
        ways = [lambda w, d, s=s: edge_sums.blockwise(s, w, d, edges) for s in (False, True)]
        ways.append(lambda w, d: edge_sums.weighted_sum(w, d, edges))
        return [jax.value_and_grad(lambda *a, f=f: (f(*a) ** 2).sum(), (0, 1))(*inputs) for f in ways]

    *blocks, whole = run(inputs)
    for found in blocks:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, whole)
    traced = {}
    for devices in (1, 8):
        monkeypatch.setattr(jax, "device_count", lambda n=devices: n)
        traced[devices] = str(jax.make_jaxpr(lambda w, d: edge_sums.weighted_sum(w, d, edges))(*inputs))
    assert "scan" in traced[1]
    assert "scan" not in traced[8]


def test_pools_are_pygs():
    batch, size = np.array([0, 0, 0, 2, 3, 3, 3, 3]), 5  # graphs 1 and 4 are empty, 2 has one node
    # Ties for the maximum. Where it is 0 PyG splits the gradient with the 0 it starts from.
    x, at_zero = np.round(X) + 0.5, np.round(X)
    names = ("global_add_pool", "global_mean_pool", "global_max_pool")

    def seeds(outputs):
        return {k: np.cos(np.arange(v.size, dtype=v.dtype)).reshape(v.shape) for k, v in outputs.items()}

    def by(package, name, x):
        pool = getattr(package, name)
        found, _ = torch_vjp(None, {"x": x}, seeds, lambda _, x: pool(x, torch.from_numpy(batch), size))
        return found.outputs[""], found.inputs["x"]

    @jax.jit
    def ours(x):
        seed = jnp.cos(jnp.arange(size * x.shape[1], dtype=x.dtype)).reshape(size, -1)
        found = [jax.vjp(lambda v, n=n: getattr(nn, n)(v, jnp.asarray(batch), size), x) for n in names]
        return [(y, pullback(seed)[0]) for y, pullback in found], [getattr(nn, n)(x) for n in names]

    results, alone = ours(x)
    for name, found, other, whole in zip(names, results, ours(at_zero)[0], alone, strict=True):
        for a, b, c in zip(found, by(pyg, name, x), by(tnn, name, x), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-14)
            np.testing.assert_allclose(c, b, atol=1e-14)
        np.testing.assert_array_equal(other[0], by(pyg, name, at_zero)[0])
        np.testing.assert_allclose(other[1], by(tnn, name, at_zero)[1], atol=1e-14)
        np.testing.assert_allclose(whole, getattr(pyg, name)(torch.from_numpy(x), None).numpy(), atol=1e-14)
        counted = getattr(tnn, name)(torch.from_numpy(x), torch.from_numpy(batch))
        np.testing.assert_allclose(counted, found[0][:4], atol=1e-14)
    assert nn.global_add_pool(jnp.asarray(x), jnp.asarray(batch)).shape == (4, 6)


def inputs_of(name, variant):
    return draw_inputs(catalog.page(name), catalog.arguments(name, variant), seed=0)


def reference(name, variant):
    torch.manual_seed(0)
    model = catalog.create_model(name, variant, package="torchref").double().eval()
    randomize(model, seed=0)
    return model


def test_models_with_pygs_own_layers():
    """The reference models give the same when PyG's layers, under the same keys, take the place of ours."""
    found = set()
    for name in catalog.list_models("graph"):
        for variant in catalog.page(name).cases:
            model, witness, inputs = (
                reference(name, variant),
                reference(name, variant),
                inputs_of(name, variant),
            )
            for path, layer in list(witness.named_modules()):
                kind = type(layer).__name__
                if kind in ("GCNConv", "GATConv", "RGCNConv"):
                    arguments = inspect.signature(type(layer).__init__).parameters
                    held = {
                        k: getattr(layer, k) for k in arguments if isinstance(getattr(layer, k, None), int)
                    }
                    held |= {"in_channels": _inputs(layer), "out_channels": _outputs(layer), "bias": True}
                    setattr(witness, path, getattr(pyg, kind)(**held).double())
                    found.add(kind)
            witness.load_state_dict(model.state_dict(), strict=True)
            tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
            assert_close(model(**tensors), witness.eval()(**tensors))
    assert found == {"GCNConv", "GATConv", "RGCNConv"}


def _inputs(layer):
    return layer.lin.in_features if hasattr(layer, "lin") else layer.root.shape[0]


def _outputs(layer):
    return layer.bias.shape[0] // getattr(layer, "heads", 1)


# ------------------------------------------------------------------------------------------- properties


def ready(name):
    """A model in eval mode with the inputs of its page."""
    variant = catalog.page(name).cases[0]
    model = built(lambda: catalog.create_model(name, variant), reference(name, variant).state_dict())
    model.eval()
    return model, {k: jnp.asarray(v) for k, v in inputs_of(name, variant).items()}


def permuted(inputs, order, edge_order):
    """The same graph under other names of its nodes (order[i] is the old name of node i) and edges."""
    kinds = {"edge_index": lambda v: jnp.asarray(np.argsort(order))[v][:, edge_order], "n_node": lambda v: v}

    def other(name, value):
        if name in kinds:
            return kinds[name](value)
        return value[edge_order] if name.startswith("edge_") else value[order]

    return {k: other(k, v) for k, v in inputs.items()}


@pytest.fixture(scope="module", params=catalog.list_models("graph"))
def model(request):
    return ready(request.param)


def test_permutations(model):
    """Nodes renamed within their graph: node outputs follow, graph outputs stay."""
    net, inputs = model
    rng = np.random.default_rng(0)
    count = inputs["x" if "x" in inputs else "z"].shape[0]
    sizes = np.asarray(inputs.get("n_node", [count]))
    starts = np.cumsum(sizes) - sizes
    order = np.concatenate([s + rng.permutation(n) for s, n in zip(starts, sizes, strict=True)])
    edges = None
    if "edge_index" in inputs:
        edges = rng.permutation(inputs["edge_index"].shape[1])
        loops = (inputs["edge_index"][0] == inputs["edge_index"][1])[edges]
        edges[loops] = np.sort(edges[loops])  # of several with weights the last counts
    graph, params, rest = state.split(net)
    run = jax.jit(lambda inputs: state.merge(graph, params, rest)(**inputs))
    y, z = run(inputs), run(permuted(inputs, order, edges))
    if isinstance(y, tuple):
        (nodes, y), (renamed, z) = y, z
        np.testing.assert_allclose(renamed, nodes[order], atol=1e-13)
    expected = y if "n_node" in inputs else y[order] if y.shape[1] != count else y[order][:, order]
    np.testing.assert_allclose(z, expected, atol=1e-13)
    assert "n_node" in inputs or not np.allclose(z, y)


def as_graph(inputs):
    names = [k for k in inputs if k.startswith("edge_") and k != "edge_index"]
    n_node = inputs.get("n_node")
    ends = None
    if n_node is not None:
        of_edge = np.asarray(nn.graph_ids(n_node, inputs["x"].shape[0]))[np.asarray(inputs["edge_index"][1])]
        ends = np.bincount(of_edge, minlength=len(n_node))
    return graphs.make_graph(
        inputs["edge_index"],
        nodes={"x": inputs["x"]},
        edges={k: inputs[k] for k in names},
        n_node=n_node,
        n_edge=ends,
    )


def test_padding_changes_nothing(model):
    """Outputs and the gradients of parameters and features, for two amounts of padding."""
    net, inputs = model
    if "edge_index" not in inputs:
        with pytest.raises(DataError, match="the model needs 'z', the graph has edge_index, n_node, x"):
            graphs.apply(net, graphs.make_graph(ALONE, nodes={"x": X}))
        return
    graph, params, rest = state.split(net)
    plain = as_graph(inputs)
    nodes, edges, count = len(inputs["x"]), inputs["edge_index"].shape[1], len(plain.n_node)
    padded = [graphs.pad(plain, nodes + n, edges + e, count + g) for n, e, g in ((1, 0, 1), (7, 9, 3))]
    # The values in the padding must not matter either.
    junk = jax.tree.map(
        lambda v: np.where(np.arange(len(v)).reshape(-1, *(1,) * (v.ndim - 1)) < nodes, v, 7), padded[1].nodes
    )
    padded[1] = padded[1]._replace(nodes=junk)

    @jax.jit
    def run(params, given):
        def loss(params, x, g):
            y = graphs.apply(state.merge(graph, params, rest), g._replace(nodes={**g.nodes, "x": x}))
            mask = graphs.graph_mask(g) if "n_node" in inputs else graphs.node_mask(g)
            y = y if g is given[0] else jnp.where(mask[:, None], y, 0)
            return (y * jnp.cos(y)).sum(), y

        gradient = jax.grad(loss, (0, 1), has_aux=True)
        xs = [jnp.asarray(g.nodes["x"]) for g in given]
        small = loss(params, xs[1], given[1])[1]
        return small, gradient(params, xs[0], given[0]), gradient(params, xs[2], given[2])

    small, ((d_params, d_x), y), ((e_params, e_x), large) = run(params, [plain, *padded])
    for z in (small, large):
        np.testing.assert_allclose(z[: len(y)], y, atol=1e-13)
        assert not np.asarray(z[len(y) :]).any()
    np.testing.assert_allclose(e_x[:nodes], d_x, atol=1e-12)
    assert not np.asarray(e_x[nodes:]).any()
    for key in d_params:
        np.testing.assert_allclose(e_params[key], d_params[key], atol=1e-12, err_msg=key)


def random_graph(seed, nodes, edges):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, nodes, (2, edges)) if nodes else ALONE
    return graphs.make_graph(
        ends, nodes={"x": rng.normal(size=(nodes, 5))}, edges={"edge_weight": rng.random(edges)}
    )


SIZES = ((5, 8), (1, 0), (0, 0), (3, 7), (1, 2))


def test_a_batch_is_its_graphs_one_by_one():
    name = next(n for n in catalog.list_models("graph") if "n_node" in catalog.page(n).inputs)
    net, _ = ready(name)
    several = [random_graph(i, *s) for i, s in enumerate(SIZES)]
    graph, params, rest = state.split(net)

    @jax.jit
    def run(several, joined):
        model = state.merge(graph, params, rest)
        x, edges = several[0].nodes["x"], graphs.edge_index(several[0])
        whole = model(x, edges), model(x, edges, several[0].n_node)
        return graphs.apply(model, joined), [graphs.apply(model, g) for g in several], whole

    together, alone, (without, given) = run(several, graphs.batch(several))
    assert together.shape[0] == len(several)
    np.testing.assert_allclose(together, jnp.concatenate(alone), atol=1e-13)
    np.testing.assert_allclose(without, given, atol=1e-13)  # without n_node all of it is one graph


def test_out_of_range():
    """An error outside jit; under jit NaN, where JAX would drop or clamp in silence."""
    x, ids = jnp.asarray(X), jnp.asarray(EDGES)
    kinds, attr, weight = jnp.asarray(TYPE), jnp.asarray(ATTR), jnp.asarray(WEIGHT)
    gcn, gat, rgcn = (
        twin("GCNConv", 6, 4),
        twin("GATConv", 6, 4, edge_dim=3),
        twin("RGCNConv", 6, 4, RELATIONS),
    )
    calls = [
        lambda e: gcn(x, e, weight),
        lambda e: gat(x, e, attr),
        lambda e: rgcn(x, e, kinds),
        lambda e: nn.mean_of_neighbours(x, e),
        lambda e: nn.edge_inputs(x, e, attr),
    ]
    all_of_them = jax.jit(lambda e: [c(e) for c in calls])
    for row, bad in ((0, -1), (0, NODES), (1, -1), (1, NODES)):
        wrong = ids.at[row, 4].set(bad)
        for call in calls:
            with pytest.raises(DataError, match=f"edge index {bad} is out of range"):
                call(wrong)
        assert all(np.isnan(y).all() for y in all_of_them(wrong))
        with pytest.raises(IndexError, match=f"edge index {bad} is out of range"):
            tnn.GCNConv(6, 4).double()(torch.from_numpy(X), torch.from_numpy(np.array(wrong)))
    assert all(np.isfinite(y).all() for y in all_of_them(ids))
    with pytest.raises(DataError, match="edge type 3 is out of range"):
        rgcn(x, ids, kinds.at[0].set(3))
    assert np.isnan(jax.jit(rgcn)(x, ids, kinds.at[0].set(-1))).all()
    with pytest.raises(DataError, match="graph id 2 is out of range"):
        nn.global_mean_pool(x, jnp.asarray([0, 0, 1, 1, 1, 1, 1, 2]), 2)
    with pytest.raises(DataError, match=r"n_node \[3, 4\] must add up to the 8 nodes"):
        nn.graph_ids(jnp.asarray([3, 4]), NODES)
    with pytest.raises(UsageError, match="needs size"):
        jax.jit(lambda b: nn.global_add_pool(x, b))(jnp.zeros(NODES, jnp.int32))


def test_wrong_arguments():
    rngs = nnx.Rngs(0)
    for make, says in {
        (lambda: nn.GCNConv(2, 2, add_self_loops=True, normalize=False, rngs=rngs)): "needs normalize",
        (lambda: nn.GATConv(2, 2, fill_value="maen", rngs=rngs)): "did you mean 'mean'",
        (lambda: nn.RGCNConv(2, 2, 2, 1, 1, rngs=rngs)): "exclude each other",
        (lambda: nn.RGCNConv(4, 6, 2, num_blocks=3, rngs=rngs)): "must divide 4 and 6",
        (lambda: nn.RGCNConv(4, 6, 2, aggr="median", rngs=rngs)): "unknown aggr",
    }.items():
        with pytest.raises(UsageError, match=says):
            make()
    with pytest.raises(DataError, match="edge_attr must be given with it"):
        twin("GATConv", 6, 2, edge_dim=3)(jnp.asarray(X), jnp.asarray(EDGES))


def test_segments():
    """Finite where there is nothing, masked rows do not count, sums are accumulated in float32."""
    ids, mask = jnp.asarray([2, 2, 0, 2, 0]), jnp.asarray([True, False, False, True, False])
    data = jnp.asarray([[1.0, -5.0], [jnp.inf, jnp.nan], [3.0, 3.0], [4.0, -7.0], [9.0, 9.0]])
    many, ones = jnp.zeros(1000, jnp.int32), jnp.ones((1000, 1), jnp.bfloat16)

    @jax.jit
    def run(data, ids, mask):
        return (
            nn.segment_sum(data, ids, 4, mask),
            nn.segment_mean(data, ids, 4, mask)[2],
            nn.segment_max(data, ids, 4, mask),
            nn.segment_softmax(1e4 * data, ids, 4, mask)[0],
            nn.segment_softmax(jnp.full((1, 1), 1e4), jnp.asarray([0]), 2, None, jnp.full((2, 1), -1e4))[1],
            nn.segment_sum(ones, many, 1)[0],
            nn.segment_mean(ones, many, 1)[0],
        )

    total, mean, top, weights, own, count, one = run(data, ids, mask)
    np.testing.assert_array_equal(total, [[0, 0], [0, 0], [5, -12], [0, 0]])
    np.testing.assert_array_equal(mean, [2.5, -6])
    np.testing.assert_array_equal(top, [[0, 0], [0, 0], [4, -5], [0, 0]])
    np.testing.assert_array_equal(weights, [[0, 1], [0, 0], [0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(own, [[0], [1]])
    assert (count[0], one[0]) == (1000, 1)
