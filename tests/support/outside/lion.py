"""Lion, as somebody outside the package would add it: one file (Chen et al. 2023, "Symbolic Discovery ...")."""

from ringtmp.kernels.update import optimizer


def constants(kind, lr, beta1, beta2, weight_decay):
    """Learning rate, what is kept of w, and both betas with their complements."""
    keep = kind(1 - lr * weight_decay)
    return kind(lr), keep, kind(beta1), kind(1 - beta1), kind(beta2), kind(1 - beta2)


@optimizer("lion", slots=("m",), constants=constants, fixed={"beta1": 0.9, "beta2": 0.99})
def rule(w, g, m, rate, keep, b1, c1, b2, c2):
    """A step of the learning rate against the sign of the smoothed gradient."""
    direction = b1 * m + c1 * g
    step = rate if direction > 0 else -rate
    return keep * w - step, b2 * m + c2 * g
