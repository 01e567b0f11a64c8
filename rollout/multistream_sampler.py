"""Samples tokens for models with one output layer per stream, with or without a grammar."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from speech.grammar import Grammar, TokenKind, grammar_table

BLOCK = 256
"""Tokens per block of two-stage sampling."""


@dataclass(frozen=True, kw_only=True)
class TokenRange:
    """Ids that a stream can contain. Other rows of the output layer are not computed."""

    first: int
    end: int
    forbidden: Tensor | None
    """bool [sets of kinds, end − first]: row s marks the ids that the set s of kinds forbids. None: all are allowed."""


class MultiStreamSampler:
    """Sampler for one grammar and vocabulary. The state of a reply is a number, 0 at its start
    (`speech.grammar.grammar_table`)."""

    def __init__(
        self, pattern: Grammar, kinds: np.ndarray, streams: int, *, constrained: bool, device: torch.device
    ) -> None:
        """kinds: int8 [V], the kind of every id."""
        self._table = grammar_table(pattern)
        self._kinds: list[int] = kinds.tolist()
        self._constrained = constrained
        counts = {kind: int((kinds == kind).sum()) for kind in TokenKind}
        self._only: dict[int, int | None] = {}
        """By set of kinds: its id, if it allows a single one."""
        for allowed in set(self._table.allowed):
            one = sum(count for kind, count in counts.items() if kind & allowed) == 1
            self._only[allowed] = int(np.flatnonzero(kinds & allowed)[0]) if one else None
        self._ranges = [self._range(kinds, union, device) for union in self._unions(streams)]

    def _unions(self, streams: int) -> list[int]:
        """Return the kinds that each stream can contain in any state."""
        found, seen, waiting = [0] * streams, set(), [(0, 0)]
        while waiting:
            state, stream = waiting.pop()
            if (state, stream) not in seen:
                seen.add((state, stream))
                found[stream] |= self._table.allowed[state]
                following = {after for after in self._table.after[state] if after >= 0}
                waiting += [(after, (stream + 1) % streams) for after in following]
        return found

    def _range(self, kinds: np.ndarray, union: int, device: torch.device) -> TokenRange:
        if not self._constrained:
            return TokenRange(first=0, end=len(kinds), forbidden=None)
        ids = np.flatnonzero(kinds & union)
        first, end = int(ids[0]), int(ids[-1]) + 1
        sets = np.arange(2 * int(max(TokenKind)))
        forbidden = (kinds[None, first:end] & sets[:, None]) == 0
        return TokenRange(first=first, end=end, forbidden=torch.from_numpy(forbidden).to(device))

    def after(self, state: int, token: int) -> int:
        """Return the next state. Without a grammar there is only one."""
        return self._table.after[state][self._kinds[token]] if self._constrained else state

    def sample(
        self,
        stream: int,
        layer: nn.Linear,
        hidden: Tensor,
        states: Sequence[int],
        temperatures: Sequence[float],
        generators: Sequence[np.random.Generator],
    ) -> tuple[list[int], list[float]]:
        """Sample one token of a stream for each of n replies from outputs [n, width].

        Return tokens and their log-probabilities under softmax(logits / temperature) over the allowed tokens. A single
        allowed token is taken without sampling.
        """
        sets = [self._table.allowed[state] for state in states]
        tokens = [self._only[allowed] if self._constrained else None for allowed in sets]
        logps = [0.0] * len(tokens)
        free = [row for row, token in enumerate(tokens) if token is None]
        if free:
            ids = self._ranges[stream]
            chosen, found = _sample(
                self._logits(
                    ids,
                    layer,
                    hidden[free] if len(free) < len(tokens) else hidden,
                    [sets[row] for row in free],
                    torch.tensor([temperatures[row] for row in free], device=hidden.device),
                ),
                [generators[row] for row in free],
            )
            for row, token, logp in zip(free, chosen.tolist(), found.tolist(), strict=True):
                tokens[row], logps[row] = ids.first + token, logp
        return [token for token in tokens if token is not None], logps

    @staticmethod
    def _logits(ids: TokenRange, layer: nn.Linear, hidden: Tensor, sets: list[int], temperatures: Tensor) -> Tensor:
        logits = nn.functional.linear(hidden, layer.weight[ids.first : ids.end]).float().div_(temperatures[:, None])
        if ids.forbidden is None:
            return logits
        # Usually all replies are in the same state and share one mask.
        rows = sets[0] if len(set(sets)) == 1 else torch.tensor(sets, device=logits.device)
        return logits.masked_fill_(ids.forbidden[rows], float("-inf"))


def _sample(logits: Tensor, generators: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Sample an index for each row of logits [n, C], which are overwritten. Return indices and log-probabilities.

    Exponential race: of arrival times with rates p_i, time i is the first with probability p_i. Blocks of tokens race
    by their sums, then the tokens of the winning block: a few hundred random numbers instead of C. Rounding errors
    decide only races that are as close as the errors. So a reply does not depend on the other replies of its batch, as
    it would if one random number were compared with cumulative sums over the whole vocabulary.
    """
    rows, size = logits.shape
    largest = logits.amax(-1, keepdim=True)
    shares = nn.functional.pad(logits.sub_(largest).exp_(), (0, -size % BLOCK)).view(rows, -1, BLOCK)
    sums = shares.sum(-1)
    noise = np.stack([one.standard_exponential(sums.shape[1] + BLOCK, dtype=np.float32) for one in generators])
    times = torch.from_numpy(noise).to(logits.device).clamp_(min=torch.finfo(torch.float32).tiny)
    block = (sums / times[:, :-BLOCK]).argmax(-1)
    within = shares[torch.arange(rows, device=logits.device), block]
    index = (within / times[:, -BLOCK:]).argmax(-1)
    share = within.gather(-1, index[:, None])[:, 0]
    return block * BLOCK + index, (share / sums.sum(-1)).log()
