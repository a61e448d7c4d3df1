# Two commands: `make demo` shows it, `make test` proves it. Both install what is missing (Debian or Ubuntu, as
# root); nothing but a Rust toolchain has to be there before.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET := target/$(shell rustc -vV | sed -n 's/^host: //p')
DEBUG := $(CURDIR)/$(TARGET)/debug
RELEASE := $(CURDIR)/$(TARGET)/release
# Templates of the tests, kept between runs.
TEMPLATES ?= $(CURDIR)/target/templates
# Virtual environment of the Python client, with a Node.js for the TypeScript client.
VENV := $(CURDIR)/target/venv
# Seconds that a test waits for what should happen at once.
PATIENCE ?= 20

PYTEST = BAILIWICK_XTASK=$(DEBUG)/xtask BAILIWICK_TEST_TEMPLATES=$(TEMPLATES) BAILIWICK_TEST_PATIENCE=$(PATIENCE) \
	$(VENV)/bin/python -m pytest -q -rfEs

.PHONY: help demo build test check unit fuzz fuzz-short interop attacks bench templates deps clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: deps build ## Lock a sandbox to one host and watch what happens to everything else
	@cargo build --release --package xtask --quiet && $(RELEASE)/bailiwick template build --templates-dir $(TEMPLATES) python && $(RELEASE)/xtask demo --templates $(TEMPLATES)

build: deps ## Build the program (release)
	cargo build --release

test: deps check unit fuzz-short interop attacks ## Run the whole test suite

check: deps ## Formatting, lints, layers, generated pages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo build --locked --package bailiwick --package init --package xtask
	$(DEBUG)/xtask layers
	$(DEBUG)/xtask gen --check

unit: deps ## Rings 1 and 2: pure tests, and tests in namespaces of their own
	cargo test --workspace --locked

fuzz: deps ## Look for inputs that break a rule of a parser, FUZZ_SECONDS (600) for each target
	fuzz/run

fuzz-short: deps
	FUZZ_SECONDS=3 fuzz/run

templates: deps ## Build the base and python templates of the tests
	cargo build --locked --package bailiwick --package init --package xtask
	$(DEBUG)/bailiwick template build --templates-dir $(TEMPLATES) base python

interop: deps templates $(VENV)/.ready ## Ring 3: the built program, driven by the published clients
	$(PYTEST) interop/python
	$(PYTEST) interop/typescript

attacks: deps templates $(VENV)/.ready ## Ring 3: the attack corpus, against the built program
	$(PYTEST) attacks

# What is missing of a client's own needs is told by its suite, which is skipped then, or fails with STRICT=1.
$(VENV)/.ready: interop/python/requirements.txt interop/typescript/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	-$(VENV)/bin/python -m pip install --quiet --requirement interop/typescript/requirements.txt
	touch $@

bench: deps build ## Measure, side by side with the named peers
	bench/run

deps: ## Install what is missing from the distribution's packages
	@scripts/install-dependencies

clean: ## Remove everything that was built
	cargo clean
