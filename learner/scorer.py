"""The policy as the learner needs it: log-probabilities under the distribution that the sampler used."""

import torch
from torch import Tensor, nn


class Scorer(nn.Module):
    """Wraps a causal language model. The output layer runs only at positions that carry a loss (method §7, rule 8)."""

    def __init__(self, model: nn.Module, kinds: Tensor) -> None:
        """kinds: int8 [V], the `speech.interleave.Kind` of every id."""
        super().__init__()
        self.model = model
        sets = torch.arange(2 * int(kinds.max()), dtype=torch.int64)
        forbidden = (kinds.to(torch.int64)[None, :] & sets[:, None]) == 0
        forbidden[0] = False  # the empty set stands for "everything was allowed"
        self.register_buffer("forbidden", forbidden, persistent=False)

    def forward(
        self, input_ids: Tensor, sources: Tensor, targets: Tensor, allowed: Tensor, temperatures: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores N tokens.

        input_ids: int64 [R, L], right-padded. sources: int64 [N], flat positions whose outputs predict the targets.
        allowed: int64 [N], the set of kinds that could be drawn (0: all). temperatures: float32 [N].
        Returns log-probabilities [N] and entropies [N] in nats, both float32, of softmax(logits / temperature) over
        the allowed tokens. The entropies carry no gradient.
        """
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[sources]).float() / temperatures[:, None]
        logits = logits.masked_fill(self.forbidden[allowed], float("-inf"))
        logps = torch.log_softmax(logits, dim=-1)
        chosen = logps.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(logps.exp() * logps.masked_fill(logps == float("-inf"), 0.0)).sum(-1)
        return chosen, entropy
