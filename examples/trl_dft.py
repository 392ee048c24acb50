"""TRL's supervised fine-tuning with a loss of your choice, on a tiny model made up here.

``TrainerLoss("expectation", causal=True)`` is what ``loss_type="dft"`` does; any other spec goes
the same way. Here a mixture of it with cross-entropy.
"""

from __future__ import annotations

import tempfile
import warnings

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from losslab.integrations.transformers import TrainerLoss

NUMBERS, LENGTH = 40, 12


def counted(rows: int) -> torch.Tensor:
    """Counting from anywhere, in steps of one."""
    return (torch.randint(NUMBERS, (rows, 1)) + torch.arange(LENGTH)) % NUMBERS


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every number is a token."""
    words = {str(k): k for k in range(NUMBERS)} | {"[PAD]": NUMBERS, "[EOS]": NUMBERS + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]")


def main() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=NUMBERS + 2, **sizes, **heads))
    data = Dataset.from_dict({"text": [" ".join(map(str, row)) for row in counted(256).tolist()]})
    loss = TrainerLoss("mixed(focus=0.3)", causal=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = SFTConfig(
            folder, per_device_train_batch_size=16, gradient_accumulation_steps=2, max_steps=60,
            learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
            save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        SFTTrainer(
            model, arguments, train_dataset=data, processing_class=make_tokenizer(),
            compute_loss_func=loss, callbacks=loss.callbacks,
        ).train()  # fmt: skip
    unseen = counted(64)
    with torch.no_grad():
        right = model(unseen).logits[:, :-1].argmax(-1) == unseen[:, 1:]
    print(f"next token: accuracy {100 * right.float().mean().item():.1f} %")


if __name__ == "__main__":
    main()
