"""What metrics cost a run of the playground, as shares of an iteration.

    python -m tests.observability.metrics.cost

    controller      by its own account (duet_metrics_seconds_total): scrapes, discovery, asking for the judges' counters
    worker          how long Prometheus waited for its answers; meanwhile the engine's Python may wait as well
                    Both with a scrape every 15 s, as deploy/prometheus has it.
    vLLM            one engine that samples the same prompts with its counting on and off, by turns; processor time
    sound           pitch, tempo and silence of the replies, on the reward servers; processor time

Takes about four minutes on two cores.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from configs.load import load_config
from data.records import read_demonstrations, read_prompts
from playground.codec import PlaygroundCodec
from rollout.vllm_engine import SamplingConfig, VllmEngine
from speech.acoustics import measures
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.observability.metrics.prometheus import SHIPPED, scraped
from tests.rollout.examples import engine_settings

ROOT = Path(__file__).resolve().parents[3]
ITERATIONS, ROUNDS = 48, 12


def of_run(directory: Path) -> tuple[float, dict[str, float]]:
    """Seconds of an iteration, and of it what the controller and a worker spend on metrics."""
    with scraped(ROOT, directory, iterations=ITERATIONS, seconds=900, interval=SHIPPED) as (prometheus, start, end):
        [[(first, _), *_, (last, iterations)]] = prometheus.series("duet_iteration", start, end)
        own = prometheus.growth("duet_metrics_seconds_total", first, last) / (last - first)
        scrapes = [
            value
            for one in prometheus.series('scrape_duration_seconds{instance="rollout-0"}', first, last)
            for _, value in one
        ]
        [seconds] = prometheus.series("sum(duet_phase_seconds_total)", start, end)
        iteration = seconds[-1][1] / iterations  # as of the last scrape, as that
    worker = fmean(scrapes) / float(SHIPPED.rstrip("s"))
    return iteration, {"controller": own * iteration, "worker": worker * iteration}


def of_engine(vocabulary: Vocabulary, world: Path) -> float:
    """Seconds that counting adds to the sampling of an iteration's replies."""
    config = load_config(ROOT / "configs/playground.yaml", [])
    settings = engine_settings(world)
    engine = VllmEngine(settings, PLAYGROUND, vocabulary, seed=0)
    prompts = read_prompts(world / "data/train.parquet", vocabulary)[: config.rollout.batch_size]
    sampling = SamplingConfig(temperature=1.0, max_tokens=96)

    def sample() -> float:
        begun = time.process_time()
        engine.generate(prompts, config.rollout.n, sampling, list(range(len(prompts))), "w")
        return time.process_time() - begun

    sample()
    switch = _switch(engine)
    differences = []
    for place in range(ROUNDS):
        seconds = {}
        for on in (True, False) if place % 2 else (False, True):
            switch(on)
            seconds[on] = sample()
        differences.append(seconds[True] - seconds[False])
    return median(differences)


def _switch(engine: VllmEngine) -> Callable[[bool], None]:
    """What `disable_log_stats` of vLLM decides when an engine is made, for one that runs."""
    outer: Any = engine._llm.llm_engine
    manager, scheduler = outer.logger_manager, outer.engine_core.engine_core.scheduler

    def switch(on: bool) -> None:
        outer.log_stats = outer.output_processor.log_stats = scheduler.log_stats = on
        outer.logger_manager = manager if on else None

    return switch


def of_sound(vocabulary: Vocabulary, world: Path) -> float:
    """Seconds for an iteration's replies, shared by the reward servers."""
    config = load_config(ROOT / "configs/playground.yaml", [])
    codec = PlaygroundCodec.load(world / "codec")
    shown = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[: config.replies]
    spoken = [(codec.decode(vocabulary.codes(d.reply_ids)), d.text) for d in shown]
    rounds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for waveform, text in spoken:
            measures(waveform, text, heard=text)
        rounds.append(time.process_time() - begun)
    return median(rounds) * config.replies / len(spoken) / config.reward.num_servers


def main() -> None:
    world = ROOT / "playground/world"
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    with tempfile.TemporaryDirectory() as directory:
        iteration, parts = of_run(Path(directory))
    parts["vLLM's counting"] = of_engine(vocabulary, world)
    parts["sound of the replies"] = of_sound(vocabulary, world)
    print(f"an iteration: {iteration:.2f} s")
    for name, seconds in parts.items():
        print(f"{name}: {1000 * seconds:.1f} ms, {seconds / iteration:.2%}")
    print(f"all: {sum(parts.values()) / iteration:.2%}")


if __name__ == "__main__":
    main()
