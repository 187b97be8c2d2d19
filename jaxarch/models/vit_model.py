"""Vision Transformer with a pooler, with Hugging Face's names (`ViTModel`).

Dosovitskiy et al. 2020, arXiv:2010.11929. The encoder is in `nn`, since the model with a head shares it.
"""

from jaxarch import nn

ViTConfig = nn.ViTConfig
ViTModel = nn.ViTModel
