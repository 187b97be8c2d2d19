"""Losses: the value and the gradient of every input equal torch's, on kinks, ties, nothing and infinities too."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from comparison import BOUND, error, jax_vjp, torch_vjp
from jaxarch import losses as ours
from jaxarch.errors import UsageError
from torchref import losses as theirs

RNG = np.random.default_rng(0)
INF = np.inf


def drawn(*shape):
    return RNG.normal(size=shape)


def labels(*shape, classes=5, ignored=()):
    found = RNG.integers(0, classes, shape)
    for index in ignored:
        found[index] = -100
    return found


def share(*shape):
    weights = RNG.random(shape)
    return weights / weights.sum(-1, keepdims=True)


LOGITS, LABELS = drawn(3, 4, 5), labels(3, 4, ignored=[(0, 0), (2, 1)])
SOFT = share(3, 4, 5)
WEIGHT = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
LOG_P = np.log(share(4, 5))
SPARSE = np.where(share(4, 5) > 0.2, share(4, 5), 0)
BITS = RNG.integers(0, 2, (3, 4))
EMBEDDED = drawn(7, 3)
GROUPS = np.array([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 have no positive
GRID = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 0]])  # equal distances, and none
KINKS = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
TRIPLE = {"anchor": drawn(4, 3), "positive": drawn(4, 3), "negative": drawn(4, 3)}
# d(a, p) = 3, d(a, n) = 4 and margin 1, to the bit: the hinge exactly at 0.
EDGE = {"anchor": np.full((1, 1), -1e-6), "positive": np.full((1, 1), 3.0), "negative": np.full((1, 1), 4.0)}
SCORES = {"real": np.array([1.0, -1.0, 0.3]), "fake": np.array([-1.0, 1.0, 0.2, -3.0])}
VAE = {"reconstruction": drawn(3, 4), "x": RNG.random((3, 4)), "mu": drawn(3, 2), "logvar": drawn(3, 2)}
STUDENT = {"student_logits": LOGITS, "teacher_logits": drawn(3, 4, 5), "labels": LABELS}
CE = {"logits": LOGITS, "labels": LABELS}
WIDE = np.array(
    [[800.0, -INF, 0.0, -800], [INF, 0, 0, -INF], [-INF, -INF, -INF, -INF], [1e300, -1e300, 0, 0]]
)

CASES = {
    "cross_entropy": [
        (CE, {}),
        (CE, {"reduction": "none"}),
        (CE, {"reduction": "sum", "label_smoothing": 0.1}),
        ({**CE, "weight": WEIGHT}, {"label_smoothing": 0.2}),
        ({"logits": LOGITS, "labels": np.abs(LABELS) % 5, "weight": WEIGHT}, {"ignore_index": 1}),
        ({"logits": LOGITS, "labels": SOFT}, {}),
        ({"logits": LOGITS, "labels": SOFT, "weight": WEIGHT}, {"label_smoothing": 0.1}),
        ({"logits": WIDE, "labels": np.array([0, 0, 2, 0])}, {}),
        ({"logits": WIDE, "labels": np.eye(4)[[0, 0, 2, 0]]}, {}),
    ],
    "label_smoothing_loss": [(CE, {}), (CE, {"smoothing": 0.3, "reduction": "none"})],
    "binary_cross_entropy_with_logits": [
        ({"logits": drawn(3, 4), "targets": BITS}, {}),
        ({"logits": drawn(3, 4), "targets": share(3, 4), "pos_weight": share(4), "weight": share(3, 1)}, {}),
        ({"logits": np.array([0.0, INF, -INF, 800, -INF]), "targets": np.array([0.5, 1, 0, 0, 0.0])}, {}),
    ],
    "binary_cross_entropy": [
        ({"probabilities": share(3, 4), "targets": BITS}, {"reduction": "none"}),
        ({"probabilities": np.array([0.0, 1, 0, 1, 1e-300]), "targets": np.array([0.0, 1, 1, 0, 1])}, {}),
    ],
    "focal_loss": [
        (CE, {}),
        ({**CE, "alpha": WEIGHT}, {"gamma": 0.5, "reduction": "none"}),
        ({"logits": WIDE, "labels": np.array([0, 0, 2, 1])}, {"gamma": 0.5}),
        ({"logits": np.zeros((2, 1)), "labels": np.array([0, 0])}, {"gamma": 0.5}),
    ],
    "binary_focal_loss": [
        ({"logits": drawn(3, 4), "targets": BITS}, {}),
        (
            {"logits": np.array([0.0, INF, -INF, 900, -900]), "targets": np.array([0, 1, 1, 1, 1])},
            {"gamma": 0.5},
        ),
        ({"logits": drawn(3, 4), "targets": BITS}, {"alpha": -1, "gamma": 0.0, "reduction": "sum"}),
    ],
    "contrastive_loss": [
        ({"embeddings": EMBEDDED, "labels": GROUPS}, {}),
        ({"embeddings": EMBEDDED, "labels": np.arange(7) % 4}, {"temperature": 0.5}),
        ({"embeddings": EMBEDDED, "labels": np.arange(7)}, {}),
        ({"embeddings": EMBEDDED[:1], "labels": GROUPS[:1]}, {}),
        ({"embeddings": np.concatenate([EMBEDDED, np.zeros((1, 3))]), "labels": np.append(GROUPS, 0)}, {}),
    ],
    "pairwise_contrastive_loss": [
        ({"first": drawn(6, 3), "second": drawn(6, 3), "same": RNG.integers(0, 2, 6)}, {"margin": 2.0}),
        ({"first": np.full((2, 3), -1e-6), "second": np.zeros((2, 3)), "same": np.array([0, 1])}, {}),
    ],
    "triplet_loss": [
        (TRIPLE, {}),
        (TRIPLE, {"swap": True, "reduction": "none", "margin": 2.0}),
        (EDGE, {}),
        ({**EDGE, "negative": EDGE["positive"]}, {"swap": True}),
    ],
    "mined_triplet_loss": [
        ({"embeddings": EMBEDDED, "labels": GROUPS}, {"margin": 0.7, "mining": mining})
        for mining in ours.MININGS
    ]
    + [({"embeddings": GRID, "labels": np.array([0, 0, 0, 1, 1, 1])}, {"mining": m}) for m in ours.MININGS]
    + [({"embeddings": EMBEDDED, "labels": np.zeros(7, int)}, {"mining": m}) for m in ours.MININGS],
    "mse_loss": [({"input": drawn(3, 4), "target": drawn(3, 4)}, {})],
    "l1_loss": [({"input": KINKS, "target": np.abs(KINKS)}, {})],
    "smooth_l1_loss": [
        ({"input": KINKS, "target": np.zeros(7)}, {"beta": 0.5, "reduction": "none"}),
        ({"input": KINKS, "target": np.zeros(7)}, {"beta": 0.0}),
    ],
    "huber_loss": [
        ({"input": KINKS, "target": np.zeros(7)}, {"delta": 0.5}),
        ({"input": np.array([INF, 1e200]), "target": np.zeros(2)}, {}),
    ],
    "kl_div": [
        ({"input": LOG_P, "target": share(4, 5)}, {}),
        ({"input": LOG_P, "target": SPARSE}, {"reduction": "batchmean"}),
        ({"input": LOG_P, "target": np.log(share(4, 5))}, {"log_target": True, "reduction": "none"}),
        ({"input": np.array([[-INF, 0.0]]), "target": np.array([[0.0, 1.0]])}, {}),
        ({"input": np.array([[-INF, 0.0]]), "target": np.array([[-INF, 0.0]])}, {"log_target": True}),
    ],
    "vae_loss": [
        (VAE, {"beta": 0.5, "kind": "mse", "reduction": "mean"}),
        (VAE, {"kind": "bce_with_logits"}),
        ({**VAE, "reconstruction": 1 / (1 + np.exp(-VAE["reconstruction"]))}, {}),
    ],
    "gan_discriminator_loss": [(SCORES, {"kind": kind}) for kind in ours.GAN_KINDS],
    "gan_generator_loss": [({"fake": SCORES["fake"]}, {"kind": kind}) for kind in ours.GAN_KINDS],
    "distillation_loss": [
        (STUDENT, {}),
        (STUDENT, {"temperature": 4.0, "alpha": 0.9}),
        ({"student_logits": WIDE, "teacher_logits": WIDE[::-1].copy(), "labels": np.array([0, 0, 2, 0])}, {}),
    ],
    "multi_task_loss": [
        ({"losses": {"a": drawn(), "b": drawn()}}, {}),
        ({"losses": {"a": drawn(), "b": drawn()}}, {"weights": {"a": 2.0, "b": 0.5}}),
    ],
    "uncertainty_loss": [
        ({"losses": {"a": drawn(), "b": drawn()}, "log_variances": {"a": drawn(), "b": drawn()}}, {}),
    ],
}
NOTHING = {
    "cross_entropy": [
        {"logits": LOGITS, "labels": np.full((3, 4), -100)},
        {"logits": LOGITS, "labels": np.full((3, 4), 2), "weight": WEIGHT},
        {"logits": np.zeros((0, 5)), "labels": np.zeros(0, int)},
        {"logits": np.zeros((0, 5)), "labels": np.zeros((0, 5))},
    ],
    "label_smoothing_loss": [{"logits": LOGITS, "labels": np.full((3, 4), -100)}],
    "focal_loss": [{"logits": LOGITS, "labels": np.full((3, 4), -100)}],
    "contrastive_loss": [{"embeddings": np.zeros((0, 3)), "labels": np.zeros(0, int)}],
    "mined_triplet_loss": [{"embeddings": np.zeros((0, 3)), "labels": np.zeros(0, int)}],
    "distillation_loss": [{**STUDENT, "labels": np.full((3, 4), -100)}],
    "mse_loss": [{"input": np.zeros((0, 2)), "target": np.zeros((0, 2))}],
    "kl_div": [{"input": np.zeros((0, 2)), "target": np.zeros((0, 2))}],
    "triplet_loss": [{k: v[:0] for k, v in TRIPLE.items()}],
    "vae_loss": [{k: v[:0] for k, v in VAE.items()}],
    "gan_generator_loss": [{"fake": np.zeros(0)}],
    "binary_cross_entropy_with_logits": [{"logits": np.zeros(0), "targets": np.zeros(0)}],
}


def is_learned(key, x):
    """torch gives class weights no gradient."""
    return key not in ("weight", "pos_weight") and all(
        v.dtype.kind == "f" for v in map(np.asarray, jax.tree.leaves(x))
    )


def counted(outputs):
    """Another weight for each element of a loss that is not reduced."""
    return {k: np.arange(1.0, v.size + 1).reshape(v.shape) for k, v in outputs.items()}


def value_and_gradients(name, inputs, options):
    """(jaxarch's, torchref's) value and gradients of the inputs that may learn."""
    learned = {k: v for k, v in inputs.items() if is_learned(k, v)}
    fixed = {k: v for k, v in inputs.items() if k not in learned}

    def our_loss(_, **given):
        return getattr(ours, name)(**given, **jax.tree.map(jnp.asarray, fixed), **options)

    def their_loss(_, **given):
        return getattr(theirs, name)(**given, **jax.tree.map(torch.tensor, fixed), **options)

    expected, cotangents = torch_vjp(None, learned, counted, their_loss)
    return jax_vjp(None, our_loss)(learned, cotangents), expected


def compare(name, inputs, options):
    """The harness's error where torch's numbers are finite, equality where they are infinite, and no NaN."""
    actual, expected = value_and_gradients(name, inputs, options)
    assert actual.inputs.keys() == expected.inputs.keys()
    pairs = [(actual.outputs[""], expected.outputs[""])]
    for ours_, theirs_ in pairs + [(actual.inputs[k], v) for k, v in expected.inputs.items()]:
        assert ours_.shape == theirs_.shape
        assert not np.isnan(ours_).any()
        assert not np.isnan(theirs_).any()
        finite = np.isfinite(theirs_) & (np.abs(theirs_) < 1e100)
        np.testing.assert_allclose(ours_[~finite], theirs_[~finite], rtol=1e-10)
        assert error(ours_[finite], theirs_[finite], 1e-6) <= BOUND, (name, options, ours_, theirs_)
    return actual.outputs[""], list(actual.inputs.values())


IDEAS = ("classification", "metric_learning", "regression", "generative", "composition")


def public(package):
    """The public functions of a package's files, in the order of their definition."""
    modules = [importlib.import_module(f"{package.__name__}.{idea}") for idea in IDEAS]
    return {k: f for m in modules for k, f in vars(m).items() if inspect.isfunction(f)
            and f.__module__ == m.__name__ and not k.startswith("_")}  # fmt: skip


