"""Stochastic gradient descent with L2 in the gradient."""

from kernels.update import optimizer


def constants(kind, lr, weight_decay):
    """Learning rate and decay."""
    return kind(lr), kind(weight_decay)


@optimizer("sgd", slots=(), constants=constants)
def rule(w, g, rate, decay):
    """w -= lr (g + decay w)."""
    return w - rate * (g + decay * w)
