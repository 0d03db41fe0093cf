"""Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

import math

from kernels.update import optimizer

FIXED = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def constants(kind, lr, beta1, beta2, epsilon, weight_decay, step):
    """Both betas, epsilon, what is kept of w, the betas' complements, and the corrections of the moments' bias."""
    b1, b2, eps, keep = kind(beta1), kind(beta2), kind(epsilon), kind(1 - lr * weight_decay)
    c1, c2 = kind(1 - beta1), kind(1 - beta2)
    rate = kind(lr / (1 - beta1**step))
    unbias = kind(1 / math.sqrt(1 - beta2**step))
    return b1, b2, eps, keep, c1, c2, rate, unbias


# Decoupled decay is scaled by the learning rate, so 0.3 is mild.
@optimizer("adamw", slots=("m", "v"), constants=constants, fixed=FIXED, weight_decay=0.3)
def rule(m, g, v, w, b1, b2, eps, keep, c1, c2, rate, unbias):
    """One step of AdamW for one number."""
    mean = b1 * m + c1 * g
    square = b2 * v + c2 * g * g
    return keep * w - rate * mean / (math.sqrt(square) * unbias + eps), mean, square
