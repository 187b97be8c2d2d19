"""Generative models: penalties of second order, alternating updates, samplers, codebooks, and what must go red."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxarch import diffusion, state
from jaxarch.errors import DataError, UsageError
from jaxarch.parity import Pair
from torchref import diffusion as reference

BOUND = 1e-10


def error(ours, theirs):
    ours, theirs = (
        np.asarray(ours),
        np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs),
    )
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def channels_last(x, first=1):
    return np.moveaxis(x, first, -1)


# --------------------------------------------------------------------------------------------- diffusion


def test_schedules_are_the_published_ones():
    betas = diffusion.linear_betas(1000)
    assert betas[[0, -1]] == pytest.approx([1e-4, 0.02])
    assert np.diff(betas) == pytest.approx((0.02 - 1e-4) / 999)
    # Nichol and Dhariwal's alpha bar itself, where no beta is cut.
    d = diffusion.Diffusion(100, "cosine")
    f = lambda t: np.cos((t / 100 + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    assert d.products[:99] == pytest.approx(f(np.arange(1, 100)) / f(0))
    assert d.betas.max() == 0.999
    for name in diffusion.SCHEDULES:
        ours, theirs = diffusion.Diffusion(37, name), reference.Diffusion(37, name)
        np.testing.assert_array_equal(ours.betas, theirs.betas)
    with pytest.raises(UsageError, match="linear"):
        diffusion.Diffusion(10, "lineal")
    with pytest.raises(UsageError, match="1 to 10"):
        diffusion.ddim_times(diffusion.Diffusion(10), 11)
    with pytest.raises(DataError, match="noise"):
        diffusion.ddim_sample(diffusion.Diffusion(10), lambda x, t: x, jnp.zeros((1, 2)), 2, eta=0.5)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_forward_process(prediction):
    rng = np.random.default_rng(0)
    x, noise, t = rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 4, 4, 2)), np.array([0, 20, 49])
    ours = diffusion.Diffusion(50, "cosine", prediction)
    theirs = reference.Diffusion(50, "cosine", prediction)
    noisy, target = ours.q_sample(x, t, noise), ours.target(x, t, noise)
    as_torch = [torch.from_numpy(a) for a in (x, t, noise)]
    assert error(noisy, theirs.q_sample(*as_torch)) < 1e-15
    assert error(target, theirs.target(*as_torch)) < 1e-15
    # A model that predicts the target gives image and noise back.
    image, drift = ours.split(noisy, t, target)
    assert error(image, x) < 1e-10
    assert error(drift, noise) < 1e-10


@functools.cache
def unets():
    pair = Pair.from_catalog("diffusion_unet", "tiny")
    pair.reset(train=False)
    return pair


def test_sampling_equals_torch():
    """DDPM over 100 steps with guidance, and DDIM over 50 with eta, clipping and v-prediction: one scan each."""
    pair, rng = unets(), np.random.default_rng(1)
    graph, params, rest = state.split(pair.model)
    x, long, short = (rng.normal(size=s) for s in ((2, 2, 6, 8), (100, 2, 2, 6, 8), (50, 2, 2, 6, 8)))
    labels, null = np.array([2, 0]), 3
    seen = []

    @jax.jit
    def ours(params, x, long, short, labels):
        model = state.merge(graph, params, rest)
        predict = diffusion.guided(model, labels, null, 2.0)
        first = diffusion.ddpm_sample(diffusion.Diffusion(100), predict, x, long, progress=seen.append)
        v = diffusion.Diffusion(1000, "cosine", "v")
        second = diffusion.ddim_sample(v, model, x, 50, 0.5, short, 1.0)
        return first, second, diffusion.ddim_sample(v, model, x, 2)

    moved = channels_last(x), channels_last(long, 2), channels_last(short, 2)
    found = ours(params, *map(jnp.asarray, moved), jnp.asarray(labels))
    with torch.no_grad():
        x, long, short, labels = (torch.from_numpy(a) for a in (x, long, short, labels))
        predict = reference.guided(pair.torch, labels, null, 2.0)
        first = reference.ddpm_sample(reference.Diffusion(100), predict, x, long)
        v = reference.Diffusion(1000, "cosine", "v")
        second = reference.ddim_sample(v, pair.torch, x, 50, 0.5, short, 1.0)
        third = reference.ddim_sample(v, pair.torch, x, 2)
    for mine, theirs in zip(found, (first, second, third), strict=True):
        assert error(mine, channels_last(theirs.numpy())) < BOUND
    jax.effects_barrier()
    assert sorted(map(int, seen)) == list(range(100))


def test_a_perfect_predictor_gives_the_image_back():
    """DDIM from q_sample's noise, with the noise known, ends at the image: the samplers are not only alike."""
    rng = np.random.default_rng(2)
    image, noise = (jnp.asarray(rng.normal(size=(2, 3, 3, 1))) for _ in range(2))
    for prediction in diffusion.PREDICTIONS:
        d = diffusion.Diffusion(200, "linear", prediction)
        start = d.q_sample(image, jnp.full(2, 199), noise)
        found = diffusion.ddim_sample(d, lambda x, t, d=d: d.target(image, t, noise), start, 20)
        assert error(found, image) < BOUND


def test_dropped_labels():
    labels, uniform = np.array([0, 1, 2, 1]), np.array([0.05, 0.5, 0.0999, 0.1])
    assert diffusion.drop_labels(labels, uniform, 0.1, 9).tolist() == [9, 1, 9, 1]
    theirs = reference.drop_labels(torch.from_numpy(labels), torch.from_numpy(uniform), 0.1, 9)
    assert theirs.tolist() == [9, 1, 9, 1]
