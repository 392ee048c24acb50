"""Losses in the trainers that people have: the same gradients as without them, schedules moved."""

from __future__ import annotations

import logging
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import losslab
from losslab.errors import InputError
from losslab.integrations.adapters import FairseqCriterion, TorchtuneLoss
from losslab.integrations.transformers import TrainerLoss

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY, LENGTH = 11, 7


# ---- Hugging Face -----------------------------------------------------------------------------


class Classifier(nn.Module):
    """What the Trainer wants of a model: a mapping with logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        return {"logits": self.linear(x)}


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows=24):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(rows, 4, generator=generator)
        self.labels = torch.randint(3, (rows,), generator=generator)
        self.labels[::5] = -100  # rows that pieces have unequal numbers of

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


class Sentences(Rows):
    """Tokens with prompts of unequal length, which are not learned from."""

    def __init__(self, rows=16):
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randint(VOCABULARY, (rows, LENGTH), generator=generator)
        prompt = torch.arange(LENGTH) < torch.randint(0, LENGTH - 1, (rows, 1), generator=generator)
        self.labels = self.x.masked_fill(prompt, -100)

    def __getitem__(self, index):
        return {"input_ids": self.x[index], "labels": self.labels[index]}


def language_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    nothing = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **nothing)
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture
def trained(tmp_path):
    """Train by the Trainer with plain SGD, and return the model."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    transformers.logging.set_verbosity_error()

    def train(model, data, loss, *, batch=8, pieces=1, steps=3, callbacks=(), **more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = transformers.TrainingArguments(
                str(tmp_path), per_device_train_batch_size=batch // pieces, max_steps=steps,
                gradient_accumulation_steps=pieces, optim="sgd", learning_rate=0.5, seed=0,
                lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], use_cpu=True,
                disable_tqdm=True, save_strategy="no", logging_strategy="no", **more,
            )  # fmt: skip
            trainer = transformers.Trainer(
                model, arguments, train_dataset=data, compute_loss_func=loss,
                callbacks=list(callbacks),
            )  # fmt: skip
            trainer.train()
        return model

    return train


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("spec", ["cross_entropy", "encouraging", "expectation"])
def test_pieces_have_the_gradient_of_the_batch(trained, spec):
    """Oracle: the batch in one piece, and SGD by hand on it. Break: a mean over each piece, whose
    rows that count are unequally many."""
    loss = TrainerLoss(spec)
    whole = trained(Classifier(), Rows(), loss, steps=1)
    pieces = trained(Classifier(), Rows(), loss, pieces=4, steps=1)
    assert parameters(pieces) == pytest.approx(parameters(whole), abs=1e-6)
    assert not torch.allclose(parameters(whole), parameters(Classifier()), atol=1e-3)


def test_a_step_by_hand(trained):
    """Oracle: all rows in one step, with PyTorch's own mean over the rows that count."""
    data, by_hand = Rows(16), Classifier()
    made = trained(Classifier(), data, TrainerLoss("cross_entropy"), batch=16, pieces=2, steps=1)
    F.cross_entropy(by_hand(data.x)["logits"], data.labels).backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.5 * p.grad
    assert parameters(made) == pytest.approx(parameters(by_hand), abs=1e-6)


def test_class_weights(trained):
    """Oracle: Σ w L over the number of labels, by hand."""
    data, by_hand = Rows(16), Classifier()
    weight = torch.tensor([0.5, 1.0, 2.0])
    loss = TrainerLoss("cross_entropy", weight=weight)
    made = trained(Classifier(), data, loss, batch=16, pieces=4, steps=1)
    logits = by_hand(data.x)["logits"]
    total = F.cross_entropy(logits, data.labels, weight, reduction="sum")
    (total / (data.labels != -100).sum()).backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.5 * p.grad
    assert parameters(made) == pytest.approx(parameters(by_hand), abs=1e-6)


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_language_model_learns_as_by_its_own_loss(trained, pieces):
    """Oracle: the model's own cross-entropy in the same Trainer. Break: tokens laid beside labels
    that are not the next ones, or a division by another count."""
    ours = trained(
        language_model(), Sentences(), TrainerLoss("cross_entropy", causal=True), pieces=pieces
    )
    own = trained(language_model(), Sentences(), None, pieces=pieces)
    assert parameters(ours) == pytest.approx(parameters(own), abs=2e-6)
    assert not torch.allclose(parameters(own), parameters(language_model()), atol=1e-3)


