# Two commands for newcomers: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

DEMO_MODEL := tools/demo/edsr_baseline_x4_w4a4.pt
DEMO_IMAGES := tests/data/samples/LR_bicubic/X4
BUNDLE := demo/edsr_baseline_x4_w4a4

.PHONY: bench bench-check paper demo test check test-gpu mutate fuzz torture soak sbom wheel locked clean

demo: $(READY)  ## export, build, verify, bench, upscale: the main job on a real network
	$(BIN)/odm-deploy export $(DEMO_MODEL) -o $(BUNDLE)
	$(BIN)/odm-deploy inspect $(BUNDLE)
	$(BIN)/odm-deploy verify $(BUNDLE) --images $(DEMO_IMAGES)
	$(BIN)/odm-deploy bench $(BUNDLE) --size 96x96
	$(BIN)/odm-deploy upscale $(DEMO_IMAGES)/streetx4.png demo/street.png --model $(BUNDLE)
	@echo "done: compare $(DEMO_IMAGES)/streetx4.png with demo/street.png"

bench: $(READY)  ## our models beside onnxruntime's and NNCF's quantizers, on this machine's runtimes; an hour or more
	$(PYTHON) -m venv $(VENV)-nncf
	$(VENV)-nncf/bin/python -m pip install -q nncf openvino onnx
	$(BIN)/python tools/bench.py --nncf-python $(VENV)-nncf/bin/python -o bench $(ARGS)

bench-check: $(READY)  ## the same ratios as committed, within 10 percent?
	$(BIN)/python tools/bench.py --check bench/bench.json

paper: $(READY)  ## the ODM papers' tables on a machine with DIV2K and a GPU; make paper ARGS=--dry-run lists them
	$(BIN)/python tools/paper.py $(ARGS)

test: $(READY)  ## every test that needs no GPU
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test-gpu: $(READY)  ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -q -m gpu -n 4 --dist load --max-worker-restart 99 tests/gpu

check: $(READY)  ## what a reviewer runs before reading: format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

mutate: $(READY)  ## plant every fault into every network, profile and runtime: who catches it; most of an hour
	$(BIN)/python tools/mutate.py --out mutants.json

fuzz: $(READY)  ## everything that reads strangers' files, guided by coverage: ten minutes each
	$(BIN)/python -m pip install -q atheris
	$(BIN)/python tools/fuzz.py --guided --seconds 600

torture: $(READY)  ## damaged files, kills at random instants, full disks and two writers, over every verb
	$(BIN)/python tools/torture.py --part hostile --count 10000 --out torture.json
	$(BIN)/python tools/torture.py --part kills --count 500 --out torture.json
	$(BIN)/python tools/torture.py --part interrupts --count 500 --out torture.json
	$(BIN)/python tools/torture.py --part disks --part writers --out torture.json

soak: $(READY)  ## the server an hour under slow, broken and oversize clients; thousands of frames through upscale
	$(BIN)/python tools/soak.py --minutes 60
	$(BIN)/python tools/soak_folder.py --frames 3000

sbom: $(READY)  ## licences.md and sbom.json: what an installation consists of
	$(BIN)/python tools/sbom.py --out dist

wheel:  ## dist/odm_deploy-VERSION-py3-none-any.whl, to install without this folder
	@$(PYTHON) -m pip wheel -q --no-deps -w dist .
	@for wheel in dist/*.whl; do echo "install it with: pip install '$$wheel[cpu]'"; done

$(READY): pyproject.toml constraints.txt
	@echo "once: PyTorch, ONNX Runtime, OpenVINO, TensorRT for RTX and the test tools go into $(VENV)."
	@echo "2.1 GiB, or 5.3 GiB where pip takes PyTorch with CUDA; minutes, by the line."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(READY)

locked:  ## the same for CI: only the very files of requirements-ci.txt, by their hashes (Linux, x86-64, Python 3.11)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes --no-deps -r requirements-ci.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .hypothesis
