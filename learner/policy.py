"""The policy as the learner needs it: log-probabilities under the distribution that the sampler used.

Scoring with a model of several streams, each of which has an output layer of its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.collate import AudioFeatures
from learner.micro_batches import LOGITS
from learner.packed_attention import Packing

Output = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""Log-probabilities and entropies [n] of n scored tokens, from their tensors."""


def by_stream(outputs: Sequence[Output], streams: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] and entropies [N], each token's from its own stream's output layer.

    outputs: by stream; all are used, also for no token, as ranks that share a layer use it together. streams: int64
    [N]. given: what an output takes, [N, …] each.
    """
    chosen = [(streams == stream).nonzero()[:, 0] for stream in range(len(outputs))]
    found = [output(tuple(part[places] for part in given)) for output, places in zip(outputs, chosen, strict=True)]
    logps, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))
    back = torch.empty_like(streams)
    back[torch.cat(chosen)] = torch.arange(len(streams), device=streams.device)
    return logps[back], entropies[back]


class PolicyModel(nn.Module):
    """Wraps a causal language model. The output layer runs only at positions that carry a loss (method §7, rule 8), so
    many at a time as have no more than `LOGITS` logits: those of each part are computed again in the backward pass."""

    def __init__(self, model: nn.Module, kinds: Tensor) -> None:
        """kinds: int8 [V], the `speech.grammar.TokenKind` of every id."""
        super().__init__()
        self.model = model
        self.streams: int = getattr(model, "streams", 1)
        """Tokens of a step of the model; each has an output layer of its own."""
        sets = torch.arange(2 * int(kinds.max()), dtype=torch.int64)
        forbidden = (kinds.to(torch.int64)[None, :] & sets[:, None]) == 0
        forbidden[0] = False  # the empty set stands for "everything was allowed"
        self.register_buffer("forbidden", forbidden, persistent=False)

    def parts(self, tokens: int) -> int:
        """How many parts the output layer takes so many scored tokens in."""
        forbidden: Any = self.forbidden
        return max(1, -(-tokens * forbidden.shape[1] // LOGITS))

    def forward(
        self,
        input_ids: Tensor,
        sources: Tensor,
        targets: Tensor,
        allowed: Tensor,
        temperatures: Tensor,
        packing: Packing | None = None,
        parts: int | None = None,
        heard: AudioFeatures | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores N tokens.

        input_ids: int64 [1, tokens] with their packing, else [R, L], right-padded. sources: int64 [N], flat positions
        whose outputs predict the targets. allowed: int64 [N], the set of kinds that could be drawn
        (0: all). temperatures: float32 [N]. parts: of the output layer; the same on all ranks where the model is
        spread over them, since each use of a layer gathers it. heard: features in place of embeddings.
        Returns log-probabilities [N] and entropies [N] in nats, both float32, of softmax(logits / temperature) over
        the allowed tokens. The entropies carry no gradient.
        """
        where = {} if packing is None else {"packing": packing, "position_ids": packing.positions}
        body: Any = self.model.model
        given = {"input_ids": input_ids}
        if self.streams == 1:  # in this order whatever was heard: at ZeRO stage 3 all ranks gather layers alike
            embedded = body.get_input_embeddings()(input_ids)
            given = {"inputs_embeds": embedded if heard is None else heard.put_into(embedded)}
        hidden = body(**given, use_cache=False, **where).last_hidden_state
        asked = (hidden.flatten(0, 1)[sources], targets, allowed, temperatures)
        count = self.parts(len(targets)) if parts is None else parts
        model: Any = self.model
        if self.streams == 1:
            return self._outputs(model.lm_head, count, asked)
        return by_stream(
            [partial(self._outputs, layer, count) for layer in model.output_layers], sources % self.streams, asked
        )

    def _outputs(self, layer: nn.Module, count: int, asked: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if count == 1:
            return self._output(layer, *asked)
        split = zip(*(torch.tensor_split(part, count) for part in asked), strict=True)
        found = [checkpoint(self._output, layer, *part, use_reentrant=False) for part in split]
        logps, entropies = zip(*found, strict=True)
        return torch.cat(logps), torch.cat(entropies)

    def _output(
        self, layer: nn.Module, hidden: Tensor, targets: Tensor, allowed: Tensor, temperatures: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = layer(hidden).float().div_(temperatures[:, None])
        logits = logits.masked_fill_(self.forbidden[allowed], float("-inf"))
        logps = torch.log_softmax(logits, dim=-1)
        del logits
        chosen = logps.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(logps.exp() * logps.masked_fill(logps == float("-inf"), 0.0)).sum(-1)
        return chosen, entropy
