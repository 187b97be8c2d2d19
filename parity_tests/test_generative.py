"""Generative models: penalties of second order, alternating updates, samplers, codebooks, and what must go red."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxarch import diffusion, gan, nn, state
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import DataError, UsageError
from jaxarch.parity import Pair, check
from jaxarch.train.optim import _promoting
from torchref import diffusion as reference
from torchref import gan as reference_gan
from torchref import nn as reference_nn

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


# ------------------------------------------------------------------------------------------- adversaries


@functools.cache
def adversaries():
    """Generator and critic of 3-channel 5x5 images; the critic's score is a logit."""
    generator, critic = Pair.from_catalog("generator", "tiny"), Pair.from_catalog("discriminator", "tiny")
    critic.torch.net[-1].function = torch.nn.functional.tanh
    critic.model.net[len(critic.model.net) - 1].function = jnp.tanh
    return generator, critic


def images(seed, count=4):
    return np.random.default_rng(seed).normal(size=(count, 3, 5, 5))


def rows_close(pair, ours, theirs):
    found = to_torch(pair.rows, ours)
    assert found.keys() == theirs.keys()
    for key, value in theirs.items():
        scale = max(float(value.detach().norm()), 1e-3)
        assert np.linalg.norm(found[key] - value.detach().numpy()) / scale < BOUND, key


def test_penalty_has_torchs_second_derivatives():
    """Of the weights and of the penalty itself; also where the gradient is zero, for all images or for one."""
    _, pair = adversaries()
    pair.reset(train=True)
    graph, params, rest = state.split(pair.model)
    real, fake, mix = images(0), images(1), np.array([0.0, 0.3, 0.9, 1.0])

    @jax.jit
    def both(params, real, fake, mix, dead):
        def penalty(params):
            critic = state.merge(graph, params, rest)
            return gan.gradient_penalty(lambda x: critic(x * dead[:, None, None, None]), real, fake, mix)

        return jax.value_and_grad(penalty)(params)

    for dead in (np.ones(4), np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4)):
        value, gradients = both(
            params, *map(jnp.asarray, (channels_last(real), channels_last(fake), mix, dead))
        )
        scale = torch.from_numpy(dead)[:, None, None, None]
        tensors = [torch.from_numpy(a) for a in (real, fake, mix)]
        theirs = reference_gan.gradient_penalty(lambda x, s=scale: pair.torch(x * s), *tensors)
        named = dict(pair.torch.named_parameters())
        found = torch.autograd.grad(theirs, list(named.values()), allow_unused=True)
        assert error(value, theirs) < BOUND
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)]
        rows_close(pair, gradients, dict(zip(named, filled, strict=True)))
        if not dead.any():
            assert float(value) == 1.0
            assert all(not np.any(g) for g in gradients.values())


def test_alternating_steps_equal_torch():
    """Five rounds of a WGAN-GP critic and its generator, each with its own Adam and learning rate."""
    pairs = adversaries()
    rates, betas = (1e-3, 4e-3), (0.5, 0.9)
    for pair in pairs:
        pair.reset(train=True)
    (g_graph, g, g_rest), (c_graph, c, c_rest) = (state.split(p.model) for p in pairs)
    optimizers = [_promoting(optax.adam(rate, *betas)) for rate in rates]
    rng = np.random.default_rng(3)
    rounds = [
        (images(10 + i), rng.normal(size=(4, 6)), rng.normal(size=(4, 6)), rng.random(4)) for i in range(5)
    ]

    @jax.jit
    def ours(g, c, g_state, c_state, real, first, second, mix):
        def critic_loss(c):
            critic = state.merge(c_graph, c, c_rest)
            fake = state.merge(g_graph, g, g_rest)(first)
            return (
                critic(fake).mean() - critic(real).mean() + 10 * gan.gradient_penalty(critic, real, fake, mix)
            )

        updates, c_state = optimizers[1].update(jax.grad(critic_loss)(c), c_state)
        c = optax.apply_updates(c, updates)

        def generator_loss(g):
            critic, fake = state.merge(c_graph, c, c_rest), state.merge(g_graph, g, g_rest)(second)
            _, of_real = critic(real, return_features=True)
            score, of_fake = critic(fake, return_features=True)
            return gan.feature_matching(of_real, of_fake) - score.mean()

        updates, g_state = optimizers[0].update(jax.grad(generator_loss)(g), g_state)
        return optax.apply_updates(g, updates), c, g_state, c_state

    states = [o.init(p) for o, p in zip(optimizers, (g, c), strict=True)]
    generator, critic = (p.torch for p in pairs)
    adams = [
        torch.optim.Adam(m.parameters(), lr=rate, betas=betas)
        for m, rate in zip((generator, critic), rates, strict=True)
    ]
    for real, *others in rounds:
        g, c, *states = ours(g, c, *states, *map(jnp.asarray, (channels_last(real), *others)))
        real, first, second, mix = (torch.from_numpy(a) for a in (real, *others))
        fake = generator(first).detach()
        loss = critic(fake).mean() - critic(real).mean()
        loss = loss + 10 * reference_gan.gradient_penalty(critic, real, fake, mix)
        adams[1].zero_grad()
        loss.backward()
        adams[1].step()
        score, of_fake = critic(generator(second), return_features=True)
        _, of_real = critic(real, return_features=True)
        adams[0].zero_grad()
        (reference_gan.feature_matching(of_real, of_fake) - score.mean()).backward()
        adams[0].step()
    for pair, params, optimizer, (adam, *_) in zip(pairs, (g, c), adams, states, strict=True):
        named = dict(pair.torch.named_parameters())
        moved = max(float((named[k] - pair.weights[k]).detach().abs().max()) for k in named)
        assert moved > 1e-3
        rows_close(pair, params, named)
        for slot, values in (("exp_avg", adam.mu), ("exp_avg_sq", adam.nu)):
            rows_close(pair, values, {k: optimizer.state[p][slot] for k, p in named.items()})


