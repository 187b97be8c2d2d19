"""Losses and distances as torch.nn.functional has them: kinks, ties, infinities, nothing; errors; memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from functions import assert_same, last
from jaxarch import nn
from jaxarch.errors import DataError, JaxarchError, UsageError
from jaxarch.nn import functional

RNG = np.random.default_rng(0)
INF = np.inf
POWERS = (0.0, 1.0, 1.5, 2.0, 3.0, INF)
KINKS = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
ZEROS = np.zeros(7)
SIGNS = np.array([1.0, -1, 1, -1, 0.3, 1, -1])
ROWS = np.array([[1.0, 0, -2, 2], [0, 0, 0, 0], [3, -3, 1, 0]])
OTHERS = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, -1]])
LOG_P = RNG.normal(size=(9, 3, 6))
LOG_P -= np.log(np.exp(LOG_P).sum(-1, keepdims=True))
TARGETS = np.array([[1, 1, 2, 5], [3, 4, 3, 4], [2, 2, 2, 1]])


def drawn(*shape):
    return RNG.normal(size=shape)


CASES = [
    ("l1_loss", (KINKS, ZEROS), {"reduction": "sum"}),
    ("l1_loss", (KINKS, ZEROS), {"weight": np.abs(KINKS)}),
    ("mse_loss", (KINKS, ZEROS), {"weight": np.abs(KINKS)}),
    ("mse_loss", (np.zeros(0), np.zeros(0)), {}),
    ("smooth_l1_loss", (KINKS, ZEROS), {"beta": 0.5, "reduction": "none"}),
    ("smooth_l1_loss", (KINKS, ZEROS), {"beta": 0.0}),
    ("huber_loss", (KINKS, ZEROS), {"delta": 0.5, "weight": np.abs(KINKS)}),
    ("kl_div", (np.array([0, -1.0, -INF, -INF]), np.array([0, 0.5, 0, 0.3])), {"reduction": "none"}),
    ("kl_div", (drawn(3, 4), drawn(3, 4)), {"reduction": "batchmean", "log_target": True}),
    ("binary_cross_entropy", (np.array([0, 1.0, 0, 1, 1e-300]), np.array([0, 1.0, 1, 0, 1])), {}),
    ("binary_cross_entropy", (np.zeros(0), np.zeros(0)), {}),
    ("binary_cross_entropy_with_logits", (np.array([0.0, INF, -INF, 800]), np.array([0.5, 1, 0, 0])), {}),
    (
        "binary_cross_entropy_with_logits",
        (drawn(2, 3), RNG.random((2, 3)), np.array([[0.3], [2]])),
        {"pos_weight": np.array([2.0, 1, 0.5]), "constant": ("0.2", "1.pos_weight")},
    ),
    ("hinge_embedding_loss", (KINKS, SIGNS), {"reduction": "none", "constant": ("0.1",)}),
    ("margin_ranking_loss", (KINKS, ZEROS, SIGNS), {"margin": 1.0, "reduction": "none"}),
    ("soft_margin_loss", (np.array([0.0, 800, -800]), np.array([1.0, -1, 1])), {"constant": ("0.1",)}),
    ("multi_margin_loss", (drawn(5), np.array(2)), {"p": 2}),
    ("multi_margin_loss", (np.array([[1.0, 2, 0]]), np.array([1])), {"constant": ("1.weight",)}),
    ("multilabel_margin_loss", (drawn(2, 5), np.array([[3, 0, -1, 4, 4], [1, 1, 2, 2, 2]])), {}),
    ("multilabel_margin_loss", (drawn(5), np.array([-1, 3, 1, 0, 2])), {"reduction": "sum"}),
    ("poisson_nll_loss", (np.array([1.0, 0, 2, 1]), np.array([1, 0, 2.3, 4])), {"full": True}),
    ("gaussian_nll_loss", (drawn(2, 3), drawn(2, 3), np.array([0.0, 1e-6])), {"full": True}),
    ("gaussian_nll_loss", (drawn(2, 3), drawn(2, 3), 0.5), {"reduction": "sum"}),
    ("cosine_embedding_loss", (ROWS, OTHERS, np.array([1, -1, -1])), {"margin": 0.1}),
    ("cosine_embedding_loss", (ROWS[0], OTHERS[0], np.array(1)), {}),
    ("triplet_margin_loss", (ROWS, OTHERS, drawn(3, 4)), {"swap": True, "p": 1.0}),
    ("triplet_margin_loss", (np.full((1, 1), -1e-6), np.full((1, 1), 3.0), np.full((1, 1), 4.0)), {}),
    ("triplet_margin_with_distance_loss", (ROWS, OTHERS, drawn(3, 4)), {"margin": 0.3, "reduction": "none"}),
    ("nll_loss", (drawn(2, 3), np.array([-100, -100])), {}),
    ("cross_entropy", (drawn(2, 3), np.array([1, 1])), {"ignore_index": 1, "label_smoothing": 0.1}),
    ("cross_entropy", (np.zeros((0, 3)), np.zeros(0, int)), {}),
    ("cross_entropy", (np.zeros((0, 3)), np.zeros(0, int)), {"reduction": "sum"}),
    ("cross_entropy", (np.array([[0.0, -INF, 1], [1, -INF, -INF]]), np.array([1, 0])), {"reduction": "none"}),
    ("ctc_loss", (LOG_P, TARGETS, np.array([9, 9, 6]), np.array([4, 0, 3])), {"reduction": "none"}),
    ("ctc_loss", (LOG_P, TARGETS, np.array([9, 2, 6]), np.array([4, 3, 3])), {"reduction": "sum"}),
    ("ctc_loss", (LOG_P, TARGETS, np.array([9, 2, 6]), np.array([4, 3, 3])), {"zero_infinity": True}),
    ("ctc_loss", (LOG_P, np.array([1, 1, 2, 3, 4, 0]), np.array([9, 9, 8]), np.array([3, 1, 2])), {"blank": 5}),
    ("ctc_loss", (LOG_P[:, 0], TARGETS[0], np.array(9), np.array(4)), {"reduction": "none"}),
    ("ctc_loss", (LOG_P, TARGETS, (0, 0, 9), (0, 2, 4)), {"reduction": "none"}),
    ("normalize", (ROWS,), {"dim": 1}),
    ("normalize", (ROWS,), {"p": 1.0, "dim": 0, "eps": 3.0}),
    ("cosine_similarity", (ROWS, OTHERS), {"dim": 1}),
    ("cosine_similarity", (ROWS[:1], OTHERS), {"dim": 0}),
    *[("pairwise_distance", (ROWS, OTHERS), {"p": p, "eps": 0.0}) for p in (*POWERS, 0.5, -1.0, -INF)],
    ("pairwise_distance", (ROWS, OTHERS), {"keepdim": True}),
    *[("pdist", (np.concatenate([ROWS, OTHERS[1:]]),), {"p": p}) for p in POWERS],
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'-'.join(map(str, c[2]))}")
def test_same_as_torch(case):
    name, args, kwargs = case
    assert_same(name, *args, **kwargs)


def test_classes_are_last():
    """torch's (N, C, d1, d2) is (N, d1, d2, C); the labels (N, d1, d2) stay."""
    logits, labels = drawn(2, 3, 4, 5), RNG.integers(0, 3, (2, 4, 5))
    soft = RNG.random((2, 3, 4, 5))
    for name in ("cross_entropy", "nll_loss"):
        theirs = getattr(torch.nn.functional, name)(torch.tensor(logits), torch.tensor(labels))
        ours = getattr(functional, name)(last(logits), jnp.asarray(labels))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(soft))
    ours = functional.cross_entropy(last(logits), last(soft))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)
    assert nn.CosineSimilarity()(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3))).shape == (2, 4)


