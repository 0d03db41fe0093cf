"""The kinds of a stage's actions, as numbers and as letters: F, I, W, U and B.

F: forward, I: input gradient, W: weight gradient, U: update, B: I and W as one action.
"""

F, I, W, U, B = range(5)  # noqa: E741 - the field's names
KINDS = "FIWUB"