def test_same_names_and_arguments():
    actual, expected = public(ours), public(theirs)
    assert list(actual) == list(expected) == list(CASES)
    assert all(getattr(ours, k) is f for k, f in actual.items())
    assert all(getattr(theirs, k) is f for k, f in expected.items())
    for name, function in actual.items():
        a, b = (inspect.signature(f).parameters.values() for f in (function, expected[name]))
        assert [(p.name, p.default, p.kind) for p in a] == [(p.name, p.default, p.kind) for p in b]


def test_the_old_imports_work():
    import jaxarch.train.losses as old
    from jaxarch.train.losses import cross_entropy

    assert cross_entropy is ours.cross_entropy
    assert all(getattr(old, name) is getattr(ours, name) for name in ours.__all__)


@pytest.mark.parametrize("loss", CASES)
def test_value_and_gradients(loss):
    for inputs, options in CASES[loss]:
        compare(loss, inputs, options)


@pytest.mark.parametrize("loss", NOTHING)
def test_nothing_costs_nothing(loss):
    for inputs in NOTHING[loss]:
        value, gradients = compare(loss, inputs, {})
        assert value == 0
        assert all((g == 0).all() for g in gradients)


def test_nt_xent_is_the_supervised_loss_of_two_views():
    """Against SimCLR's own formula, on a batch of two views."""
    views = drawn(2, 4, 3)
    unit = torch.nn.functional.normalize(torch.from_numpy(views.reshape(8, 3)), dim=-1)
    logits = (unit @ unit.T / 0.5).fill_diagonal_(-INF)
    partner = torch.arange(8).roll(4)
    wanted = torch.nn.functional.cross_entropy(logits, partner)
    found = ours.contrastive_loss(jnp.asarray(views.reshape(8, 3)), jnp.arange(8) % 4, temperature=0.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_against_torch_itself():
    """The reference is torch's own function wherever it has one and the labels count."""
    f = torch.nn.functional
    logits, label = torch.from_numpy(LOGITS).flatten(0, 1), torch.from_numpy(LABELS).flatten()
    weight, soft = torch.from_numpy(WEIGHT), torch.from_numpy(SOFT).flatten(0, 1)
    for reduction in ours.REDUCTIONS:
        for options in ({}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.2}):
            for target in (label, soft):
                wanted = f.cross_entropy(logits, target, reduction=reduction, **options)
                found = theirs.cross_entropy(logits, target, reduction=reduction, **options)
                torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    a, b = torch.from_numpy(LOG_P), torch.from_numpy(SPARSE)
    for reduction in ("batchmean", "sum", "none"):  # torch means to change its "mean"
        torch.testing.assert_close(
            theirs.kl_div(a, b, reduction=reduction), f.kl_div(a, b, reduction=reduction)
        )
    p = torch.softmax(logits, -1).gather(1, label.clamp(min=0)[:, None])[:, 0]
    plain = (0.5 * (1 - p) ** 2 * -p.log())[label >= 0].mean()
    torch.testing.assert_close(theirs.focal_loss(logits, label, alpha=0.5), plain)


