"""Builds the embedded world from nothing: voices → codec → data → base model → measurements.

    codec/codebook.safetensors                            the codec
    data/train.parquet, demonstrations.parquet            RL prompts and one reply of mixed quality for each
    data/held_out.parquet, held_out_facts.parquet         new renderings of known facts; facts never trained on
    base/                                                 a Hugging Face checkpoint with tokenizer
    build.json                                            seed, versions, seconds, settings and what was measured

The base is trained on renderings of its own, which are not shipped; `task.make_splits` names them again. About half
an hour on one core, nearly all of it training. Same seed, same machine, same world.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from playground import data, model, raters, task
from playground.codec import PlaygroundCodec
from playground.evaluate import evaluate_world
from speech.audio import Waveform

PACKAGES = ("espeakng-loader", "pocketsphinx", "praat-parselmouth", "numpy", "scipy", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """Sizes of a build. The defaults are the shipped world; tests and experiments use smaller ones."""

    base: int = 7168
    """Renderings that the base trains on."""
    train: int = 2560
    """Prompts for reinforcement learning, each with a demonstration."""
    held_out: int = 512
    held_out_facts: int = 192
    takes: int = 12
    """Recordings of each line; those that are not heard after the codec are dropped."""
    codec_questions: int = 900
    """Renderings of the base that the codec is fitted on, beside all lines."""
    line_weight: int = 3
    """How often each line counts in fitting the codec: replies must be understood, questions only told apart."""
    codebook: int = 512
    codec_rounds: int = 25
    training: model.TrainingConfig = field(default_factory=model.TrainingConfig)
    evaluated: int | None = None
    """Prompts of each held-out file that are evaluated at the end; None for all."""


def build_world(out: Path, seed: int, recipe: WorldRecipe | None = None, say_progress: bool = True) -> dict:
    """Builds a world at `out`, replacing what is there only when all of it is ready. Returns build.json's content."""
    recipe = recipe or WorldRecipe()
    began = time.monotonic()
    aside = out.with_name(out.name + ".building")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)

    def progress(what: str) -> None:
        if say_progress:
            print(f"{time.monotonic() - began:7.1f} s  {what}", flush=True)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is fastest so, and sums in one order are the same sums every time
    try:
        splits = task.make_splits(
            seed, base=recipe.base, train=recipe.train, held_out=recipe.held_out, held_out_facts=recipe.held_out_facts
        )
        generator = np.random.default_rng([seed, 1])
        spoken = data.speak_lines(recipe.takes, generator)
        codec = _fit_codec(spoken, splits.base[: recipe.codec_questions], recipe, seed)
        codec.save(aside / "codec" / "codebook.safetensors")
        takes, heard = choose_takes(spoken, codec)
        progress(f"codec {codec.version}: lines heard {heard['original']:.3f} before it, {heard['codec']:.3f} after it")
        layout = data.WorldLayout(data.make_tokenizer(codec.codebook))
        base_prompts = _write_data(aside / "data", splits, takes, codec, layout, generator)
        progress("questions spoken and encoded")
        base = model.make_model(layout.tokenizer, seed)
        curve: list[dict[str, float]] = []

        def watch(step: int, means: dict[str, float]) -> None:
            curve.append({"step": step, **{name: round(value, 4) for name, value in means.items()}})
            progress(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))

        model.train(base, model.BatchSource(splits.base, base_prompts, takes, layout), recipe.training, seed, watch)
        base.save_pretrained(aside / "base")
        model.wrap_tokenizer(layout.tokenizer).save_pretrained(aside / "base")
        measured = {name: found.summary() for name, found in evaluate_world(aside, seed, recipe.evaluated).items()}
        for name, found in measured.items():
            progress(f"{name}: {found}")
    finally:
        torch.set_num_threads(threads)
    report = {
        "seed": seed,
        "recipe": asdict(recipe),
        "source": {"answer_right": task.ANSWER_RIGHT, "axis_right": task.AXIS_RIGHT},
        "versions": {name: version(name) for name in PACKAGES},
        "codec": {"version": codec.version, "heard": heard},
        "parameters": base.num_parameters(),
        "measured": measured,
        "losses": curve,
        "seconds": round(time.monotonic() - began, 1),
    }
    (aside / "build.json").write_text(json.dumps(report, indent=1) + "\n")
    publish_world(aside, out)
    return report


def publish_world(aside: Path, out: Path) -> None:
    """Moves a finished world into place; readers see the old one or the new one, never half of either."""
    for file in aside.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes files that only their owner may read
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def choose_takes(
    spoken: dict[task.DialogueLine, list[Waveform]], codec: PlaygroundCodec
) -> tuple[data.SpokenTakes, dict[str, float]]:
    """The recordings that are understood after the codec, and the shares understood before and after it.

    A line of which no recording is understood keeps all of them, so that the source still says every answer.
    """
    hearing = raters.hearing()
    before, after = [], []
    chosen: dict[task.DialogueLine, list[np.ndarray]] = {}
    for line, recordings in spoken.items():
        codes = [codec.encode(recording) for recording in recordings]
        understood = [hearing.hear(codec.decode(one)) == line.text for one in codes]
        before += [hearing.hear(recording) == line.text for recording in recordings[:2]]
        after += understood
        chosen[line] = [one for one, good in zip(codes, understood, strict=True) if good or not any(understood)]
    return data.SpokenTakes(chosen), {"original": float(np.mean(before)), "codec": float(np.mean(after))}


def _fit_codec(
    spoken: dict[task.DialogueLine, list[Waveform]], questions: list[task.Rendering], recipe: WorldRecipe, seed: int
) -> PlaygroundCodec:
    lines = [recording for recordings in spoken.values() for recording in recordings]
    asked = [data.speak_question(rendering) for rendering in questions]
    return PlaygroundCodec.fit([*lines * recipe.line_weight, *asked], recipe.codebook, recipe.codec_rounds, seed)


def _write_data(
    folder: Path,
    splits: task.Splits,
    takes: data.SpokenTakes,
    codec: PlaygroundCodec,
    layout: data.WorldLayout,
    generator: np.random.Generator,
) -> list[list[int]]:
    """Writes the four Parquet files and returns the base's prompts."""
    train = data.encode_questions(splits.train, codec, layout)
    ids = data.write_prompts(folder / "train.parquet", "train", splits.train, train)
    replies = [data.demonstration(rendering, takes, layout, generator) for rendering in splits.train]
    data.write_demonstrations(folder / "demonstrations.parquet", ids, train, replies)
    for name in ("held_out", "held_out_facts"):
        renderings = getattr(splits, name)
        prompts = data.encode_questions(renderings, codec, layout)
        data.write_prompts(folder / f"{name}.parquet", name.replace("_", "-"), renderings, prompts)
    return data.encode_questions(splits.base, codec, layout)
