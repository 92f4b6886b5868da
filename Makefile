# demo and test make their own environment first; they need Python 3.11, 3.12 or 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check bench gpu gpu-carry weights heads64 portraits64 clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: install
	$(BIN)/spinset demo

test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: install
	for benchmark in $(filter-out benchmarks/gpu%,$(wildcard benchmarks/*.py)); do $(BIN)/python $$benchmark || exit 1; done

# Everything that is meant for a GPU, in about eight minutes; the figures are written to out/gpu. A machine that reaches no
# package index takes what `make gpu-carry` gathered elsewhere: `make gpu CARRIED=1`.
gpu: $(if $(CARRIED),.gpu/site,install)
	@PYTHONPATH=$(if $(CARRIED),.gpu/site:.) $(if $(CARRIED),$(PYTHON),$(BIN)/python) benchmarks/gpu.py --out out/gpu

gpu-carry: install
	$(BIN)/python benchmarks/gpu_carry.py

.gpu/site: .gpu/site.tar.xz
	mkdir -p $@ && tar -xJf $< -C $@

# The embedded models of weights/embedded, from nothing: about an hour on two cores.
weights: install
	$(BIN)/spinset generate out/people --identities 1024 --seed 10000000 --rig scatter-16 --resolution 160 \
		--mesh.resolution 64 --defect-rate 0.15 --defects janus floater hole haze truncated
	$(BIN)/python -m tools.train_clip out/people
	$(BIN)/python -m tools.train_arcface out/people

# The embedded multiview model of weights/embedded, from nothing: about three hours on two cores.
heads64: install
	$(BIN)/spinset generate out/heads64 --identities 1536 --seed 30000000 --rig scatter-24 --resolution 64 \
		--mesh.resolution 64 --identities-per-shard 32
	$(BIN)/spinset generate out/held64 --identities 64 --seed 31000000 --rig scatter-24 --resolution 64 \
		--mesh.resolution 64 --identities-per-shard 32
	$(BIN)/spinset score out/heads64 --scorers arcface
	$(BIN)/spinset score out/held64 --scorers arcface
	$(BIN)/python -m tools.train_vae out/heads64
	$(BIN)/spinset latents out/heads64 --vae weights/embedded/heads64/vae --batch 16
	$(BIN)/torchrun --nproc-per-node 2 -m spinset train heads64 --data out/heads64 --out out/heads64-run \
		--validation.data out/held64
	$(BIN)/python -m tools.install_heads64 out/heads64-run/model

# The small DiffPortrait models of procedural heads and their tables, from nothing; hours on two cores (docs/results.md).
RING := --rig diffportrait360-72 --resolution 64 --mesh.resolution 64
PORTRAITS := --data out/ring --loader.control-data out/strangers --validation.data out/held-ring
RAYS := $(PORTRAITS) --model.control rays --loader.no-control
SMALL := out/portraits64
portraits64: install
	$(BIN)/spinset generate out/ring --identities 256 --seed 30000000 $(RING)
	$(BIN)/spinset generate out/held-ring --identities 24 --seed 31000000 $(RING)
	$(BIN)/spinset generate out/strangers --identities 16 --seed 32000000 $(RING)
	$(BIN)/spinset latents out/ring --vae weights/embedded/heads64/vae --batch 24
	$(BIN)/spinset train portraits64-360 $(PORTRAITS) --out $(SMALL)/360
	$(BIN)/spinset train portraits64-back $(PORTRAITS) --init $(SMALL)/360/base/model --out $(SMALL)/back
	$(BIN)/spinset train portraits64-3d-references $(PORTRAITS) --init $(SMALL)/360/base/model --out $(SMALL)/3d/references
	$(BIN)/spinset train portraits64-3d-cameras $(PORTRAITS) --init $(SMALL)/3d/references/model --out $(SMALL)/3d/cameras
	$(BIN)/spinset train portraits64-3d-views $(PORTRAITS) --init $(SMALL)/3d/cameras/model --out $(SMALL)/3d/views
	$(BIN)/spinset train portraits64-360-cameras $(RAYS) --init $(SMALL)/360/references/model --out $(SMALL)/rays/cameras
	$(BIN)/spinset train portraits64-360-views $(RAYS) --init $(SMALL)/rays/cameras/model --out $(SMALL)/rays/views
	$(BIN)/python benchmarks/long/portraits.py out/portraits64 --held-out out/held-ring --strangers out/strangers

clean:
	rm -rf .venv
