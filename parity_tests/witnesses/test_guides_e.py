"""A chapter on convolutional, recurrent, attention, generative and graph models: its classes, calls and numbers.

Each class is written again here from what the chapter says, with torch.nn and PyTorch Geometric alone.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn
from torch.nn import functional as F

import torchref.models
import torchref.nn
from jaxarch import losses, models, nn
from jaxarch.errors import UsageError
from parity_tests.comparison import BOUND, error
from parity_tests.guides import Steps, agree, both, floats

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import uses what torch deprecates
    from torch_geometric import nn as pyg
    from torch_geometric.data import Batch, Data

# Images


def test_cnn():
    features = tnn.Sequential(
        *(tnn.Conv2d(3, 16, 3, padding=1), tnn.ReLU(), tnn.MaxPool2d(2)),
        *(tnn.Conv2d(16, 32, 3, padding=1), tnn.ReLU(), tnn.MaxPool2d(2)),
    )
    classifier = tnn.Sequential(tnn.Flatten(), tnn.Linear(32 * 8 * 8, 128), tnn.ReLU(), tnn.Linear(128, 10))
    printed = Steps(lambda s, x: s.classifier(s.features(x)), features=features, classifier=classifier)
    agree(printed, *both("CNN"), [floats(2, 3, 32, 32)])


def residual(i, o, stride=1):
    short = tnn.Sequential()
    if stride != 1 or i != o:
        short = tnn.Sequential(tnn.Conv2d(i, o, 1, stride), tnn.BatchNorm2d(o))

    def call(s, x):
        return F.relu(s.bn2(s.conv2(F.relu(s.bn1(s.conv1(x))))) + s.shortcut(x))

    first, second = tnn.Conv2d(i, o, 3, stride, 1), tnn.Conv2d(o, o, 3, padding=1)
    norms = {"bn1": tnn.BatchNorm2d(o), "bn2": tnn.BatchNorm2d(o)}
    return Steps(call, conv1=first, conv2=second, shortcut=short, **norms)


def test_resnet():
    printed = Steps(
        lambda s, x: s.fc(
            torch.flatten(s.avgpool(s.layer2(s.layer1(s.maxpool(F.relu(s.conv1(x)))))), 1),
        ),
        conv1=tnn.Conv2d(3, 64, 7, 2, 3),
        maxpool=tnn.MaxPool2d(3, 2, 1),
        layer1=tnn.Sequential(residual(64, 64), residual(64, 64)),
        layer2=tnn.Sequential(residual(64, 128, 2), residual(128, 128)),
        avgpool=tnn.AdaptiveAvgPool2d((1, 1)),
        fc=tnn.Linear(128, 10),
    )
    agree(printed, *both("SmallResNet"), [floats(2, 3, 32, 32)])


def test_convolutions():
    parts = {"depthwise": tnn.Conv2d(4, 4, 3, 2, 1, groups=4), "pointwise": tnn.Conv2d(4, 8, 1)}
    printed = Steps(lambda s, x: s.pointwise(s.depthwise(x)), **parts)
    agree(printed, *both("DepthwiseSeparableConv", 4, 8, stride=2, room="nn"), [floats(2, 4, 9, 7)])
    parts = {
        "conv": tnn.Conv2d(4, 8, 3, padding=1),
        "attention": tnn.Sequential(tnn.Conv2d(4, 1, 1), tnn.Sigmoid()),
    }
    printed = Steps(lambda s, x: s.conv(x) * s.attention(x), **parts)
    agree(printed, *both("AttentionConv", 4, 8, room="nn"), [floats(2, 4, 9, 7)])


# Sequences


def test_simple_rnn():
    parts = {"rnn": tnn.RNN(5, 6, batch_first=True), "fc": tnn.Linear(6, 3)}
    printed = Steps(lambda s, x: s.fc(s.rnn(x)[0][:, -1]), **parts)
    agree(printed, *both("SimpleRNN", input_size=5, hidden_size=6, num_classes=3), [floats(4, 7, 5)])


def test_bi_lstm():
    def call(s, x, hidden):
        out, hidden = s.lstm(s.embed(x), hidden)
        return s.fc(out), hidden

    lstm = tnn.LSTM(5, 6, bidirectional=True, batch_first=True)
    printed = Steps(call, embed=tnn.Embedding(20, 5), lstm=lstm, fc=tnn.Linear(12, 20))
    ids = torch.tensor(np.random.default_rng(0).integers(0, 20, (4, 7)))
    hidden = floats(2, 4, 6), floats(2, 4, 6) / 2
    agree(printed, *both("BiLSTM", vocab_size=20, embed_size=5, hidden_size=6), [ids, hidden])


def test_gru_forecaster():
    parts = {"gru": tnn.GRU(5, 6, batch_first=True), "linear": tnn.Linear(6, 3)}
    printed = Steps(lambda s, x: s.linear(s.gru(x)[1].squeeze(0)), **parts)
    agree(printed, *both("GRUForecaster", input_size=5, hidden_size=6, pred_steps=3), [floats(4, 7, 5)])


def test_attn_rnn():
    def call(s, x):
        outputs, _ = s.rnn(x)
        return (outputs * F.softmax(s.attn(outputs), dim=1)).sum(dim=1)

    printed = Steps(call, rnn=tnn.GRU(5, 6, batch_first=True), attn=tnn.Linear(6, 1))
    agree(printed, *both("AttnRNN", 5, 6), [floats(4, 7, 5)])


# Attention


def self_attention(embed, heads):
    """The projections are held and not applied."""
    dim = embed // heads

    def call(s, values, keys, query, mask=None):
        v, k, q = (x.reshape(len(x), -1, heads, dim) for x in (values, keys, query))
        energy = torch.einsum("nqhd,nkhd->nhqk", q, k)
        energy = energy if mask is None else energy.masked_fill(mask == 0, float("-1e20"))
        weights = (energy / embed**0.5).softmax(3)
        return s.fc_out(torch.einsum("nhql,nlhd->nqhd", weights, v).reshape(query.shape))

    names = ("values", "keys", "queries")
    projections = {name: tnn.Linear(dim, dim, bias=False) for name in names}
    return Steps(call, **projections, fc_out=tnn.Linear(embed, embed))


def test_self_attention():
    inputs = [floats(3, 9, 20), floats(4, 9, 20)[:3], floats(3, 7, 20)]
    for mask in (None, torch.tensor(np.random.default_rng(0).integers(0, 2, (3, 7, 9)))[:, None]):
        pair = both("SelfAttention", 20, 4, projections=False, room="nn")
        agree(self_attention(20, 4), *pair, [*inputs, mask])


def test_transformer_block():
    def call(s, value, key, query, mask):
        x = s.dropout(s.norm1(s.attention(value, key, query, mask) + query))
        return s.dropout(s.norm2(s.ff(x) + x))

    printed = Steps(
        call,
        attention=self_attention(20, 4),
        norm1=tnn.LayerNorm(20),
        norm2=tnn.LayerNorm(20),
        ff=tnn.Sequential(tnn.Linear(20, 60), tnn.ReLU(), tnn.Linear(60, 20)),
        dropout=tnn.Dropout(0.3),
    )
    pair = both("SelfAttentionBlock", 20, 4, 0.3, 3, projections=False, room="nn")
    agree(printed, *pair, [floats(3, 9, 20), floats(4, 9, 20)[:3], floats(3, 7, 20), None])


def test_positional_encoding():
    position, dims = torch.arange(100.0, dtype=torch.float64)[:, None], torch.arange(0, 16, 2.0)
    table = torch.zeros(100, 16, dtype=torch.float64)
    angle = position * torch.exp(dims.double() * (-np.log(10000.0) / 16))
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    printed = Steps(lambda s, x: x + s.pe[:, : x.shape[1]])
    printed.register_buffer("pe", table[None])
    pair = both("PositionalEncoding", 16, 100, 0.0, batch_first=True, room="nn")
    agree(printed, *pair, [floats(3, 9, 16)])


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("lead", [(3, 4), (3,)])
def test_efficient_attention(kind, lead):
    q, k, v = floats(*lead, 7, 5), floats(*lead, 9, 5), floats(*lead, 9, 6)
    mask = {"none": None, "float": floats(7, 9), "bool": floats(7, 9) > 0.3}[kind]
    if kind == "bool":
        mask[2] = False
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ours = nn.efficient_attention(*(None if x is None else jnp.asarray(x.numpy()) for x in (q, k, v, mask)))
    for actual in (torchref.nn.efficient_attention(q, k, v, mask), ours):
        assert error(np.asarray(actual), expected.numpy()) < BOUND


def test_vision_transformer_and_hybrid_take_the_printed_arguments():
    sizes = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768}
    arguments = {**sizes, "mlp_dim": 3072, "num_classes": 1000}
    with torch.device("meta"):
        vit = torchref.models.VisionTransformer(**arguments)
        features = torchref.models.HybridModel()(torch.empty(2, 3, 224, 224))
    ours = nnx.eval_shape(lambda: models.VisionTransformer(**arguments, rngs=nnx.Rngs(0)))
    counts = [sum(p.numel() for p in vit.parameters())]
    counts.append(sum(p.size for p in jax.tree.leaves(nnx.state(ours, nnx.Param))))
    assert counts == [86_567_656] * 2  # torchvision's vit_b_16
    model = nnx.eval_shape(lambda: models.HybridModel(rngs=nnx.Rngs(0)))
    output = nnx.eval_shape(lambda m: m(jnp.zeros((2, 224, 224, 3))), model)
    assert features.shape == output.shape == (2, 49, 512)


# Generative models


def test_generator_and_discriminator():
    sizes = (10, 256, 512, 28 * 28 * 3)
    layers = [tnn.Linear(sizes[0], sizes[1]), tnn.LeakyReLU(0.2), tnn.Linear(sizes[1], sizes[2])]
    net = tnn.Sequential(*layers, tnn.LeakyReLU(0.2), tnn.Linear(sizes[2], sizes[3]), tnn.Tanh())
    printed = Steps(lambda s, z: s.net(z).view(-1, 3, 28, 28), net=net)
    agree(printed, *both("Generator", 10, img_channels=3), [floats(4, 10)])
    layers = [tnn.Flatten(), tnn.Linear(28 * 28, 512), tnn.LeakyReLU(0.2), tnn.Linear(512, 256)]
    net = tnn.Sequential(*layers, tnn.LeakyReLU(0.2), tnn.Linear(256, 1), tnn.Sigmoid())
    printed = Steps(lambda s, x: s.net(x), net=net)
    agree(printed, *both("Discriminator", img_channels=1), [floats(4, 1, 28, 28)])


def test_conditional_generator():
    model = tnn.Sequential(tnn.Linear(14, 256), tnn.LeakyReLU(0.2), tnn.Linear(256, 784))
    printed = Steps(
        lambda s, z, labels: s.model(torch.cat([z, s.label_emb(labels)], 1)),
        label_emb=tnn.Embedding(4, 4),
        model=model,
    )
    pair = both("ConditionalGenerator", 10, 4, img_size=784)
    agree(printed, *pair, [floats(5, 10), torch.tensor([0, 3, 1, 2, 3])])


def vae():
    decoder = [tnn.Linear(20, 256), tnn.ReLU(), tnn.Linear(256, 512), tnn.ReLU(), tnn.Linear(512, 784)]

    def call(s, x):
        h = s.encoder(x)
        mu, logvar = s.mu(h), s.logvar(h)
        return s.decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar

    return Steps(
        call,
        encoder=tnn.Sequential(tnn.Linear(784, 512), tnn.ReLU(), tnn.Linear(512, 256)),
        mu=tnn.Linear(256, 20),
        logvar=tnn.Linear(256, 20),
        decoder=tnn.Sequential(*decoder, tnn.Sigmoid()),
    )


def test_vae():
    x = floats(5, 784).sigmoid()
    agree(vae(), *both("VAE", 784, 20), [x], part=lambda outputs: outputs[1:])
    # The reconstruction depends on the noise, which the model draws itself: another at each call.
    reference, model = both("VAE", 784, 20)
    expected, actual = reference.double(), nnx.clone(model)
    printed = vae().double()
    expected.load_state_dict(printed.state_dict(), strict=True)
    torch.manual_seed(3)
    ours = expected(x)
    torch.manual_seed(3)
    for a, b in zip(ours, printed(x), strict=True):
        assert error(a.detach().numpy(), b.detach().numpy()) < BOUND
    first, second = (actual(jnp.asarray(x.numpy()))[0] for _ in range(2))
    assert first.shape == (5, 784)
    assert not np.array_equal(first, second)
    outputs = [torch.tensor(np.asarray(a)) for a in actual(jnp.asarray(x.numpy()))]
    recon, mu, logvar = outputs
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    expected = F.binary_cross_entropy(recon, x, reduction="sum") + divergence
    loss = losses.vae_loss(*(jnp.asarray(a.numpy()) for a in (recon, x, mu, logvar)))
    assert error(np.asarray(loss), expected.numpy()) < BOUND


def test_diffusion_model():
    arguments = {"channels": 2, "base_channels": 8, "multipliers": [1, 1], "attention_levels": [1]}
    reference, model = both("DiffusionModel", 8, **arguments, norm_groups=4)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert error(np.asarray(model.beta_schedule), betas.numpy()) < BOUND
    assert error(reference.beta_schedule.numpy(), betas.numpy()) < BOUND
    alpha = (1 - betas).cumprod(0)

    def call(s, x, t, noise):
        a = alpha[t][:, None, None, None]
        return s.denoiser(a.sqrt() * x + (1 - a).sqrt() * noise, t)

    unet = torchref.models.DiffusionUNet(**arguments, norm_groups=4)
    t = torch.tensor([0, 500, 999])
    agree(Steps(call, denoiser=unet), reference, model, [floats(3, 2, 8, 8), t, floats(4, 2, 8, 8)[:3]])
    x = jnp.asarray(np.moveaxis(floats(3, 2, 8, 8).numpy(), 1, -1))
    assert not np.array_equal(model(x, jnp.asarray(t.numpy())), model(x, jnp.asarray(t.numpy())))


# Graphs

EDGES = torch.tensor(np.random.default_rng(3).integers(0, 11, (2, 19)))


def test_gcn_layer():
    def call(s, x, edges):
        source, target = edges
        total = torch.zeros_like(x).index_add(0, target, x[source])
        count = torch.zeros(len(x), 1, dtype=x.dtype).index_add(0, target, torch.ones(19, 1, dtype=x.dtype))
        return s.linear(total / count.clamp(min=1))

    agree(Steps(call, linear=tnn.Linear(4, 5)), *both("GCNLayer", 4, 5), [floats(11, 4), EDGES])


def test_gnn():
    def call(s, data):
        x = F.dropout(F.relu(s.conv1(data.x, data.edge_index)), p=0.5, training=s.training)
        x = s.conv2(x, data.edge_index)
        return s.classifier(pyg.global_mean_pool(x, data.batch))

    parts = {"conv1": pyg.GCNConv(5, 8), "conv2": pyg.GCNConv(8, 8), "classifier": tnn.Linear(8, 3)}
    graphs = [Data(x=floats(n, 5), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]])) for n in (3, 4)]
    batch = Batch.from_data_list(graphs)
    pair = both("GNN", num_features=5, hidden_dim=8, num_classes=3)
    agree(Steps(call, **parts), *pair, [batch])


def test_gat():
    def call(s, data):
        x = F.elu(s.conv1(data.x, data.edge_index))
        return s.conv2(F.dropout(x, p=0.6, training=s.training), data.edge_index)

    parts = {"conv1": pyg.GATConv(5, 8, heads=3), "conv2": pyg.GATConv(24, 8, heads=1)}
    agree(Steps(call, **parts), *both("GAT", 5, 8, 3), [Data(x=floats(11, 5), edge_index=EDGES)])


class EdgeAware(pyg.MessagePassing):
    """PyG's x_i is the node that receives, x_j its neighbour."""

    def __init__(self):
        super().__init__(aggr="mean")
        self.edge_mlp = tnn.Sequential(tnn.Linear(2 * 5 + 3, 5), tnn.ReLU())

    def forward(self, x, edge_index, edge_attr):
        return self.propagate(edge_index, x=x, edge_attr=edge_attr)

    def message(self, x_i, x_j, edge_attr):
        return self.edge_mlp(torch.cat([x_i, x_j, edge_attr], -1))


