"""The kinds of a stage's actions, as numbers: forward, input gradient, weight gradient, update; and as letters."""

F, I, W, U, B = range(5)  # noqa: E741 - the field's names; B is I and W as one action
KINDS = "FIWUB"
