"""Graphs in and out of other formats, in few shapes, sampled, and over eight devices."""

import warnings

import grain
import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxarch import graphs, nn, state
from jaxarch.errors import DataError, UsageError
from jaxarch.parallel import make_mesh, parse_mesh

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import uses what torch deprecates
    from torch_geometric.data import Batch, Data


def random_graph(seed, nodes, edges):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, nodes, (2, edges)) if nodes else np.zeros((2, 0), int)
    return graphs.make_graph(
        ends,
        nodes={"x": rng.normal(size=(nodes, 4)).astype(np.float32)},
        edges={"edge_weight": rng.random(edges).astype(np.float32)},
        globals={"y": rng.integers(0, 3, 1)},
    )


MANY = [random_graph(i, i % 7, 3 * (i % 5) if i % 7 else 0) for i in range(40)]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_batches_come_back():
    joined = graphs.batch(MANY)
    for one, again in zip(MANY, graphs.unbatch(joined), strict=True):
        same(one, again)
    padded = graphs.pad(joined, 300, 500, 64)
    same(graphs.unpad(padded), joined)
    for mask, count in (
        (graphs.node_mask(padded), joined.n_node.sum()),
        (graphs.edge_mask(padded), joined.n_edge.sum()),
        (graphs.graph_mask(padded), 40),
    ):
        np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
    with pytest.raises(DataError, match="does not fit into 10, 500 and 64"):
        graphs.pad(joined, 10, 500, 64)


@pytest.mark.parametrize("count", [1, 3])
def test_compilations_are_bounded(count):
    """However the batches fall, a jitted function compiles once per bucket at most; nothing is lost."""
    buckets, compiled = graphs.Buckets.of(MANY, 8, count), []

    @jax.jit
    def pooled(graph):
        compiled.append(graph.nodes["x"].shape)
        batch = nn.graph_ids(graph.n_node, graph.nodes["x"].shape[0])
        y = nn.global_add_pool(graph.nodes["x"], batch, graph.n_node.shape[0])
        return jnp.where(graphs.graph_mask(graph)[:, None], y, 0).sum(0)

    whole = sum(g.nodes["x"].sum(0, dtype=np.float64) for g in MANY)
    for seed in (None, *range(6)):
        total = sum(np.asarray(pooled(g), np.float64) for g in buckets.batches(MANY, 8, seed))
        np.testing.assert_allclose(total, whole, rtol=1e-4)
    for small in ([MANY[0]], MANY[1:3]):
        pooled(buckets.collate(small))
    assert 1 <= len(compiled) <= len(buckets.nodes) <= count
    assert count == 1 or len(compiled) > 1
    with pytest.raises(DataError, match="does not fit"):
        buckets.collate(MANY)


def test_grain():
    buckets = graphs.Buckets.of(MANY, 8)
    data = grain.MapDataset.source(MANY).shuffle(0).batch(8, batch_fn=buckets.collate)
    found = [g for i in range(len(data)) for g in graphs.unbatch(graphs.unpad(data[i]))]
    assert sorted(g.nodes["x"].sum() for g in found) == sorted(g.nodes["x"].sum() for g in MANY)


def test_pyg():
    several = [MANY[6], MANY[0], MANY[5]]  # of six, no and five nodes
    for one in several[::2]:
        data = graphs.to_pyg(one)
        assert isinstance(data, Data)
        assert data.num_nodes == one.n_node.sum()
        same(graphs.from_pyg(data), one)
    batch = graphs.to_pyg(graphs.batch(several))
    assert isinstance(batch, Batch)
    assert batch.num_graphs == 3
    np.testing.assert_array_equal(batch.ptr, [0, 6, 6, 11])
    same(graphs.from_pyg(batch), graphs.batch(several))
    with pytest.raises(DataError, match=r"PyG's 'odd' of shape \(3,\) is neither"):
        graphs.from_pyg(
            Data(x=torch.ones(2, 1), edge_index=torch.zeros(2, 1, dtype=torch.long), odd=torch.ones(3))
        )


