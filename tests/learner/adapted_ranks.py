"""Ranks that train adapters, without Ray, at every ZeRO stage: learning, resuming bit for bit, and sending.

Run `adapted_at_every_stage` as WORLD processes at once, like `ranks.py`. It returns the results by stage.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.errors import InputError
from learner import policy
from learner.collate import collate
from learner.config import LearnerConfig, LoraConfig
from learner.engine import LearnerEngine
from learner.lora import ADAPTER_FOLDER
from learner.micro_batches import TrainingSample
from learner.packed_attention import use_packing
from learner.policy import PolicyModel
from speech.families import PLAYGROUND
from tests.learner.examples import OBJECTIVE
from tests.learner.one_rank import sampled_rows
from tests.learner.ranks import PARTS, SETTINGS, same, weights
from weight_sync.source import named_weights

LORA = LoraConfig(r=4, lora_alpha=32.0, target_modules=("*.q_proj", "*.v_proj", "*.mlp.*_proj"))
PROBE = [np.arange(3, 40, dtype=np.int32)]


def demonstration(row: TrainingSample, weight: float) -> TrainingSample:
    """Turn a row into an anchor's, which is not compared with the reference model."""
    return replace(row, rollout_logprobs=None, advantages=(), weights=(), kl_weights=(0.0, 0.0), anchor_weight=weight)


def adapters(everything: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in everything.items() if ".lora_" in name}


def gap_of_start_model(rank: LearnerEngine, settings: LearnerConfig, rows: list[TrainingSample]) -> float:
    """Return the largest difference between the rank's reference log-probabilities and those of a model without
    adapters."""
    model = AutoModelForCausalLM.from_pretrained(settings.checkpoint, dtype=torch.float32)
    use_packing(model)
    batch = collate(rows, routes=1, temperature=settings.temperature, device=torch.device("cpu"), scored=rank._scored)
    with torch.no_grad():
        expected, _ = PolicyModel(model, rank._kinds)(**batch.policy_inputs())
    return (rank._reference_logprobs(batch) - expected).abs().max().item()


def refusal(rank: LearnerEngine, directory: Path, fingerprint: str) -> str:
    try:
        rank.load(directory, fingerprint)
    except InputError as error:
        return str(error)
    return ""


def found(
    settings: LearnerConfig, directory: Path, port: int, place: int, world: int, rows: list[TrainingSample]
) -> dict:
    def engine(**changes: object) -> LearnerEngine:
        rank = LearnerEngine(place, world, replace(settings, **changes), PLAYGROUND, OBJECTIVE)
        rank.connect("127.0.0.1", port)
        return rank

    def batch(number: int) -> list[TrainingSample]:
        chosen = [rows[(number + i) % len(rows)] for i in range(place, place + 3)]
        # Once the last rank has nothing that is compared with the start model, and the others have.
        return [demonstration(row, 1 / 3) for row in chosen] if number == 1 and place == world - 1 else chosen

    straight = engine()
    began = weights(straight)
    for number in range(2):
        straight.step(batch(number), 2, 0.5)
    half = weights(straight)
    directory.mkdir(exist_ok=True)
    saved = straight.save(directory)
    torch.distributed.barrier()
    resumed = engine()
    resumed.load(directory, saved)
    result: dict = {"loaded": same(half, weights(resumed)), "copy": straight._reference is not None}
    result["start"] = gap_of_start_model(straight, settings, rows[:3])
    for rank in (straight, resumed):
        for number in range(2, 5):
            rank.step(batch(number), 2, 0.5)
    end = weights(straight)
    result["resumed"] = same(end, weights(resumed))
    own = adapters(end)
    result["moved"] = all(not torch.equal(tensor, began[name]) for name, tensor in own.items())
    result["kept"] = all(torch.equal(end[name], began[name]) for name in end if name not in own)
    result["adapted"] = sorted({name.partition(".lora_")[0] for name in own})
    result["norm"] = float(torch.cat([tensor.flatten() for tensor in own.values()]).norm())
    result["logps"] = straight._probe(PROBE)[0].tolist()
    if published := straight.publish(5, []):
        parcel, _ = published
        file = load_file(parcel.path)
        sent = {
            name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): t for name, t in file.items()
        }
        result["sent"] = same(sent, own)
        result["scale"], result["whole"] = parcel.scale, parcel.whole
        result["bytes"] = parcel.size / sum(4 * tensor.numel() for tensor in own.values())
        straight.close()
        kept = load_file(directory / ADAPTER_FOLDER / "adapter_model.safetensors")
        result["files"] = {name: list(tensor.shape) for name, tensor in kept.items()} == {
            name: list(tensor.shape) for name, tensor in file.items()
        }
    if settings.zero_stage == 0:
        result["refused"] = [
            refusal(engine(lora=replace(LORA, r=8)), directory, saved),
            refusal(engine(lora=replace(LORA, target_modules=("*_proj",))), directory, saved),
            refusal(engine(lora=None), directory, saved),
        ]
    result["parameters"] = sum(1 for _ in named_weights(straight._engine.module.model))
    return result


def adapted_at_every_stage(checkpoint: Path, directory: Path, port: int, place: int, world: int) -> dict[int, dict]:
    policy.MAX_LOGITS = PARTS
    examples = sampled_rows(checkpoint)
    settings = replace(SETTINGS, checkpoint=str(checkpoint), lora=LORA)
    return {
        stage: found(replace(settings, zero_stage=stage), directory / str(stage), port, place, world, examples)
        for stage in range(4)
    }