def test_edge_aware_gnn():
    pair = both("EdgeAwareGNN", node_dim=5, edge_dim=3)
    agree(EdgeAware(), *pair, [floats(11, 5), EDGES, floats(19, 3)])


def test_graph_generator():
    def call(s, z):
        nodes = s.node_decoder(z)
        edges = [s.edge_decoder(torch.cat([a, b])) for a in nodes for b in nodes]
        return nodes, torch.stack(edges).view(len(z), len(z))

    edge_decoder = tnn.Sequential(tnn.Linear(32, 1), tnn.Sigmoid())
    printed = Steps(call, node_decoder=tnn.Linear(8, 16), edge_decoder=edge_decoder)
    agree(printed, *both("GraphGenerator", 8), [floats(6, 8)])


def test_social_gnn():
    parts = {"relation_emb": tnn.Embedding(4, 16), "conv": pyg.RGCNConv(7, 64, num_relations=4)}
    printed = Steps(lambda s, x, edges, types: s.conv(x, edges, types), **parts)
    types = torch.tensor(np.random.default_rng(1).integers(0, 4, 19))
    pair = both("SocialGNN", user_feat_dim=7, relation_types=4)
    agree(printed, *pair, [floats(11, 7), EDGES, types])


def test_a_graph_in_place_of_its_parts():
    model = models.GAT(5, 8, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="edge_index is missing"):
        model(jnp.zeros((11, 5)))
    with pytest.raises(ValueError, match="edge_index is missing"):
        torchref.models.GAT(5, 8)(floats(11, 5))
    classifier = models.GNN(5, 8, 3, rngs=nnx.Rngs(0))
    graph, _, state = nnx.split(classifier, nnx.Param, ...)

    def call(batch):
        data = Data(x=jnp.zeros((4, 5)), edge_index=jnp.zeros((2, 1), int), batch=batch)
        return nnx.merge(graph, nnx.state(classifier, nnx.Param), state)(data)

    with pytest.raises(UsageError, match="under jit the number of graphs"):
        jax.eval_shape(call, jnp.zeros(4, int))