def test_networkx():
    karate = networkx.karate_club_graph()
    graph = graphs.from_networkx(karate, edges=["weight"])
    assert (graph.n_node[0], graph.n_edge[0]) == (34, 2 * 78)
    back = graphs.to_networkx(graph)
    assert {frozenset(e) for e in back.edges()} == {frozenset(e) for e in karate.edges}
    assert back.edges[0, 1, 0]["weight"] == back.edges[1, 0, 0]["weight"] == karate.edges[0, 1]["weight"]
    directed = networkx.MultiDiGraph([("a", "b"), ("a", "b"), ("b", "b")])
    networkx.set_node_attributes(directed, {"a": [1.0], "b": [2.0]}, "x")
    graph = graphs.from_networkx(directed, nodes=["x"])
    np.testing.assert_array_equal(graphs.edge_index(graph), [[0, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(graph.nodes["x"], [[1], [2]])
    with pytest.raises(DataError, match="node 'a' has no attribute 'colour'"):
        graphs.from_networkx(directed, nodes=["colour"])


def test_edge_lists():
    graph = graphs.from_edges([(0, 1), (2, 2)], undirected=True, edges={"kind": [5, 6]})
    np.testing.assert_array_equal(graphs.edge_index(graph), [[0, 2, 1], [1, 2, 0]])
    np.testing.assert_array_equal(graph.edges["kind"], [5, 6, 5])
    assert graphs.from_edges([], num_nodes=3).n_node[0] == 3
    assert graphs.from_edges([]).n_node[0] == 0
    for make, says in {
        (lambda: graphs.from_edges([(0, 3)], num_nodes=3)): "edge index 3 is out of range",
        (lambda: graphs.make_graph([[0], [-1]], num_nodes=3)): "edge index -1 is out of range",
        (lambda: graphs.make_graph([[0.5], [1.0]], num_nodes=3)): "must be integers",
        (lambda: graphs.make_graph([[0], [1]])): "needs num_nodes",
        (
            lambda: graphs.make_graph([[0], [1]], num_nodes=2, edges={"e": [1, 2]})
        ): "'e' has 2 rows, the graph 1",
        (lambda: graphs.make_graph([[0], [1]], num_nodes=2, n_node=[1], n_edge=[1])): "must add up",
        (lambda: graphs.batch([])): "at least one graph",
        (lambda: graphs.batch([MANY[1], graphs.from_edges([(0, 1)])])): "the same features",
    }.items():
        with pytest.raises(DataError, match=says):
            make()


def large_graph(nodes=200, edges=900, seed=0):
    rng = np.random.default_rng(seed)
    return graphs.make_graph(
        rng.integers(0, nodes, (2, edges)),
        nodes={"x": rng.normal(size=(nodes, 5))},
        edges={"edge_attr": rng.normal(size=(edges, 3)), "edge_type": rng.integers(0, 4, edges)},
    )


def test_sampled_neighbours():
    whole = large_graph()
    seeds = [17, 3, 150]
    drawn = graphs.NeighborSampler(whole, [4, 2]).sample(seeds, seed=1)
    np.testing.assert_array_equal(drawn.nodes["node_id"][:3], seeds)
    np.testing.assert_array_equal(drawn.nodes["x"], whole.nodes["x"][drawn.nodes["node_id"]])
    ids, edges = drawn.nodes["node_id"], drawn.edges["edge_id"]
    assert len(set(ids.tolist())) == len(ids)
    assert len(set(edges.tolist())) == len(edges)
    np.testing.assert_array_equal(ids[drawn.senders], whole.senders[edges])
    np.testing.assert_array_equal(ids[drawn.receivers], whole.receivers[edges])
    np.testing.assert_array_equal(drawn.edges["edge_type"], whole.edges["edge_type"][edges])
    into, degree = (
        np.bincount(drawn.receivers, minlength=len(ids)),
        np.bincount(whole.receivers, minlength=200),
    )
    np.testing.assert_array_equal(into[:3], np.minimum(degree[seeds], 4))
    assert into[3:].max() <= 2
    same(drawn, graphs.NeighborSampler(whole, [4, 2]).sample(seeds, seed=1))
    # Each of a node's edges is drawn equally often.
    sampler, node = graphs.NeighborSampler(whole, [1]), int(np.argmax(degree))
    counts = np.zeros(900)
    for s in range(400):
        counts[sampler.sample([node], seed=s).edges["edge_id"]] += 1
    assert counts.sum() == 400
    expected = 400 / degree[node]
    assert abs(counts[counts > 0] - expected).max() < 5 * np.sqrt(expected)
    assert (counts > 0).sum() == degree[node]
    with pytest.raises(UsageError, match="must be positive, or -1"):
        graphs.NeighborSampler(whole, [0])
    with pytest.raises(DataError, match=r"different nodes in \[0, 200\)"):
        sampler.sample([1, 1])


def twice(layers, graph):
    """Two layers of attention over a graph."""
    x, edges = graph.nodes["x"], graphs.edge_index(graph)
    for layer in layers:
        x = layer(jnp.asarray(x), edges, jnp.asarray(graph.edges["edge_attr"]))
    return x


def test_all_neighbours_are_the_whole_graph():
    """With every neighbour of as many hops as layers, the seeds' outputs are those in the whole graph."""
    whole, rngs = large_graph(60, 150), nnx.Rngs(0)
    part = graphs.NeighborSampler(whole, [-1, -1]).sample([5, 41])
    assert part.n_node[0] < 60
    layers = [nn.GATConv(5, 5, edge_dim=3, rngs=rngs), nn.GATConv(5, 5, edge_dim=3, rngs=rngs)]
    a, b = jax.jit(lambda a, b: (twice(layers, a), twice(layers, b)))(whole, part)
    np.testing.assert_allclose(b[:2], a[np.array([5, 41])], atol=1e-13)


def test_edges_over_eight_devices():
    """Outputs and gradients are those of one device, and no device holds the messages of another's edges."""
    whole, rngs = large_graph(64, 1021), nnx.Rngs(0)
    mesh = make_mesh(parse_mesh("data=4,fsdp=2"))
    spread = graphs.shard_edges(whole, mesh)
    assert spread.senders.sharding.spec == P(("data", "fsdp", "tensor"))
    assert spread.senders.shape == (1024,)
    assert spread.nodes["x"].sharding.spec == P()
    layers = {
        "gcn": nn.GCNConv(5, 6, rngs=rngs),
        "gat": nn.GATConv(6, 6, 2, edge_dim=3, rngs=rngs),
        "rgcn": nn.RGCNConv(12, 6, 4, rngs=rngs),
    }
    parts = {k: state.split(v) for k, v in layers.items()}

    def loss(params, graph):
        gcn, gat, rgcn = (state.merge(parts[k].graph, params[k], parts[k].rest) for k in layers)
        edges, features = graphs.edge_index(graph), jax.tree.map(jnp.asarray, graph.edges)
        x = gcn(jnp.asarray(graph.nodes["x"]), edges)
        x = gat(x, edges, features["edge_attr"])
        x = rgcn(x, edges, features["edge_type"])[:64]
        return (x * jnp.cos(x)).sum(), x

    params = {k: v.params for k, v in parts.items()}
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, y), gradients = run(params, whole)
    compiled = run.lower(params, spread).compile()
    (_, z), others = compiled(params, spread)
    np.testing.assert_allclose(z, y, atol=1e-12)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-11)
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "f64[128," in text  # 1024 messages over 8 devices
    assert "f64[1024," not in text
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in text
