"""Options of torch's layers that PyTorch's own samples leave out, compared as those are."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_samples
from jaxarch import nn
from jaxarch.errors import DataError, UsageError

SIGNAL, IMAGE, VOLUME = (2, 4, 9), (2, 4, 7, 6), (2, 4, 5, 4, 6)


def options(*args, **kwargs):
    return args, kwargs


# module -> shape of the input, and arguments of the constructor
CASES = {
    **{
        f"{name}Pad1d": (SIGNAL, [options((-1, 2)), options((3, -2))])
        for name in ("Reflection", "Replication")
    },
    "CircularPad1d": (SIGNAL, [options((-1, 2)), options((9, 9)), options((-2, -3))]),
    "ConstantPad2d": (IMAGE, [options((1, -2, 0, 3), 0.5), options((-1, -1, -1, -1), 2)]),
    "ZeroPad3d": (VOLUME, [options((1, -2, 0, 3, 2, -1))]),
    "ReflectionPad3d": (VOLUME, [options((1, -2, 0, 3, 2, -1))]),
    "Conv1d": (
        SIGNAL,
        [
            options(4, 6, 4, 2, 3, 2, 2, False, "reflect"),
            options(4, 6, 4, padding="same", padding_mode="circular"),
            options(4, 6, 3, padding="valid", padding_mode="replicate", dilation=3),
        ],
    ),
    "Conv2d": (
        IMAGE,
        [
            options(4, 8, (3, 2), (2, 1), (1, 2), (1, 2), 4, padding_mode="reflect"),
            options(4, 6, (2, 3), padding="same", padding_mode="replicate"),
            options(4, 6, 3, padding=2, padding_mode="circular", groups=2),
        ],
    ),
    "Conv3d": (
        VOLUME,
        [
            options(4, 6, (2, 3, 1), (2, 1, 3), (1, 0, 2), (2, 1, 1), 2),
            options(4, 8, 3, padding="same", groups=4, bias=False),
            options(4, 5, 2, padding=(1, 2, 0), padding_mode="circular"),
        ],
    ),
    "ConvTranspose1d": (SIGNAL, [options(4, 6, 4, 3, 2, 1, 2, False, 2), options(4, 6, 2, padding=3)]),
    "MaxPool1d": (SIGNAL, [options(3, 2, 1, 2, True, True), options(4, 1, 2, 1, True)]),
    "MaxPool2d": (IMAGE, [options((3, 2), 2, (1, 0), (1, 2), True), options(2, 3, 1, 1, True, True)]),
    "MaxPool3d": (VOLUME, [options((1, 2, 3), (2, 1, 2), (0, 1, 1), 1, True, True)]),
    "AvgPool3d": (VOLUME, [options((2, 3, 2), 2, (1, 0, 1), True, False, 5)]),
    "LPPool2d": (IMAGE, [options(2, (3, 2), 2, True), options(3, 2, 1)]),
    "AdaptiveAvgPool3d": (VOLUME, [options((2, None, 4))]),
    "AdaptiveMaxPool2d": (IMAGE, [options((None, 4), True)]),
    "AdaptiveMaxPool3d": (VOLUME, [options((2, 3, 1), True)]),
    "PixelShuffle": ((2, 12, 3, 4), [options(2)]),
    "PixelUnshuffle": ((2, 3, 4, 6), [options(2)]),
    "ChannelShuffle": ((2, 6, 3, 4), [options(3), options(2)]),
    "Unfold": (IMAGE, [options((2, 3), (2, 1), 1, (1, 2)), options(3)]),
    "Fold": ((2, 24, 10), [options((5, 4), (2, 3), (2, 1), 1, (1, 2))]),
    "Flatten": (IMAGE, [options(), options(2), options(1, 2), options(-2, -1)]),
    "Unflatten": ((3, 24), [options(1, (2, 3, 4)), options(-1, (2, -1)), options(0, (3, 1))]),
    "Upsample": (
        IMAGE,
        [
            options(scale_factor=(1.7, 0.6)),
            options((5, 14)),
            options((11, 4), mode="nearest-exact"),
            options(scale_factor=2.3, mode="bilinear"),
            options(scale_factor=2.3, mode="bilinear", recompute_scale_factor=True),
            options((3, 11), mode="bilinear", align_corners=True),
            options((9, 1), mode="bicubic", align_corners=True),
            options(scale_factor=(0.6, 1.9), mode="bicubic", align_corners=False),
            options((3, 4), mode="area"),
        ],
    ),
    "UpsamplingNearest2d": (IMAGE, [options(scale_factor=2), options((4, 5))]),
    "UpsamplingBilinear2d": (IMAGE, [options(scale_factor=2), options((4, 5))]),
    "ConvTranspose3d": (
        VOLUME,
        [options(4, 6, (3, 2, 1), (2, 1, 3), (1, 0, 0), (1, 0, 2), 2, dilation=(1, 3, 1))],
    ),
}


# torch takes no single example of these, or takes it for a batch.
BATCHED = {
    "Flatten",
    "Unflatten",
    "ChannelShuffle",
    "Upsample",
    "UpsamplingNearest2d",
    "UpsamplingBilinear2d",
}


def sample(module, shape, arguments, number=0, **named):
    """A sample with a random input of torch's shape."""
    args, kwargs = arguments
    x = torch.from_numpy(np.random.default_rng(number).normal(size=shape))
    return torch_samples.Sample(module, number, args, kwargs, (x,), named)


