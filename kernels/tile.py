"""The register tile: the one inner loop on which every matrix product runs.

A tile of C, some rows by some vectors, lives in registers while the contraction goes by:

    for each k:   load the vectors of a row of B;   for each row of the tile: spread one number of A, multiply, add

Each sum is one chain of multiply-adds over k in ascending order, from its start value. So neither the tile's shape, nor
how rows and columns are grouped into tiles, nor where the contraction is interrupted and taken up again changes a bit
of the result: the promises of equal bits rest on this loop.

Measured on AMD EPYC (Zen 4, AVX-512, 117 GFLOP/s at most): 8 rows x 2 vectors reach 112 to 116 at any number of rows
from 8 on, weights past the cache included. 12 rows x 2 reach 101 where the rows of A lie 4096 bytes apart: twelve
streams fall into one set of a first-level cache that has eight ways. Without the prefetch, weights past the cache cost
a quarter at 8 rows; with a distance of 1 or 2 KiB as much, from 16 KiB on nothing.
"""

from dataclasses import dataclass
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.lib.stride_tricks import as_strided

from ringtmp.kernels._jit import config

PANEL = 32  # columns of a panel, on every machine, so that packed weights mean the same everywhere
_AHEAD = 1 << 15  # bytes by which B is fetched ahead, into the second-level cache
_I64, _I32, _I1 = ir.IntType(64), ir.IntType(32), ir.IntType(1)


@dataclass(frozen=True)
class Shape:
    """Shape of the register tile.

    Attributes
    ----------
    lanes : int
        Numbers in a vector register.
    rows : int
        Rows of the tile.
    vectors : int
        Vectors in a row.
    """

    lanes: int
    rows: int
    vectors: int

    @property
    def columns(self) -> int:
        """Columns of the tile; divides `PANEL`."""
        return self.lanes * self.vectors


def cpu_features() -> set[str]:
    """Features of the processor that code is compiled for, by LLVM's names; NUMBA_CPU_FEATURES overrides."""
    if config.CPU_FEATURES is not None:
        return {word[1:] for word in config.CPU_FEATURES.split(",") if word.startswith("+")}
    return {name for name, there in llvmlite.binding.get_host_cpu_features().items() if there}


