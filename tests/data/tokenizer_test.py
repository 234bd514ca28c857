"""Tokenizers: round trips, and the bytes that each token stands for."""

import json
import shutil
import sys

import numpy as np
import pytest

from distill_jax.config import ROOT, ConfigError
from distill_jax.data import tokenizer

TEXTS = [
  "",
  "def f(x):\n    return x + 1\n",
  "  leading and trailing  ",
  "tabs\tand\r\nline ends\n\n\n",
  "naïve café, Ελληνικά, 日本語, e\u0301",
  "an emoji of four bytes 🜁, of several points 👩‍🔬",
  "\x00\x01\x7f control",
  "0123456789 3.14159e-10",
  f"a special token {tokenizer.END} in a text is text",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A byte-level BPE of 270 tokens, by the command that makes the project's own."""
  source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("bpe")
  (source / "a.txt").write_text("the cat sat on the mat, the café is 1234 years old\n" * 50)
  patch = pytest.MonkeyPatch()
  options = ["--source", str(source), "--vocab_size", "270", "--out", str(out)]
  patch.setattr(sys, "argv", ["tokenizer", *options])
  tokenizer.main()
  patch.undo()
  return out


@pytest.fixture(params=["bytes", "trained", "distill_jax/assets/stdlib_teacher"])
def each(request):
  name = request.param
  if name.startswith("distill_jax") and not (ROOT / name / "tokenizer.json").exists():
    pytest.skip("no trained model in this checkout")
  return tokenizer.load(str(request.getfixturevalue(name)) if name == "trained" else name)


def test_a_text_comes_back_byte_for_byte(each):
  for text, ids in zip(TEXTS, each.encode(TEXTS), strict=True):
    assert each.decode(ids.tolist()) == text


def test_token_bytes_add_up_to_the_bytes_of_the_text(each):
  """What bits per byte divides by; special tokens stand for no text."""
  assert each.token_bytes.shape == (each.vocab_size,)
  for text, ids in zip(TEXTS, each.encode(TEXTS), strict=True):
    assert each.token_bytes[ids].sum() == len(text.encode()), text
  assert each.token_bytes[each.end] == 0
  assert (np.delete(each.token_bytes, each.end) > 0).all()


def test_no_text_holds_the_end_of_a_document(each):
  ids = np.concatenate(each.encode(TEXTS))
  assert ids.dtype == np.int32
  assert each.end not in ids
  assert ids.min() >= 0 and ids.max() < each.vocab_size


def test_the_end_decodes_to_nothing(each):
  (ids,) = each.encode(["text"])
  assert each.decode([*ids.tolist(), each.end]) == "text"


def test_texts_are_encoded_alone_and_in_order(each):
  together = each.encode(TEXTS)
  for text, ids in zip(TEXTS, together, strict=True):
    np.testing.assert_array_equal(each.encode([text])[0], ids)


def test_bytes_are_utf8():
  (ids,) = tokenizer.load("bytes").encode(["aé"])
  assert ids.tolist() == [97, 0xC3, 0xA9]
  assert tokenizer.load("bytes").decode([97, 0xC3]) == "a\ufffd"  # cut inside a character


def test_training_merges_what_is_frequent_but_no_digits(trained):
  bpe = tokenizer.load(str(trained))
  assert bpe.vocab_size == 270 and bpe.end == 0
  the, number = bpe.encode([" the", " 1234"])
  assert len(the) == 1 and len(number) == 5
  assert bpe.token_bytes.max() >= 3
  assert set(range(257)) <= set(np.flatnonzero(bpe.token_bytes <= 1))  # the end and every byte


def test_training_sees_nothing_that_is_held_out(tmp_path, monkeypatch, capsys):
  (tmp_path / "0.txt").write_text("abc " * 100)
  (tmp_path / "58.txt").write_text("xyz " * 1000)  # held out, by its name
  options = ["--source", str(tmp_path), "--vocab_size", "300", "--out", str(tmp_path / "out")]
  monkeypatch.setattr(sys, "argv", ["tokenizer", *options])
  tokenizer.main()
  seen, unseen = tokenizer.load(str(tmp_path / "out")).encode(["abc abc", "xyz xyz"])
  assert len(seen) < 4 < len(unseen)
  assert "bytes each on 400 bytes of text" in capsys.readouterr().out


def test_a_file_and_its_folder_are_the_same_and_the_fingerprint_tells_others_apart(
  trained, tmp_path
):
  folder, file = (tokenizer.load(str(p)) for p in (trained, trained / "tokenizer.json"))
  assert folder.fingerprint == file.fingerprint != tokenizer.load("bytes").fingerprint
  stored = json.loads((trained / "tokenizer.json").read_text())
  stored["model"]["merges"].pop()
  (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
  assert tokenizer.load(str(tmp_path)).fingerprint != file.fingerprint


def test_a_name_relative_to_the_project_works_from_anywhere(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizer, "ROOT", tmp_path)
  monkeypatch.chdir(tmp_path.parent)
  shutil.copytree(trained, tmp_path / "assets/mine")
  assert tokenizer.load("assets/mine").vocab_size == 270


@pytest.mark.parametrize(
  "content, says",
  [
    (None, "No tokenizer at "),
    ("{", "is not a tokenizer.json: "),
    ('{"layers": 2}', "is not a tokenizer.json: "),
    ("no end", "has no '<|endoftext|>' token to end documents with."),
  ],
)
def test_mistakes_are_one_line_with_the_path(trained, tmp_path, content, says):
  if content == "no end":
    content = (trained / "tokenizer.json").read_text().replace("endoftext", "end")
  if content:
    (tmp_path / "tokenizer.json").write_text(content)
  with pytest.raises(ConfigError) as error:
    tokenizer.load(str(tmp_path))
  message = str(error.value)
  assert says in message and str(tmp_path) in message and "\n" not in message


def write_pieces(folder, **settings):
  """A tokenizer.json of Gemma's kind: "▁" for a space, bytes for what it has no piece for."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

  words = ["<pad>", "<eos>", "<bos>", "<turn>", *(f"<0x{i:02X}>" for i in range(256))]
  words += ["▁", "a", "b", "é", "▁a", "▁ab"]
  ids = {word: i for i, word in enumerate(words)}
  rust = Tokenizer(models.BPE(ids, [("▁", "a"), ("▁a", "b")], byte_fallback=True))
  rust.normalizer = normalizers.Replace(" ", "▁")
  rust.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  rust.add_special_tokens([AddedToken(w, normalized=False) for w in words[:4]])
  rust.add_tokens([AddedToken("\n\n", normalized=False)])
  folder.mkdir(exist_ok=True)
  rust.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return tokenizer.load(str(folder))


PIECES = dict(bos_token="<bos>", eos_token=dict(content="<eos>"), add_bos_token=True)


def test_pieces_stand_for_the_bytes_of_their_text(tmp_path):
  pieces = write_pieces(tmp_path, **PIECES)
  assert (pieces.begin, pieces.end) == (2, 1)
  for text, ids in zip(TEXTS, pieces.encode(TEXTS), strict=True):
    assert pieces.decode(ids.tolist()) == text
    assert pieces.token_bytes[ids].sum() == len(text.encode()), text
    assert not {0, 1, 2, 3} & set(ids.tolist())
  assert [len(ids) for ids in pieces.encode([" ab", "é", "日", "\n\n"])] == [1, 1, 3, 1]
  assert pieces.encode(["<turn>a"], special=True)[0].tolist() == [3, 261]


@pytest.mark.parametrize(
  "files, end",
  [
    (dict(tokenizer_config=dict(eos_token="<eos>")), 1),
    (dict(tokenizer_config=dict(eos_token="<eos>"), config=dict(eos_token_id=0)), 0),
    (dict(config=dict(eos_token_id=0), generation_config=dict(eos_token_id=[3, 0])), 3),
  ],
)
def test_the_end_is_what_the_model_s_files_say(files, end, tmp_path):
  write_pieces(tmp_path, **PIECES)
  for name in ("tokenizer_config", *files):
    (tmp_path / f"{name}.json").write_text(json.dumps(files.get(name, {})))
  (tmp_path / "tokenizer.json").touch()  # another version of the file
  assert tokenizer.load(str(tmp_path)).end == end


TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}\n<turn>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
  "{% if add_generation_prompt %}<turn>model{% endif %}"
)


@pytest.mark.parametrize("where", ["string", "list", "file"])
def test_a_chat_is_written_by_the_template_of_the_model(where, tmp_path):
  template = dict(string=TEMPLATE, list=[dict(name="default", template=TEMPLATE)]).get(where)
  pieces = write_pieces(tmp_path, **PIECES, chat_template=template)
  if where == "file":
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "tokenizer.json").touch()
    pieces = tokenizer.load(str(tmp_path))
  said = [dict(role="user", content="a")]
  assert pieces.chat(said, add_generation_prompt=True) == "<bos><turn>user\na<turn>model"


def test_templates_find_what_those_of_real_models_ask_for(tmp_path):
  template = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% if m['role'] == 'end' %}{% break %}"
    "{% endif %}{% generation %} {{ m | tojson }}{% endgeneration %}{% endfor %}"
  )
  pieces = write_pieces(tmp_path, **PIECES, chat_template=template)
  said = [dict(role="user", content="é <b>"), dict(role="end", content="a")]
  assert pieces.chat(said) == '26 Jul 2024 {"role": "user", "content": "é <b>"}'


@pytest.mark.parametrize(
  "template, says",
  [
    (None, "comes with no chat template"),
    ("{{ messages.append(1) }}", "its chat template says: "),  # the sandbox
    ("{{ messages.__class__.__mro__ }}", "its chat template says: "),
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% if %}", "its chat template says: "),
  ],
)
def test_a_template_that_fails_or_reaches_out_is_one_line(template, says, tmp_path):
  pieces = write_pieces(tmp_path, **PIECES, chat_template=template)
  with pytest.raises(ConfigError) as error:
    pieces.chat([dict(role="user", content="a")])
  assert says in str(error.value) and "\n" not in str(error.value)


def test_a_sentencepiece_model_is_read_by_its_library(tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  (tmp_path / "text").write_text("the cat sat on the mat\n" * 50)
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / "text"),
    model_prefix=str(tmp_path / "tokenizer"),
    vocab_size=300,
    model_type="bpe",
    byte_fallback=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    hard_vocab_limit=False,
    minloglevel=2,
  )
  pieces = tokenizer.load(str(tmp_path))
  assert (pieces.begin, pieces.end) == (1, 2)
  for text, ids in zip(TEXTS, pieces.encode(TEXTS), strict=True):
    assert pieces.decode(ids.tolist()) == text
    assert pieces.token_bytes[ids].sum() == len(text.encode()), text
  (tmp_path / "tokenizer.model").write_bytes(b"no model")
  with pytest.raises(ConfigError, match="is not a SentencePiece model"):
    tokenizer.load(str(tmp_path))


def test_a_file_is_read_once(trained):
  assert tokenizer.load(str(trained)) is tokenizer.load(str(trained))
