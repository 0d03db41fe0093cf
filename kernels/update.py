"""Update rules of optimizers: what is written once for one number becomes three kernels over arrays.

    @optimizer("momentum", slots=("velocity",), constants=constants)
    def rule(velocity, g, w, rate, decay, keep): return new w, new velocity

in place        the new numbers replace the old ones
into            the new numbers go to other arrays; the old ones stay
served          the gradient is the sum of several workers', the update in place; both go over blocks that stay in the
                first-level cache, so that sum, factor, bound and rule cost one pass over memory

All three give the same bits. The rule is compiled into each kernel, so that LLVM knows whether the new numbers replace
the old ones. Measured and worse: one kernel for both forms. It tests at run time whether old and new arrays overlap;
where they are the same array it runs a loop without vector instructions (2.3 instead of 0.33 ns for a number of AdamW;
AMD EPYC, Zen 4). The `into` form takes as long as a copy. Stores that bypass the caches made it slower at every size
(1.3 instead of 0.9 ns from memory, 1.0 instead of 0.34 ns in the second-level cache).

For each index all old numbers are read before a new one is written. With the new m written before v was read, AdamW
took 0.49 instead of 0.30 ns: large arrays start at the same offset in a page, so that the read of v waits for the write
of m as if it were of the same address.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ringtmp.kernels._jit import inlined, jit
from ringtmp.kernels.compilation import kernel
from ringtmp.kernels.elementwise import add_to, clip_value, scale_by
from ringtmp.kernels.registry import OPTIMIZERS, Rule

BLOCK = 2048  # numbers of a block of a served update, and at least of its room; a whole number of vectors
RUN = ("lr", "weight_decay", "momentum", "step")  # what a run sets

# The kernels as text, since the number of slots decides how many arrays they take.
_LOOP = """
def loop(w, g, {old}{targets}, {settings}):
    kind = w.dtype.type
    {values_are}constants(kind, {settings})
    for i in range(w.size):
        {stores} = rule({reads})
"""
_IN_PLACE = """
def {name}(w, g, {old}{settings}):
    loop(w, g, {old}w, {old}{settings})
"""
_INTO = """
def {name}_into(w, g, {old}{targets}, {settings}):
    loop(w, g, {old}{targets}, {settings})
"""
_SERVED = """
def served_{name}(w, rows, which, scale, clip, room, {old}{settings}, first, last):
    for a in range(first, last, BLOCK):
        b = min(a + BLOCK, last)
        x, g = w[a:b], summed(rows, which, scale, clip, room, a, b)
        {parts}
        loop(x, g, {old_parts}x, {old_parts}{settings})
