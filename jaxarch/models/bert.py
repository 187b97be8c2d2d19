"""BERT: a bidirectional encoder with a pooler, with Hugging Face's names (`BertModel`).

Devlin et al. 2018, arXiv:1810.04805. The encoder is in `nn`, since the models with heads share it.
"""

from jaxarch import nn

BertConfig = nn.BertConfig
BertModel = nn.BertModel
