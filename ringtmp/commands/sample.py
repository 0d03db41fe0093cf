"""The command `ringtmp sample`: text from the checkpoint of a character-level language model."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ringtmp.commands._checkpoint import checkpoint_argument
from ringtmp.config.click_command import Command, option
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from ringtmp.nn.layer import Array

HELP = "Write text from the checkpoint of a character-level language model."
EXAMPLES = "ringtmp sample runs/text --prompt 'To be' --length 200"


@click.command("sample", cls=Command, help=HELP, short_help=HELP.rstrip("."), examples=EXAMPLES)
@checkpoint_argument
@option("--length", type=int, default=400, help="characters to write")
@option("--prompt", default="", help="text to continue")
@option("--temperature", type=float, default=0.8, help="above 1: more random; 0: always the most likely character")
@option("--seed", type=int, default=0, help="of the random choices")
def command(checkpoint: str, length: int, prompt: str, temperature: float, seed: int) -> None:
    for name, value, least in (("length", length, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature: expected a number from 0, got {temperature}")
    sampler = Sampler(checkpoint)
    sampler.tokens(prompt)
    sys.stdout.write(prompt)
    for character in sampler.write(prompt, length, temperature, seed):
        sys.stdout.write(character)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


class Sampler:
    """A trained language model that continues a text, character by character.

    Parameters
    ----------
    path : str
        A run folder, or one checkpoint in it.

    Raises
    ------
    UserError
        There is no usable checkpoint, or its model is not a language model.
    """

    def __init__(self, path: str) -> None:
        from ringtmp.run.inference import TrainedNetwork

        net = TrainedNetwork(path)
        if not net.info.alphabet:
            raise UserError(f"{path}: was trained on {net.info.name}; expected a model of text (--data text:FILE)")
        self.alphabet = net.info.alphabet
        (self.context,) = net.info.sample_shape
        self.stage = net.stage(0, len(net.model.layers), 1)

    def tokens(self, text: str) -> list[int]:
        """The tokens of `text`. Raises `UserError` for a character that does not occur in the training text."""
        for character in text:
            if character not in self.alphabet:
                raise UserError(f"prompt: {character!r} does not occur in the text that the model was trained on")
        return [self.alphabet.index(character) for character in text]

    def logits(self, tokens: list[int]) -> "Array":
        """Logits [alphabet] of the token that follows `tokens` (1 to `context` of them)."""
        work = self.stage.work(0, 1)
        work.x[...] = 0  # causal attention ignores what follows the last token
        work.x[0, : len(tokens)] = tokens
        self.stage.forward(work)
        return work.y.reshape(self.context, -1)[len(tokens) - 1, : len(self.alphabet)]

    def write(self, prompt: str, length: int, temperature: float = 0.8, seed: int = 0) -> Iterator[str]:
        """Generate `length` characters after `prompt`.

        Parameters
        ----------
        prompt : str
            Text to continue; empty: a line break.
        length : int
            Characters to generate.
        temperature : float
            Divides the logits; 0: always the most likely character.
        seed : int
            Of the random choices.
        """
        import numpy as np

        rng = np.random.default_rng(seed)
        tokens = self.tokens(prompt or ("\n" if "\n" in self.alphabet else self.alphabet[0]))
        for _ in range(length):
            logits = self.logits(tokens[-self.context :]).astype(np.float64)
            if temperature > 0:
                weights = np.exp((logits - logits.max()) / temperature)
                token = int(rng.choice(len(weights), p=weights / weights.sum()))
            else:
                token = int(logits.argmax())
            tokens.append(token)
            yield self.alphabet[token]