def test_semi_hard_by_hand():
    """On a line: anchor 0, positive 1, negatives 1.5 (semi-hard) and 3."""
    embeddings = {"embeddings": np.array([[0.0], [1.0], [1.5], [3.0]]), "labels": np.array([0, 0, 1, 2])}
    # (0, 1): 1 + 1 - 1.5; (1, 0): 1 + 1 - 2, the nearest beyond 1 being the one at distance 2.
    semi_hard, _ = value_and_gradients("mined_triplet_loss", embeddings, {"mining": "semi_hard"})
    assert semi_hard.outputs[""] == 0.25
    # Anchor 0: 1 + 1 - 1.5; anchor 1: 1 + 1 - 0.5. The others have no positive.
    hard, _ = value_and_gradients("mined_triplet_loss", embeddings, {"mining": "hard"})
    assert hard.outputs[""] == 1.0


def test_low_precision_is_summed_in_float32():
    logits = jnp.full((4, 3), 60000.0, jnp.bfloat16)
    assert ours.cross_entropy(logits, jnp.zeros(4, int)).dtype == jnp.float32
    assert ours.mse_loss(logits, -logits).dtype == jnp.float32
    assert np.isfinite(ours.mse_loss(logits, -logits))


def test_what_is_refused():
    x = jnp.asarray(LOGITS)
    soft = jnp.asarray(SOFT)
    for call in (
        lambda: ours.mse_loss(x, x, reduction="average"),
        lambda: ours.cross_entropy(x, soft, ignore_index=0),
        lambda: ours.mined_triplet_loss(x[0], jnp.arange(4), mining="easy"),
        lambda: ours.gan_generator_loss(x, kind="lsgan"),
        lambda: ours.gan_discriminator_loss(x, x, kind="lsgan"),
        lambda: ours.vae_loss(x, x, x, x, kind="l1"),
        lambda: ours.multi_task_loss({}),
        lambda: ours.multi_task_loss({"a": x.sum()}, {"b": 1.0}),
    ):
        with pytest.raises(UsageError):
            call()
    assert np.isnan(ours.cross_entropy(x[0], jnp.full(4, 7)))
