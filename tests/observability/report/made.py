"""A small run that nobody trained: written by the records' own writers, of speech that the playground's codec plays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.load import load_config
from configs.schema import Config, ValidationSection
from data.records import read_demonstrations, read_prompts
from observability.reply_schema import ReplyProvenance, ReplyRecord
from observability.run_directory import RunDirectory
from reward.scoring import ScoringConfig, score_groups
from reward.types import MissingScore, Scorecard
from speech.families import PLAYGROUND
from speech.types import Demonstration, Finish, Prompt, Reply, ReplyGroup
from speech.vocabulary import Vocabulary
from tests.controller.examples import iteration

MADE = ReplyProvenance(raters={"answer": "a-1"}, sampling={"temperature": "1"})
SCORING = ScoringConfig(
    total={"answer": 0.8, "heard": 0.1, "manner": 0.1}, others={"acoustic": {"heard": 1.0, "manner": 1.0}}
)
SCRIPT = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
"""What a judge might say to take over the page."""


class World:
    """The shipped playground, of which a made run is made."""

    def __init__(self, root: Path) -> None:
        world = root / "playground/world"
        self.vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
        self.prompts = read_prompts(world / "data/train.parquet", self.vocabulary)
        self.held_out = read_prompts(world / "data/held_out.parquet", self.vocabulary)
        self.demonstrations = read_demonstrations(world / "data/demonstrations.parquet", self.vocabulary)

    def reply(
        self, prompt: Prompt, said: Demonstration, version: int, *, index: int = 0, cut: int | None = None
    ) -> Reply:
        """Answers a question with the words and the voice of a demonstration; cut: off after so many tokens."""
        ids = said.reply_ids[:cut]
        return Reply(
            prompt_id=prompt.id,
            index=index,
            token_ids=ids,
            channels=self.vocabulary.channels(ids),
            logps=np.full(len(ids), -0.5, dtype=np.float32),
            weight_version=version,
            finish=Finish.STOP if cut is None else Finish.LENGTH,
            defect=None if cut is None else "the reply has no end",
            worker="rollout-0",
            seed=3,
        )

    def said(self, answer: str, place: int) -> Demonstration:
        """A demonstration with this answer."""
        found = [one for one in self.demonstrations if one.text.split()[1] == answer]
        return found[place % len(found)]

    def scored(self, prompt: Prompt, reply: Reply, *, heard: str | None = None, reason: str = "") -> ReplyRecord:
        """Rated by whether its words hold the right answer. heard: where that is not what it says."""
        text = self.vocabulary.text(reply.token_ids)
        right = 5.0 if prompt.facts["answer"] in text.split() else 1.0
        details = {"text": text, "heard": text if heard is None else heard, "pitch": "7.1"}
        if reason:
            details["judge_reason"] = reason
        scores = {"answer": right, "heard": 5.0 if heard is None else 1.0, "manner": 3.0 + (reply.index % 3) / 2}
        if reply.finish != Finish.STOP:
            scores = dict.fromkeys(scores, MissingScore("truncated reply"))
        card = Scorecard(scores=scores, details=details, seconds=1.0)
        [judged] = score_groups(ReplyGroup(prompt=prompt, replies=[reply]), [card], SCORING, [])
        return ReplyRecord(judged=judged, routes=[], use=None)


def config(root: Path, run: Path, **evaluation: int) -> Config:
    made = load_config(root / "configs/playground.yaml", [f"run.name={run.name}", f"run.directory={run.parent}"])
    for section in ("prompts", "sft"):
        setattr(made.data, section, str(root / getattr(made.data, section)))
    made.data.validation = {"held_out": str(root / made.data.validation["held_out"])}
    made.model.path = str(root / made.model.path)
    made.reward.codec.kwargs = {"path": str(root / "playground/world/codec")}
    return made.model_copy(update={"validation": ValidationSection(**(made.validation.model_dump() | evaluation))})


def begin(root: Path, run: Path) -> RunDirectory:
    run.parent.mkdir(parents=True, exist_ok=True)
    records = RunDirectory.create(run, config(root, run).yaml())
    records.add_event("started", arithmetic={"prompts": 2})
    return records


def evaluate(records: RunDirectory, world: World, when: str, prompts: Sequence[Prompt], iteration: int) -> None:
    """Before, nearly every answer is "ten"; after, every second one is right. One reply is cut off, one not heard."""
    rows = []
    for place, prompt in enumerate(prompts):
        right = when == "after" and place % 2 == 0
        said = world.said(prompt.facts["answer"] if right else "ten", place + iteration)
        reply = world.reply(prompt, said, iteration, cut=20 if when == "after" and place == 3 else None)
        other = "oh seven it is" if place == 1 else None
        rows.append(world.scored(prompt, reply, heard=other, reason=SCRIPT if place == 0 else "Clear, and right."))
    records.add_evaluation(when, "held_out", iteration, rows, MADE)


def train(records: RunDirectory, world: World, iterations: int) -> None:
    """Two questions an iteration, two replies each; every third iteration a reply is cut off."""
    for number in range(1, iterations + 1):
        rows = []
        for prompt in world.prompts[2 * number : 2 * number + 2]:
            for index in range(2):
                said = world.said("ten", number + index)
                cut = 14 if number % 3 == 0 and index else None
                rows.append(world.scored(prompt, world.reply(prompt, said, number - 1, index=index, cut=cut)))
        records.add_replies(number, rows, MADE)
        wave = {"mix": 0.3 + 0.1 * np.sin(number / 2), "kl_text": 0.002 * number}
        records.add_iteration(iteration(number, **wave, mix_overridden=int(number in (3, 4))))


def listen(records: RunDirectory, world: World, prompts: Sequence[Prompt], iterations: Sequence[int]) -> None:
    for number in iterations:
        rows = [
            world.scored(prompt, world.reply(prompt, world.said(prompt.facts["answer"], number + place), number))
            for place, prompt in enumerate(prompts)
        ]
        records.add_listening(number, rows, MADE)


def whole(root: Path, run: Path, world: World, iterations: int = 6) -> RunDirectory:
    """A run with everything that there can be."""
    records = begin(root, run)
    held_out = world.held_out[:40]
    evaluate(records, world, "before", held_out, 0)
    listen(records, world, world.prompts[:2], [0])
    train(records, world, iterations)
    listen(records, world, [*held_out[:2], *world.prompts[:2]], [2, 4])
    records.add_event("actor_died", member="rollout-1", reason="died")
    records.add_event("pool_resized", pool="rollout", before=1, after=2)
    records.add_event("checkpoint", iteration=iterations)
    evaluate(records, world, "after", held_out, iterations)
    listen(records, world, world.prompts[:2], [iterations])
    records.write_summary({"iterations": iterations, "seconds": {"total": 75.0}})
    return records
