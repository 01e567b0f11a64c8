"""An actor that asks a vLLM judge, as a reward server does; its module imports nothing heavy."""

from reward.llm_judges.vllm_judge import VllmJudge
from reward.types import Score
from tests.reward.spoken import spoken


class Asker:
    def __init__(self, arguments: dict) -> None:
        self.rater = VllmJudge(**arguments)

    def rate(self, *words: str) -> tuple[list[Score], str]:
        """Return the scores of replies with these words, and the judge's version."""
        return [one.score for one in self.rater.rate_all([spoken(word) for word in words], 60)], self.rater.version
