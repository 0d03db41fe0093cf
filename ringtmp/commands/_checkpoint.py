"""The argument of the commands that use a trained network."""

from ringtmp.config.click_command import argument

checkpoint_argument = argument(
    "checkpoint", help="run folder (its newest checkpoint), or runs/NAME/checkpoints/step-..."
)
