"""TRL's side of `bench.vs_trl`: its GRPOTrainer on the playground's model and prompts, in a process of its own.

Prints one line of JSON: (tokens, seconds) of each step, from the end of one to the end of the next.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from bench.fixtures import playground
from bench.null_reward import score


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("steps", "prompts", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    # Kept for the result: libraries print as they like.
    out, sys.stdout = sys.stdout, sys.stderr

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from controller.inputs import read_inputs

    torch.set_num_threads(given.threads)
    config = playground(f"rollout.batch_size={given.prompts}")
    path, group, p, learner = (
        Path(config.model.path), config.rollout.n, config.algorithm, config.learner,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    prompts = [tokenizer.decode(prompt.token_ids.tolist()) for prompt in read_inputs(config).prompts]
    tokens = [0]

    def reward(completions: list, completion_ids: list[list[int]], **_: object) -> list[float]:
        tokens[0] += sum(map(len, completion_ids))
        return [score(len(ids)) for ids in completion_ids]

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.ended: list[tuple[int, float]] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.ended.append((tokens[0], time.perf_counter()))

    steps = Steps()
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            reward,
            GRPOConfig(
                output_dir=directory,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=10**6,
                gradient_checkpointing=False,
                max_steps=given.steps,
                per_device_train_batch_size=given.prompts * group,
                num_generations=group,
                max_completion_length=config.rollout.max_new_tokens,
                temperature=config.rollout.temperature,
                beta=p.kl_coef_text,
                epsilon=p.clip_eps_low,
                learning_rate=learner.learning_rate,
                adam_beta1=learner.betas[0],
                adam_beta2=learner.betas[1],
                weight_decay=learner.weight_decay,
                max_grad_norm=learner.max_grad_norm,
                lr_scheduler_type="constant",
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[steps],
        )
        trainer.train()
    took = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(steps.ended)]
    print(json.dumps(took), file=out, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
