"""BERT: a bidirectional encoder with a pooler, under the hub's names of `BertModel`.

Devlin et al. 2018, arXiv:1810.04805. The encoder is a layer, since the models with heads have it too.
"""

from torchref import nn

BertConfig = nn.BertConfig
BertModel = nn.BertModel
