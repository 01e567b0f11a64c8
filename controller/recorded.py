"""Pairs from a file, as the groups that the loop would have sampled (method §5, offline). Pure."""

from controller.preference import RECORDED, unsampled
from reward.rater import Score, Scorecard
from speech.records import Group, Pair, Prompt
from speech.vocabulary import Vocabulary


def recorded_group(pair: Pair, vocabulary: Vocabulary) -> tuple[Group, list[Scorecard]]:
    """The chosen and the rejected reply as a group of two, with the scores that they came with."""
    prompt = Prompt(id=pair.prompt_id, token_ids=pair.prompt_ids, text="", facts={}, features=pair.features)
    replies, cards = [], []
    sides = ((pair.chosen_ids, pair.scores_chosen), (pair.rejected_ids, pair.scores_rejected))
    for index, (ids, scores) in enumerate(sides):
        replies.append(unsampled(pair.prompt_id, ids, vocabulary, None, RECORDED, index))
        # The score that made the pair may be any; only what the file calls the total is the total.
        found: dict[str, Score] = dict(scores)
        details = {"text": vocabulary.text(ids), "origin": pair.origin}
        cards.append(Scorecard(scores=found, details=details, seconds=0.0))
    return Group(prompt=prompt, replies=replies), cards
