"""torch.nn.utils: weights that are computed from other arrays, under the keys of torch's older functions."""

from jaxarch.nn.utils import parametrizations, parametrize
from jaxarch.nn.utils.hooks import remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm
