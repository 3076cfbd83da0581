"""Students of the tokens that their data uses: the tokenizer, the rows, and runs with both."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small_texts
import small_vocabularies
from edgestill import progress
from edgestill import runs as job
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.models import forward, lower
from edgestill.recipe import load_recipe
from edgestill.students.vocabulary import Vocabulary, named_ids, select_vocabulary, smaller_vocabulary
from test_texts_chat import TEMPLATE
from text_recipes import CLASSES, HERE, NETS, TOKENS, TWO_BLOCKS, result_of, written

TEXTS = small_texts.sentences(60, 0)["text"]
OWN = f"{HERE}/small_vocabularies.py"
FAMILIES = small_vocabularies.CLASSIFIERS + small_vocabularies.GENERATORS


def used(tokenizer: Any, texts: list[str] = TEXTS) -> list[int]:
    return [number for row in tokenizer(texts)["input_ids"] for number in row]


def smaller(tokenizer: Any, module: torch.nn.Module | None = None) -> Vocabulary:
    return smaller_vocabulary(tokenizer, used(tokenizer), () if module is None else named_ids(module))


def other_texts(count: int) -> list[str]:
    """Of words that the tokenizers know, of any characters, and of both."""
    draw = random.Random(1)
    words = " ".join(small_vocabularies.corpus()).split()
    found = []
    for _ in range(count):
        strange = "".join(chr(draw.choice((draw.randrange(32, 0x250), draw.randrange(0x4E00, 0x4F00), 0x1F600))))
        letters = "".join(draw.choices(small_vocabularies.LETTERS + strange + "\n  <|", k=draw.randint(1, 12)))
        found.append(draw.choice((" ", "")).join([*draw.choices(words, k=draw.randint(0, 6)), letters]))
    return found


@pytest.mark.parametrize("kind", small_vocabularies.TOKENIZERS)
def test_texts_of_the_data_keep_their_tokens_and_all_others_are_read_back_the_same(kind: str) -> None:
    tokenizer = small_vocabularies.TOKENIZERS[kind]()
    vocabulary = smaller(tokenizer)
    kept, own = vocabulary.kept, vocabulary.tokenizer
    assert {*used(tokenizer)} <= {*kept}
    assert len(kept) == len(own) < (0.8 if kind != "fallback" else 0.9) * len(tokenizer)
    written_own, written_old = own(TEXTS, TEXTS[::-1])["input_ids"], tokenizer(TEXTS, TEXTS[::-1])["input_ids"]
    assert [[int(kept[number]) for number in row] for row in written_own] == written_old
    assert own.special_tokens_map == tokenizer.special_tokens_map
    assert own.all_special_tokens == tokenizer.all_special_tokens
    pieces = 0
    for text in other_texts(400):
        one, other = (made(text)["input_ids"] for made in (own, tokenizer))
        pieces += len(one) > len(other)
        for skip in (False, True):
            decoded = [made.decode(ids, skip_special_tokens=skip) for made, ids in ((own, one), (tokenizer, other))]
            assert decoded[0] == decoded[1], text
    assert pieces > 100  # that were no one-to-one copies


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_some_of_its_rows_answers_as_the_whole_one(family: str, tmp_path: Path) -> None:
    """In memory and loaded by transformers: bit for bit, on the ids that are kept; all other weights are the same."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    module, tokenizer = getattr(small_vocabularies, family)()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    student = getattr(small_vocabularies, family)()[0].eval()
    vocabulary = smaller(tokenizer, module)
    select_vocabulary(student, vocabulary.kept)
    tables = [(made.get_input_embeddings(), made.get_output_embeddings()) for made in (module, student)]
    shared = [head is not None and head.weight is table.weight for table, head in tables]
    assert shared[0] == shared[1] == (family in ("gpt2", "llama_tied"))
    student.save_pretrained(tmp_path)
    vocabulary.tokenizer.save_pretrained(tmp_path)
    kind = AutoModelForCausalLM if family in small_vocabularies.GENERATORS else AutoModelForSequenceClassification
    loaded, own = kind.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == len(vocabulary.kept) == len(own)
    for part in ("config", "generation_config"):
        old, new = (getattr(made, part, None) for made in (module, loaded))
        for name in ("pad_token_id", "eos_token_id", "bos_token_id") if new is not None else ():
            if getattr(old, name) is not None:
                assert vocabulary.kept[getattr(new, name)] == getattr(old, name), name
    old, new = module.state_dict(), loaded.state_dict()
    assert old.keys() == new.keys()
    changed = [name for name in old if old[name].shape != new[name].shape]
    assert all(torch.equal(old[name][vocabulary.kept], new[name]) for name in changed)
    assert all(torch.equal(old[name], new[name]) for name in old if name not in changed)
    assert len(changed) == (2 if family in small_vocabularies.GENERATORS else 1)
    batches = [made(TEXTS[:8], padding=True, return_tensors="pt") for made in (tokenizer, own)]
    before, after = ({name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches)
    with torch.no_grad():
        told, answers = forward(module.eval(), before), [forward(one, after) for one in (student, loaded)]
    told = told[..., vocabulary.kept] if family in small_vocabularies.GENERATORS else told
    assert torch.equal(answers[0], told)
    assert torch.equal(answers[1], told)


def test_all_ids_kept_change_nothing() -> None:
    torch.manual_seed(0)
    module = small_texts.qwen2()[0]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    config = module.config.to_json_string()
    select_vocabulary(module, np.arange(23))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.config.to_json_string() == config
    whole = small_vocabularies.byte_level()
    same = smaller_vocabulary(whole, range(len(whole)))
    assert same.tokenizer.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()


def test_merges_of_used_tokens_stay_and_no_others() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: place for place, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca", "cab", "é"])}
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("c", "a"), ("c", "ab")]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)), eos_token="<end>")
    vocabulary = smaller_vocabulary(made, [vocab["abc"]])
    assert vocabulary.tokenizer.get_vocab() == {"a": 0, "b": 1, "c": 2, "bc": 3, "abc": 4, "é": 5, "<end>": 6}
    state = json.loads(vocabulary.tokenizer.backend_tokenizer.to_str())
    assert state["model"]["merges"] == [["b", "c"], ["a", "bc"]]
    assert vocabulary.tokenizer.tokenize("cab") == ["c", "a", "b"]


def test_a_character_that_is_no_piece_keeps_the_tokens_that_hold_it() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: place for place, token in enumerate(["[UNK]", "a", "##a", "b", "##b", "aé", "ab", "##ab"])}
    plain = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    vocabulary = smaller_vocabulary(PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]"), [])
    assert {*vocabulary.tokenizer.get_vocab()} == {*vocab} - {"ab", "##ab"}


def test_unknown_characters_and_spaces_stay_what_they_are_where_no_text_holds_them() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = [("ab", -1.0), ("a", -3.0), ("<unk>", 0.0), ("b", -4.0)]
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)), unk_token="<unk>")
    own = smaller_vocabulary(whole, []).tokenizer
    assert own.get_vocab() == {"a": 0, "<unk>": 1, "b": 2}
    assert own("abxb")["input_ids"] == [0, 2, 1, 2]
    fallback = small_vocabularies.fallback()
    own = smaller_vocabulary(fallback, []).tokenizer
    assert len(own) == 256 + 4  # bytes, special tokens, the space
    assert own.decode(own("a film é")["input_ids"]) == fallback.decode(fallback("a film é")["input_ids"]) == "a film é"


def test_what_has_no_smaller_pieces_or_other_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a fast tokenizer of BPE, WordPiece or Unigram.*of WordLevel came: keep all"):
        smaller(small_texts.tokenizer())
    with pytest.raises(UserError, match="Sequential is no Hugging Face model with embeddings"):
        select_vocabulary(torch.nn.Sequential(torch.nn.Embedding(9, 2)), np.arange(4))

    class Twice(type(small_texts.bert()[0])):  # type: ignore[misc]
        """Adds a second vector to each id's."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.more = torch.nn.Embedding(config.vocab_size, 2)

        def forward(self, input_ids: torch.Tensor, **given: Any) -> Any:
            made = super().forward(input_ids, **given)
            made.logits = made.logits + self.more(input_ids).sum(1)
            return made

    with pytest.raises(UserError, match=r"Twice has further weights with a row an id.*it answers otherwise; keep all"):
        select_vocabulary(Twice(small_texts.bert()[0].config), np.arange(10, 20))
    recipe = written(tmp_path, CLASSES.replace("{depth: 2}", "{vocabulary: data}"))
    with pytest.raises(UserError, match="of WordLevel came"):
        assemble(load_recipe(recipe), progress.silent)


def test_a_tokenizer_that_writes_the_data_otherwise_is_refused(tmp_path: Path) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_vocabularies\n\n"
        "def bert():\n    model, made = small_vocabularies.modernbert()\n"
        "    made.backend_tokenizer.model.dropout = 0.5\n    return model, made\n"
    )
    recipe = written(
        tmp_path, CLASSES.replace(f"{NETS}:bert", f"{nets}:bert").replace("{depth: 2}", "{vocabulary: data}")
    )
    with pytest.raises(UserError, match="of its tokens writes the training texts otherwise: keep all"):
        assemble(load_recipe(recipe), progress.silent)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_lowered_language_model_keeps_its_rows(precision: Any) -> None:
    module, tokenizer = small_vocabularies.llama()
    lower(module, precision, "llama")
    vocabulary = smaller(tokenizer, module)
    with torch.no_grad():
        before = forward(module.eval(), torch.from_numpy(vocabulary.kept[:20])[None])[..., vocabulary.kept]
        select_vocabulary(module, vocabulary.kept)
        after = forward(module, torch.arange(20)[None])
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


SMALL = CLASSES.replace(f"{NETS}:bert", f"{OWN}:bert").replace("{depth: 2}", "{depth: 2, vocabulary: data}")
FRESH = """
import conftest, json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
batch = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
with torch.no_grad():
    told = model.eval()(batch["input_ids"], batch["attention_mask"]).logits
