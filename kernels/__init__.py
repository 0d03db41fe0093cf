"""Compiled kernels: arrays in, arrays out. No MPI, no files, no state.

_jit          Numba's flags, and where compiled code is kept between runs
compilation   declares kernels (`kernel`) and compiles those of a family ahead of time (`prepare_kernels`)
registry      what is found by its name, here or from plug-ins (`Registry`); describes optimizers and losses
tile, gemm    the register tile and the matrix products on it
scalar, activations, dense, conv, pool, attention, embedding, norm, elementwise    what layers are made of
losses        one file a loss; declared by means of `loss`
optimizers    one file an update rule; declared by means of `update`
compression   float16 and largest numbers, for what travels between workers and servers
denormals     numbers below the smallest normal one count as 0
machine       what one core of this machine can do

In docstrings `float[m, n]` is a C-contiguous array of shape (m, n) whose dtype is that of the run, float32 or float64;
all such arrays of a call have the same dtype. `m` is a number of samples or of rows. Kernels check neither shapes nor
ranges.
"""
