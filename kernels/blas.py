"""SciPy's BLAS from compiled code, by names that survive Numba's cache.

A function pointer captured from ctypes cannot be cached. A *symbol* can: its address is registered with LLVM at
import, and cached code that calls it by name links to it in any later process.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import llvmlite.binding
import scipy.linalg.cython_blas as cython_blas
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels._jit import jit


def _register(name: str) -> str:
    capsule = cython_blas.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    symbol = f"ringtmp_{name}"
    llvmlite.binding.add_symbol(symbol, api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule)))
    return symbol


_SYMBOLS = {4: _register("sgemm"), 8: _register("dgemm")}


@intrinsic
def _gemm(typingctx, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc):  # noqa: ANN001, ANN202
    """Fortran gemm with alpha 1 on raw addresses; all scalars on the stack, nothing allocated."""
    real = a.dtype
    if not (isinstance(a, types.Array) and real in (types.float32, types.float64)):
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc = arguments
        number = ir.FloatType() if real is types.float32 else ir.DoubleType()
        i32, i8 = ir.IntType(32), ir.IntType(8)

        def stack(value: Any, kind: Any) -> Any:
            place = cgutils.alloca_once(builder, kind)
            builder.store(value, place)
            return place

        def pointer(array: Any, number_type: Any) -> Any:
            return context.make_array(number_type)(context, builder, array).data

        def letter(flag: Any) -> Any:
            return stack(builder.select(flag, ir.Constant(i8, ord("T")), ir.Constant(i8, ord("N"))), i8)

        def integer(value: Any) -> Any:
            return stack(builder.trunc(value, i32), i32)

        words = [
            letter(ta), letter(tb), integer(m), integer(n), integer(k), stack(ir.Constant(number, 1.0), number),
            pointer(a, signature.args[5]), integer(lda), pointer(b, signature.args[7]), integer(ldb),
            stack(beta, number), pointer(c, signature.args[10]), integer(ldc),
        ]  # fmt: skip
        shape = ir.FunctionType(ir.VoidType(), [word.type for word in words])
        function = cgutils.get_or_insert_function(builder.module, shape, _SYMBOLS[real.bitwidth // 8])
        builder.call(function, words)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(types.boolean, types.boolean, whole, whole, whole, a, whole, b, whole, real, c, whole), codegen


@jit
def gemm(a, b, c, trans_a, trans_b, beta):  # noqa: ANN001, ANN201
    """c = op(a) @ op(b) + beta * c for row-major matrices, op transposing where the flag says so.

    Fortran sees each row-major matrix transposed, so the product is asked for as c.T = op(b).T @ op(a).T.
    With beta 0 the old contents of c, NaN included, do not count.
    """
    rows, columns = c.shape
    inner = a.shape[0] if trans_a else a.shape[1]
    _gemm(trans_b, trans_a, columns, rows, inner, b, b.shape[1], a, a.shape[1], c.dtype.type(beta), c, columns)


def blas_info() -> dict[str, Any]:
    """Library, version, core type and threads of the BLAS in use, and `limited_by`: what holds it back, or None."""
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    mine = next((pool for pool in found if "scipy.libs" in pool["filepath"]), found[0] if found else {})
    return {
        "library": mine.get("internal_api", "unknown"), "version": mine.get("version"),
        "core": mine.get("architecture"), "threads": mine.get("num_threads"), "limited_by": _limited_by(),
    }  # fmt: skip


_AVX512_CORES = {"SKYLAKEX", "COOPERLAKE", "SAPPHIRERAPIDS", "ZEN4", "ZEN5"}


def _limited_by() -> str | None:
    core = os.environ.get("OPENBLAS_CORETYPE")
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    if core and " avx512vl" in flags and core.upper() not in _AVX512_CORES:
        return f"OPENBLAS_CORETYPE={core}"
    return None
