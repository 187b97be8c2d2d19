"""torch.nn's layers, and those of the catalog that torch lacks, under the names that `jaxarch.nn` uses."""

from torch.nn import *  # noqa: F403  torch's names first: the layers below replace some

from torchref.nn.activation import ACTIVATIONS, Activation, Function, get_activation
from torchref.nn.attention import (
    AdvancedMultiHeadAttention,
    AttentionConfig,
    Cache,
    MultiHeadAttention,
    MultiHeadAttentionWithRelativePosition,
    efficient_attention,
    scaled_dot_product_attention,
)
from torchref.nn.bert import BertConfig, BertModel
from torchref.nn.blocks import ConvBlock, ResidualBlock, SEBlock
from torchref.nn.blocks1d import Conv1DBlock, ParallelConv1d, ResidualBlock1d
from torchref.nn.encoder_decoder import (  # type: ignore[assignment]
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from torchref.nn.generative import (  # type: ignore[assignment]
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
from torchref.nn.graph import (
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
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
)
from torchref.nn.hub import (
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
from torchref.nn.init import (
    INITIALIZERS,
    initialize_all,
    initialize_matrices,
    initialized,
    initializer,
    normal,
    uniform,
)
from torchref.nn.long_attention import (
    LinformerAttention,
    PerformerAttention,
    ReformerAttention,
    chunked_attention,
)
from torchref.nn.luong import ConcatAttention, DotProductAttention, GeneralAttention
from torchref.nn.masks import length_mask, token_mask, valid_steps
from torchref.nn.multihead import MultiheadAttention  # type: ignore[assignment]
from torchref.nn.position import (
    AdvancedPositionalEncoding,
    PositionalEncoding,
    RotaryEmbedding,
    check_length,
)
from torchref.nn.quantize import Quantized, VectorQuantizer
from torchref.nn.rnn import GRU, LSTM, RNN  # type: ignore[assignment]
from torchref.nn.self_attention import SelfAttention, SelfAttentionBlock
from torchref.nn.sequence_pooling import Pooling
from torchref.nn.style import (
    ConstantMap,
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchStd,
    ModulatedConv2d,
    blur_downsample,
    blur_upsample,
    normalize_second_moment,
)
from torchref.nn.text_encoder import CustomModelConfig, TextEncoder, text_config
from torchref.nn.transformer import TransformerBlock, TransformerBlockConfig
from torchref.nn.vision import (
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
from torchref.nn.vit import ViTConfig, ViTModel
