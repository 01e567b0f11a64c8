"""The held-out questions of a run, before and after: sampled, judged, written down, and a few of them to listen to.

Those few are answered between as well, and with them a few questions of training, which have a demonstration: so that
one can hear a reply change, and beside it what it should come to.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import safe_name
from configs.schema import HEADLINE, Config
from controller.inputs import RunInputs
from controller.loop import TrainingLoop
from data.dataset import name_hashes
from observability.reply_schema import ReplyProvenance, ReplyRecord, judged_replies
from observability.run_directory import RunDirectory, read_evaluation
from reward.scoring import ScoredReply
from speech.types import Prompt


class Validator:
    """Evaluates the sets of one run."""

    def __init__(
        self,
        config: Config,
        inputs: RunInputs,
        records: RunDirectory,
        loop: TrainingLoop,
        provenance: Callable[[], ReplyProvenance],
    ) -> None:
        self._config, self._sets, self._records, self._loop = config, inputs.held_out, records, loop
        few = config.validation.num_recordings
        self._listened = {len(self._sets): _shown(inputs, few) if config.validation.recording_interval else []}
        """Prompts that are listened to, by the place of their set."""
        self._between = {place: ps[:few] for place, (name, ps) in enumerate(self._sets.items()) if name == HEADLINE}
        """The held-out ones, which an evaluation answers before and after."""
        self._provenance = provenance
        self.signal: dict[str, float | None] = {}
        """Signal quality "before" and "after", mean over a few replies of the headline set; None without speech."""

    def evaluate(self, when: str, iteration: int) -> dict[str, list[ScoredReply]]:
        """Judged replies by evaluation set, in the order of its prompts. Writes them, and the recordings."""
        judged = {}
        for place, (name, prompts) in enumerate(self._sets.items()):
            _, judged[name] = self._loop.evaluate(prompts, place)
            self._records.add_evaluation(when, name, iteration, self._rows(judged[name]), self._provenance())
        self._listen(when, judged)
        self._answer(self._listened, iteration)
        return judged

    def listen(self, iteration: int) -> None:
        """Answers between before and after, of the iterations that are listened to."""
        every = self._config.validation.recording_interval
        if every and iteration % every == 0 and iteration < self._config.train.num_steps:
            self._answer(self._between | self._listened, iteration)

    def _answer(self, prompts: Mapping[int, list[Prompt]], iteration: int) -> None:
        """With the seeds of the sampler that they always have: what differs between iterations is the weights."""
        if not self._config.validation.recording_interval:
            return
        judged = [one for place, few in prompts.items() if few for one in self._loop.evaluate(few, place)[1]]
        if judged:
            self._records.add_listening(iteration, self._rows(judged), self._provenance())

    def _rows(self, judged: list[ScoredReply]) -> list[ReplyRecord]:
        return [ReplyRecord(judged=j, routes=[r.label for r in self._loop.routes], use=None) for j in judged]

    def read(self, when: str) -> dict[str, list[ScoredReply]]:
        """The same from the records of a run that goes on. Raises InputError when they are not there: the weights that
        they were of are."""
        judged = {}
        for name, prompts in self._sets.items():
            judged[name] = judged_replies(read_evaluation(self._records.directory, when, name))
            if [j.reply.prompt_id for j in judged[name]] != [prompt.id for prompt in prompts]:
                raise InputError(
                    f"{self._records.directory}: the evaluation {when} on {name} is of other prompts than there are now"
                )
        self._listen(when, judged)
        return judged

    def _listen(self, when: str, judged: dict[str, list[ScoredReply]]) -> None:
        if HEADLINE in judged:
            self._write_recordings(self._sets[HEADLINE], judged[HEADLINE], when)
            self._measure_signal(judged[HEADLINE], when)

    def _write_recordings(self, prompts: list[Prompt], judged: list[ScoredReply], when: str) -> None:
        few = self._config.validation.num_recordings
        for prompt, answer in zip(prompts[:few], judged[:few], strict=True):
            stem = self._records.directory / "audio" / safe_name(prompt.id)
            sounds = {when: answer.reply.token_ids}
            if when == "before":
                sounds["question"] = prompt.token_ids
            for label, waveform in zip(sounds, self._loop.reward.decode(list(sounds.values())), strict=True):
                path, aside = (stem.with_name(f"{stem.name}-{label}{end}.wav") for end in ("", ".part"))
                if waveform is not None and not (path.is_file() and when == "before"):
                    waveform.write(aside)
                    aside.replace(path)

    def _measure_signal(self, judged: list[ScoredReply], when: str) -> None:
        if not self._config.reward.audio_quality_fn:
            return
        chosen = [answer.reply.token_ids for answer in judged[: self._config.validation.num_quality_samples]]
        values = self._loop.reward.measure(self._config.reward.audio_quality_fn, chosen)
        self.signal[when] = float(np.mean(values)) if values else None


def _shown(inputs: RunInputs, few: int) -> list[Prompt]:
    """The first few prompts of training that have a demonstration."""
    shown = np.isin(name_hashes(inputs.prompts, "id"), name_hashes(inputs.demonstrations, "prompt_id"))
    return [inputs.prompts[int(row)] for row in np.flatnonzero(shown)[:few]]


def recordings(directory: Path) -> list[Path]:
    """The recordings of a run's questions, in order."""
    return sorted((directory / "audio").glob("*-question.wav"))
