"""Generative models: penalties of second order, alternating updates, samplers, codebooks, and what must go red."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from comparison import BOUND, assert_close, error
from jaxarch import diffusion, gan, nn, state
from jaxarch.convert import load_state_dict
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import DataError, UsageError
from jaxarch.optim.optimizer import with_standard_promotion
from jaxarch.parity import catalog_pair, check
from jaxarch.train import step
from jaxarch.train.tasks import gan as gan_task
from torchref import diffusion as reference
from torchref import gan as reference_gan
from torchref import losses as torch_losses
from torchref import nn as reference_nn


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
    pair = catalog_pair("diffusion_unet", "tiny")
    pair.reset(train=False)
    return pair


def test_sampling_equals_torch():
    """DDPM over 100 steps with guidance, and DDIM over 50 with eta, clipping and v-prediction: one scan each."""
    pair, rng = unets(), np.random.default_rng(1)
    graph, params, rest = state.split(pair.model)
    x, long, short = (rng.normal(size=s) for s in ((2, 13, 6, 8), (100, 2, 13, 6, 8), (50, 2, 13, 6, 8)))
    labels, null = np.array([2, 0]), 17
    seen = []

    @jax.jit
    def ours(params, x, long, short, labels):
        model = state.merge(graph, params, rest)
        predict = diffusion.guided(model, labels, null, 2.0)
        first = diffusion.ddpm_sample(diffusion.Diffusion(100), predict, x, long, progress=seen.append)
        v = diffusion.Diffusion(1000, "cosine", "v")
        second = diffusion.ddim_sample(v, model, x, 50, 0.5, short, 1.0)
        return first, second, diffusion.ddim_sample(v, model, x, 2)

    given = channels_last(x), channels_last(long, 2), channels_last(short, 2)
    found = ours(params, *map(jnp.asarray, given), jnp.asarray(labels))
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
    """Generator and critic of 2-channel 5x5 images; the critic's score is a logit."""
    generator, critic = catalog_pair("generator", "tiny"), catalog_pair("discriminator", "tiny")
    critic.torch.net[-1].function = torch.nn.functional.tanh
    critic.model.net[len(critic.model.net) - 1].function = jnp.tanh
    return generator, critic


def images(seed, count=4):
    return np.random.default_rng(seed).normal(size=(count, 2, 5, 5))


def rows_close(pair, ours, theirs):
    assert_close(to_torch(pair.rows, ours), theirs, scale=1e-3)


def test_penalties_have_torchs_second_derivatives():
    """WGAN-GP's and R1's values and gradients, also where the slope is zero for all images or for one."""
    _, pair = adversaries()
    pair.reset(train=True)
    graph, params, rest = state.split(pair.model)
    real, fake, mix = images(0), images(1), np.array([0.0, 0.3, 0.9, 1.0])

    @jax.jit
    def both(params, real, fake, mix, dead):
        def penalties(params):
            critic = state.merge(graph, params, rest)

            def score(x):
                return critic(x * dead[:, None, None, None])

            # Of the two the weights' gradients are those of their sum.
            found = gan.gradient_penalty(score, real, fake, mix), gan.real_penalty(score, real)
            return sum(found), jnp.stack(found)

        (_, values), gradients = jax.value_and_grad(penalties, has_aux=True)(params)
        return values, gradients

    for dead in (np.ones(4), np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4)):
        values, gradients = both(
            params, *map(jnp.asarray, (channels_last(real), channels_last(fake), mix, dead))
        )
        scale = torch.from_numpy(dead)[:, None, None, None]
        tensors = [torch.from_numpy(a) for a in (real, fake, mix)]
        score = lambda x, s=scale: pair.torch(x * s)  # noqa: E731
        theirs = torch.stack(
            [reference_gan.gradient_penalty(score, *tensors), reference_gan.real_penalty(score, tensors[0])]
        )
        named = dict(pair.torch.named_parameters())
        found = torch.autograd.grad(theirs.sum(), list(named.values()), allow_unused=True)
        assert error(values, theirs) < BOUND
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)]
        rows_close(pair, gradients, dict(zip(named, filled, strict=True)))
        if not dead.any():
            assert values.tolist() == [1.0, 0.0]
            assert all(not np.any(g) for g in gradients.values())


