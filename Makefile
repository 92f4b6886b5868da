# demo and test make their own environment first; they need Python 3.11, 3.12 or 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check bench gpu gpu-carry weights heads64 clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: install
	$(BIN)/spinset demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

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

clean:
	rm -rf .venv
