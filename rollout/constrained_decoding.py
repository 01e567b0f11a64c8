"""Restricts sampling to the interleave grammar: a vLLM logits processor driven by `speech.grammar.grammar_table`.

Uses the interface of vLLM's model runner V1, the one of CPU builds. `rollout.vllm_engine` selects that runner if the
grammar is enforced.
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
"""Key of vLLM's `additional_config` with the checkpoint and family of the grammar."""


class _GrammarState:
    """Automaton state of one request, and its output list, to which vLLM appends."""

    __slots__ = ("outputs", "seen", "state")

    def __init__(self, outputs: list[int]) -> None:
        self.state = 0
        self.outputs = outputs
        self.seen = 0


class StructureProcessor(LogitsProcessor):
    """Sets the logits of every token that the grammar does not allow next to minus infinity.

    `processed_logprobs` are then log-probabilities of the masked distribution, the sampled one (method §7, rule 3).
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        settings = json.loads(vllm_config.additional_config[CONFIG_KEY])
        chosen = family(settings["family"])
        vocabulary = Vocabulary.from_checkpoint(Path(settings["checkpoint"]), chosen.tokens)
        self._table = grammar_table(chosen.interleave)
        kinds = token_kinds(vocabulary)
        self._kinds: list[int] = kinds.tolist()
        self._states: dict[int, _GrammarState] = {}
        forbidden = [((kinds & allowed) == 0) for allowed in range(int(max(TokenKind)) * 2)]
        self._forbidden = torch.from_numpy(np.stack(forbidden)).to(device)
        """bool [sets of kinds, vocabulary size]: row s marks the tokens that the set s of kinds forbids."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._states.pop(index, None)
        for index, _, _, outputs in batch_update.added:
            self._states[index] = _GrammarState(outputs)
        for source, target, direction in batch_update.moved:
            moved, displaced = self._states.pop(source, None), self._states.pop(target, None)
            if moved is not None:
                self._states[target] = moved
            if displaced is not None and direction == MoveDirectionality.SWAP:
                self._states[source] = displaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask logits [requests, vocabulary size] in place."""
        allowed = torch.tensor([self._allowed(self._states[index]) for index in range(logits.shape[0])])
        return logits.masked_fill_(self._forbidden[allowed.to(logits.device)], float("-inf"))

    def _allowed(self, request: _GrammarState) -> int:
        """Advance a request's automaton over new outputs. Return the set of kinds allowed next."""
        for token in request.outputs[request.seen :]:
            request.state = self._table.after[request.state][self._kinds[token]]
            if request.state < 0:
                raise ValueError(f"token {token} was sampled but the grammar does not allow it here")
        request.seen = len(request.outputs)
        return self._table.allowed[request.state]
