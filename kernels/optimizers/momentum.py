"""Stochastic gradient descent with momentum and L2 in the gradient (PyTorch's definition: no dampening)."""

from kernels.update import optimizer


def constants(kind, lr, momentum, weight_decay):
    """Learning rate, decay, and what is kept of the velocity."""
    return kind(lr), kind(weight_decay), kind(momentum)


@optimizer("momentum", slots=("velocity",), constants=constants)
def rule(velocity, g, w, rate, decay, keep):
    """velocity = momentum velocity + g + decay w; w -= lr velocity."""
    change = keep * velocity + g + decay * w
    return w - rate * change, change