MODULES = [
    ("CosineSimilarity", {"dim": 1, "eps": 1e-3}, (ROWS, OTHERS)),
    ("PairwiseDistance", {"p": 1.5, "eps": 1e-3, "keepdim": True}, (ROWS, OTHERS)),
    ("TripletMarginLoss", {"margin": 0.7, "p": 1.5, "swap": True}, (ROWS, OTHERS, drawn(3, 4))),
    ("TripletMarginWithDistanceLoss", {"margin": 0.7, "reduction": "sum"}, (ROWS, OTHERS, drawn(3, 4))),
]


@pytest.mark.parametrize(("module", "options", "inputs"), MODULES, ids=[m[0] for m in MODULES])
def test_modules_without_samples(module, options, inputs):
    theirs = getattr(torch.nn, module)(**options)(*map(torch.tensor, inputs))
    ours = getattr(nn, module)(**options)(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)


def test_distance_of_ones_own():
    """A function of one's own, as in torch's example."""
    loss = nn.TripletMarginWithDistanceLoss(
        distance_function=lambda a, b: 1 - functional.cosine_similarity(a, b)
    )
    a, b, c = map(jnp.asarray, (drawn(3, 4), drawn(3, 4), drawn(3, 4)))
    expected = 1 - functional.cosine_similarity(a, b) + functional.cosine_similarity(a, c)
    assert jnp.allclose(loss(a, b, c), jnp.maximum(expected, 0).mean())