# ------------------------------------------------------------------------------------- layers and mutants


def quantizers():
    rng = np.random.default_rng(4)
    inputs = {"x": rng.normal(size=(2, 3, 2, 4)), "revival": rng.random(24)}
    arguments = (24, 3, 0.25, True, 0.9)  # more codes than vectors: some are dead
    theirs = reference_nn.VectorQuantizer(*arguments, revive_below=0.95)
    ours = nn.VectorQuantizer(*arguments, revive_below=0.95, rngs=nnx.Rngs(0))
    return theirs, ours, inputs, {"x": "image", "revival": "time"}


def modulated():
    rng = np.random.default_rng(5)
    inputs = {
        "x": rng.normal(size=(2, 3, 3, 3)),
        "w": rng.normal(size=(2, 4)),
        "noise": rng.normal(size=(2, 6, 6)),
    }
    theirs = reference_nn.ModulatedConv2d(3, 2, 4, up=True)
    torch.nn.init.constant_(theirs.noise_strength, 0.3)
    ours = nn.ModulatedConv2d(3, 2, 4, up=True, rngs=nnx.Rngs(0))
    return theirs, ours, inputs, {"x": "image", "w": "features", "noise": "noise"}


@pytest.mark.parametrize(
    ("build", "attribute", "wrong"),
    [
        (quantizers, None, None),
        (quantizers, "decay", 0.89),
        (quantizers, "revive_below", 0.0),
        (modulated, None, None),
        (modulated, "eps", 1e-6),
    ],
)
def test_layers_and_their_mutants(build, attribute, wrong):
    torch.manual_seed(0)
    theirs, ours, inputs, kinds = build()
    if attribute:
        setattr(ours, attribute, wrong)
    result = check(theirs, ours, inputs, kinds=kinds, outputs="image", modes=("train",))
    assert result.ok == (attribute is None), result.detail


def test_dead_codes_become_vectors_of_the_batch():
    model = nn.VectorQuantizer(4, 2, decay=0.5, revive_below=0.9, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 2, 2, 2)) * jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    found = model(x, jnp.array([0.0, 0.3, 0.5, 0.99]))
    used = set(np.asarray(found.ids).ravel().tolist())
    assert float(found.usage) == len(used) / 4
    picked = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    for code in set(range(4)) - used:
        assert model.embed[...][code].tolist() == [picked[code]] * 2
    with pytest.raises(DataError, match="revival"):
        model(x)
    with pytest.raises(UsageError, match="ema"):
        nn.VectorQuantizer(4, 2, ema=False, revive_below=1.0, rngs=nnx.Rngs(0))


def test_truncation_pulls_towards_the_mean():
    pair = Pair.from_catalog("stylegan", "tiny")
    pair.torch.mapping.w_avg += torch.arange(6)
    pair.model.mapping.w_avg[...] = jnp.arange(6.0)
    pair.torch.eval()
    pair.model.eval()
    z = pair.inputs["z"]
    theirs = pair.torch.mapping(torch.from_numpy(z), 0.7)
    assert error(pair.model.mapping(jnp.asarray(z), 0.7), theirs) < BOUND
    np.testing.assert_array_equal(pair.model.mapping(jnp.asarray(z), 0.0)[0], np.arange(6.0))
