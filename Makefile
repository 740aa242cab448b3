# Everything that people and CI do here. `make help` lists it. Nothing needs to be installed first but Python 3.11, and
# `cargo` for the native front end (without it everything but the bench runs on the slower, pure Python one).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
GEN := build/gen-venv/bin
UV_VERSION := 0.13.8
WORKERS := $(shell echo $$(($$(nproc) + 1)))# most tests wait more than they work
TESTS := server,sim,test_exceptions.py,test_layers.py,test_no_pickle.py,wire,clients,conformance e2e docs,bench,envoy,deploy,tracing chaos
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo,)
CARGO := $(shell command -v cargo 2>/dev/null)
GO := $(shell command -v go 2>/dev/null)
export UV_NO_PROGRESS = 1

.DEFAULT_GOAL := help

##@ The two commands

.PHONY: demo
demo: env ## Train a small model, serve it, and call it from many callers
	$(BIN)/python examples/digits.py $(DEMO)

.PHONY: test
test: env loadgen ghz locust build/gen-venv prometheus deploy-tools ## Run the tests (at most 12 minutes on two cores)
	@# In groups: what takes much of the machine does not run beside what measures time.
	@failed=; \
	for group in $(TESTS); do \
	  files=$$(echo $$group | tr , '\n' | sed 's|^|tests/|'); \
	  $(BIN)/python -m pytest -m "not long" --numprocesses $(WORKERS) --dist loadfile $(PYTEST) $$files || \
	    { test -n "$(AGAIN)" && echo "FLAKY, unless they fail again, each by itself:" && \
	      $(BIN)/python -m pytest -m "not long" --last-failed --last-failed-no-failures none $(PYTEST) $$files; } || \
	    failed="$$failed $$group"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }
ifneq ($(GO),)
	@# -count=1: Go would keep results, and does not see that the server, which they are about, has changed.
	FOREBAY=$(abspath $(BIN)/forebay) $(GO) test -count=1 $(GO_TEST) ./clients/...
endif
ifneq ($(CARGO),)
	$(CARGO) test --quiet --locked --manifest-path bench/loadgen/Cargo.toml
endif

##@ Further tests

TORCH := build/torch-venv

.PHONY: test-torch
test-torch: env $(TORCH)/.installed ## Test the torch engine with the real torch on the CPU, in an environment of its own
	$(TORCH)/bin/python -m pytest --timeout 600 $(PYTEST) tests/torch "tests/docs/test_pages.py::test_what_a_page_says_can_be_done[torch.md]"

.PHONY: test-long
test-long: env ## Soak, inject faults and fuzz (an hour or so)
	$(BIN)/python -m pytest -m long --timeout 3600 $(PYTEST)
ifneq ($(CARGO),)
	PROPTEST_CASES=100000 $(CARGO) test --quiet --release --locked --manifest-path $(NATIVE) --test framing --test headers
endif

##@ Environment

.PHONY: env
env: $(VENV)/.installed $(if $(CARGO),$(VENV)/.native,) ## Make .venv with everything, and build the native front end if cargo is there

$(UV):
	$(PYTHON) -c 'import sys; sys.exit("Forebay needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==$(UV_VERSION)

$(VENV)/.installed: pyproject.toml constraints.txt | $(UV)
	$(UV) pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable '.[onnx,otel,postgres,webhooks]' --group dev
	touch $@

NATIVE := server/native/Cargo.toml
NATIVE_SOURCES := $(shell find server/native -name target -prune -o \( -name '*.rs' -o -name '*.toml' -o -name 'Cargo.lock' -o -name '*.pyi' \) -print 2>/dev/null)

$(VENV)/.native: $(NATIVE_SOURCES) $(VENV)/.installed
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet --locked --manifest-path server/native/Cargo.toml
	touch $@

LOCKED := $(UV) pip compile --quiet --python $(BIN)/python --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --constraints constraints.txt
IMAGE_EXTRAS := --extra otel --extra postgres --extra webhooks

.PHONY: lock
lock: $(UV) ## Resolve into constraints.txt and the locks of images and releases; LOCK=--upgrade for the newest versions of all
	$(UV) pip compile --quiet --python $(BIN)/python $(LOCK) --extra images --extra onnx --extra otel --extra postgres --extra webhooks --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml --group dev -o constraints.txt
	$(LOCKED) $(LOCK) pyproject.toml --extra onnx $(IMAGE_EXTRAS) -o deploy/image/cpu.txt
	$(LOCKED) $(LOCK) pyproject.toml --extra onnx-gpu --extra cuda $(IMAGE_EXTRAS) -o deploy/image/cuda.txt
	$(LOCKED) $(LOCK) pyproject.toml --extra onnx $(IMAGE_EXTRAS) --group test -o deploy/image/test.txt
	$(LOCKED) $(LOCK) --group image -o deploy/image/build.txt
	$(LOCKED) $(LOCK) --group release -o tools/release-requirements.txt

