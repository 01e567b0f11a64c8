"""Pairs from a file, as the groups that the loop would have sampled (method §5, offline). Pure."""

from controller.preference import unsampled
from reward.rater import Score, Scorecard
from speech.records import Group, Pair, Prompt
from speech.vocabulary import Vocabulary


def recorded_group(pair: Pair, vocabulary: Vocabulary) -> tuple[Group, list[Scorecard]]:
    """The chosen and the rejected reply as a group of two, with the scores that they came with."""
    prompt = Prompt(id=pair.prompt_id, token_ids=pair.prompt_ids, text="", facts={})
    replies, cards = [], []
    for index, (ids, total, scores) in enumerate(
        (
            (pair.chosen_ids, pair.chosen_score, pair.scores_chosen),
            (pair.rejected_ids, pair.rejected_score, pair.scores_rejected),
        )
    ):
        replies.append(unsampled(pair.prompt_id, ids, vocabulary, None, "recorded", index))
        found: dict[str, Score] = dict(scores)
        if total is not None:
            found["total"] = total
        cards.append(Scorecard(scores=found, details={"text": vocabulary.text(ids)}, seconds=0.0))
    return Group(prompt=prompt, replies=replies), cards
