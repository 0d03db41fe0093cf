"""Layer kernels: arrays in, arrays out, compiled by Numba and cached. No MPI, no files, no state."""

from kernels._jit import CACHE  # noqa: I001 - sets the cache folder before Numba is imported
from kernels.activations import ACTIVATIONS
from kernels.blas import blas_info, gemm
from kernels.compile import compile_all
from kernels.dense import dense_backward_input, dense_backward_weight, dense_forward
from kernels.losses import mean_squared_error, softmax_cross_entropy
from kernels.optimizers import adam, adamw, momentum, sgd

__all__ = [
    "ACTIVATIONS", "CACHE", "adam", "adamw", "blas_info", "compile_all", "dense_backward_input",
    "dense_backward_weight", "dense_forward", "gemm", "mean_squared_error", "momentum", "sgd", "softmax_cross_entropy",
]  # fmt: skip