@pytest.mark.parametrize("module", CASES)
def test_options(module):
    shape, cases = CASES[module]
    for number, arguments in enumerate(cases):
        unbatched = not number and module not in BATCHED
        case = sample(module, shape[1:] if unbatched else shape, arguments, number)
        assert not (result := torch_samples.compared(case, "train")), (str(case), result)


@pytest.mark.parametrize(("shape", "mode"), [(SIGNAL, "linear"), (VOLUME, "trilinear")])
@pytest.mark.parametrize("align_corners", [True, False])
def test_signals_and_volumes_are_upsampled(shape, mode, align_corners, monkeypatch):
    monkeypatch.setitem(torch_samples.AXES, "Upsample", torch_samples.AXES[f"Conv{len(shape) - 2}d"])
    arguments = options(scale_factor=1.7, mode=mode, align_corners=align_corners)
    assert not torch_samples.compared(sample("Upsample", shape, arguments), "train")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_unpool(rank):
    """The inverse of a max pool by its indices, in the size that it had, overlapping windows included."""
    shape = (SIGNAL, IMAGE, VOLUME)[rank - 1]
    x = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    for arguments, size in ((options(2), None), (options(3, 2, 1), x.shape[2:])):
        pool = getattr(torch.nn, f"MaxPool{rank}d")(*arguments[0], return_indices=True)
        y, indices = pool(x)
        named = {} if size is None else {"output_size": tuple(size)}
        for inputs in ((y, indices), (y[0], indices[0])):
            case = torch_samples.Sample(f"MaxUnpool{rank}d", 0, *arguments, inputs, named)
            assert not (result := torch_samples.compared(case, "train")), (str(case), result)


@pytest.mark.parametrize("size", [(20,), (21,), (2, 6, 20)])
def test_the_output_size_of_a_transposed_convolution(size):
    """Of the spatial axes, or the whole shape, which is channels last here."""
    arguments = options(4, 6, 4, 3, 4)
    ours = size if len(size) == 1 else (size[0], size[2], size[1])
    theirs = torch_samples.build_torch(sample("ConvTranspose1d", SIGNAL, arguments), "train")
    expected = theirs(torch.zeros(SIGNAL, dtype=torch.float64), output_size=size)
    case = sample("ConvTranspose1d", SIGNAL, arguments, output_size=ours)
    assert torch_samples.call(case).shape == (expected.shape[0], expected.shape[2], expected.shape[1])
    if len(size) == 1:
        assert not torch_samples.compared(case, "train")


