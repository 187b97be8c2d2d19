"""Options of torch's layers that PyTorch's own samples leave out, compared as those are."""

import numpy as np
import pytest
import torch

import torch_samples
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
    "ConvTranspose3d": (
        VOLUME,
        [options(4, 6, (3, 2, 1), (2, 1, 3), (1, 0, 0), (1, 0, 2), 2, dilation=(1, 3, 1))],
    ),
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
        case = sample(module, shape if number else shape[1:], arguments, number)
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
]


@pytest.mark.parametrize(("module", "error", "shape", "arguments"), REFUSED)
def test_refused(module, error, shape, arguments):
    case = sample(module, shape, arguments)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        torch_samples.build_torch(case, "train")(*case.inputs)
    with pytest.raises(error) as raised:
        torch_samples.call(case)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("size", [(19,), (23,), (6, 20)])
def test_an_output_size_that_cannot_be_reached_is_refused(size):
    case = sample("ConvTranspose1d", SIGNAL, options(4, 6, 4, 3, 4), output_size=size)
    with pytest.raises(UsageError, match="output_size"):
        torch_samples.call(case)
