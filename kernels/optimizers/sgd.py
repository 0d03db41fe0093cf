"""Stochastic gradient descent with L2 in the gradient."""

from ringtmp.kernels.update import optimizer


def constants(kind, lr, weight_decay):
    """Constants of one update.

    Parameters
    ----------
    kind : type
        NumPy scalar type of the arrays, to which the constants are cast.
    lr, weight_decay : float
        Learning rate; factor of w that is added to the gradient.

    Returns
    -------
    tuple
        Learning rate, weight decay.
    """
    return kind(lr), kind(weight_decay)


@optimizer("sgd", slots=(), constants=constants)
def rule(w, g, rate, decay):
    """New weight: w -= rate (g + decay w), for a weight `w` with gradient `g`; `constants` gives `rate` and `decay`."""
    return w - rate * (g + decay * w)