@pytest.mark.parametrize(
    ("flags", "reduction"),
    [((None, False), "none"), ((False, None), "sum"), ((True, True), "mean"), ((False, False), "none")],
)
def test_older_flags(flags, reduction):
    x, y = jnp.asarray(KINKS), jnp.asarray(ZEROS)
    with pytest.warns(DeprecationWarning, match=f"write reduction='{reduction}'"):
        loss = nn.MSELoss(*flags)
    assert jnp.array_equal(loss(x, y), nn.MSELoss(reduction=reduction)(x, y))
    with pytest.warns(DeprecationWarning, match="are deprecated"):
        assert jnp.array_equal(functional.mse_loss(x, y, *flags), loss(x, y))


def test_another_shape_is_broadcast_with_a_warning():
    with pytest.warns(UserWarning, match=r"target of shape \(3,\) is broadcast"):
        functional.l1_loss(jnp.zeros((2, 3)), jnp.zeros(3))


def refused(call, *args):
    """The message of the typed error of a call with numpy's arrays, in one line."""
    with pytest.raises(JaxarchError) as raised:
        call(*(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in args))
    assert "\n" not in str(raised.value)
    return str(raised.value)


LOGITS = np.zeros((2, 3))
REFUSED = [
    (lambda: nn.L1Loss(reduction="avg"), (), "unknown reduction 'avg'"),
    (functional.cross_entropy, (LOGITS, np.array([0, 3])), "must be in [0, 3)"),
    (functional.nll_loss, (LOGITS, np.array([0, -1])), "must be in [0, 3)"),
    (functional.multi_margin_loss, (LOGITS, np.array([0, 3])), "must be in [0, 3)"),
    (functional.multilabel_margin_loss, (LOGITS, np.array([[0, 3, -1]] * 2)), "must be in [0, 3)"),
    (functional.binary_cross_entropy, (LOGITS + 2, LOGITS), "must hold probabilities"),
    (
        functional.binary_cross_entropy_with_logits,
        (LOGITS, np.zeros(3)),
        "must have the input's shape (2, 3)",
    ),
    (functional.huber_loss, (LOGITS, LOGITS, "mean", 0.0), "delta must be above 0"),
    (functional.smooth_l1_loss, (LOGITS, LOGITS, None, None, "mean", -1.0), "beta must be at least 0"),
    (functional.gaussian_nll_loss, (LOGITS, LOGITS, np.array([-1.0, 1])), "negative variance"),
    (functional.gaussian_nll_loss, (LOGITS, LOGITS, np.ones(3)), "var of shape (3,)"),
    (functional.margin_ranking_loss, (LOGITS, LOGITS, np.ones(2)), "equally many dims"),
    (functional.cosine_embedding_loss, (LOGITS, LOGITS, LOGITS), "must be (N, D), (N, D) and (N,)"),
    (functional.triplet_margin_loss, (LOGITS, LOGITS, np.ones(3)), "equally many dims"),
    (lambda: nn.TripletMarginLoss(margin=0.0), (), "margin must be above 0"),
    (lambda: nn.MultiMarginLoss(p=3), (), "p must be 1 or 2"),
    (functional.pdist, (LOGITS, -1.0), "p must be at least 0"),
    (lambda: nn.LinearCrossEntropyOptions(chunking_method="rows"), (), "chunking_method must be"),
    (lambda: nn.LinearCrossEntropyOptions(acc_policy="exact"), (), "acc_policy must be one of"),
    (lambda: nn.LinearCrossEntropyOptions(batch_chunk_size=0), (), "at least 1"),
    (functional.ctc_loss, (LOG_P, TARGETS, (9, 9, 10), (4, 4, 4)), "must be in [0, 9]"),
    (functional.ctc_loss, (LOG_P, TARGETS, (9, 9, 9), (4, 4, 5)), "must be in [0, 4]"),
    (functional.ctc_loss, (LOG_P, TARGETS + 9, (9, 9, 9), (4, 4, 4)), "must be in [0, 6)"),
    (functional.ctc_loss, (LOG_P, TARGETS[0], (9, 9, 9), (4, 4, 4)), "add up to 12"),
    (functional.ctc_loss, (LOG_P, TARGETS, (9, 9), (4, 4, 4)), "one for each of 3 rows"),
    (functional.ctc_loss, (LOG_P, TARGETS, (9, 9, 9), (4, 4, 4), 6), "blank 6 must be one of the 6"),
]