print(json.dumps([told.tolist(), "edgestill" in sys.modules]))
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    sets = [*TWO_BLOCKS, "train.epochs=1", "export=[onnx]", "compare.scratch=false"]
    command = ["run", str(written(folder, SMALL)), "--quiet", "--out", str(folder / "run")]
    with bare_runs(with_teacher=True):
        assert main([*command, *(word for one in sets for word in ("--set", one))]) == 0
    return folder / "run"


def test_a_classifier_of_fewer_tokens_goes_from_recipe_to_a_smaller_file(classes: Path) -> None:
    """With terms over tokens: on the training texts, those of teacher and student are the same."""
    result = result_of(classes)
    lines = [json.loads(line) for line in (classes / "metrics.jsonl").read_text().splitlines()]
    parts = next(line["parts"] for line in lines if line["arm"] == "student" and "parts" in line)
    assert {name.partition("/")[0] for name in parts} == {"hard", "soft", "hint", "attention_kl", "attention_relation"}
    parts = assemble(load_recipe(classes / "recipe.yaml"), progress.silent)
    teacher, student = parts.teacher, parts.student(0)
    assert student.input.tokenizer.get_vocab().keys() < teacher.input.tokenizer.get_vocab().keys()
    assert np.array_equal(*(parts.splits.train.encoded(model.input).starts for model in (teacher, student)))
    dropped = len(teacher.input.tokenizer) + 7 - len(student.input.tokenizer)
    assert result["teacher"]["parameters"] == teacher.parameters
    assert f"{len(student.input.tokenizer)} of {len(teacher.input.tokenizer)} tokens" in result["student"]["model"]
    (file,) = result["artifacts"]
    assert file["agreement"] == 1
    assert result["teacher"]["bytes"] - file["bytes"] > dropped * 16 * 4  # and a block
    given = small_texts.test()["text"][:20]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, classes / "student", json.dumps(given)],
        capture_output=True,
        text=True,
        check=True,
    )
    told, loaded = json.loads(done.stdout.splitlines()[-1])
    assert not loaded
    with np.load(classes / "predictions.npz") as saved:
        found = torch.tensor(told).softmax(-1).numpy()
        np.testing.assert_allclose(found, saved["student"][:20], rtol=1e-4, atol=1e-5)


