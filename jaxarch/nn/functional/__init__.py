"""torch.nn.functional's names: what it computes, as functions of arrays, with torch's arguments and numbers.

`import jaxarch.nn.functional as F`. Channels, classes and features are last; a weight has torch's layout.
"""

from jaxarch.nn.distance import cosine_similarity, normalize, pairwise_distance, pdist
from jaxarch.nn.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cosine_embedding_loss,
    cross_entropy,
    ctc_loss,
    gaussian_nll_loss,
    hinge_embedding_loss,
    huber_loss,
    kl_div,
    l1_loss,
    linear_cross_entropy,
    margin_ranking_loss,
    mse_loss,
    multi_margin_loss,
    multilabel_margin_loss,
    multilabel_soft_margin_loss,
    nll_loss,
    poisson_nll_loss,
    smooth_l1_loss,
    soft_margin_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