"""


@jit
def summed(rows, which, scale, clip, room, a, b):
    """Sum numbers `a` to `b` - 1 of some rows' gradients, multiply by a factor, and limit the result.

    Equal bits require one pass for each row: between passes the sums stand in memory, so no compiler may regroup them.
    A factor of 1 and an infinite bound are skipped, and leave every bit unchanged.

    Parameters
    ----------
    rows : float[workers, n]
        Gradients, C-contiguous.
    which : int64[k]
        Rows to sum, at least one; they are summed in this order.
    scale, clip : float
        Factor of the sum (1: none); bound of the absolute value of each number of it (inf: none). NaN stays.
    room : float[BLOCK or more]
        Scratch for the sum; unused if the result is a row itself. Each thread has its own.
    a, b : int
        Range, of at most BLOCK numbers.

    Returns
    -------
    float[b - a]
        Part of `room`, or of the only row.
    """
    if which.size == 1 and scale == 1.0 and clip == np.inf:
        return rows[which[0], a:b]
    g, start = room[: b - a], rows[which[0], a:b]
    for i in range(g.size):  # as `g[:] = start`, which Numba makes four times as slow
        g[i] = start[i]
    for i in range(1, which.size):
        add_to(g, rows[which[i], a:b])
    if scale != 1.0:
        scale_by(g, scale)
    if clip != np.inf:
        clip_value(g, clip)
    return g


def optimizer(
    name: str,
    *,
    slots: tuple[str, ...],
    constants: Callable[..., Any],
    weight_decay: float = 0.0,
    fixed: Mapping[str, float] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an optimizer by its rule for one number, which Numba compiles.

    The rule's parameters are `w`, `g` and the slots, by these names and in any order, followed by the results of
    `constants`. Their order is that in which a number's values are read; it decides how LLVM groups sums, so the bits
    depend on it. The rule returns the new w and the new number of each slot, in the order of `slots`, all of the
    parameters' dtype.

    Parameters
    ----------
    name : str
        Value of `--optimizer`: letters and digits, and no other optimizer's.
    slots : tuple of str
        Names of the rule's slots.
    constants : callable
        Called once for each update and compiled by Numba. Its first parameter, `kind`, is the dtype of the arrays; the
        others have names of `RUN` or `fixed`, and are float64 (`step`: int64, from 1). Returns the rule's last
        arguments as a tuple, each cast by `kind`, so that float32 arrays are updated in float32 vectors.
    weight_decay : float
        Weight decay of a run that does not set it.
    fixed : mapping
        Values of further parameters of `constants`.

    Returns
    -------
    callable
        The decorator; it returns the rule unchanged.
    """

    def declare(rule: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(constants).parameters)[1:]
        settings = {each: (fixed or {}).get(each) for each in names}
        made = Rule(name, slots, weight_decay, settings, *_kernels(name, rule, slots, constants))
        OPTIMIZERS.add(name, made, rule.__module__)
        return rule

    return declare


def _kernels(
    name: str, rule: Callable[..., Any], slots: tuple[str, ...], constants: Callable[..., Any]
) -> tuple[Callable[..., None], ...]:
    """The rule in place, into and served. Numba's cache finds them by the rule's file."""
    arrays = ("w", "g", *slots)
    settings = list(inspect.signature(constants).parameters)[1:]
    parameters = list(inspect.signature(rule).parameters)
    values = [each for each in parameters if each not in arrays]
    new = [f"{array}_new" for array in ("w", *slots)]
    parts = [f"{slot}_part" for slot in slots]
    words = {
        "name": name,
        "settings": ", ".join(settings),
        "old": _listed(slots),
        "targets": ", ".join(new),
        "values_are": f"{_listed(values)}= ",
        "stores": ", ".join(f"{array}[i]" for array in new),
        "reads": ", ".join(f"{each}[i]" if each in arrays else each for each in parameters),
        "parts": "; ".join(f"{part} = {slot}[a:b]" for part, slot in zip(parts, slots, strict=True)),
        "old_parts": _listed(parts),
    }
    scope: dict[str, Any] = {"__name__": rule.__module__, "rule": inlined(rule), "constants": inlined(constants)}
    scope |= {"BLOCK": BLOCK, "summed": summed}

    def made(text: str, name: str) -> Any:
        exec(compile(text.format(**words), rule.__code__.co_filename, "exec"), scope)
        return scope[name]

    scope["loop"] = inlined(made(_LOOP, "loop"))
    one = [(1,)] * (1 + len(slots))
    numbers = [1 if each == "step" else 0.5 for each in settings]
    gradients = ((1, 1), np.zeros(1, np.int64), 1.0, np.inf, (BLOCK,))
    return (
        kernel("base", *one, (1,), *numbers)(made(_IN_PLACE, name)),
        kernel("keep", *one, *one, (1,), *numbers)(made(_INTO, f"{name}_into")),
        kernel("serve", (1,), *gradients, *one[1:], *numbers, 0, 1)(made(_SERVED, f"served_{name}")),
    )


def _listed(names: Any) -> str:
    """Each name and a comma."""
    return "".join(f"{name}, " for name in names)
