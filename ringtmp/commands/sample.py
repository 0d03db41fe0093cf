"""``python -m ringtmp sample runs/NAME``: write text from the checkpoint of a character-level language model."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ringtmp.comm.mpi import StopRequest, from_rank_0, run_main
from ringtmp.config.command_line import checkpoint_parser
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.run.inference import TrainedNetwork

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


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

    def logits(self, tokens: list[int]) -> Array:
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


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = checkpoint_parser("ringtmp sample", __doc__.split(": ")[1])
    parser.add_argument("--length", type=int, default=400, help="characters to write [400]")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="above 1: more random; 0: always the most likely character [0.8]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random choices [0]")
    options = parser.parse_args(argv)
    for name, value, least in (("length", options.length, 1), ("seed", options.seed, 0)):
        if value < least:
            raise UserError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= options.temperature < float("inf"):
        raise UserError(f"temperature: expected a number from 0, got {options.temperature}")
    return options


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Load a checkpoint and write text on rank 0 of `comm`; return the exit status. `stop` holds a received signal."""
    loaded: list[tuple[argparse.Namespace, Sampler]] = []

    def load() -> None:
        try:
            options = _arguments(sys.argv[1:])
        except SystemExit:  # --help has been printed
            return
        loaded.append((options, Sampler(options.checkpoint)))
        loaded[0][1].tokens(options.prompt)

    from_rank_0(comm, load)
    for options, sampler in loaded:
        try:
            sys.stdout.write(options.prompt)
            for character in sampler.write(options.prompt, options.length, options.temperature, options.seed):
                if stop.signal:
                    break
                sys.stdout.write(character)
                sys.stdout.flush()
            sys.stdout.write("\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + stop.signal if stop.signal else 0


if __name__ == "__main__":
    run_main(main)
