"""SwitchLoRA under transformers.Trainer: the optimizer needs no callback, and a run resumes bit for bit.

    python examples/hf_trainer.py --output runs/hf-trainer [--steps 60] [--resume]

The Trainer saves the model (with its factors) and the optimizer (with candidates, slots and counters) in its own
checkpoints. Convert the model and build the optimizer as at the start, then let it resume.
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, get_cosine_schedule_with_warmup

import switchlora

VOCABULARY, LENGTH = 256, 64  # bytes are tokens here, so that the example needs no tokenizer


class ByteBlocks(torch.utils.data.Dataset):
    """The bytes of a text in blocks of LENGTH."""

    def __init__(self, text: bytes) -> None:
        usable = len(text) // LENGTH * LENGTH
        self.blocks = torch.tensor(list(text[:usable])).view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def make_trainer(output: Path, steps: int, save_steps: int) -> Trainer:
    """A Trainer of a small LLaMA on the text of this file and of the argparse module."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4
        )
    )
    config = switchlora.SwitchLoraConfig(r=16)
    switchlora.convert(model, config)
    optimizer = switchlora.SwitchLora(model, config, total_steps=steps, lr=1e-2)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=save_steps,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    text = Path(__file__).read_bytes() + Path(argparse.__file__).read_bytes()
    return Trainer(model, arguments, train_dataset=ByteBlocks(text), optimizers=(optimizer, scheduler))


def main() -> None:
    """Train, or go on from the last checkpoint in the output folder; then save a dense model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    trainer = make_trainer(options.output, options.steps, save_steps=20)
    trainer.train(resume_from_checkpoint=options.resume)
    switchlora.to_dense(trainer.model)
    trainer.model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
