"""Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

import math

from ringtmp.kernels.update import optimizer

FIXED = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def constants(kind, lr, beta1, beta2, epsilon, weight_decay, step):
    """Constants of one update.

    Parameters
    ----------
    kind : type
        NumPy scalar type of the arrays, to which the constants are cast.
    lr, weight_decay : float
        Learning rate; w is multiplied by 1 - lr * weight_decay.
    beta1, beta2, epsilon : float
        Decay of the first and of the second moment, 0 up to but not 1; number that keeps the divisor above 0.
    step : int
        Number of the update, from 1.

    Returns
    -------
    tuple
        Both betas, epsilon, factor of w, 1 - both betas, and the corrections of the moments' bias.
    """
    b1, b2, eps, keep = kind(beta1), kind(beta2), kind(epsilon), kind(1 - lr * weight_decay)
    c1, c2 = kind(1 - beta1), kind(1 - beta2)
    rate = kind(lr / (1 - beta1**step))
    unbias = kind(1 / math.sqrt(1 - beta2**step))
    return b1, b2, eps, keep, c1, c2, rate, unbias


# Decoupled decay is scaled by the learning rate, so 0.3 is mild.
@optimizer("adamw", slots=("m", "v"), constants=constants, fixed=FIXED, weight_decay=0.3)
def rule(m, g, v, w, b1, b2, eps, keep, c1, c2, rate, unbias):
    """One step of AdamW for a weight `w` with gradient `g` and moments `m`, `v`; the rest comes from `constants`."""
    mean = b1 * m + c1 * g
    square = b2 * v + c2 * g * g
    return keep * w - rate * mean / (math.sqrt(square) * unbias + eps), mean, square
