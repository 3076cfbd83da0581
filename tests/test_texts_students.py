"""Students of some blocks of their teacher, and terms over tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

import small_texts
from edgestill import progress
from edgestill.assemble import assemble
from edgestill.errors import UserError
from edgestill.models import forward
from edgestill.recipe import load_recipe
from edgestill.students.depth import blocks_of, kept_blocks, shallower
from text_recipes import CLASSES, HERE, NETS, TOKENS, written


@pytest.mark.parametrize("family", small_texts.CLASSIFIERS + small_texts.GENERATORS)
def test_a_student_of_some_blocks_is_its_teachers_with_the_others_left_out(family: str, tmp_path: Path) -> None:
    """Of every family, told by structure alone: saved, loaded by transformers, and computed with these blocks."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    teacher = getattr(small_texts, family)()[0].eval()
    probe = torch.arange(4, 20).reshape(2, 8)
    paths = blocks_of(teacher, probe)
    assert len(paths) == 4
    student = shallower(teacher, probe, [0, 2]).eval()
    student.save_pretrained(tmp_path)
    kind = AutoModelForCausalLM if family in small_texts.GENERATORS else AutoModelForSequenceClassification
    with torch.no_grad():
        told = student(probe).logits
        torch.testing.assert_close(kind.from_pretrained(tmp_path).eval()(probe).logits, told, rtol=0, atol=0)
        kept = teacher.get_submodule(paths[0].rpartition(".")[0])
        del kept[3], kept[1]  # the teacher itself, cut by hand
        teacher.config.num_hidden_layers = 2
        torch.testing.assert_close(forward(teacher, probe), told, rtol=0, atol=1e-6)
    fresh = shallower(small_texts.bert()[0], probe, [0], weights=False)
    assert fresh.config.num_hidden_layers == 1


def test_blocks_are_kept_as_asked() -> None:
    assert kept_blocks(12, 4, "spread") == [0, 4, 7, 11]
    assert kept_blocks(12, 0.5, "first") == [0, 1, 2, 3, 4, 5]
    assert kept_blocks(6, 2, "last") == [4, 5]
    assert kept_blocks(6, 1, "spread") == [0]
    with pytest.raises(UserError, match="the teacher has 6 blocks; 7 were asked for"):
        kept_blocks(6, 7, "spread")
    with pytest.raises(UserError, match="the teacher's blocks are 0…5; 6 came"):
        kept_blocks(6, None, [0, 6])
    with pytest.raises(UserError, match="no list of blocks to choose from"):
        blocks_of(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4)), torch.ones(2, 3).long())


def test_padding_changes_nothing() -> None:
    """A text answers alone as in a batch with longer ones, and so do its terms: hints, attentions, relations."""
    from edgestill.losses import attention_kl, attention_relation, hint, sp
    from edgestill.objective import Objective, Term
    from edgestill.signals import Signal
    from edgestill.taps import record

    torch.manual_seed(0)
    student, teacher = small_texts.bert()[0].eval(), small_texts.bert()[0].eval()
    ids = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 6, 7, 8, 9, 3]])
    layer = "bert.encoder.layer.3"
    terms = {
        "hint": Term(hint, layer, layer),
        "attention": Term(attention_kl, f"{layer}.attention.self@attention", f"{layer}.attention.self@attention"),
        "relation": Term(attention_relation, f"{layer}@values", f"{layer}@values"),
    }

    def parts(rows: torch.Tensor, chosen: dict[str, Term]) -> dict[str, float]:
        mask = (rows > 0).long()
        objective = Objective(terms=chosen, alpha=1.0)
        with torch.no_grad(), record(teacher, objective.teacher_taps) as taps:
            logits = teacher(rows, mask).logits
        with record(student, objective.student_taps) as own:
            told = student(rows, mask).logits
        made = objective(told, torch.zeros(len(rows)).long(), Signal(logits, taps), own, tokens=mask.bool())
        return {name: float(value.detach()) for name, value in made.values.items()}

    together, alone = parts(ids, terms), [parts(ids[:1, :4], terms), parts(ids[1:], terms)]
    for name in terms:
        by_token = (4 * alone[0][name] + 6 * alone[1][name]) / 10
        assert together[name] == pytest.approx(by_token, rel=1e-4), name
        assert together[name] > 0
    assert together["soft"] == pytest.approx((alone[0]["soft"] + alone[1]["soft"]) / 2, rel=1e-4)
    similar = {"sp": Term(sp, layer, layer)}
    longer = torch.cat([ids, torch.zeros(2, 3).long()], 1)
    assert parts(ids, similar)["sp"] == pytest.approx(parts(longer, similar)["sp"], rel=1e-3)


