"""Models with named inputs, as those of Hugging Face: a real BERT of random weights, packed inputs, a repair."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repairopt import (
    Classifier,
    ErrorRate,
    KeepLabels,
    LowRank,
    ModelError,
    Settings,
    SpecificationError,
    Verdict,
    solve_repair,
)
from repairopt.interfaces.huggingface import PackedInputs
from repairopt.patches import export_lora


def tokens(count: int = 120) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Sentences of 4 to 8 tokens, padded with 0; the class is whether the first token is one of the upper half."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (120, 8), generator=draw)[:count]
    length = torch.randint(4, 9, (120, 1), generator=draw)[:count]
    mask = (torch.arange(8)[None] < length).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, (ids[:, 0] >= 25).long()


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    """One layer, 16 wide, trained for a moment on a third of the sentences; nothing is downloaded."""
    transformers = pytest.importorskip("transformers", reason="comes with the extra 'peft'")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)
    optimizer, (batch, labels) = torch.optim.Adam(model.parameters(), lr=3e-3), tokens(40)
    for _ in range(20):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["classifier.weight", ["bert.pooler.dense.bias", "classifier.weight"]])
@pytest.mark.usefixtures("without_pictures")
def test_a_bert_is_repaired(bert, weights, fingerprint):
    batch, labels = tokens()
    packed, before = PackedInputs(batch), fingerprint(bert)
    with torch.no_grad():
        logits = bert(**batch).logits
    torch.testing.assert_close(packed(bert, packed.inputs), logits)
    wrong = logits.argmax(1) != labels
    assert 0 < int(wrong.sum()) < 40
    repair = solve_repair(
        Classifier(bert, packed),
        ErrorRate(packed.inputs[wrong], labels[wrong], target=0.5),
        [KeepLabels(packed.inputs, labels, tolerance=0.1)],
        weights=weights,
        method="sequential",
        settings=Settings(time_limit=60),
    )
    with torch.no_grad():
        after = repair.model(**batch).logits.argmax(1)
    assert repair.report.verdict is Verdict.REPAIRED
    assert float((after[wrong] == labels[wrong]).float().mean()) >= 0.5
    assert int((after[~wrong] != labels[~wrong]).sum()) <= 12
    assert fingerprint(bert) == before
    assert "probability moved" in repair.to_html()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it of transformers
def test_a_bert_is_repaired_by_factors_of_low_rank(bert, fingerprint, tmp_path):
    peft = pytest.importorskip("peft")
    batch, labels = tokens(60)
    packed, before = PackedInputs(batch), fingerprint(bert)
    wrong = bert(**batch).logits.argmax(1) != labels
    goal = ErrorRate(packed.inputs[wrong], labels[wrong], target=0.0)
    keep = KeepLabels(packed.inputs[~wrong], labels[~wrong], tolerance=0.0)
    held_out = [ErrorRate(packed.inputs, labels, name="all rows")]
    repair = solve_repair(Classifier(bert, packed), goal, [keep], weights=LowRank(2), held_out=held_out)
    assert repair.report.verdict is Verdict.REPAIRED
    assert repair.report.method == "TrainThenCorrect()"
    assert {name for name in repair.delta if "layer.0" not in name} == {
        "bert.pooler.dense.weight",
        "classifier.weight",
    }
    assert fingerprint(bert) == before
    ranks = export_lora(repair.as_patch(bert), bert, tmp_path, max_rank=2)
    assert max(ranks.values()) == 2
    served = peft.PeftModel.from_pretrained(copy.deepcopy(bert), tmp_path).eval()
    torch.testing.assert_close(served(**batch).logits, repair.model(**batch).logits, rtol=1e-4, atol=1e-4)


def test_named_inputs_are_stacked_and_named_again():
    batch, _ = tokens(5)
    packed = PackedInputs(batch)
    assert packed.names == ("input_ids", "attention_mask")
    assert packed.inputs.shape == (5, 2, 8)

    def model(input_ids, attention_mask):
        assert torch.equal(input_ids, batch["input_ids"])
        assert torch.equal(attention_mask, batch["attention_mask"])
        return input_ids.float()

    assert torch.equal(packed(model, packed.inputs), batch["input_ids"].float())


def test_mistakes_are_explained():
    batch, _ = tokens(5)
    with pytest.raises(SpecificationError, match=r"'labels' \(5,\) torch.int64; expected one shape"):
        PackedInputs({**batch, "labels": torch.zeros(5, dtype=torch.int64)})
    with pytest.raises(SpecificationError, match="got list; expected tensors by name"):
        PackedInputs([1, 2])
    packed = PackedInputs(batch)
    with pytest.raises(ModelError, match="returned a dict without logits"):
        packed(lambda **inputs: {}, packed.inputs)
