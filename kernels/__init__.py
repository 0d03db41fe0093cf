"""Layer kernels: arrays in, arrays out, compiled by Numba and cached. No MPI, no files, no state."""

from kernels._jit import CACHE  # noqa: I001 - sets the cache folder before Numba is imported
from kernels.activations import ACTIVATIONS, SLOPED, activate, deactivate
from kernels.attention import BLOCK as ATTENTION_BLOCK
from kernels.attention import attention_backward_input, attention_forward
from ringtmp.storage.checksum import checksum
from kernels.compile import compile_all
from kernels.conv import conv_backward_input, conv_backward_weight, conv_forward, conv_turn
from kernels.denormals import flush_denormals, flush_for_good
from kernels.dense import dense_backward_input, dense_backward_weight, dense_forward, dense_stack
from kernels.elementwise import add_to, clip_value, dropout, scale_by, squared_norm
from kernels.embedding import embedding_backward_weight, embedding_forward
from ringtmp.storage.fletcher import fletcher32
from kernels.gemm import DEPTH, across, along, panels_to_rows, rows_to_panels, transpose_panels
from kernels.losses import mean_squared_error, softmax_cross_entropy
from kernels.norm import (
    group_norm_backward_input,
    group_norm_backward_weight,
    group_norm_forward,
    layer_norm_backward_input,
    layer_norm_backward_weight,
    layer_norm_forward,
)
from kernels.optimizers import adam, adam_into, adamw, adamw_into, momentum, momentum_into, sgd, sgd_into
from kernels.pool import (
    average_pool_backward_input,
    average_pool_forward,
    max_pool_backward_input,
    max_pool_forward,
)
from kernels.serve import BLOCK as SERVE_BLOCK
from kernels.serve import from_half, scatter, served_adam, served_adamw, served_momentum, served_sgd, to_half, top_k
from kernels.tile import PANEL, simd

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_BLOCK",
    "CACHE",
    "DEPTH",
    "PANEL",
    "SERVE_BLOCK",
    "SLOPED",
    "across",
    "activate",
    "adam",
    "adam_into",
    "adamw",
    "adamw_into",
    "add_to",
    "along",
    "attention_backward_input",
    "attention_forward",
    "average_pool_backward_input",
    "average_pool_forward",
    "checksum",
    "clip_value",
    "compile_all",
    "conv_backward_input",
    "conv_backward_weight",
    "conv_forward",
    "conv_turn",
    "deactivate",
    "dense_backward_input",
    "dense_backward_weight",
    "dense_forward",
    "dense_stack",
    "dropout",
    "embedding_backward_weight",
    "embedding_forward",
    "fletcher32",
    "flush_denormals",
    "flush_for_good",
    "from_half",
    "group_norm_backward_input",
    "group_norm_backward_weight",
    "group_norm_forward",
    "layer_norm_backward_input",
    "layer_norm_backward_weight",
    "layer_norm_forward",
    "max_pool_backward_input",
    "max_pool_forward",
    "mean_squared_error",
    "momentum",
    "momentum_into",
    "panels_to_rows",
    "rows_to_panels",
    "scale_by",
    "scatter",
    "served_adam",
    "served_adamw",
    "served_momentum",
    "served_sgd",
    "sgd",
    "sgd_into",
    "simd",
    "softmax_cross_entropy",
    "squared_norm",
    "to_half",
    "top_k",
    "transpose_panels",
]