def test_the_expectation_loss_is_dft_of_trl(tmp_path):
    """Oracle: TRL's own SFT trainer with loss_type="dft". Break: DFT's constant p as a variable."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    data = Sentences()
    rows = {"input_ids": data.x.tolist(), "labels": data.labels.tolist()}

    def train(**how):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = language_model()
            arguments = trl.SFTConfig(
                str(tmp_path), per_device_train_batch_size=8, max_steps=2, optim="sgd",
                learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[],
                use_cpu=True, disable_tqdm=True, save_strategy="no", bf16=False, seed=0,
                gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True},
                loss_type=how.pop("loss_type", "nll"), max_length=LENGTH,
            )  # fmt: skip
            tokenizer = word_tokenizer()
            trl.SFTTrainer(
                model, arguments, train_dataset=datasets.Dataset.from_dict(rows),
                processing_class=tokenizer, **how,
            ).train()  # fmt: skip
        return parameters(model)

    dft = train(loss_type="dft")
    ours = train(compute_loss_func=TrainerLoss("expectation", causal=True))
    assert ours == pytest.approx(dft, abs=2e-6)
    assert not torch.allclose(dft, train(), atol=1e-4)


def word_tokenizer():
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{k}": k for k in range(VOCABULARY - 1)} | {"[PAD]": VOCABULARY - 1}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="w1")


def test_the_trainer_advances_schedules(trained):
    """Oracle: step over steps. Break: a schedule that stays at its start."""
    seen = []
    loss = TrainerLoss("mixed(focus=phases(0, 0.5))")
    move = loss.criterion.set_progress
    loss.criterion.set_progress = lambda x: (seen.append(x), move(x))
    trained(Classifier(), Rows(), loss, pieces=2, steps=4, callbacks=loss.callbacks)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_forms_of_outputs_and_bad_input():
    """Break: the first tensor of whatever comes taken for logits."""
    loss, logits, labels = TrainerLoss("focal"), torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    expected = losslab.FocalLoss()(logits, labels)
    for outputs in ({"logits": logits}, (logits, "more"), logits):
        assert loss(outputs, labels) == pytest.approx(expected)
    assert loss(logits, labels, torch.tensor(8)) == pytest.approx(expected / 2)
    with pytest.raises(InputError, match="return logits, but got dict with loss"):
        loss({"loss": logits}, labels)
    with pytest.raises(InputError, match="Expected labels in the batch"):
        loss(logits, None)
    with pytest.raises(InputError, match="wants causal=True"):
        loss(torch.randn(4, 5, 3), labels)
    with pytest.raises(InputError, match="reduction='sum'"):
        TrainerLoss(losslab.FocalLoss())
    with pytest.raises(InputError, match="alternates steps"):
        TrainerLoss("complement_objective(cross_entropy)")
    with pytest.raises(InputError, match="weight in the loss module itself"):
        TrainerLoss(losslab.FocalLoss(reduction="sum"), weight=torch.ones(3))


def test_a_language_model_is_not_taken_for_a_classifier():
    """Break: a forgotten causal=True, which trains a model to repeat the token it reads: the shapes
    fit, and no number shows it."""
    data = Sentences()
    outputs = language_model()(data.x)
    with pytest.raises(InputError, match=r"causal=True .* returns CausalLMOutput"):
        TrainerLoss("expectation")(outputs, data.labels)
    shifted = torch.cat([data.labels[:, 1:], torch.full((len(data), 1), -100)], dim=1)
    value = TrainerLoss("expectation", causal=False)(outputs, shifted)
    told = TrainerLoss("expectation", causal=True)(outputs, data.labels)
    assert value.item() == pytest.approx(told.item())


# ---- Lightning --------------------------------------------------------------------------------


@pytest.fixture
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return module


def lightning_module(lightning, criterion):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.criterion, self.seen = nn.Linear(4, 3), criterion, []

        def training_step(self, batch, _):
            moved = getattr(self.criterion, "focus", None)
            self.seen.append(None if moved is None else float(moved))
            return self.criterion(self.linear(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            data = Rows(24)
            return DataLoader(TensorDataset(data.x, data.labels), 4)

    return Module()


def fit(lightning, module, folder, *, epochs, resume=None, pieces=1, callbacks=None):
    from losslab.integrations.lightning import LossSchedule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, barebones=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            accumulate_grad_batches=pieces, enable_checkpointing=False,
            callbacks=[LossSchedule()] if callbacks is None else callbacks,
        )  # fmt: skip
        trainer.fit(module, ckpt_path=resume)
    return trainer


class Watched(nn.Module):
    """A loss of losslab inside another module, and what it was told."""

    def __init__(self, spec):
        super().__init__()
        self.loss, self.told = losslab.loss(spec), []
        move = self.loss.set_progress
        self.loss.set_progress = lambda x: (self.told.append(x), move(x))

    def forward(self, logits, target):
        return self.loss(logits, target)


def test_lightning_moves_schedules_and_resumes(lightning, tmp_path):
    """Oracle: step over all steps; a training that stops half-way and goes on from its checkpoint
    ends with the weights of one that does not. Break: a schedule that begins anew."""
    spec = "mixed(focus=phases(0, 0.2, 0.5))"
    whole = lightning_module(lightning, Watched(spec))
    fit(lightning, whole, tmp_path, epochs=4)
    assert whole.criterion.told == pytest.approx([k / 24 for k in range(24)])

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                trainer.should_stop = True

    from losslab.integrations.lightning import LossSchedule

    half = lightning_module(lightning, Watched(spec))
    fit(lightning, half, tmp_path, epochs=4, callbacks=[LossSchedule(), Stop()])
    assert half.criterion.told == pytest.approx([k / 24 for k in range(12)])
    rest = lightning_module(lightning, Watched(spec))
    fit(lightning, rest, tmp_path, epochs=4, resume=tmp_path / "half.ckpt")
    assert rest.criterion.told == pytest.approx([k / 24 for k in range(12, 24)])
    assert torch.equal(rest.linear.weight, whole.linear.weight)


def test_lightning_counts_steps_not_batches(lightning, tmp_path):
    """Oracle: with two batches a step, both have the step's value."""
    module = lightning_module(lightning, Watched("mixed(focus=phases(0, 0.5))"))
    fit(lightning, module, tmp_path, epochs=1, pieces=2)
    assert module.criterion.told == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_lightning_without_a_loss_of_ours_is_told(lightning, tmp_path):
    """Break: a callback that silently does nothing."""
    module = lightning_module(lightning, nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="Expected a loss of losslab among the parts of Module"):
        fit(lightning, module, tmp_path, epochs=1)


