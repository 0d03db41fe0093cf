"""MPI tags of gradients and weights."""

from ringtmp.comm.point_to_point import FIRST_TAG


def push_tag(number: int) -> int:
    """Tag of the gradient of key range `number`."""
    return FIRST_TAG + 2 * number


def pull_tag(number: int) -> int:
    """Tag of the weights of key range `number`."""
    return FIRST_TAG + 2 * number + 1
