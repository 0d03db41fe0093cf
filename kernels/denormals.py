"""Numbers below the smallest normal one count as 0 while training.

Gradients of units that have died decay through the denormal range, where divisions and roots are slow: AdamW on
denormal slots took 3.1 times as long on AMD EPYC (Zen 4); products cost nothing there, but do on Intel. So the
processor's flush-to-zero and denormals-are-zero bits are set while a rank trains, and restored afterwards. x86 only:
nothing changes on other processors.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ringtmp.kernels._jit import config, jit
from ringtmp.kernels.compilation import declare

_FLUSH = 0x8040  # of MXCSR: bit 15 flush to zero, bit 6 denormals are zero
_X86 = platform.machine() in ("x86_64", "AMD64")


def _access(builder: ir.IRBuilder, name: str, place: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), name)
    builder.call(function, [builder.bitcast(place, byte)])


@intrinsic
def _read(typingctx):
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.IntType(32))
        _access(builder, "llvm.x86.sse.stmxcsr", place)
        return builder.load(place)

    return types.uint32(), codegen


@intrinsic
def _write(typingctx, value):
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.IntType(32))
        builder.store(arguments[0], place)
        _access(builder, "llvm.x86.sse.ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.uint32), codegen


@jit
def _set(bits):
    """Set the control register; returns what it was."""
    before = _read()
    _write(types.uint32(bits))
    return before


@jit
def _get():
    return _read()


if _X86:
    declare("base", _get)
    declare("base", _set, 0x1F80)  # its value when a process starts


def flush_for_good() -> int:
    """Count denormal numbers of this thread as 0 from now on; returns the previous control register (0: not x86)."""
    return _set(_get() | _FLUSH) if _X86 and not config.DISABLE_JIT else 0


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Count denormal numbers of this thread as 0 inside the `with` block."""
    before = flush_for_good()
    try:
        yield
    finally:
        if before:
            _set(before)
