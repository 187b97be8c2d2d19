"""Graphs through the one trainer: rows of a batch are graphs, alone, padded, and over eight devices."""

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import Ridge

from jaxarch import catalog, data, graphs
from jaxarch.bench import gcn
from jaxarch.data.graph_batches import disjoint_union, labelled, stack
from jaxarch.data.sets import molecules, stdlib_graph
from jaxarch.errors import DataError, UsageError
from jaxarch.train import fit, tasks
from jaxarch.train.tasks.graph_autoencoder import GraphAutoencoder

WHOLE = "tensor=8"  # a whole graph is one row: devices cannot share it by rows
ONE = "data=1"


pytestmark = pytest.mark.usefixtures("first_devices")


def random_graph(seed, nodes, edges):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, nodes, (2, edges))
    features = {"x": rng.normal(size=(nodes, 5))}
    return graphs.make_graph(ends, nodes=features, edges={"edge_weight": rng.random(edges)})


def test_stacked_graphs_are_the_graphs():
    many = [random_graph(i, nodes, edges) for i, (nodes, edges) in enumerate([(2, 0), (5, 7), (5, 7)])]
    model = catalog.create_model("gnn", "tiny", rngs=nnx.Rngs(0))
    model.eval()
    y = jax.jit(lambda batch: model(**disjoint_union(batch))[::2])(stack(many))
    one = jax.jit(lambda graph: graphs.apply(model, graph)[0])
    np.testing.assert_allclose(y, np.stack([one(g) for g in many]), rtol=1e-10)
    with pytest.raises(DataError, match="no graph"):
        stack([])


def test_labels_are_drawn():
    label = np.arange(30) % 3
    chosen = labelled(label, 4, 0)
    np.testing.assert_array_equal(np.bincount(label[chosen]), [4, 4, 4])
    assert (chosen != labelled(label, 4, 1)).any()
    with pytest.raises(DataError, match="class 0 has 10 nodes"):
        labelled(label, 10, 0)


def test_two_labels_are_a_club(tmp_path):
    few = {"train.steps": "40", "train.eval_every": "40"}
    run = fit("gnn", settings=few, mesh=ONE, out=tmp_path / "run", progress=False)
    assert (run.run.source.train["label"] >= 0).sum() == 2
    assert (run.run.source.test["label"] >= 0).sum() == 32
    assert run.metrics["accuracy"] > 0.8
    with pytest.raises(DataError, match=r"model\.num_features=34, not 7"):
        fit("gat", variant="tiny", mesh=ONE, out=tmp_path / "tiny", progress=False)
    task = tasks.task("node_classification")
    with pytest.raises(UsageError, match="batch_size must be 1, not 2"):
        task.tally(None, {"label": np.zeros((2, 3))})


def test_graphs_over_eight_devices(tmp_path):
    """Two steps of the molecules' recipe with the batch over the devices, and with all of it on each."""
    tiny = {"train.options.count": "200", "train.options.most_atoms": "12", "model.hidden_dim": "8"}
    tiny |= {"train.steps": "2", "train.batch_size": "16", "train.eval_every": "2"}
    runs = [
        fit("gnn", recipe="molecules", settings=tiny, mesh=m, out=tmp_path / m, progress=False)
        for m in ("data=8", WHOLE)
    ]
    divided, whole = runs
    for a, b in zip(divided.history, whole.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-10)
    for key, value in whole.state.params.items():
        np.testing.assert_allclose(divided.state.params[key], value, rtol=1e-8, atol=1e-12)
    assert divided.metrics == pytest.approx(whole.metrics, rel=1e-8)


def test_molecules_are_read():
    from rdkit import Chem

    ethanol = molecules.graph_of(Chem.MolFromSmiles("CC=O"))
    np.testing.assert_array_equal(ethanol.senders, [0, 1, 1, 2])
    np.testing.assert_array_equal(ethanol.edges["edge_weight"], [1, 2, 1, 2])
    np.testing.assert_array_equal(ethanol.nodes["x"][:, [0, 2]], [[1, 0], [1, 0], [0, 1]])
    options = {"count": 60, "most_atoms": 12, "fingerprints": 64}
    source = data.load("molecules", out=None, arguments={}, options=options)
    bits = source.extra["train"]
    assert bits.shape == (len(source.train["target"]), 64)
    assert Ridge().fit(bits, source.train["target"]).score(bits, source.train["target"]) > 0.5


def test_small_graphs_are_coded(tmp_path):
    tiny = {"train.steps": "2", "train.batch_size": "8", "train.eval_every": "2", "train.options.copies": "1"}
    run = fit("graph_generator", settings=tiny, mesh=ONE, out=tmp_path / "run", progress=False)
    assert run.metrics.keys() == {"pairs", "pairs_majority", "whole"}
    assert 0 <= run.metrics["whole"] <= run.metrics["pairs"] <= 1
    adjacency = run.run.source.test["adjacency"]
    assert adjacency.shape == (250, 7, 7)
    np.testing.assert_array_equal(adjacency, adjacency.swapaxes(1, 2))


def test_the_encoder_convolves_the_graph():
    """Dense adjacencies give what lists of edges give; a node's row has the products of its code with the others."""
    path = networkx.path_graph(4)
    generator = catalog.create_model("graph_generator", "tiny", rngs=nnx.Rngs(0))
    model = GraphAutoencoder(generator, 4, 8, 6, True, nnx.Rngs(1))
    both = jnp.stack([jnp.zeros((4, 4)), jnp.asarray(networkx.to_numpy_array(path))])
    edges, eye = graphs.edge_index(graphs.from_networkx(path)), jnp.eye(4)

    @jax.jit
    def found(both):
        z = model.encode(both)
        h = model.activation(model.conv1(eye, edges))
        return (
            z[1],
            model.conv2(h, edges) + model.own(eye),
            model(both)[:, 2],
            generator(z[:, 2, None] * z)[1],
        )

    z, wanted, seen, product = found(both)
    np.testing.assert_allclose(z, wanted, rtol=1e-10)
    np.testing.assert_allclose(seen, product[:, 2], rtol=1e-10)


def test_the_library_is_a_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib_graph, "PACKAGES", ("asyncio", "email", "xml"))
    tiny = {"train.steps": "3", "train.eval_every": "3", "model.out_channels": "3"}
    run = fit("social_gnn", settings=tiny, mesh=ONE, out=tmp_path / "run", progress=False)
    source = run.run.source
    assert set(np.unique(source.train["edge_type"])) == set(range(6))
    kinds, (sources, targets) = source.train["edge_type"][0], source.train["edge_index"][0]
    half = len(kinds) // 2
    np.testing.assert_array_equal(sources[:half], targets[half:])
    np.testing.assert_array_equal(kinds[:half] + 3, kinds[half:])
    assert 0 < run.metrics["accuracy"] <= 1


@pytest.mark.parametrize("model", ["gnn", "gat"])
def test_benchmarks_do_the_same_work(model):
    losses = []
    with jax.enable_x64(False):
        for way in ("jaxarch", "torch", "pyg"):
            run = gcn.step(way, model, 200, 900)
            losses.append([run(), run()])
    np.testing.assert_allclose(losses, np.broadcast_to(losses[0], (3, 2)), rtol=1e-4)
    with pytest.raises(UsageError, match="pyg"):
        gcn.step("pgy", model)
    seconds, memory = gcn.alone("torch", model, 1, nodes=200, edges=900)
    assert seconds > 0
    assert memory >= 0
