"""Matrix products on the register tile, blocked for the caches.

A matrix is a flat array, the offset of its first number in it, and the distance between its rows, both in numbers. A
distance of 0 means that the matrix lies in *panels*: its columns in groups of `PANEL`, each group contiguous, row after
row, the last one narrower. Weights and their gradients always lie so; a panel is read from front to back, which is what
caches and prefetchers like. A matrix with its rows one after another is called natural.

    along    C = start + A @ B      activations by weights (F), output gradients by transposed weights (I)
    across   C = start + A.T @ B    inputs by output gradients (W): k runs over samples
"""

from numba import uintp  # an index that cannot be negative is not checked for it, and its loop becomes vectors

from ringtmp.kernels._jit import jit
from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.tile import PANEL, SHAPES, copy_panel_row, tile_across, tile_along, transpose_square

_ROWS4, _ROWS8 = SHAPES[4].rows, SHAPES[8].rows
_COLUMNS4, _COLUMNS8 = SHAPES[4].columns, SHAPES[8].columns
_LANES4, _LANES8 = SHAPES[4].lanes, SHAPES[8].lanes
_BLOCK = 1 << 18  # bytes of A that stay in the second-level cache while all of B goes by
DEPTH = 256  # samples that one product of W takes at once


@jit
def along(a, a0, lda, b, b0, ldb, c, c0, ldc, m, n, k, start, relu, bias):
    """C = start + A @ B, and then relu if asked for.

    Parameters
    ----------
    a, a0, lda : float[:], int, int
        A [m, k], natural: array, offset, distance between rows.
    b, b0, ldb : float[:], int, int
        B [k, n], natural or in panels (`ldb` 0).
    c, c0, ldc : float[:], int, int
        C [m, n], natural; receives the result.
    m, n, k : int
        Rows of A and C; columns of B and C; columns of A and rows of B. Each 1 or more.
    start : int
        What the products are added to: 0 (nothing), C's contents (1), or `bias` in every row (2).
    relu : bool
        Whether negative results become 0; NaN stays.
    bias : float[n]
        Read if `start` is 2; otherwise any array of the dtype.
    """
    item = c.itemsize
    rows = _ROWS4 if item == 4 else _ROWS8
    columns = _COLUMNS4 if item == 4 else _COLUMNS8
    block = max(6 * rows, _BLOCK // (item * k) // rows * rows)
    for first in range(0, m, block):
        height = min(block, m - first)
        tiles = -(-height // rows)
        for panel in range(0, n, PANEL):
            width = min(PANEL, n - panel)
            at, step = (b0 + panel * k, width) if ldb == 0 else (b0 + panel, ldb)
            for column in range(0, width, columns):
                row = first
                for number in range(tiles):  # tiles of nearly equal height
                    here = (first + height - row) // (tiles - number)
                    place = c0 + row * ldc + panel + column
                    if start == 1:
                        tile_along(
                            here,
                            a,
                            a0 + row * lda,
                            lda,
                            b,
                            at + column,
                            step,
                            c,
                            place,
                            ldc,
                            c,
                            place,
                            ldc,
                            k,
                            min(columns, width - column),
                            relu,
                        )
                    else:
                        tile_along(
                            here,
                            a,
                            a0 + row * lda,
                            lda,
                            b,
                            at + column,
                            step,
                            bias,
                            panel + column if start == 2 else -1,
                            0,
                            c,
                            place,
                            ldc,
                            k,
                            min(columns, width - column),
                            relu,
                        )
                    row += here


@jit
def across(a, a0, lda, b, b0, ldb, c, c0, ldc, m, n, k, add):
    """C = A.T @ B, or C += A.T @ B. Each of the three matrices is natural or in panels (distance 0).

    Parameters
    ----------
    a, a0, lda : float[:], int, int
        A [k, m]: array, offset, distance between rows.
    b, b0, ldb : float[:], int, int
        B [k, n].
    c, c0, ldc : float[:], int, int
        C [m, n]; receives the result.
    m, n, k : int
        Columns of A and rows of C; columns of B and C; rows of A and B. Each 1 or more.
    add : bool
        Whether to add to C's contents instead of replacing them.
    """
    item = c.itemsize
    rows = _ROWS4 if item == 4 else _ROWS8
    columns = _COLUMNS4 if item == 4 else _COLUMNS8
    for panel in range(0, n, PANEL):
        width = min(PANEL, n - panel)
        b_at, b_step = (b0 + panel * k, width) if ldb == 0 else (b0 + panel, ldb)
        c_at, c_step = (c0 + panel * m, width) if ldc == 0 else (c0 + panel, ldc)
        for strip in range(0, m, PANEL):
            height = min(PANEL, m - strip)
            a_at, a_step = (a0 + strip * k, height) if lda == 0 else (a0 + strip, lda)
            tiles = -(-height // rows)
            row = 0
            for number in range(tiles):
                here = (height - row) // (tiles - number)
                for column in range(0, width, columns):
                    place = c_at + (strip + row) * c_step + column
                    tile_across(
                        here,
                        a,
                        a_at + row,
                        a_step,
                        b,
                        b_at + column,
                        b_step,
                        c,
                        place if add else -1,
                        c_step if add else 0,
                        c,
                        place,
                        c_step,
                        k,
                        min(columns, width - column),
                        False,
                    )
                row += here


@jit
def column_sums(b, b0, ldb, k, n, out, add):
    """Sum the rows of B, in ascending order.

    Parameters
    ----------
    b, b0, ldb : float[:], int, int
        B [k, n], natural or in panels (`ldb` 0): array, offset, distance between rows.
    k, n : int
        Rows and columns of B.
    out : float[n]
        Receives the sums.
    add : bool
        Whether to add to the contents of `out` instead of replacing them.
    """
    for panel in range(0, n, PANEL):
        width = min(PANEL, n - panel)
        at, step = (b0 + panel * k, width) if ldb == 0 else (b0 + panel, ldb)
        if not add:
            for j in range(width):
                out[uintp(panel + j)] = 0
        for i in range(k):
            for j in range(width):
                out[uintp(panel + j)] += b[uintp(at + i * step + j)]


@kernel("base", (4,), 0, 2, 2, 2, (4,), 0, 2, 0)
def rows_to_panels(x, x0, ldx, m, n, out, out0, total, at):
    """Copy the rows of a natural matrix to rows `at` to `at` + m - 1 of a matrix in panels.

    Parameters
    ----------
    x, x0, ldx : float[:], int, int
        Matrix [m, n], natural: array, offset, distance between rows.
    m, n : int
        Rows and columns to copy.
    out, out0 : float[:], int
        Matrix [total, n] in panels: array, offset. Receives the rows.
    total, at : int
        Rows of the matrix in panels, at least at + m; first row that is written.
    """
    for panel in range(0, n, PANEL):
        width = min(PANEL, n - panel)
        place = out0 + panel * total + at * width
        if width == PANEL:
            for i in range(m):
                copy_panel_row(x, x0 + i * ldx + panel, out, place + i * PANEL)
        else:
            for i in range(m):
                for j in range(width):
                    out[uintp(place + i * width + j)] = x[uintp(x0 + i * ldx + panel + j)]


@kernel("base", (4,), 2, 2, (2, 2))
def panels_to_rows(p, m, n, out):
    """Copy a matrix in panels to a natural one.

    Parameters
    ----------
    p : float[m * n]
        Matrix [m, n] in panels.
    m, n : int
        Rows and columns.
    out : float[m, n]
        Receives the matrix.
    """
    for panel in range(0, n, PANEL):
        width = min(PANEL, n - panel)
        for i in range(m):
            for j in range(width):
                out[i, panel + j] = p[uintp(panel * m + i * width + j)]


@jit
def transpose(a, a0, a_step, m, n, out, out0, out_step):
    """Transpose a natural matrix into another.

    Parameters
    ----------
    a, a0, a_step : float[:], int, int
        Matrix [m, n]: array, offset, distance between rows.
    m, n : int
        Rows and columns of `a`.
    out, out0, out_step : float[:], int, int
        Receives the matrix [n, m]; the arrays must not overlap.
    """
    lanes = _LANES4 if a.itemsize == 4 else _LANES8
    for i in range(0, m, lanes):
        for j in range(0, n, lanes):
            if m - i >= lanes and n - j >= lanes:
                transpose_square(a, a0 + i * a_step + j, a_step, out, out0 + j * out_step + i, out_step)
            else:
                for r in range(i, min(i + lanes, m)):
                    for s in range(j, min(j + lanes, n)):
                        out[uintp(out0 + s * out_step + r)] = a[uintp(a0 + r * a_step + s)]


@kernel("base", (4,), 2, 2, (4,))
def transpose_panels(p, k, n, out):
    """Transpose a matrix in panels into panels.

    Parameters
    ----------
    p : float[k * n]
        Matrix [k, n] in panels.
    k, n : int
        Rows and columns of `p`.
    out : float[n * k]
        Receives the matrix [n, k] in panels.
    """
    for column in range(0, n, PANEL):
        width = min(PANEL, n - column)
        for row in range(0, k, PANEL):
            height = min(PANEL, k - row)
            transpose(p, column * k + row * width, width, height, width, out, row * n + column * height, height)
