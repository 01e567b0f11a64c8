"""The policy model: log-probabilities of tokens under the distribution that the sampler used.

A model of several streams has one output layer per stream.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.collate import AudioFeatures
from learner.micro_batches import MAX_LOGITS
from learner.packed_attention import Packing

Output = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""Function from tensors of n scored tokens to their log-probabilities and entropies, [n]."""


def by_stream(outputs: Sequence[Output], streams: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N] and entropies [N], each token's from its own stream's output layer.

    Args:
        outputs: One per stream. All are called, even for no token: under ZeRO-3 all ranks gather a layer together.
        streams: int64 [N].
        given: Inputs of an output layer, [N, …] each.
    """
    chosen = [(streams == stream).nonzero()[:, 0] for stream in range(len(outputs))]
    found = [output(tuple(part[places] for part in given)) for output, places in zip(outputs, chosen, strict=True)]
    logps, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))
    back = torch.empty_like(streams)
    back[torch.cat(chosen)] = torch.arange(len(streams), device=streams.device)
    return logps[back], entropies[back]


class PolicyModel(nn.Module):
    """A causal language model that scores given tokens.

    The output layer runs only at positions that carry a loss (method §7, rule 8), in chunks of at most `MAX_LOGITS`
    logits. The backward pass recomputes the logits of each chunk.
    """

    def __init__(self, model: nn.Module, kinds: Tensor) -> None:
        """kinds: int8 [V], the `speech.grammar.TokenKind` of each id."""
        super().__init__()
        self.model = model
        self.streams: int = getattr(model, "streams", 1)
        """Tokens per step of the model, each with its own output layer."""
        sets = torch.arange(2 * int(kinds.max()), dtype=torch.int64)
        forbidden = (kinds.to(torch.int64)[None, :] & sets[:, None]) == 0
        forbidden[0] = False  # the empty set means that every token was allowed
        self.register_buffer("forbidden", forbidden, persistent=False)

    def num_chunks(self, tokens: int) -> int:
        """Return the number of chunks in which the output layer computes so many scored tokens."""
        forbidden: Any = self.forbidden
        return max(1, -(-tokens * forbidden.shape[1] // MAX_LOGITS))

    def forward(
        self,
        input_ids: Tensor,
        sources: Tensor,
        targets: Tensor,
        allowed: Tensor,
        temperatures: Tensor,
        packing: Packing | None = None,
        num_chunks: int | None = None,
        audio_features: AudioFeatures | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score N tokens.

        Args:
            input_ids: int64, [1, tokens] with a packing, else [R, L], right-padded.
            sources: int64 [N], flat positions whose outputs predict the targets.
            targets: int64 [N].
            allowed: int64 [N], the set of token kinds that could be sampled. 0: all.
            temperatures: float32 [N].
            packing: None if rows are padded.
            num_chunks: Chunks of the output layer. Under ZeRO-3 it must be equal on all ranks: each use gathers.
            audio_features: Frames that replace embeddings.

        Returns:
            Log-probabilities [N] and entropies [N] in nats, both float32, of softmax(logits / temperature) over the
            allowed tokens. The entropies carry no gradient.
        """
        where = {} if packing is None else {"packing": packing, "position_ids": packing.positions}
        body: Any = self.model.model
        given = {"input_ids": input_ids}
        if self.streams == 1:  # always in this order: under ZeRO-3 all ranks gather the same layers
            embedded = body.get_input_embeddings()(input_ids)
            given = {"inputs_embeds": embedded if audio_features is None else audio_features.scatter_into(embedded)}
        hidden = body(**given, use_cache=False, **where).last_hidden_state
        inputs = (hidden.flatten(0, 1)[sources], targets, allowed, temperatures)
        count = self.num_chunks(len(targets)) if num_chunks is None else num_chunks
        model: Any = self.model
        if self.streams == 1:
            return self._chunked_outputs(model.lm_head, count, inputs)
        return by_stream(
            [partial(self._chunked_outputs, layer, count) for layer in model.output_layers],
            sources % self.streams,
            inputs,
        )

    def _chunked_outputs(self, layer: nn.Module, count: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if count == 1:
            return self._output(layer, *inputs)
        split = zip(*(torch.tensor_split(part, count) for part in inputs), strict=True)
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
