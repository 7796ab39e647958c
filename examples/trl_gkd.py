"""Distils a small language model with TRL's GKDTrainer, and prints how many sequences were drawn."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.gkd import GKDConfig, GKDTrainer

import kcd_core as kcd
from kcd_adapters.trainers.trl import KCDTrainerMixin

EPOCHS, BATCH = 8, 32

words = ["<pad>", "<eos>", "user", "assistant", ":", "or", *map(str, range(12))]
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
tokenizer.chat_template = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
pairs = [(a, b) for a in range(12) for b in range(12)]
data = Dataset.from_list(
    [
        {
            "messages": [
                {"role": "user", "content": f"{a} or {b}"},
                {"role": "assistant", "content": f"{max(a, b)}"},
            ]
        }
        for a, b in pairs
    ]
)
ids = torch.tensor(
    [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in data]
)


def language_model(width):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def fit_teacher(teacher):
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.01)
    for _ in range(60):
        said = teacher(ids[:, :-1]).logits[:, -1]
        torch.nn.functional.cross_entropy(said, ids[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher


def right(model):
    with torch.no_grad():
        return (model.eval()(ids[:, :-1]).logits[:, -1].argmax(-1) == ids[:, -1]).double().mean()


class DistilTrainer(KCDTrainerMixin, GKDTrainer):
    pass


torch.manual_seed(0)
teacher = fit_teacher(language_model(32))
trainer = DistilTrainer(
    model=language_model(24),
    teacher_model=teacher,
    args=GKDConfig(
        output_dir="out",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=0.03,
        lmbda=0.0,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    ),
    train_dataset=data,
    processing_class=tokenizer,
    kcd_schedule=kcd.CondensationSchedule(ratio=0.5, stages=3, period=2),
)
trainer.train()

loader = trainer.kcd_loader
print(f"right answers: teacher {right(teacher):.0%}, student {right(trainer.model):.0%}")
print(loader.history)
drawn, total, kept = loader.tracker.count.sum(), EPOCHS * len(data), loader.history[-1]["kept"]
print(f"{drawn:,} of {total:,} samples drawn, {kept:,} of {len(data):,} kept")