@pytest.mark.parametrize(("call", "args", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_typed_errors(call, args, message):
    assert message in refused(call, *args)


def test_labels_out_of_range_are_nan_under_jit():
    logits, scores = jnp.asarray(drawn(2, 3)), jnp.asarray(drawn(2, 3))
    for labels in ([0, 3], [-1, 2]):
        ids = jnp.asarray(labels)
        assert jnp.isnan(jax.jit(functional.cross_entropy)(logits, ids))
        assert jnp.isnan(jax.jit(functional.multi_margin_loss)(scores, ids))
    lists = jnp.asarray([[0, 3, -1], [0, 1, 2]])
    values = jax.jit(lambda x, y: functional.multilabel_margin_loss(x, y, reduction="none"))(scores, lists)
    assert jnp.isnan(values).tolist() == [True, False]


def test_ctc_compiled_with_traced_lengths():
    """Targets one after the other, whose lengths are not known when compiled."""
    x, lengths = jnp.asarray(LOG_P), jnp.asarray([9, 9, 8])
    targets, target_lengths = jnp.asarray([1, 1, 2, 3, 4, 0]), jnp.asarray([3, 1, 2])
    eager = functional.ctc_loss(x, targets, lengths, target_lengths, 5)
    assert jnp.allclose(
        jax.jit(functional.ctc_loss, static_argnums=4)(x, targets, lengths, target_lengths, 5), eager
    )


def test_ctc_of_long_sequences_in_float32():
    """2000 steps of 1e-18 each: in log space nothing underflows."""
    x = jnp.full((2000, 1, 4), -40.0, jnp.float32)
    ours = functional.ctc_loss(x, jnp.asarray([[1, 2, 3]]), (2000,), (3,), reduction="sum")
    theirs = torch.nn.functional.ctc_loss(
        torch.full((2000, 1, 4), -40.0), torch.tensor([[1, 2, 3]]), (2000,), (3,), reduction="sum"
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_chunks_need_not_all_be_in_memory():
    """The gradient by chunks of 8 rows equals that of all at once, with a fraction of its memory."""
    rows, classes = 64, 512
    x, weight = jnp.asarray(drawn(rows, 4)), jnp.asarray(drawn(classes, 4))
    labels = jnp.asarray(RNG.integers(0, classes, rows))

    def compiled(options):
        def loss(x, weight):
            return functional.linear_cross_entropy(x, weight, labels, options=options)

        return jax.jit(jax.grad(loss, (0, 1))).lower(x, weight).compile()

    whole, chunked = compiled(None), compiled(nn.LinearCrossEntropyOptions(batch_chunk_size=8))
    for a, b in zip(whole(x, weight), chunked(x, weight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    sizes = [c.memory_analysis().temp_size_in_bytes for c in (whole, chunked)]
    assert sizes[1] < sizes[0] / 3, sizes
    with pytest.raises(UsageError, match="differ: give one of them"):
        nn.LinearCrossEntropyOptions(batch_chunk_size=3, chunking_method="aspect_ratio").chunk_size(
            64, 4, 512
        )


def test_chunks_are_as_large_as_torchs():
    for options in (
        {},
        {"batch_chunk_size": 5},
        {"chunking_method": "aspect_ratio:3"},
        {"chunking_method": None},
    ):
        for sizes in ((64, 4, 512), (7, 16, 3), (1, 3, 9)):
            adjusted = torch.nn.LinearCrossEntropyOptions(**options)._adjust(*sizes, torch.float64)
            assert nn.LinearCrossEntropyOptions(**options).chunk_size(*sizes) == adjusted.batch_chunk_size


def test_half_precision_is_summed_in_float32():
    x = jnp.ones(4096, jnp.bfloat16)
    assert functional.l1_loss(x, jnp.zeros_like(x), reduction="sum") == 4096
    logits = jnp.zeros((4096, 3), jnp.bfloat16)
    loss = functional.cross_entropy(logits, jnp.zeros(4096, int))
    assert loss.dtype == jnp.bfloat16
    assert abs(float(loss) - np.log(3)) < 0.01


def test_weights_are_buffers():
    loss = nn.BCEWithLogitsLoss(weight=jnp.ones(3), pos_weight=jnp.ones(3))
    assert {type(loss.weight), type(loss.pos_weight)} == {nn.Buffer}
    with pytest.raises(DataError, match="give both in one dtype"):
        nn.NLLLoss(weight=jnp.ones(3, jnp.float32))(jnp.asarray(LOGITS), jnp.asarray([0, 1]))
