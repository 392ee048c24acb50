"""Any loss on the last layer of a Hugging Face causal LM, without ever holding the logits.

    python examples/hf_causal_lm.py                  # a tiny Llama, made up here, learns to count

``causal_lm_loss`` is what ``model(input_ids, labels=labels).loss`` computes, with any loss in the
place of cross-entropy. ``use_linear_loss(model, "encouraging")`` puts it into the model's own
``forward`` for training, so that ``transformers.Trainer`` and other loops need no change; there the
outputs' ``logits`` are None. Evaluation and generation stay as they were.

A model that adds more to its loss (a router's balance, say) needs that added here too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import losslab


def causal_lm_loss(
    model: Any,
    input_ids: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    loss: Any = "cross_entropy",
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    return_rows: bool = False,
    z_loss: float = 0.0,
    **inputs: Any,
) -> Any:
    """The loss of predicting each next token.

    ``labels`` (batch, length) are the tokens themselves, with ``ignore_index`` where nothing is to
    be predicted. The mean is over the labels that count; with ``num_items_in_batch``, as under
    gradient accumulation, their sum is divided by that instead. ``return_rows`` also gives, for
    each position, whether its next token was predicted, and with what margin.
    """
    assert labels is not None
    outputs = model.base_model(input_ids=input_ids, **inputs)
    # The label of a position is the next token; the last position has none.
    target = F.pad(labels[:, 1:], (0, 1), value=ignore_index).to(outputs[0].device)
    head = model.get_output_embeddings()
    result = losslab.linear_loss(
        outputs[0],
        head.weight,
        target,
        loss,
        linear_bias=getattr(head, "bias", None),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
        z_loss=z_loss,
        return_rows=return_rows,
        **logit_options(model.config),
    )
    value, rows = result if return_rows else (result, None)
    if num_items_in_batch is not None:
        value = value / num_items_in_batch
    return (value, rows) if return_rows else value


def logit_options(config: Any) -> dict[str, Any]:
    """What some models do to their logits: Gemma caps them, Cohere and Granite scale them."""
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return {"softcap": cap, "logit_scale": scale / divisor}


def use_linear_loss(model: Any, loss: Any = "cross_entropy", **options: Any) -> Any:
    """The same model, whose training forward returns this loss and no logits."""
    plain_forward = model.forward

    @functools.wraps(plain_forward)  # trainers read the signature
    def forward(input_ids: Tensor | None = None, **keywords: Any) -> Any:
        if keywords.get("labels") is None or not model.training:
            return plain_forward(input_ids=input_ids, **keywords)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        value = causal_lm_loss(model, input_ids, loss=loss, **options, **keywords)
        return CausalLMOutputWithPast(loss=value)

    model.forward = forward
    return model


def main() -> None:
    """Compare the fused gradient with the model's own, then train a little."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tokens = (torch.arange(64) + torch.randint(1000, (8, 1))) % 1000

    own = model(tokens, labels=tokens).loss
    ours = causal_lm_loss(model, tokens, tokens)
    parameters = list(model.parameters())
    pairs = zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(own, parameters), strict=True
    )
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    print(f"loss {own:.6f}, fused {ours:.6f}; gradients differ by {difference:.1e} of the largest")

    use_linear_loss(model.train(), "encouraging")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        value = model(tokens, labels=tokens).loss
        value.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:2}: encouraging loss {value:.4f}")
    with torch.no_grad():
        _, rows = causal_lm_loss(model, tokens, tokens, return_rows=True)
    print(f"next token right: {rows.correct.sum() / rows.used.sum():.1%}")


if __name__ == "__main__":
    main()