# PyPI's torch and the few packages that it needs on the CPU, without the gigabytes that it needs on a GPU; all else is
# that of .venv.
$(TORCH)/.installed: tools/torch-requirements.txt tools/cuda_stand_ins.py $(VENV)/.installed
	$(UV) venv --quiet --clear --python $(BIN)/python $(TORCH)
	$(UV) pip install --quiet --python $(TORCH)/bin/python --no-deps --requirement tools/torch-requirements.txt --editable .
	site=$$($(TORCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$(abspath $(VENV))/$${site#$(abspath $(TORCH))/}')" > $$site/forebay-env.pth; \
	$(PYTHON) tools/cuda_stand_ins.py $$site/torch/lib
	touch $@

PROMETHEUS := build/prometheus/bin

.PHONY: prometheus
prometheus: $(PROMETHEUS)/promtool ## Prometheus and promtool for the tests: those of the machine, or Debian's, unpacked and not installed

$(PROMETHEUS)/promtool:
	mkdir -p $(PROMETHEUS)
	if command -v prometheus > /dev/null && command -v promtool > /dev/null; then \
	  ln -sf "$$(command -v prometheus)" "$$(command -v promtool)" $(PROMETHEUS)/; \
	elif command -v apt-get > /dev/null; then cd build/prometheus && \
	  { apt-get download -q prometheus 2> /dev/null || { apt-get update -q && apt-get download -q prometheus; }; } && \
	  dpkg --fsys-tarfile prometheus_*.deb | tar -x --directory bin --strip-components=3 --wildcards '*bin/prometheus' '*bin/promtool'; \
	else echo "no prometheus here: its tests are left out"; fi

.PHONY: browser
browser: ## Install Debian's Chromium, for the tests that call from a page in a browser
	command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

##@ The contract

.PHONY: gen
gen: build/googleapis ## Write gen/ from protos/
	$(GEN)/buf generate

build/gen-venv: tools/gen-requirements.txt
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --requirement $<
	touch $@

build/googleapis: build/gen-venv
	mkdir -p $@/google/rpc
	cp build/gen-venv/lib/python3*/site-packages/google/rpc/status.proto $@/google/rpc/
	touch $@

.PHONY: baseline
baseline: build/googleapis ## Take the contract as it is now for the one that later changes must not break; at a release
	$(GEN)/buf build protos --output protos/baseline.binpb

.PHONY: gen-check
gen-check: gen ## Fail if gen/ is not what protos/ says
	test -z "$$(git status --porcelain gen)" || { git status --short gen; git diff --stat gen; echo "gen/ differs: run make gen and commit"; exit 1; }

##@ Checks

.PHONY: lint
lint: env build/googleapis ## ruff, buf, rustfmt, clippy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(GEN)/buf lint
	$(GEN)/buf format --diff --exit-code
	$(GEN)/buf breaking protos --against protos/baseline.binpb
ifneq ($(CARGO),)
	$(CARGO) fmt --check --manifest-path bench/loadgen/Cargo.toml
	$(CARGO) clippy --quiet --locked --all-targets --manifest-path bench/loadgen/Cargo.toml -- --deny warnings
endif

.PHONY: types
types: env ## mypy, strict
	$(BIN)/mypy
	MYPYPATH=gen/python:server:clients/python $(BIN)/mypy tests/clients/typing_examples.py

.PHONY: native-check
native-check: env ## rustfmt, clippy and tests of the native front end; licences and duplicates of its crates
	cargo fmt --manifest-path $(NATIVE) --check
	cargo clippy --manifest-path $(NATIVE) --locked --all-targets --quiet -- -D warnings
	cargo test --manifest-path $(NATIVE) --locked --quiet
	$(BIN)/python tools/check_crates.py $(NATIVE)

.PHONY: go-check
go-check: ## The Go code compiles and vets; its tests are part of `make test`
	go build ./...
	go vet ./...
	go vet -C bench/ghz ./...
	go tool staticcheck ./clients/...
	go vet -C deploy/tools ./...

.PHONY: dist
dist: env ## Build the wheel and the source distribution, and look into them
	rm -rf dist
	$(UV) build --quiet --out-dir dist
	$(BIN)/python tools/check_dist.py dist
	$(BIN)/python tools/check_types.py dist

.PHONY: check
check: AGAIN := 1# a shared machine may stall any process for seconds; what fails twice is at fault
check: PYTEST += --hypothesis-seed=0# new examples are for those who can look at them, not for what guards a landing
check: GO_TEST := -race
check: gen-check lint types $(if $(CARGO),native-check,) go-check dist test test-torch ## All that CI does
	$(MAKE) demo
	$(MAKE) demo DEMO="--wire grpc.aio"

##@ Documentation

.PHONY: docs
docs: env ## Write docs/configuration.md, docs/modules.md, the table of docs/metrics.md, and the dashboards from their sources
	$(BIN)/forebay config --markdown > docs/configuration.md
	$(BIN)/python tools/modules_page.py
	$(BIN)/python tools/metrics_page.py
	$(BIN)/python tools/dashboards.py

.PHONY: pictures
pictures: env prometheus ## Draw the pictures in docs/images from real runs
	$(BIN)/python -m bench.top_picture
	$(BIN)/python -m bench.metrics_pictures

##@ Deployment

.PHONY: envoy
envoy: env ## Write the descriptor set by which Envoy serves REST/JSON, after a change of the contract or of its HTTP rules
	$(BIN)/python tools/transcoding.py deploy/envoy/http_rules.yaml deploy/envoy/forebay.binpb

DEPLOY_TOOLS := build/tools/kustomize build/tools/composecheck

.PHONY: deploy-tools
deploy-tools: $(if $(GO),$(DEPLOY_TOOLS),) ## Build what reads the files of deploy/ in tests, if go is there: kustomize, and readers of Compose files

build/tools/kustomize: deploy/tools/go.mod deploy/tools/go.sum
	cd deploy/tools && $(GO) build -o $(abspath $@) sigs.k8s.io/kustomize/kustomize/v5

build/tools/composecheck: deploy/tools/go.mod deploy/tools/go.sum deploy/tools/composecheck/main.go
	cd deploy/tools && $(GO) build -o $(abspath $@) ./composecheck

.PHONY: manifests
manifests: deploy-tools ## Render the overlays of Kubernetes into build/kubernetes/
	mkdir -p build/kubernetes
	for overlay in deploy/kubernetes/overlays/*; do \
	  build/tools/kustomize build $$overlay > build/kubernetes/$$(basename $$overlay).yaml || exit 1; \
	done

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= forebay
BUILDER = $(shell if docker info > /dev/null 2>&1; then echo docker build; elif command -v podman > /dev/null; then echo podman build --format docker; elif command -v buildah > /dev/null; then echo buildah build --format docker; fi)
define build_image
@test -n "$(BUILDER)" || { echo "there is no container builder here (a Docker that runs, podman or buildah), so no image was built" >&2; exit 1; }
$(BUILDER) --file deploy/image/Dockerfile --target $(1) --tag $(IMAGE):$(VERSION)-$(1) $(IMAGE_ARGS) .
endef

.PHONY: image
image: ## Build the CPU image; IMAGE_ARGS="--build-arg PYTHON_IMAGE=..." for what the builder is to be told
	$(call build_image,cpu)

.PHONY: image-cuda
image-cuda: ## Build the CUDA image
	$(call build_image,cuda)

.PHONY: image-test
image-test: ## Run tests inside an image, against what the CPU image installs
	$(call build_image,test)

build/demo/digits.onnx: | env
	$(BIN)/python -c 'from pathlib import Path; from examples.digits import train; train(Path("$@"))'

PROFILE ?= development
COMPOSE = docker compose --project-name forebay --env-file deploy/compose/$(PROFILE).env --file deploy/compose/compose.yaml --file deploy/compose/$(PROFILE).yaml $(if $(GPU),--file deploy/compose/gpu.yaml)
define need_compose
@docker compose version > /dev/null 2>&1 || { echo "there is no Docker Compose here" >&2; exit 1; }
@test -f deploy/compose/$(PROFILE).env || { echo "write deploy/compose/$(PROFILE).env first: docs/deployment.md says what is in it" >&2; exit 1; }
endef

.PHONY: up
up: $(if $(filter development,$(PROFILE)),build/demo/digits.onnx,) ## Start the server and all around it by Docker Compose; PROFILE=production, GPU=1
	$(need_compose)
	$(COMPOSE) up --detach --wait

.PHONY: down
down: ## Stop it; volumes stay
	$(need_compose)
	$(COMPOSE) down

##@ Releases

build/release-venv: tools/release-requirements.txt
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --require-hashes --requirement $<
	touch $@

TARGETS ?= x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu

.PHONY: wheels
wheels: dist build/release-venv ## Build all that a release uploads into dist/, for the platforms that rustc can build for here
	build/release-venv/bin/maturin sdist --quiet --manifest-path $(NATIVE) --out dist
	for target in $(TARGETS); do \
	  if test -d "$$(rustc --print sysroot)/lib/rustlib/$$target/lib"; then \
	    PATH="$(abspath build/release-venv/bin):$$PATH" PYO3_NO_PYTHON=1 maturin build --quiet --release --locked --zig --target $$target \
	      --compatibility manylinux_2_28 --manifest-path $(NATIVE) --out dist || exit 1; \
	  else echo "not built here: $$target (rustup target add $$target)"; fi; \
	done
	cd dist && sha256sum *.whl *.tar.gz > SHA256SUMS && cat SHA256SUMS

.PHONY: sbom
sbom: build/release-venv ## Write software bills of materials (CycloneDX) of the images' packages and of the native front end's crates
	mkdir -p build/sbom
	for image in cpu cuda; do \
	  build/release-venv/bin/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml \
	    --output-file build/sbom/$$image.cdx.json deploy/image/$$image.txt || exit 1; \
	done

.PHONY: audit
audit: build/release-venv ## Ask for known vulnerabilities of what the images install, and of the crates; needs the network
	build/release-venv/bin/pip-audit --strict --disable-pip --require-hashes --requirement deploy/image/cpu.txt
	build/release-venv/bin/pip-audit --strict --disable-pip --require-hashes --requirement deploy/image/cuda.txt
	if cargo audit --version > /dev/null 2>&1; then cargo audit --file server/native/Cargo.lock; \
	else echo "crates not asked about: cargo install cargo-audit"; fi

##@ Speed

LOADGEN := bench/loadgen/target/release/forebay-loadgen
LOADGEN_SOURCES := $(shell find bench/loadgen -name target -prune -o \( -name '*.rs' -o -name '*.toml' -o -name 'Cargo.lock' \) -print 2>/dev/null)

.PHONY: loadgen
loadgen: $(if $(CARGO),$(LOADGEN),) ## Build the load generator of the bench, if cargo is there

$(LOADGEN): $(LOADGEN_SOURCES)
	$(CARGO) build --release --quiet --locked --manifest-path bench/loadgen/Cargo.toml
	touch $@

GHZ := build/ghz

.PHONY: ghz
ghz: $(if $(GO),$(GHZ)/ghz,) ## Build ghz, another load generator, in build/ghz, if Go is there

$(GHZ)/ghz: bench/ghz/go.mod bench/ghz/go.sum bench/ghz/html/main.go
	mkdir -p $(GHZ)
	$(GO) build -C bench/ghz -o $(abspath $(GHZ))/ github.com/bojand/ghz/cmd/ghz ./html
	touch $@

build/locust: tools/locust-requirements.txt $(VENV)/.installed
	rm -rf $@
	$(UV) venv --quiet --python $(BIN)/python $@
	$(UV) pip install --quiet --python $@/bin/python --constraints constraints.txt --requirement $< --editable .
	touch $@

.PHONY: locust
locust: build/locust ## Install Locust in build/locust, for its example and the test of that

.PHONY: bench
bench: env loadgen ghz ## Measure everything beside other servers (three quarters of an hour, two quiet cores); BENCH="--only unary"
	$(BIN)/python -m bench.run $(BENCH)

.PHONY: bench-quick
bench-quick: env loadgen ghz ## The same in seven minutes, for a first look
	$(BIN)/python -m bench.run --quick $(BENCH)

.PHONY: gpu-check
gpu-check: ## Check the GPU engines on this machine with what PYTHON has, installing nothing; GPU="--part torch,bert"
	$(PYTHON) -m bench.gpu $(GPU)

GPU_PYTHON ?= 3.12
GPU_WHEELS := apsw click googleapis-common-protos grpcio grpcio-health-checking grpcio-reflection ml-dtypes msgspec protobuf rich structlog typing-extensions

.PHONY: gpu-wheels
gpu-wheels: env ## Fill build/gpu-wheels with what `make gpu-check` needs beside torch, cuda-bindings and numpy, for GPU_PYTHON on x86-64
	rm -rf build/gpu-wheels
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
	  --python-version $(GPU_PYTHON) $(foreach name,_2_28 _2_27 _2_17 2014 1,--platform manylinux$(name)_x86_64) \
	  --constraint constraints.txt --dest build/gpu-wheels $(GPU_WHEELS)
	$(BIN)/maturin build --quiet --release --locked --compatibility linux --manifest-path $(NATIVE) --out build/gpu-wheels
	du -sh build/gpu-wheels

.PHONY: bench-standing
bench-standing: env ## Measure what a start and idling cost (three minutes, a quiet machine), and write it into docs/deployment.md
	$(BIN)/python -m bench.standing --write

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
