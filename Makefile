# make demo     set-up, then the main job: train on images that the package draws, and compare step times
# make test     set-up, then the whole test suite, the CUDA kernels' on the CPU included
# make integrations  trainings with Lightning, Accelerate, Transformers and timm, under torchrun and torch.compile, in an
#               environment of their own on top of it
# make docs     the site of the pages under docs/, in site/; fails on a broken link or a missing docstring
# make notebooks  runs docs/notebooks again and keeps their output, in the same environment as make docs
# make lint     ruff, mypy, clang-format
# make wheel    a wheel for the torch at hand, in dist/; its version says which torch and CUDA
# make versions  builds and tests with every pair of Python and torch in PAIRS, and prints a table
# make sanitize the test suite under AddressSanitizer and UBSan
# make bench    the benchmark of the optimizers' steps
# make bench-host  the benchmark of a GPU step's work on the host, which needs no GPU
# make gpu      on a machine with a GPU, with that machine's own Python: build, benchmark, CUDA tests; results in OUT, in
#               at most MINUTES minutes
#
# Another torch: make test VENV=.venv-2.13 TORCH=torch==2.13.0 (in a checkout of its own: the extension is built in place)

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.14.1 torchvision==0.29.1
JOBS   ?= 2
OUT    ?= benchmarks/results/
MINUTES ?= 9
COPIED := $(shell find csrc fusedopt tests benchmarks -type f ! -name '*.pyc' ! -name '*.so')
SOURCES := $(wildcard csrc/*.* csrc/*/*.* tests/cuda_on_cpu/*.*)

demo: $(VENV)/built
	$(VENV)/bin/fusedopt demo

test: test-cpu test-cuda-on-cpu

# Threads that wait for work sleep, as several processes share the cores: a spinning one takes what another could use.
test-cpu test-cuda-on-cpu integrations: export OMP_WAIT_POLICY = PASSIVE

# Marks of tests are in pyproject.toml. SELECT="not one_torch" leaves out what another torch changes least.
test-cpu: $(VENV)/built
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -q --durations=25 -m "$(SELECT)"

# What is marked `steps`, with every step taken by the CUDA kernels, which run on the CPU.
test-cuda-on-cpu: build/cuda_on_cpu/built
	cd build/cuda_on_cpu && PYTHONPATH=. FUSEDOPT_EXECUTOR_ORDER=7 $(abspath $(VENV))/bin/python -m pytest -n $(JOBS) --dist worksteal -q --durations=25 \
	    -m steps $$(grep -rl 'mark\.steps' tests --include='test_*.py')

integrations: $(VENV)-integrations/ready $(VENV)/built
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV)-integrations/bin/python -m pytest -q -n $(JOBS) -W default \
	    -o faulthandler_timeout=400 -o faulthandler_exit_on_timeout=true tests/integrations

docs: $(VENV)-docs/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict

notebooks: $(VENV)-docs/ready $(VENV)/built
	PYTHONPATH=. $(VENV)-docs/bin/python docs/_build/run_notebooks.py

# A tree of its own for another build of the extension, which would otherwise take the place of the real one.
define copy
	mkdir -p $(1) && cd $(1) && rm -rf csrc fusedopt tests benchmarks
	cp -rp csrc fusedopt tests benchmarks setup.py pyproject.toml README.md LICENSE $(1)
	rm -f $(1)/fusedopt/_C.*.so
endef

wheel: $(VENV)/ready
	FUSEDOPT_LOCAL_VERSION=1 $(VENV)/bin/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w dist .

versions:
	$(PYTHON) tests/versions.py $(PAIRS)

bench: $(VENV)/built
	$(VENV)/bin/python benchmarks/step.py

bench-host: build/cuda_on_cpu/built
	cd build/cuda_on_cpu && PYTHONPATH=. $(abspath $(VENV))/bin/python benchmarks/host.py

gpu:
	$(PYTHON) benchmarks/gpu.py --out "$(OUT)" --minutes $(MINUTES)

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

sanitize: $(VENV)/ready
	$(call copy,build/sanitize)
	cd build/sanitize && FUSEDOPT_SANITIZE=1 $(abspath $(VENV))/bin/python setup.py -q egg_info build_ext --inplace
	cd build/sanitize && \
	    LD_PRELOAD="$$(for lib in asan ubsan stdc++; do gcc -print-file-name=lib$$lib.so; done | tr '\n' ' ')" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=. \
	    $(abspath $(VENV))/bin/python -m pytest -q -n $(JOBS)

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check $(TORCH) numpy setuptools wheel ninja
	$(VENV)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*p['examples'], *p['dev'], sep='\n')" > $(VENV)/requirements.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check $(TORCH) -r $(VENV)/requirements.txt
	touch $@

# On top of the other: what it lacks is installed here, and nothing there changes.
$(VENV)-%/ready: $(VENV)/ready pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)/bin/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	    > "$$($(VENV)-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	$(VENV)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*p['$*'], sep='\n')" > $(VENV)-$*/requirements.txt
	$(VENV)-$*/bin/pip install -q --disable-pip-version-check $(TORCH) -r $(VENV)-$*/requirements.txt
	touch $@

$(VENV)/built: $(VENV)/ready setup.py $(SOURCES)
	@echo "Compiling: some minutes, most of them for the GPU, which FUSEDOPT_CUDA=0 leaves out."
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# A tree with another extension, whose CUDA kernels run on the CPU.
build/cuda_on_cpu/built: $(VENV)/ready setup.py pyproject.toml $(COPIED)
	$(call copy,build/cuda_on_cpu)
	cd build/cuda_on_cpu && FUSEDOPT_CUDA_ON_CPU=1 $(abspath $(VENV))/bin/python setup.py -q egg_info build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-integrations $(VENV)-docs build site *.egg-info fusedopt/_C.*.so

.PHONY: demo test test-cpu test-cuda-on-cpu integrations docs notebooks bench bench-host gpu lint wheel versions sanitize clean