def critics_with_state():
    """A critic with batch norm and spectral norm, in torch and here, with the same weights."""
    sizes = ((2, 3, 3, 1, 1), (3 * 25, 1))
    theirs = torch.nn.Sequential(
        reference_nn.SpectralConv2d(*sizes[0]),
        torch.nn.BatchNorm2d(3),
        torch.nn.Softplus(),
        torch.nn.Flatten(),
        reference_nn.SpectralLinear(*sizes[1]),
    ).double()
    ours = nn.Sequential(
        nn.SpectralConv2d(*sizes[0], rngs=nnx.Rngs(0)),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        nn.Flatten(),
        nn.SpectralLinear(*sizes[1], rngs=nnx.Rngs(0)),
    )
    load_state_dict(ours, theirs.state_dict())
    return theirs.train(), ours


@pytest.mark.parametrize("kind", ["gradient_penalty", "real_penalty"])
def test_penalties_of_critics_with_state(kind):
    """Value, second derivatives, running statistics and power iteration in train mode: after scores and a penalty."""
    theirs, ours = critics_with_state()
    ours.train()
    arrays = (images(0), images(1), np.array([0.0, 0.3, 0.9, 1.0]))[: 3 if kind == "gradient_penalty" else 1]
    graph, params, rest = state.split(ours)

    @jax.jit
    def run(params, *arrays):
        def loss(params):
            critic = state.merge(graph, params, rest)
            return critic(arrays[0]).mean() + getattr(gan, kind)(critic, *arrays), state.rest_of(critic)

        return jax.value_and_grad(loss, has_aux=True)(params)

    given = [jnp.asarray(channels_last(a) if a.ndim == 4 else a) for a in arrays]
    (value, new_rest), gradients = run(params, *given)
    tensors = [torch.from_numpy(a) for a in arrays]
    expected = theirs(tensors[0]).mean() + getattr(reference_gan, kind)(theirs, *tensors)
    named = dict(theirs.named_parameters())
    found = torch.autograd.grad(expected, list(named.values()), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)]
    rows = layout(ours)
    assert error(value, expected) < BOUND
    assert_close(to_torch(rows, gradients), dict(zip(named, filled, strict=True)), scale=1e-3)
    buffers = dict(theirs.named_buffers())
    assert buffers["1.num_batches_tracked"] == 2
    assert_close(to_torch([r for r in rows if not r.trainable], new_rest), buffers)
    assert getattr(gan, kind)(ours, *given).shape == ()  # not compiled, too


RIVALS = {
    "penalty": {"kind": "wasserstein", "penalty": 10.0, "critic_steps": 2, "feature_matching": 1.0},
    "clipped": {"kind": "wasserstein", "penalty": 0.0, "critic_steps": 1, "weight_clip": 0.02},
    "smoothed": {
        "kind": "non_saturating",
        "penalty": 0.5,
        "penalty_at": "real",
        "critic_steps": 1,
        "real_target": 0.9,
    },
}