def test_tokens_of_validation_and_test_alone_are_dropped(tmp_path: Path) -> None:
    """The test must not choose: what it alone holds is written in smaller pieces."""
    nets = tmp_path / "nets.py"
    nets.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts, small_vocabularies\n\n"
        "def test():\n    made = small_texts.sentences(50, 1)\n"
        "    word = ' '.join(small_vocabularies.corpus()[250].split()[:4])\n"
        "    return made | {'text': [f'{word} {text}' for text in made['text']]}\n"
    )
    recipe = load_recipe(written(tmp_path, SMALL.replace(f"{NETS}:test", f"{nets}:test")))
    parts, before = assemble(recipe, progress.silent), assemble(load_recipe(written(tmp_path, SMALL)), progress.silent)
    assert np.array_equal(parts.vocabulary.kept, before.vocabulary.kept)  # type: ignore[union-attr]
    ids = [parts.splits.test.encoded(model.input).lengths for model in (parts.teacher, parts.student(0))]
    assert (ids[1] > ids[0]).all()


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_a_language_model_of_fewer_tokens_learns_from_a_teacher_of_these(
    family: str, tmp_path: Path, bare: None
) -> None:
    text = TOKENS.replace(f"{NETS}:llama", f"{OWN}:{family}").replace("{depth: 2}", "{depth: 2, vocabulary: data}")
    recipe = load_recipe(written(tmp_path, text), ["train.epochs=1", "teacher.fit.epochs=2", "compare.scratch=false"])
    job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = result_of(tmp_path / "run")
    assert result["arms"]["student"]["mean"] < 4
    for name in ("teacher", "student"):
        folder = tmp_path / "run" / name
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size == len(tokenizer) < small_vocabularies.SIZE
        assert f"{len(tokenizer)} of " in result[name]["model"]
        assert model.lm_head.weight is model.get_input_embeddings().weight


def test_conversations_keep_what_their_template_writes(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts, small_vocabularies\n\n"
        "def chat():\n    model, made = small_vocabularies.qwen2()\n"
        f"    made.chat_template = {TEMPLATE!r}\n    return model, made\n\n"
        "def rows(seed):\n    made = small_texts.sentences(300, seed)\n"
        "    return {'prompt': [text[:25] for text in made['text']], 'response': made['label']}\n\n"
        "def train():\n    return rows(0)\n\ndef test():\n    return rows(1)\n"
    )
    recipe = written(
        tmp_path,
        'task: instruction\ndata: {train: "chat.py:train", test: "chat.py:test", length: 40, validation: 0.1}\n'
        'teacher: {model: "chat.py:chat", fit: {epochs: 1}}\nstudent: {from_teacher: {vocabulary: data}}\n',
    )
    parts = assemble(load_recipe(recipe), progress.silent)
    whole = assemble(load_recipe(recipe, ["student.from_teacher={depth: 1}"]), progress.silent)
    own, before = (made.splits.train for made in (parts, whole))
    student = parts.student(0)
    assert parts.teacher.input.fingerprint == student.input.fingerprint
    assert len(student.input.tokenizer) == own.vocabulary < before.vocabulary
    assert student.input.tokenizer.decode(own.ids) == whole.teacher.input.tokenizer.decode(before.ids)
    assert np.array_equal(own.ends, before.ends)  # those that are cut, too


def test_embeddings_and_all_blocks_of_fewer_tokens(tmp_path: Path) -> None:
    data = f"{HERE}/small_embedders.py"
    recipe = written(
        tmp_path,
        f'task: sentence-embedding\ndata: {{train: "{data}:train", test: "{data}:test"}}\n'
        f'teacher: {{model: "{OWN}:embedder", fit: {{epochs: 1}}}}\nstudent: {{from_teacher: {{vocabulary: data}}}}\n'
        "distill: {terms: [{loss: hint}]}\n",
    )
    parts = assemble(load_recipe(recipe), progress.silent)
    student = parts.student(0)
    assert student.module.config.num_hidden_layers == 4
    for samples in (parts.splits.train, parts.splits.validation):
        rows, told = np.arange(16), []
        for model in (parts.teacher, student):
            values = torch.from_numpy(samples.asked.inputs(rows, model.input)).unbind(1)
            with torch.no_grad():
                told.append(forward(model.module.eval(), dict(zip(model.input.names, values, strict=True))))
        assert torch.equal(*told)
