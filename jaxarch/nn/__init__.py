"""Layers with torch's names, defaults, initialisers and statistics.

Only this package knows how the frameworks differ. Signals are (B, T, C), images (B, H, W, C) and volumes
(B, D, H, W, C) here; in torch the channels come before the spatial axes.
"""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.nn import utils
from jaxarch.nn.activation import ACTIVATIONS, Activation, Function, get_activation
from jaxarch.nn.adaptive_pool import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
)
from jaxarch.nn.adaptive_softmax import AdaptiveLogSoftmaxWithLoss
from jaxarch.nn.attention import (
    AdvancedMultiHeadAttention,
    AttentionConfig,
    Cache,
    MultiHeadAttention,
    MultiHeadAttentionWithRelativePosition,
    efficient_attention,
    scaled_dot_product_attention,
)
from jaxarch.nn.bert import BertConfig, BertModel
from jaxarch.nn.blocks import ConvBlock, ResidualBlock, SEBlock
from jaxarch.nn.blocks1d import Conv1DBlock, ParallelConv1d, ResidualBlock1d
from jaxarch.nn.containers import (
    ModuleDict,
    ModuleList,
    ParameterDict,
    ParameterList,
    Sequential,
    named_children,
)
from jaxarch.nn.conv import Conv1d, Conv2d, Conv3d
from jaxarch.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from jaxarch.nn.distance import CosineSimilarity, PairwiseDistance
from jaxarch.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    inject_masks,
    label_dropouts,
    record_masks,
)
from jaxarch.nn.embedding import Embedding, EmbeddingBag, check_ids
from jaxarch.nn.encoder_decoder import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from jaxarch.nn.flatten import Flatten, Unflatten
from jaxarch.nn.fold import Fold, Unfold
from jaxarch.nn.fractional_pool import (
    FractionalMaxPool2d,
    FractionalMaxPool3d,
)
from jaxarch.nn.generative import (
    Noise,
    PixelAttention,
    SpectralConv2d,
    SpectralLinear,
    ToImage,
    add_to_channels,
    join_channels,
    timestep_embedding,
    upsample_nearest,
)
from jaxarch.nn.graph import (
    GATConv,
    GCNConv,
    RGCNConv,
    all_pairs,
    edge_inputs,
    global_add_pool,
    global_max_pool,
    global_mean_pool,
    graph_ids,
    graph_inputs,
    mean_of_neighbours,
)
from jaxarch.nn.hub import (
    HUB_ACTIVATIONS,
    Conv1D,
    attend,
    check_same_shape,
    classification_loss,
    draw_normal,
    hub_activation,
    normal_parameter,
    token_loss,
)
from jaxarch.nn.init import (
    INITIALIZERS,
    initialize_all,
    initialize_matrices,
    initialized,
    initializer,
    normal,
    uniform,
)
from jaxarch.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.kernels.lstm_cudnn import cudnn_lstm
from jaxarch.nn.kernels.segments import segment_max, segment_mean, segment_softmax, segment_sum
from jaxarch.nn.kernels.switches import use_kernel
from jaxarch.nn.lazy import (
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    LazyLinear,
)
from jaxarch.nn.linear import Bilinear, Identity, Linear
from jaxarch.nn.long_attention import (
    LinformerAttention,
    PerformerAttention,
    ReformerAttention,
    chunked_attention,
)
from jaxarch.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CosineEmbeddingLoss,
    CrossEntropyLoss,
    CTCLoss,
    GaussianNLLLoss,
    HingeEmbeddingLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    LinearCrossEntropyLoss,
    LinearCrossEntropyOptions,
    MarginRankingLoss,
    MSELoss,
    MultiLabelMarginLoss,
    MultiLabelSoftMarginLoss,
    MultiMarginLoss,
    NLLLoss,
    NLLLoss2d,
    PoissonNLLLoss,
    SmoothL1Loss,
    SoftMarginLoss,
    TripletMarginLoss,
    TripletMarginWithDistanceLoss,
)
from jaxarch.nn.luong import ConcatAttention, DotProductAttention, GeneralAttention
from jaxarch.nn.masks import length_mask, token_mask, valid_steps
from jaxarch.nn.module import Buffer, Module
from jaxarch.nn.multihead import MultiheadAttention
from jaxarch.nn.norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    LayerNorm,
    RMSNorm,
    SyncBatchNorm,
    set_batch_groups,
)
from jaxarch.nn.padding import (
    CircularPad1d,
    CircularPad2d,
    CircularPad3d,
    ConstantPad1d,
    ConstantPad2d,
    ConstantPad3d,
    ReflectionPad1d,
    ReflectionPad2d,
    ReflectionPad3d,
    ReplicationPad1d,
    ReplicationPad2d,
    ReplicationPad3d,
    ZeroPad1d,
    ZeroPad2d,
    ZeroPad3d,
)
from jaxarch.nn.pointwise import (
    CELU,
    ELU,
    GELU,
    GLU,
    SELU,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    Mish,
    PReLU,
    ReLU,
    ReLU6,
    RReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
    Threshold,
)
from jaxarch.nn.pool import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    first_max,
)
from jaxarch.nn.position import (
    AdvancedPositionalEncoding,
    PositionalEncoding,
    RotaryEmbedding,
    check_length,
)
from jaxarch.nn.quantize import Quantized, VectorQuantizer
from jaxarch.nn.response_norm import LocalResponseNorm
from jaxarch.nn.rnn import GRU, LSTM, RNN
from jaxarch.nn.rnn_cell import GRUCell, LSTMCell, RNNCell
from jaxarch.nn.self_attention import SelfAttention, SelfAttentionBlock
from jaxarch.nn.sequence_pooling import Pooling
from jaxarch.nn.shuffle import ChannelShuffle, PixelShuffle, PixelUnshuffle
from jaxarch.nn.softmax import LogSoftmax, Softmax, Softmax2d, Softmin
from jaxarch.nn.style import (
    ConstantMap,
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchStd,
    ModulatedConv2d,
    blur_downsample,
    blur_upsample,
    normalize_second_moment,
)
from jaxarch.nn.text_encoder import CustomModelConfig, TextEncoder, text_config
from jaxarch.nn.transformer import TransformerBlock, TransformerBlockConfig
from jaxarch.nn.unpool import (
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from jaxarch.nn.upsample import Upsample, UpsamplingBilinear2d, UpsamplingNearest2d
from jaxarch.nn.vision import (
    CBAM,
    AttentionConv,
    ChannelAttention,
    DepthwiseSeparableConv,
    DynamicConv2d,
    SpatialAttention,
    SqueezeExcitation,
    StochasticDepth,
    conv_norm_activation,
    make_divisible,
)
from jaxarch.nn.vit import ViTConfig, ViTModel