# ---- fairseq and torchtune --------------------------------------------------------------------


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, src_tokens):
        return self.table(src_tokens), None


@pytest.mark.parametrize("spec", ["cross_entropy", "smoothed(encouraging, amount=0.1)"])
def test_fairseqs_signature(spec):
    """Oracle: the sum over the tokens that are no padding, and its gradient."""
    model, padding = Translator(), 1
    tokens = Sentences().x
    sample = {"net_input": {"src_tokens": tokens}, "target": tokens.roll(1, 1)}
    loss, size, log = FairseqCriterion(spec, padding)(model, sample)
    loss.backward()
    expected = losslab.loss(spec, reduction="sum", ignore_index=padding)
    logits = model.table(tokens).detach().requires_grad_()
    value = expected(logits.flatten(0, 1), sample["target"].flatten())
    value.backward()
    kept = int((sample["target"] != padding).sum())
    assert loss.item() == pytest.approx(value.item(), rel=1e-5)
    assert size == log["ntokens"] == kept < tokens.numel()
    by_token = logits.grad.flatten(0, 1)
    found = torch.zeros(VOCABULARY, VOCABULARY).index_add(0, tokens.flatten(), by_token)
    assert model.table.weight.grad == pytest.approx(found, abs=1e-6)
    per_sentence = FairseqCriterion(spec, padding, sentence_avg=True)(model, sample)
    assert per_sentence[1] == len(tokens)
    both = FairseqCriterion.aggregate([log, log])
    assert both["loss"] == pytest.approx(value.item() / kept / 0.6931472, rel=1e-5)
    assert math.isnan(FairseqCriterion.aggregate([])["loss"])


@pytest.mark.parametrize(
    "adapter", [FairseqCriterion, lambda loss, index: TorchtuneLoss(loss, 8, index)]
)
def test_a_module_must_ignore_what_the_trainer_does(adapter):
    """Break: padding in the loss, but not in what it is divided by."""
    with pytest.raises(InputError, match=r"ignore_index=1, but got \{-100\}"):
        adapter(losslab.EncouragingLoss(reduction="sum"), 1)
    module = losslab.EncouragingLoss(reduction="sum", ignore_index=1)
    assert adapter(module, 1).criterion is module


@pytest.mark.parametrize("adapter", [lambda loss: FairseqCriterion(loss, 1), TorchtuneLoss])
def test_an_adapter_passes_progress_on(adapter):
    """Break: a schedule that nobody can move."""
    made = adapter("encouraging(rho=ramp(0, 1))")
    made.set_progress(0.75)
    assert float(made.criterion.rho) == 0.75
    adapter("cross_entropy").set_progress(0.9)


@pytest.mark.parametrize("spec", ["cross_entropy", "expectation"])
def test_torchtunes_signature(spec):
    """Oracle: the mean over the labels that count, chunked or not, in value and gradient."""
    labels = Sentences().labels
    logits = torch.randn(*labels.shape, VOCABULARY, requires_grad=True)
    loss = TorchtuneLoss(spec, num_output_chunks=3)
    whole = loss(logits, labels)
    (expected,) = torch.autograd.grad(whole, logits)
    chunks = list(logits.tensor_split(3, dim=1))
    parts = loss(chunks, labels)
    (found,) = torch.autograd.grad(parts, logits)
    reference = losslab.loss(spec)(logits.flatten(0, 1), labels.flatten())
    assert whole.item() == pytest.approx(reference.item(), rel=1e-5)
    assert parts.item() == pytest.approx(reference.item(), rel=1e-5)
    assert found == pytest.approx(expected, abs=1e-7)
    nothing = loss(logits, torch.full_like(labels, -100))
    assert nothing.item() == 0
    flat = loss(logits.flatten(0, 1), labels.flatten())  # as torchtune's recipes call it
    assert torch.autograd.grad(flat, logits)[0] == pytest.approx(expected, abs=1e-7)
    assert flat.item() == pytest.approx(reference.item(), rel=1e-5)
    for wrong in (labels[:, 1:], labels.flatten()):
        for given in (logits, chunks):
            with pytest.raises(InputError, match=r"Expected labels of shape \(16, 7\)"):
                loss(given, wrong)