@pytest.mark.parametrize("options", RIVALS.values(), ids=RIVALS)
def test_alternating_steps_equal_torch(options):
    """Five steps of the trainer, each rival with its own Adam and learning rate, and an averaged generator."""
    pairs = dict(zip(("generator", "critic"), adversaries(), strict=True))
    rates, betas, average = {"critic": 4e-3, "generator": 1e-3}, (0.5, 0.9), 0.8
    for pair in pairs.values():
        pair.reset(train=True)
    task = gan_task.make("discriminator", "tiny", latent=6, **options)
    rivals = gan_task.Adversaries(pairs["generator"].model, pairs["critic"].model)
    optimizers = {k: with_standard_promotion(optax.adam(rate, *betas)) for k, rate in rates.items()}
    advance = step.make_train_step(state.split(rivals).graph, task, optimizers, ema=average)
    # The step takes the buffers that it is given: they are the pairs'.
    now = jax.tree.map(np.array, step.create_state(lambda: rivals, task, optimizers, ema=True))
    sides = {k: pair.torch for k, pair in pairs.items()}
    adams = {k: torch.optim.Adam(m.parameters(), lr=rates[k], betas=betas) for k, m in sides.items()}
    means = {k: v.detach().clone() for k, v in sides["generator"].named_parameters()}
    for i in range(5):
        real, draws = images(10 + i), 0
        for name in ("critic",) * options["critic_steps"] + ("generator",):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), draws)
            drawn, draws = task.draw(key, {"x": np.zeros((4, 1))}), draws + 1
            z, mix = (torch.from_numpy(np.array(drawn[k])) for k in ("z", "mix"))
            torch_step(adams[name], name, sides, torch.from_numpy(real), z, mix, options)
        for k, v in sides["generator"].named_parameters():
            means[k].lerp_(v.detach(), 1 - average)
        now, metrics = advance(now, {"x": jnp.asarray(channels_last(real))})
    assert np.isfinite(float(metrics["loss"]))

    def part(values, name):
        return {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}

    for name, pair in pairs.items():
        named = dict(pair.torch.named_parameters())
        largest = max(float((named[k] - pair.weights[k]).detach().abs().max()) for k in named)
        assert largest > 1e-3
        rows_close(pair, part(now.params, name), named)
        adam, *_ = now.opt_state[name]
        for slot, values in (("exp_avg", adam.mu), ("exp_avg_sq", adam.nu)):
            expected = {k: adams[name].state[p][slot] for k, p in named.items()}
            rows_close(pair, part(values, name), expected)
    rows_close(pairs["generator"], part(now.ema_params, "generator"), means)


def torch_step(adam, name, sides, real, z, mix, options):
    """One step of a rival's own optimizer, and the critic's clipping of weights."""
    adam.zero_grad()
    rival_loss(name, sides, real, z, mix, **options).backward()
    adam.step()
    if name == "critic" and "weight_clip" in options:
        with torch.no_grad():
            for p in sides["critic"].parameters():
                p.clamp_(-options["weight_clip"], options["weight_clip"])


def rival_loss(
    name,
    sides,
    real,
    z,
    mix,
    *,
    kind,
    penalty,
    penalty_at="between",
    feature_matching=0.0,
    real_target=1.0,
    **_,
):
    """What the rival minimises, in torch."""
    generator, critic = sides["generator"], sides["critic"]
    fake = generator(z)
    if name == "generator":
        score, found = critic(fake, return_features=True)
        loss = torch_losses.gan_generator_loss(score, kind=kind)
        apart = reference_gan.feature_matching(critic(real, return_features=True)[1], found)
        return loss + feature_matching * apart if feature_matching else loss
    fake = fake.detach()
    if real_target < 1:
        wanted = torch.full((len(real), 1), real_target, dtype=torch.float64)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(critic(real), wanted)
        loss = loss + torch.nn.functional.softplus(critic(fake)).mean()
    else:
        loss = torch_losses.gan_discriminator_loss(critic(real), critic(fake), kind=kind)
    if penalty_at == "real":
        return loss + penalty * reference_gan.real_penalty(critic, real)
    return loss + penalty * reference_gan.gradient_penalty(critic, real, fake, mix) if penalty else loss


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"penalty_at": "fake"}, "unknown penalty_at"),
        ({"kind": "hinge", "real_target": 0.9}, "real_target has no effect on the loss hinge"),
        (
            {"critic": "stylegan_discriminator", "feature_matching": 1.0},
            "stylegan_discriminator gives no features",
        ),
    ],
)
def test_adversaries_say_what_does_not_fit(options, says):
    with pytest.raises(UsageError, match=says):
        gan_task.make(**options)


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
    pair = catalog_pair("stylegan", "tiny")
    pair.torch.mapping.w_avg += torch.arange(11)
    pair.model.mapping.w_avg[...] = jnp.arange(11.0)
    pair.torch.eval()
    pair.model.eval()
    z = pair.inputs["z"]
    theirs = pair.torch.mapping(torch.from_numpy(z), 0.7)
    assert error(pair.model.mapping(jnp.asarray(z), 0.7), theirs) < BOUND
    np.testing.assert_array_equal(pair.model.mapping(jnp.asarray(z), 0.0)[0], np.arange(11.0))
