# make demo     set-up, then the main job: train on images that the package draws, and compare step times
# make test     set-up, then the whole test suite
# make lint     ruff, mypy, clang-format
# make sanitize the test suite under AddressSanitizer and UBSan
# make bench    the benchmark of the optimizers' steps
#
# Another torch: make test VENV=.venv-2.13 TORCH=torch==2.13.0 (in a checkout of its own: the extension is built in place)

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.14.1
JOBS   ?= 2
SOURCES := $(wildcard csrc/*.* csrc/*/*.*)

demo: $(VENV)/built
	PYTHONPATH=. $(VENV)/bin/fusedopt demo  # the path for benchmarks/lamb_foreach.py, what PyTorch code can do

test: $(VENV)/built
	$(VENV)/bin/python -m pytest -n $(JOBS) -q

bench: $(VENV)/built
	$(VENV)/bin/python benchmarks/step.py

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

# In a copy, so that the instrumented extension does not take the place of the real one.
sanitize: $(VENV)/ready
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r csrc fusedopt tests benchmarks setup.py pyproject.toml README.md LICENSE build/sanitize
	rm -f build/sanitize/fusedopt/_C.*.so
	cd build/sanitize && FUSEDOPT_SANITIZE=1 $(abspath $(VENV))/bin/python setup.py -q build_ext --inplace
	cd build/sanitize && \
	    LD_PRELOAD="$$(for lib in asan ubsan stdc++; do gcc -print-file-name=lib$$lib.so; done | tr '\n' ' ')" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=. \
	    $(abspath $(VENV))/bin/python -m pytest -q -n $(JOBS)

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check "$(TORCH)" numpy setuptools wheel ninja
	$(VENV)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*p['examples'], *p['dev'], sep='\n')" > $(VENV)/requirements.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check "$(TORCH)" -r $(VENV)/requirements.txt
	touch $@

$(VENV)/built: $(VENV)/ready setup.py $(SOURCES)
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info fusedopt/_C.*.so

.PHONY: demo test bench lint sanitize clean
