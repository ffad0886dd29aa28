"""GRPO on a potential, certified as it goes: the reward rises, and KL(σ‖q) says what is lost for it."""

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import twistlm
from twistlm.integrations.trl import CertifyCallback, reward
from twistlm.models.bundled import folder
from twistlm.potentials import Classifier

PROMPT = "Once upon a time, there was a"


def main(steps: int = 60, every: int = 20, num_draws: int = 4096) -> CertifyCallback:
    """Tune the bundled model towards negative stories of ten tokens."""
    target = twistlm.Target("stories", Classifier("sentiment", "negative"), PROMPT, num_tokens=10)
    settings = GRPOConfig(
        output_dir="runs/grpo", max_steps=steps, per_device_train_batch_size=64, num_generations=32, learning_rate=1e-4,
        max_completion_length=10, logging_steps=every, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder("stories")),
        processing_class=AutoTokenizer.from_pretrained(folder("stories"), padding_side="left"),
        reward_funcs=reward(target),
        train_dataset=Dataset.from_dict({"prompt": [PROMPT] * 64}),
        args=settings,
    )
    callback = CertifyCallback(trainer, target, every=every, num_draws=num_draws)
    trainer.add_callback(callback)
    trainer.train()
    for step, found in callback.certificates.items():
        print(f"step {step}: E_q[log φ] {found.divergences.log_phi}; {found}")
    return callback


if __name__ == "__main__":
    main()
