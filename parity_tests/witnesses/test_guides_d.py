"""A guide to the MLP, the residual CNN and the encoder-decoder transformer: its classes, calls and numbers.

Each class is written again here from what the guide says, with torch.nn alone.
"""

import dataclasses
import math

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
from jaxarch import models, nn
from parity_tests.comparison import BOUND, error
from parity_tests.guides import Steps, agree, both, floats

SIZES = {"vocab_size": 50, "d_model": 16, "n_heads": 4, "n_layers": 2, "d_ff": 24, "max_seq_len": 20}


@pytest.mark.parametrize("parts", [{}, {"batch_norm": True, "dropout_rate": 0.2, "activation": "gelu"}])
def test_mlp(parts):
    layers, width = [], 10
    for dim in (16, 8):
        layers.append(tnn.Linear(width, dim))
        layers += [tnn.BatchNorm1d(dim)] if parts else []
        layers += [tnn.GELU(), tnn.Dropout(0.2)] if parts else [tnn.ReLU()]
        width = dim
    printed = Steps(lambda s, x: s.network(x), network=tnn.Sequential(*layers, tnn.Linear(8, 5)))
    pair = both("MLP", input_dim=10, hidden_dims=[16, 8], output_dim=5, **parts)
    agree(printed, *pair, [floats(6, 10)])
    count = sum(p.numel() for p in printed.parameters())
    assert [model.get_num_parameters() for model in pair] == [count] * 2


def conv_block(i, o, *geometry, **options):
    dropout = options.get("dropout_rate", 0)

    def call(s, x):
        return s.dropout(F.relu(s.batch_norm(s.conv(x))))

    conv = tnn.Conv2d(i, o, *geometry or (3, 1, 1), bias=False)
    return Steps(call, conv=conv, batch_norm=tnn.BatchNorm2d(o), dropout=tnn.Dropout2d(dropout))


def residual(i, o, stride=1, downsample=None):
    def call(s, x):
        y = s.bn2(s.conv2(F.relu(s.bn1(s.conv1(x)))))
        return F.relu(y + (x if s.downsample is None else s.downsample(x)))

    first, second = tnn.Conv2d(i, o, 3, stride, 1, bias=False), tnn.Conv2d(o, o, 3, 1, 1, bias=False)
    norms = {"bn1": tnn.BatchNorm2d(o), "bn2": tnn.BatchNorm2d(o)}
    return Steps(call, conv1=first, conv2=second, downsample=downsample, **norms)


def shortcut(i, o, stride):
    return tnn.Sequential(tnn.Conv2d(i, o, 1, stride, bias=False), tnn.BatchNorm2d(o))


