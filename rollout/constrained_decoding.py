"""Keeps sampled replies to the interleave structure: a vLLM logits processor driven by `speech.grammar.grammar_table`.

This is the interface of vLLM's model runner V1, which CPU builds use. `rollout.vllm_engine` selects that runner
wherever the structure is enforced.
"""

import json
from pathlib import Path

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from speech.families import family
from speech.grammar import TokenKind, grammar_table, token_kinds
from speech.vocabulary import Vocabulary

CONFIG_KEY = "duet_structure"
"""Key of vLLM's `additional_config` that says which checkpoint and family the structure is for."""


class _Follower:
    """One request: the state of its automaton, and the output list that vLLM keeps appending to."""

    __slots__ = ("outputs", "seen", "state")

    def __init__(self, outputs: list[int]) -> None:
        self.state = 0
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
        self._table = grammar_table(chosen.interleave)
        kinds = token_kinds(vocabulary)
        self._kinds: list[int] = kinds.tolist()
        self._followers: dict[int, _Follower] = {}
        forbidden = [((kinds & allowed) == 0) for allowed in range(int(max(TokenKind)) * 2)]
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
            self._followers[index] = _Follower(outputs)
        for source, target, direction in batch_update.moved:
            moved, displaced = self._followers.pop(source, None), self._followers.pop(target, None)
            if moved is not None:
                self._followers[target] = moved
            if displaced is not None and direction == MoveDirectionality.SWAP:
                self._followers[source] = displaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [requests, size], changed in place."""
        allowed = torch.tensor([self._allowed(self._followers[index]) for index in range(logits.shape[0])])
        return logits.masked_fill_(self._forbidden[allowed.to(logits.device)], float("-inf"))

    def _allowed(self, follower: _Follower) -> int:
        """The set of kinds that may come next."""
        for token in follower.outputs[follower.seen :]:
            follower.state = self._table.after[follower.state][self._kinds[token]]
            if follower.state < 0:
                raise ValueError(f"token {token} was sampled where the structure does not allow it")
        follower.seen = len(follower.outputs)
        return self._table.allowed[follower.state]