def _shape(itemsize: int) -> Shape:
    """The tile for this processor: the sums, a row of B and a spread number fit its vector registers."""
    features = cpu_features()
    if "avx512f" in features:  # 32 registers of 64 bytes: 16 + 2 + 1
        return Shape(64 // itemsize, 8, 2)
    if "avx" in features:  # 16 of 32 bytes: 12 + 2 + 1
        return Shape(32 // itemsize, 6, 2)
    if "neon" in features:  # 32 of 16 bytes: 24 + 4 + 1
        return Shape(16 // itemsize, 6, 4)
    return Shape(16 // itemsize, 3, 4)  # SSE2, 16 of 16 bytes: 12 + 4


SHAPES = {4: _shape(4), 8: _shape(8)}


def simd() -> dict[str, Any]:
    """Processor, bits of its vectors, and the float32 tile, rows x columns, for the head of traces."""
    shape = SHAPES[4]
    name = config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    return {"cpu": name, "vector_bits": 32 * shape.lanes, "tile": f"{shape.rows} x {shape.columns}"}


def _const(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _spread(b: ir.IRBuilder, scalar: Any, kind: ir.VectorType) -> Any:
    """A vector whose lanes are all `scalar`."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = b.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


class _Code:
    """Writes the tile as one LLVM function: a loop for each number of rows and of vectors, and a switch to choose.

    `across`: a row of the tile is a column of A, whose rows are `a_step` numbers apart; otherwise it is a row.
    """

    ARGUMENTS = ("rows", "a", "a_step", "b", "b_step", "start", "start_step", "c", "c_step", "k", "width", "relu")

    def __init__(self, module: ir.Module, itemsize: int, across: bool) -> None:
        self.module, self.item, self.across = module, itemsize, across
        self.shape = SHAPES[itemsize]
        self.number = ir.FloatType() if itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.number, self.shape.lanes)
        self.mask = ir.VectorType(_I1, self.shape.lanes)
        self.suffix = f"v{self.shape.lanes}f{8 * itemsize}"
        self.name = f"ringtmp_tile_{self.suffix}_{'across' if across else 'along'}"

    def function(self) -> ir.Function:
        """The function, written on first use in a module."""
        known = self.module.globals.get(self.name)
        if known is not None:
            return known
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [_I64] * len(self.ARGUMENTS)), self.name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        self.arg = dict(zip(self.ARGUMENTS, function.args, strict=True))
        self._switch(function)
        return function

    def _switch(self, function: ir.Function) -> None:
        shape, arg = self.shape, self.arg
        b = ir.IRBuilder(function.append_basic_block("entry"))
        zeros = ir.GlobalVariable(self.module, ir.ArrayType(self.number, shape.columns), f"{self.name}_zeros")
        zeros.linkage, zeros.global_constant = "internal", True
        zeros.initializer = ir.Constant(zeros.value_type, [0.0] * shape.columns)
        none = b.icmp_unsigned("==", arg["start"], _const(0))
        self.start = b.select(none, b.ptrtoint(zeros, _I64), arg["start"])
        whole = b.icmp_unsigned("==", arg["width"], _const(shape.columns))
        last = b.udiv(b.sub(arg["width"], _const(1)), _const(shape.lanes))  # number of the vector that is cut
        key = b.add(b.mul(b.select(whole, _const(shape.vectors), last), _const(16)), arg["rows"])
        nothing = function.append_basic_block("nothing")
        switch = b.switch(key, nothing)
        b.position_at_end(nothing)
        b.ret_void()
        for mode in range(shape.vectors + 1):
            for rows in range(1, shape.rows + 1):
                block = function.append_basic_block(f"rows{rows}mode{mode}")
                switch.add_case(_const(16 * mode + rows), block)
                b.position_at_end(block)
                cut = mode < shape.vectors
                self._loop(b, function, rows, mode + 1 if cut else shape.vectors, cut)

    def _intrinsic(self, name: str, result: Any, arguments: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.module, ir.FunctionType(result, arguments), name)

    def _loop(self, b: ir.IRBuilder, function: ir.Function, rows: int, vectors: int, cut: bool) -> None:
        """Write the loop over k for `rows` and `vectors`; `cut`: the last vector holds the remainder of `width`."""
        arg, item, lanes, suffix = self.arg, self.item, self.shape.lanes, self.suffix
        pointer, zero = self.vector.as_pointer(), ir.Constant(self.vector, [0.0] * self.shape.lanes)
        fma = self._intrinsic(f"llvm.fmuladd.{suffix}", self.vector, [self.vector] * 3)
        alignment = ir.Constant(_I32, item)
        mask = None
        if cut:
            indices = ir.VectorType(_I64, lanes)
            left = _spread(b, b.sub(arg["width"], _const((vectors - 1) * lanes)), indices)
            mask = b.icmp_signed("<", ir.Constant(indices, list(range(lanes))), left)

        def at(base: Any, step: Any, count: int, vector: int = 0) -> Any:
            return b.add(b.add(base, b.mul(step, _const(item * count))), _const(item * lanes * vector))

        def load(address: Any, vector: int) -> Any:
            place = b.inttoptr(address, pointer)
            if cut and vector == vectors - 1:
                kinds = [pointer, _I32, self.mask, self.vector]
                masked = self._intrinsic(f"llvm.masked.load.{suffix}.p0", self.vector, kinds)
                return b.call(masked, [place, alignment, mask, zero])
            return b.load(place, align=item)

        each = [(row, vector) for row in range(rows) for vector in range(vectors)]
        starts = [load(at(self.start, arg["start_step"], row, vector), vector) for row, vector in each]
        entry, loop, done = b.block, function.append_basic_block("k"), function.append_basic_block("done")
        b.branch(loop)

        b.position_at_end(loop)
        k = b.phi(_I64)
        k.add_incoming(_const(0), entry)
        sums = [b.phi(self.vector) for _ in each]
        of_b = b.add(arg["b"], b.mul(b.mul(k, arg["b_step"]), _const(item)))
        row_of_b = [load(b.add(of_b, _const(item * lanes * vector)), vector) for vector in range(vectors)]
        if rows >= 4 and not cut:
            byte = ir.IntType(8).as_pointer()
            prefetch = self._intrinsic("llvm.prefetch.p0", ir.VoidType(), [byte, _I32, _I32, _I32])
            hints = [ir.Constant(_I32, hint) for hint in (0, 2, 1)]  # read, second level, data
            for line in range(0, item * lanes * vectors, 64):
                b.call(prefetch, [b.inttoptr(b.add(of_b, _const(_AHEAD + line)), byte), *hints])
        following = b.add(k, _const(1))
        new: list[Any] = []
        for row in range(rows):
            if self.across:
                address = b.add(at(arg["a"], b.mul(k, arg["a_step"]), 1), _const(item * row))
            else:
                address = b.add(at(arg["a"], arg["a_step"], row), b.mul(k, _const(item)))
            one = _spread(b, b.load(b.inttoptr(address, self.number.as_pointer()), align=item), self.vector)
            new += [b.call(fma, [one, row_of_b[vector], sums[row * vectors + vector]]) for vector in range(vectors)]
        k.add_incoming(following, loop)
        for phi, first, next_ in zip(sums, starts, new, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(next_, loop)
        b.cbranch(b.icmp_signed("<", following, arg["k"]), loop, done)

        b.position_at_end(done)
        relu = _spread(b, b.icmp_unsigned("!=", arg["relu"], _const(0)), self.mask)
        for (row, vector), value in zip(each, new, strict=True):
            negative = b.and_(b.fcmp_ordered("<", value, zero), relu)  # false for NaN, which stays
            final = b.select(negative, zero, value)
            place = b.inttoptr(at(arg["c"], arg["c_step"], row, vector), pointer)
            if cut and vector == vectors - 1:
                kinds = [self.vector, pointer, _I32, self.mask]
                masked = self._intrinsic(f"llvm.masked.store.{suffix}.p0", ir.VoidType(), kinds)
                b.call(masked, [final, place, alignment, mask])
            else:
                b.store(final, place, align=item)
        b.ret_void()


def _address(context: Any, builder: ir.IRBuilder, array: Any, kind: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.add(builder.ptrtoint(data, _I64), builder.mul(offset, _const(kind.dtype.bitwidth // 8)))


def _make(across: bool) -> Any:
    @intrinsic
    def tile(typingctx, rows, a, a0, a_step, b, b0, b_step, s, s0, s_step, c, c0, c_step, k, width, relu):
        """Arrays are flat, each with the offset of its first number and the distance between rows, in numbers."""

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            rows, a, a0, a_step, b, b0, b_step, s, s0, s_step, c, c0, c_step, k, width, relu = arguments
            kinds = signature.args
            start = _address(context, builder, s, kinds[7], s0)
            start = builder.select(builder.icmp_signed("<", s0, _const(0)), _const(0), start)
            item = kinds[10].dtype.bitwidth // 8
            builder.call(
                _Code(builder.module, item, across).function(),
                [
                    rows,
                    _address(context, builder, a, kinds[1], a0),
                    a_step,
                    _address(context, builder, b, kinds[4], b0),
                    b_step,
                    start,
                    s_step,
                    _address(context, builder, c, kinds[10], c0),
                    c_step,
                    k,
                    width,
                    builder.zext(relu, _I64),
                ],
            )
            return context.get_dummy_value()

        n = types.intp
        return types.void(n, a, n, n, b, n, n, s, n, n, c, n, n, n, n, types.boolean), codegen

    return tile


# c[rows, width] = start + a @ b, with a[rows, k] or, across, a[k, rows].T; then relu if asked for. s0 < 0: start at 0;
# s_step 0: every row starts at the same one. k is at least 1; rows and width at most the tile's.
tile_along, tile_across = _make(False), _make(True)


@intrinsic
def transpose_square(typingctx, a, a0, a_step, c, c0, c_step):
    """Transpose a square of `lanes` by `lanes` numbers in registers: c = a.T.

    Parameters
    ----------
    a, a0, a_step : float[:], int, int
        Source: flat array, offset of its first number, distance between rows in numbers.
    c, c0, c_step : float[:], int, int
        Receives the square; must not overlap `a`.
    """

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        a, a0, a_step, c, c0, c_step = arguments
        item = signature.args[0].dtype.bitwidth // 8
        lanes = SHAPES[item].lanes
        vector = ir.VectorType(ir.FloatType() if item == 4 else ir.DoubleType(), lanes)
        source, target = _address(context, b, a, signature.args[0], a0), _address(context, b, c, signature.args[3], c0)

        def place(base: Any, step: Any, row: int) -> Any:
            return b.inttoptr(b.add(base, b.mul(step, _const(item * row))), vector.as_pointer())

        rows = [b.load(place(source, a_step, row), align=item) for row in range(lanes)]
        half = 1
        while half < lanes:  # swap ever larger squares off the diagonal
            for i in (i for i in range(lanes) if not i & half):
                first, second = rows[i], rows[i + half]
                low = [n if not n & half else lanes + n - half for n in range(lanes)]
                high = [n + half if not n & half else lanes + n for n in range(lanes)]
                index = ir.VectorType(_I32, lanes)
                rows[i] = b.shuffle_vector(first, second, ir.Constant(index, low))
                rows[i + half] = b.shuffle_vector(first, second, ir.Constant(index, high))
            half *= 2
        for row in range(lanes):
            b.store(rows[row], place(target, c_step, row), align=item)
        return context.get_dummy_value()

    n = types.intp
    return types.void(a, n, n, c, n, n), codegen


@intrinsic
def copy_panel_row(typingctx, a, a0, c, c0):
    """Copy `PANEL` numbers from `a`, float[:], starting at offset `a0`, to `c`, float[:], starting at offset `c0`."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        a, a0, c, c0 = arguments
        item = signature.args[0].dtype.bitwidth // 8
        lanes = SHAPES[item].lanes
        vector = ir.VectorType(ir.FloatType() if item == 4 else ir.DoubleType(), lanes).as_pointer()
        source, target = _address(context, b, a, signature.args[0], a0), _address(context, b, c, signature.args[2], c0)
        for byte in range(0, PANEL * item, lanes * item):
            value = b.load(b.inttoptr(b.add(source, _const(byte)), vector), align=item)
            b.store(value, b.inttoptr(b.add(target, _const(byte)), vector), align=item)
        return context.get_dummy_value()

    n = types.intp
    return types.void(a, n, c, n), codegen


if config.DISABLE_JIT:  # the same in plain Python, to look into with a debugger

    def _block(array: Any, place: int, step: int, rows: int, columns: int) -> Any:
        return as_strided(array[place:], (rows, columns), (step * array.itemsize, array.itemsize))

    def _plain(across: bool) -> Any:
        def tile(rows, a, a0, a_step, b, b0, b_step, s, s0, s_step, c, c0, c_step, k, width, relu):
            left = _block(a, a0, a_step, *((k, rows) if across else (rows, k)))
            right = _block(b, b0, b_step, k, width)
            result = _block(c, c0, c_step, rows, width)
            start = _block(s, s0, s_step, rows, width) if s0 >= 0 else 0
            result[:] = start + (left.T if across else left) @ right
            if relu:
                result[result < 0] = 0

        return tile

    tile_along, tile_across = _plain(False), _plain(True)

    def transpose_square(a, a0, a_step, c, c0, c_step):  # type: ignore[no-redef,misc]  # noqa: D103
        lanes = SHAPES[a.itemsize].lanes
        _block(c, c0, c_step, lanes, lanes)[:] = _block(a, a0, a_step, lanes, lanes).T

    def copy_panel_row(a, a0, c, c0):  # type: ignore[no-redef,misc]  # noqa: D103
        c[c0 : c0 + PANEL] = a[a0 : a0 + PANEL]