def test_terms_and_lengths_that_two_models_cannot_share_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts\n\n"
        "def bert():\n    model, _ = small_texts.bert(vocab_size=24)\n"
        "    return model, small_texts.tokenizer(('new',))\n\n"
        "def short():\n    return small_texts.llama(max_position_embeddings=16)\n\n"
        "def encoder():\n"
        "    from transformers import BertConfig, BertLMHeadModel\n"
        "    config = BertConfig(**small_texts.SHAPE, **small_texts.LONG, vocab_size=23, pad_token_id=0)\n"
        "    return BertLMHeadModel(config), small_texts.tokenizer()\n\n"
        "def swapped():\n    model, made = small_texts.bert()\n"
        "    model.config.id2label = {0: 'pos', 1: 'neg'}\n    return model, made\n"
    )
    terms = CLASSES.replace("{from_teacher: {depth: 2}}", f'{{model: "{other}:bert"}}')
    with pytest.raises(UserError, match="teacher and student split texts into other tokens, which terms cannot pair"):
        assemble(load_recipe(written(tmp_path, terms)), progress.silent)
    assemble(load_recipe(tmp_path / "recipe.yaml", ["distill.terms=[]"]), progress.silent)
    shorter = TOKENS.replace("{from_teacher: {depth: 2}}", f'{{model: "{other}:short"}}').replace(", length: 32", "")
    parts = assemble(load_recipe(written(tmp_path, shorter)), progress.silent)
    assert parts.teacher.input.length == parts.student(0).input.length == 16
    assert parts.splits.train.inputs(np.arange(1), parts.teacher.input).shape[2] == 16
    encoder = TOKENS.replace(f"{NETS}:llama", f"{other}:encoder")
    with pytest.raises(UserError, match="looks at the tokens behind the one that it answers: it is an encoder"):
        assemble(load_recipe(written(tmp_path, encoder)), progress.silent)
    swapped = CLASSES.replace(f"{NETS}:bert", f"{other}:swapped")
    with pytest.raises(UserError, match=r"the same in another order; set teacher.classes=\[1, 0\]"):
        assemble(load_recipe(written(tmp_path, swapped)), progress.silent)


def test_a_length_of_the_width_of_a_head_is_no_attention_and_samples_are_counted_apart() -> None:
    from edgestill.losses import attention_relation, hint, rkd
    from edgestill.objective import Objective, Term
    from edgestill.signals import Signal

    values, pooled = torch.randn(4, 2, 8, 8), torch.randn(4, 16)
    hidden, tokens = torch.randn(4, 8, 16), torch.ones(4, 8, dtype=torch.bool)
    terms = {
        "relation": Term(attention_relation, "v@values", "v@values"),
        "pooled": Term(hint, "pooled", "pooled"),
        "rkd": Term(rkd, "hidden", "hidden"),
        "own": Term(lambda student, teacher: (student - teacher).square().mean(), "hidden", "hidden"),
    }
    student = {"v@values": values, "pooled": pooled, "hidden": hidden}
    teacher = {name: torch.randn_like(tap) for name, tap in student.items()}
    objective = Objective(alpha=0.5, terms=terms)
    logits, labels = torch.randn(4 * 8, 5), torch.zeros(4 * 8).long()
    signal = Signal(torch.randn(4 * 8, 5), teacher)
    whole = objective(logits, labels, signal, student, tokens=tokens)
    assert float(whole.values["pooled"]) == pytest.approx(float((pooled - teacher["pooled"]).square().mean()), rel=1e-5)
    assert float(whole.values["own"]) == pytest.approx(float((hidden - teacher["hidden"]).square().mean()), rel=1e-5)
    objective = Objective(alpha=0.5, terms={name: term for name, term in terms.items() if name != "own"})
    counted = objective(logits, labels, signal, student, tokens=tokens, counts=(32, 32, 32, 4))
    for name in ("relation", "pooled", "rkd", "hard", "soft"):
        assert float(counted.values[name]) == pytest.approx(float(whole.values[name]), rel=1e-5), name
