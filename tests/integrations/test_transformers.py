"""The Hugging Face Trainer, by both of its ways to give it an optimizer, on a model that is made here."""

import pytest
import torch
from integrations.problem import CLASSES
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import fusedopt


class Sentences(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        tokens = torch.randint(0, 20, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens[0] % 2}


def make_bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def arguments(folder, **more):
    return TrainingArguments(
        str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        report_to=[],
        disable_tqdm=True,
        max_grad_norm=0.5,
        warmup_steps=2,
        **{"save_strategy": "no"} | more,
    )


@pytest.mark.parametrize("way", ["optimizers", "class"])
@pytest.mark.parametrize(
    "more", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=["plain", "accumulate", "bf16"]
)
def test_trainer(both, tmp_path, way, more):
    def training(make):
        model = make_bert()
        opt = make(model.parameters())
        given = {"optimizers": (opt, None)}
        if way == "class":
            given = {"optimizer_cls_and_kwargs": (type(opt), CLASSES[type(opt).__name__])}
        Trainer(model, arguments(tmp_path, **more), train_dataset=Sentences(), **given).train()
        return model

    both(training, **({"rtol": 0.05, "atol": 5e-3} if more.get("bf16") else {"rtol": 1e-4, "atol": 1e-5}))


def test_resume_of_a_run_of_torchs_class(tmp_path):
    results = []
    for module in torch.optim, fusedopt:
        options = arguments(tmp_path / module.__name__, save_strategy="steps", save_steps=6)
        run = Trainer(
            model := make_bert(),
            options,
            train_dataset=Sentences(),
            optimizers=(torch.optim.AdamW(model.parameters(), **CLASSES["AdamW"]), None),
        )
        run.train()
        other = make_bert()
        opt = module.AdamW(other.parameters(), **CLASSES["AdamW"])
        again = Trainer(other, options, train_dataset=Sentences(), optimizers=(opt, None))
        again.train(resume_from_checkpoint=str(tmp_path / module.__name__ / "checkpoint-6"))
        torch.testing.assert_close(list(other.parameters()), list(model.parameters()), rtol=1e-4, atol=1e-5)
        results.append(other)
    torch.testing.assert_close(*(list(result.parameters()) for result in results), rtol=1e-4, atol=1e-5)
