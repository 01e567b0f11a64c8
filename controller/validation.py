"""Evaluates a run on held-out prompts before and after training, and records replies during training.

During training it records replies to a few held-out prompts, and to a few training prompts with a demonstration. A
listener can compare replies over iterations with the demonstration.
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
    """Evaluates the held-out sets of a run."""

    def __init__(
        self,
        config: Config,
        inputs: RunInputs,
        records: RunDirectory,
        loop: TrainingLoop,
        provenance: Callable[[], ReplyProvenance],
    ) -> None:
        self._config, self._sets, self._records, self._loop = config, inputs.held_out, records, loop
        count = config.validation.num_recordings
        self._training = {len(self._sets): _demonstrated(inputs, count) if config.validation.recording_interval else []}
        """Training prompts to record, by index of their set."""
        self._held_out = {index: ps[:count] for index, (name, ps) in enumerate(self._sets.items()) if name == HEADLINE}
        """Held-out prompts to record between the evaluations, which contain them too."""
        self._provenance = provenance
        self.signal: dict[str, float | None] = {}
        """Signal quality "before" and "after", mean over some replies of the headline set; None without speech."""

    def evaluate(self, when: str, iteration: int) -> dict[str, list[ScoredReply]]:
        """Generate and score a reply to every held-out prompt. Write records and recordings.

        when: "before" or "after". Return scored replies by set, in the order of prompts.
        """
        scored = {}
        for index, (name, prompts) in enumerate(self._sets.items()):
            _, scored[name] = self._loop.evaluate(prompts, index)
            self._records.add_evaluation(when, name, iteration, self._rows(scored[name]), self._provenance())
        self._write_audio(when, scored)
        self._record_replies(self._training, iteration)
        return scored

    def record_listening(self, iteration: int) -> None:
        """Record replies after an iteration, every `validation.recording_interval` iterations."""
        every = self._config.validation.recording_interval
        if every and iteration % every == 0 and iteration < self._config.train.num_steps:
            self._record_replies(self._held_out | self._training, iteration)

    def _record_replies(self, prompts: Mapping[int, list[Prompt]], iteration: int) -> None:
        """Generate, score and record replies. Seeds are the same in all iterations, so only weights differ."""
        if not self._config.validation.recording_interval:
            return
        scored = [reply for index, some in prompts.items() if some for reply in self._loop.evaluate(some, index)[1]]
        if scored:
            self._records.add_listening(iteration, self._rows(scored), self._provenance())

    def _rows(self, scored: list[ScoredReply]) -> list[ReplyRecord]:
        labels = [route.label for route in self._loop.routes]
        return [ReplyRecord(judged=reply, routes=labels, use=None) for reply in scored]

    def read(self, when: str) -> dict[str, list[ScoredReply]]:
        """Read the replies of `evaluate` from the records of a resumed run. Raise InputError if they are missing: they
        cannot be generated again with other weights."""
        scored = {}
        for name, prompts in self._sets.items():
            scored[name] = judged_replies(read_evaluation(self._records.directory, when, name))
            if [reply.reply.prompt_id for reply in scored[name]] != [prompt.id for prompt in prompts]:
                raise InputError(
                    f"{self._records.directory}: the evaluation {when} on {name} has other prompts than the data now"
                )
        self._write_audio(when, scored)
        return scored

    def _write_audio(self, when: str, scored: dict[str, list[ScoredReply]]) -> None:
        if HEADLINE in scored:
            self._write_recordings(self._sets[HEADLINE], scored[HEADLINE], when)
            self._measure_signal(scored[HEADLINE], when)

    def _write_recordings(self, prompts: list[Prompt], scored: list[ScoredReply], when: str) -> None:
        count = self._config.validation.num_recordings
        for prompt, answer in zip(prompts[:count], scored[:count], strict=True):
            stem = self._records.directory / "audio" / safe_name(prompt.id)
            sounds = {when: answer.reply.token_ids}
            if when == "before":
                sounds["question"] = prompt.token_ids
            for label, waveform in zip(sounds, self._loop.reward.decode(list(sounds.values())), strict=True):
                path, partial = (stem.with_name(f"{stem.name}-{label}{end}.wav") for end in ("", ".part"))
                if waveform is not None and not (path.is_file() and when == "before"):
                    waveform.write(partial)
                    partial.replace(path)

    def _measure_signal(self, scored: list[ScoredReply], when: str) -> None:
        if not self._config.reward.audio_quality_fn:
            return
        sample = [answer.reply.token_ids for answer in scored[: self._config.validation.num_quality_samples]]
        values = self._loop.reward.measure(self._config.reward.audio_quality_fn, sample)
        self.signal[when] = float(np.mean(values)) if values else None


def _demonstrated(inputs: RunInputs, count: int) -> list[Prompt]:
    """Return the first training prompts that have a demonstration."""
    found = np.isin(name_hashes(inputs.prompts, "id"), name_hashes(inputs.demonstrations, "prompt_id"))
    return [inputs.prompts[int(row)] for row in np.flatnonzero(found)[:count]]


def recordings(directory: Path) -> list[Path]:
    """Return the recordings of a run's questions, in order."""
    return sorted((directory / "audio").glob("*-question.wav"))