# module -> error, shape of the input, and arguments of the constructor: torch refuses them too
REFUSED = [
    ("ReflectionPad1d", DataError, SIGNAL, options(9)),
    ("CircularPad1d", DataError, SIGNAL, options(10)),
    ("ZeroPad1d", DataError, SIGNAL, options(-5)),
    ("ZeroPad2d", UsageError, IMAGE, options((1, 2, 3))),
    ("ReplicationPad2d", DataError, (4, 7), options(1)),
    ("Conv1d", UsageError, SIGNAL, options(4, 6, 3, padding_mode="wrap")),
    ("Conv1d", DataError, (4,), options(4, 6, 3)),
    ("Conv3d", DataError, VOLUME[1:], options(3, 6, 3)),
    ("ConvTranspose2d", UsageError, IMAGE, options(4, 6, 3, padding_mode="circular")),
    ("ConvTranspose2d", UsageError, IMAGE, options(4, 6, 3, output_padding=2)),
    ("MaxPool2d", UsageError, IMAGE, options(3, padding=2)),
    ("MaxPool3d", DataError, IMAGE[1:], options(3)),
    ("AvgPool2d", DataError, (3, 4), options(2)),
    ("AvgPool2d", UsageError, IMAGE, options(2, divisor_override=0)),
    ("AdaptiveAvgPool2d", UsageError, IMAGE, options((1, 2, 3))),
    ("AdaptiveMaxPool1d", DataError, VOLUME, options(2)),
    ("FractionalMaxPool2d", UsageError, IMAGE, options(2)),
    ("FractionalMaxPool2d", UsageError, IMAGE, options(2, 3, 0.5)),
    ("FractionalMaxPool2d", UsageError, IMAGE, options(2, output_ratio=1.5)),
    ("PixelShuffle", DataError, IMAGE, options(3)),
    ("PixelUnshuffle", DataError, IMAGE, options(4)),
    ("ChannelShuffle", DataError, IMAGE, options(3)),
    ("Unfold", DataError, IMAGE, options(9)),
    ("Fold", DataError, (2, 24, 9), options((5, 4), (2, 3))),
    ("Flatten", DataError, IMAGE, options(1, 4)),
    ("Unflatten", DataError, (3, 24), options(1, (5, -1))),
    ("Upsample", UsageError, IMAGE, options(2, 2)),
    ("Upsample", UsageError, IMAGE, options()),
    ("Upsample", UsageError, IMAGE, options(2, align_corners=True)),
    ("Upsample", DataError, SIGNAL, options(2, mode="bilinear")),
    ("Upsample", UsageError, IMAGE, options(2, mode="nearst")),
]


@pytest.mark.parametrize(("module", "error", "shape", "arguments"), REFUSED)
def test_refused(module, error, shape, arguments):
    case = sample(module, shape, arguments)
    with pytest.raises((RuntimeError, ValueError, AssertionError, NotImplementedError, IndexError)):
        torch_samples.build_torch(case, "train")(*case.inputs)
    with pytest.raises(error) as raised:
        torch_samples.call(case)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("size", [(19,), (23,), (6, 20)])
def test_an_output_size_that_cannot_be_reached_is_refused(size):
    case = sample("ConvTranspose1d", SIGNAL, options(4, 6, 4, 3, 4), output_size=size)
    with pytest.raises(UsageError, match="output_size"):
        torch_samples.call(case)


def test_a_fractional_pool_draws_its_windows():
    """Anew in every call; each maximum is the input's element at its index."""
    pool = nn.FractionalMaxPool2d((2, 3), output_ratio=(0.6, 0.5), return_indices=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3))
    (first, indices), (second, _) = pool(jnp.asarray(x)), pool(jnp.asarray(x))
    assert first.shape == (2, 4, 4, 3)
    flat = np.take_along_axis(x.reshape(2, 56, 3), np.asarray(indices).reshape(2, 16, 3), 1)
    np.testing.assert_array_equal(flat.reshape(first.shape), first)
    assert (first != second).any()
    with pytest.raises(UsageError, match="rngs"):
        nn.FractionalMaxPool2d(2, output_ratio=0.5)


TIED = {
    "MaxPool2d": options(3, 2, 1, return_indices=True),
    "MaxPool3d": options(2, 1, return_indices=True),
    "AdaptiveMaxPool2d": options((3, 4), return_indices=True),
    "FractionalMaxPool2d": options(2, (4, 3), None, True, torch.full((2, 4, 2), 0.3, dtype=torch.float64)),
}


@pytest.mark.parametrize("module", TIED)
def test_of_equal_maxima_the_first_is_taken(module):
    """Its index, and the whole gradient."""
    args, kwargs = TIED[module]
    shape = VOLUME if module.endswith("3d") else IMAGE
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 3, shape).astype(float))
    case = torch_samples.Sample(module, 0, args, kwargs, (x,), {})
    assert not (result := torch_samples.compared(case, "train")), result
