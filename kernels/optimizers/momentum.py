"""Stochastic gradient descent with momentum and L2 in the gradient (PyTorch's definition: no dampening)."""

from ringtmp.kernels.update import optimizer


def constants(kind, lr, momentum, weight_decay):
    """Constants of one update.

    Parameters
    ----------
    kind : type
        NumPy scalar type of the arrays, to which the constants are cast.
    lr, momentum, weight_decay : float
        Learning rate; factor of the old velocity, 0 up to but not 1; factor of w that is added to the gradient.

    Returns
    -------
    tuple
        Learning rate, weight decay, momentum.
    """
    return kind(lr), kind(weight_decay), kind(momentum)


@optimizer("momentum", slots=("velocity",), constants=constants)
def rule(velocity, g, w, rate, decay, keep):
    """New weight and velocity: velocity = keep velocity + g + decay w; w -= rate velocity.

    The arguments are a weight `w`, its gradient `g` and its `velocity`; `constants` gives `rate`, `decay` and `keep`.
    """
    change = keep * velocity + g + decay * w
    return w - rate * change, change
