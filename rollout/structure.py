"""Keeps sampled replies to the interleave structure: a vLLM logits processor driven by `speech.interleave.Automaton`.

This is the interface of vLLM's model runner V1, which CPU builds use. `rollout.engine` selects that runner wherever the
structure is enforced.
"""

import json
from pathlib import Path

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from speech.families import family
from speech.interleave import Automaton, Kind, kind_table
from speech.vocabulary import Vocabulary

CONFIG_KEY = "duet_structure"
"""Key of vLLM's `additional_config` that says which checkpoint and family the structure is for."""


class _Follower:
    """One request: its automaton, and the output list that vLLM keeps appending to."""

    __slots__ = ("automaton", "outputs", "seen")

    def __init__(self, automaton: Automaton, outputs: list[int]) -> None:
        self.automaton = automaton
        self.outputs = outputs
        self.seen = 0


class StructureProcessor(LogitsProcessor):
    """Sets the logits of every token that the structure does not allow next to minus infinity.

    `processed_logprobs` then are log-probabilities of the masked distribution, the one that was sampled (method §7,
    rule 3).
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        settings = json.loads(vllm_config.additional_config[CONFIG_KEY])
        chosen = family(settings["family"])
        vocabulary = Vocabulary.from_checkpoint(Path(settings["checkpoint"]), chosen.tokens)
        self._pattern = chosen.interleave
        self._kinds = kind_table(vocabulary)
        self._followers: dict[int, _Follower] = {}
        forbidden = [((self._kinds & allowed) == 0) for allowed in range(int(max(Kind)) * 2)]
        self._forbidden = torch.from_numpy(np.stack(forbidden)).to(device)
        """bool [sets of kinds, size]: row s marks what the set s of kinds forbids."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._followers.pop(index, None)
        for index, _, _, outputs in batch_update.added:
            self._followers[index] = _Follower(Automaton(self._pattern), outputs)
        for source, target, direction in batch_update.moved:
            moved, displaced = self._followers.pop(source, None), self._followers.pop(target, None)
            if moved is not None:
                self._followers[target] = moved
            if displaced is not None and direction == MoveDirectionality.SWAP:
                self._followers[source] = displaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [requests, size], changed in place."""
        allowed = np.zeros(logits.shape[0], dtype=np.int64)
        for index in range(logits.shape[0]):
            allowed[index] = int(self._allowed(self._followers[index]))
        rows = self._forbidden[torch.from_numpy(allowed).to(logits.device)]
        return logits.masked_fill_(rows, float("-inf"))

    def _allowed(self, follower: _Follower) -> Kind:
        for token in follower.outputs[follower.seen :]:
            follower.automaton.advance(Kind(int(self._kinds[token])))
        follower.seen = len(follower.outputs)
        return follower.automaton.allowed()