def squeeze(channels, reduction=16):
    def call(s, x):
        return x * s.excitation(x.mean((2, 3)))[:, :, None, None]

    down, up = (tnn.Linear(*sizes, bias=False) for sizes in ((channels, channels // reduction),) * 2)
    up = tnn.Linear(channels // reduction, channels, bias=False)
    return Steps(call, excitation=tnn.Sequential(down, tnn.ReLU(), up, tnn.Sigmoid()))


def test_blocks():
    x = floats(2, 3, 9, 7)
    agree(conv_block(3, 8), *both("ConvBlock", 3, 8, room="nn"), [x])
    options = {"dropout_rate": 0.4}
    agree(conv_block(3, 8, 7, 2, 3, **options), *both("ConvBlock", 3, 8, 7, 2, 3, **options, room="nn"), [x])
    agree(residual(3, 3), *both("ResidualBlock", 3, 3, room="nn"), [x])
    agree(squeeze(32), *both("SEBlock", 32, room="nn"), [floats(2, 32, 5, 4)])


def test_residual_block_takes_a_module_for_its_shortcut():
    theirs = torchref.nn.ResidualBlock(3, 8, 2, shortcut(3, 8, 2))
    rngs = nnx.Rngs(0)
    norm = nn.BatchNorm2d(8, rngs=rngs)
    module = nn.Sequential(nn.Conv2d(3, 8, 1, 2, bias=False, rngs=rngs), norm)
    ours = nn.ResidualBlock(3, 8, 2, module, rngs=rngs)
    assert ours.downsample[1] is norm
    agree(residual(3, 8, 2, shortcut(3, 8, 2)), theirs, ours, [floats(2, 3, 9, 7)])


def test_advanced_cnn():
    def layer(i, o, count, stride=1):
        first = residual(i, o, stride, shortcut(i, o, stride) if stride != 1 or i != o else None)
        return tnn.Sequential(first, *(residual(o, o) for _ in range(count - 1)))

    def call(s, x):
        x = F.max_pool2d(s.conv1(x), 3, 2, 1)
        x = s.attention(s.layer4(s.layer3(s.layer2(s.layer1(x)))))
        return s.fc(s.dropout(torch.flatten(s.avgpool(x), 1)))

    printed = Steps(
        call,
        conv1=conv_block(3, 8, 7, 2, 3),
        layer1=layer(8, 8, 2),
        layer2=layer(8, 16, 1, 2),
        layer3=layer(16, 32, 1, 2),
        layer4=layer(32, 64, 1, 2),
        attention=squeeze(64),
        avgpool=tnn.AdaptiveAvgPool2d((1, 1)),
        dropout=tnn.Dropout(0.5),
        fc=tnn.Linear(64, 10),
    )
    pair = both("AdvancedCNN", 3, 10, 8, [2, 1, 1, 1], use_attention=True, dropout_rate=0.5)
    agree(printed, *pair, [floats(4, 3, 33, 37)])


# The transformer


def encoding(d_model, max_len):
    """Positions of sequences first, (T, B, D)."""
    angle = torch.arange(max_len)[:, None] * torch.exp(
        torch.arange(0, d_model, 2) * (-math.log(1e4) / d_model)
    )
    printed = Steps(lambda s, x: x + s.pe[: x.size(0), :])
    table = torch.stack([angle.double().sin(), angle.double().cos()], -1).reshape(max_len, 1, d_model)
    printed.register_buffer("pe", table)
    return printed


def test_positional_encoding():
    pair = both("PositionalEncoding", 16, 50, dropout=0.0, sequence_first=True, room="nn")
    reference, model = pair
    # The printed table is float32, whose rounding the weights carry.
    agree(encoding(16, 50), reference, model, [floats(9, 3, 16)])


def attention(d_model, n_heads, dropout=0.0):
    def call(s, query, key, value, mask=None):
        q, k, v = (
            f(x).view(len(x), -1, n_heads, d_model // n_heads).transpose(1, 2)
            for f, x in ((s.w_q, query), (s.w_k, key), (s.w_v, value))
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(d_model // n_heads)
        scores = scores if mask is None else scores.masked_fill(mask == 0, -1e9)
        s.attention_weights = s.dropout(scores.softmax(-1))
        return s.w_o((s.attention_weights @ v).transpose(1, 2).reshape(query.shape))

    projections = {name: tnn.Linear(d_model, d_model) for name in ("w_q", "w_k", "w_v", "w_o")}
    return Steps(call, **projections, dropout=tnn.Dropout(dropout))


def test_multi_head_attention():
    printed, (reference, model) = attention(20, 4), both("MultiHeadAttention", 20, 4, dropout=0.0, room="nn")
    x = floats(4, 15, 20)
    for mask in (None, torch.ones(4, 15, 15).tril(), torch.ones(4, 15, 15)):
        printed.double()
        expected = None if mask is None else mask[:, None]
        weights = printed(x, x, x, expected).detach(), printed.attention_weights.detach()
        agree(printed, reference, model, [x, x, x, mask], printed_inputs=[x, x, x, expected])
        assert error(reference.attention_weights.numpy(), weights[1].numpy()) < BOUND
        ours = model(
            *(jnp.asarray(x.numpy()),) * 3,
            None if mask is None else jnp.asarray(mask.numpy()),
            return_weights=True,
        )
        assert error(np.asarray(ours[1]), weights[1].numpy()) < BOUND
    q, k, v = (floats(4, 4, n, 5) for n in (7, 9, 9))
    result, weights = reference.scaled_dot_product_attention(q, k, v)
    ours = model.scaled_dot_product_attention(*(jnp.asarray(a.numpy()) for a in (q, k, v)))
    assert error(np.asarray(ours[0]), result.numpy()) < BOUND
    assert error(np.asarray(ours[1]), weights.numpy()) < BOUND


def block(d_model, n_heads, d_ff, dropout):
    def call(s, x, mask=None):
        x = s.norm1(x + s.dropout1(s.attention(x, x, x, mask)))
        return s.norm2(x + s.dropout2(s.ff(x)))

    return Steps(
        call,
        attention=attention(d_model, n_heads, dropout),
        norm1=tnn.LayerNorm(d_model),
        dropout1=tnn.Dropout(dropout),
        ff=tnn.Sequential(
            tnn.Linear(d_model, d_ff), tnn.ReLU(), tnn.Dropout(dropout), tnn.Linear(d_ff, d_model)
        ),
        norm2=tnn.LayerNorm(d_model),
        dropout2=tnn.Dropout(dropout),
    )


def stack(dropout):
    """The encoder, and the decoder too, which attends to itself alone."""

    def call(s, x, mask=None):
        x = s.positional_encoding(s.word_embedding(x).transpose(0, 1)).transpose(0, 1)
        x = s.dropout(x)
        for layer in s.layers:
            x = layer(x, mask)
        return x

    return Steps(
        call,
        word_embedding=tnn.Embedding(50, 16),
        positional_encoding=encoding(16, 20),
        layers=tnn.ModuleList([block(16, 4, 24, dropout) for _ in range(2)]),
        dropout=tnn.Dropout(dropout),
    )


def transformer(dropout):
    def call(s, src, tgt, src_mask=None, tgt_mask=None):
        if src_mask is None:
            src_mask = (src != 0)[:, None, None]
        if tgt_mask is None:
            tgt_mask = (tgt != 0)[:, None, None] & torch.ones(tgt.size(1), tgt.size(1)).tril().bool()
        s.encoder(src, src_mask)
        return s.output_layer(s.decoder(tgt, tgt_mask))

    parts = {"encoder": stack(dropout), "decoder": stack(dropout), "output_layer": tnn.Linear(16, 50)}
    return Steps(call, **parts)


def ids(*shape):
    numbers = torch.tensor(np.random.default_rng(shape).integers(1, 50, shape))
    numbers[0, -3:] = 0
    return numbers


def configs(**options):
    """The configuration of both packages."""
    return (module.TransformerConfig(**SIZES, **options) for module in (torchref.models, models))


def built(name, **options):
    theirs, ours = configs(**options)
    return getattr(torchref.models, name)(theirs), getattr(models, name)(ours, rngs=nnx.Rngs(0))


def test_transformer_configuration():
    expected = {
        "vocab_size": 10000,
        "d_model": 512,
        "n_heads": 8,
        "n_layers": 6,
        "d_ff": 2048,
        "dropout": 0.1,
    }
    expected |= {"max_seq_len": 512, "pad_token_id": 0}
    for module in (torchref.models, models):
        assert dataclasses.asdict(module.TransformerConfig()).items() >= expected.items()


def test_transformer_block():
    pair = built("TransformerBlock", dropout=0.3)
    agree(block(16, 4, 24, 0.3), *pair, [floats(3, 9, 16)])


@pytest.mark.parametrize("masked", [False, True])
def test_transformer(masked):
    inputs = [ids(3, 7), ids(3, 11)]
    inputs += [torch.ones(3, 1, 1, 7), torch.ones(3, 1, 11, 11)] if masked else []
    pair = built("Transformer", dropout=0.2, cross_attention=False, causal=False)
    agree(transformer(0.2), *pair, inputs)
    for model, array in zip(pair, (torch.tensor, jnp.asarray), strict=True):
        padding = np.asarray(model.create_padding_mask(array(inputs[0].numpy())))
        np.testing.assert_array_equal(padding, (inputs[0].numpy() != 0)[:, None, None])
        np.testing.assert_array_equal(np.asarray(model.create_look_ahead_mask(4)), np.tri(4, dtype=bool))


def test_encoder_and_decoder_alone():
    agree(stack(0.2), *built("Encoder", dropout=0.2), [ids(3, 7), torch.ones(3, 1, 7, 7).tril()])
    pair = built("Decoder", dropout=0.2, cross_attention=False, causal=False)
    agree(stack(0.2), *pair, [ids(3, 7), floats(3, 5, 16)], printed_inputs=[ids(3, 7)])


def test_the_look_ahead_mask_is_that_of_the_causal_decoder():
    src, tgt = (jnp.asarray(ids(3, n).numpy()) for n in (7, 11))
    theirs, ours = zip(
        *(built("Transformer", dropout=0.0, causal=causal) for causal in (True, False)), strict=True
    )
    outputs = [model.eval()(*(torch.tensor(np.asarray(a)) for a in (src, tgt))).detach() for model in theirs]
    theirs[1].load_state_dict(theirs[0].state_dict())
    again = theirs[1](*(torch.tensor(np.asarray(a)) for a in (src, tgt))).detach()
    assert error(again.numpy(), outputs[0].numpy()) < 1e-5
    nnx.update(ours[1], nnx.state(ours[0]))
    assert error(np.asarray(ours[1](src, tgt)), np.asarray(ours[0](src, tgt))) < BOUND


def test_every_matrix_of_the_transformer_is_xavier():
    reference, model = built("Transformer")
    for values in (
        {k: v.detach().numpy() for k, v in reference.named_parameters()},
        {
            ".".join(map(str, k)): np.asarray(v[...])
            for k, v in nnx.to_flat_state(nnx.state(model, nnx.Param))
        },
    ):
        for name, value in values.items():
            if value.ndim > 1:
                bound = math.sqrt(6 / sum(value.shape))
                assert 0.9 * bound < np.abs(value).max() <= bound, name
        # Biases keep their own distribution.
        assert np.abs(values["output_layer.bias"]).max() > 0.1
    assert jax.tree.leaves(nnx.state(model, nnx.Param))
