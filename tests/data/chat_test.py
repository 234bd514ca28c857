"""Chats by the templates of real models, as transformers writes them."""

import pathlib

import pytest

from distill_jax.data import chat

NAMES = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
CHATS = (
  [("user", "Hello \u201cw\u00f6rld\u201d & <b>")],
  [("system", "Be brief."), ("user", " a\n"), ("assistant", "b"), ("user", "c")],
  [("user", "a"), ("assistant", "b")],
)


def written(render):
  """The text, or that the template refuses."""
  try:
    return render()
  except Exception:  # of jinja2 there, of ours here
    return None


def test_templates_of_real_models_write_what_they_write_in_transformers(monkeypatch):
  trl = pytest.importorskip("trl")
  there = pytest.importorskip("transformers.utils.chat_template_utils")

  class Fixed(there.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(chat.TODAY.year, chat.TODAY.month, chat.TODAY.day)

  monkeypatch.setattr(there, "datetime", Fixed)
  there._compile_jinja_template.cache_clear()
  files = sorted(pathlib.Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
  assert len(files) > 50
  refused = 0
  for file in files:
    for said in CHATS:
      messages = [dict(role=role, content=content) for role, content in said]
      for prompted in (False, True):
        how = dict(add_generation_prompt=prompted, **NAMES)
        template = file.read_text()
        theirs = written(
          lambda: there.render_jinja_template([messages], chat_template=template, **how)[0][0]
        )
        ours = written(lambda: chat.render(file, template, NAMES, messages, prompted))
        assert ours == theirs, file.name
        refused += ours is None
  assert refused < len(files)
