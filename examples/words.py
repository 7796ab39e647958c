"""What the examples with a language model share: questions for the larger of two numbers, a tokenizer, and a teacher that answers."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

vocabulary = ["<pad>", "<eos>", "user", "assistant", ":", "or", *map(str, range(12))]
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
tokenizer.chat_template = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def chat(a, b):
    question, answer = f"{a} or {b}", f"{max(a, b)}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


chats = Dataset.from_list([{"messages": chat(a, b)} for a in range(12) for b in range(12)])
ids = [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in chats]
ids = torch.tensor(ids)


def language_model(width):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        use_cache=False,  # else packed sequences would see each other
    )
    return LlamaForCausalLM(config)


def trained_teacher():
    torch.manual_seed(0)
    teacher = language_model(32)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.01)
    for _ in range(60):
        answers = teacher(ids[:, :-1]).logits[:, -1]
        torch.nn.functional.cross_entropy(answers, ids[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher


def accuracy(model):
    with torch.no_grad():
        return (model.eval()(ids[:, :-1]).logits[:, -1].argmax(-1) == ids[:, -1]).double().mean()
