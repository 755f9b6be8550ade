# Everything a contributor runs. Tools are pinned: golangci-lint in tools/go.mod,
# buf in tools/buf/go.mod, the generators in go.mod.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

ADDR ?= 127.0.0.1:7171
DATA ?= .whence
FUZZTIME ?= 30s
SCHEDULES ?= 200
TEST ?=
PG ?=

# with_pg is put before a command that is to use PostgreSQL $(PG).
with_pg = $(if $(PG),WHENCE_PG_BIN=$$(scripts/setup-postgres $(PG)); export WHENCE_PG_BIN;)
golangci := go tool -modfile=tools/go.mod golangci-lint
buf := go tool -modfile=tools/buf/go.mod buf

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: setup
setup: ## install PostgreSQL with pgvector where it is missing
	@scripts/setup-postgres $(PG) >/dev/null

.PHONY: build
build: ## build bin/whence
	go build -o bin/whence ./cmd/whence

.PHONY: dev
dev: setup build ## start everything with nothing configured (DATA, ADDR)
	$(with_pg) exec bin/whence dev --data $(DATA) --listen $(ADDR)

.PHONY: demo
demo: setup build ## see a row change become a stale, then a fresh answer
	$(with_pg) scripts/demo

.PHONY: test
test: setup ## run every test; TEST='-run X ./cdc' narrows it down, PG=17 chooses the server
	$(with_pg) go test -timeout 20m $(or $(TEST),./...)

.PHONY: race
race: setup ## run every test under the race detector
	$(with_pg) go test -race -timeout 40m $(or $(TEST),./...)

.PHONY: bench
bench: setup ## measure (ARGS are handed on)
	@scripts/setup-haproxy
	$(with_pg) go run ./bench $(ARGS)

# DATA has another meaning, and so another default, for make dev.
.PHONY: quality
quality: setup ## measure what is found on a data set in BEIR's layout (DATA=dir, ARGS)
	$(with_pg) go run ./bench/quality -data $(if $(filter file,$(origin DATA)),bench/quality/testdata/fennmark,$(DATA)) $(ARGS)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@scripts/fuzz $(FUZZTIME)

.PHONY: chaos
chaos: setup ## run the tests that kill processes and servers, with SCHEDULES schedules (200)
	@$(with_pg) scripts/chaos $(SCHEDULES)

.PHONY: generate
generate: ## regenerate what comes from proto/ and docs/errors.md
	scripts/generate

.PHONY: lint
lint: ## check formatting, Go code, protobuf and shell scripts
	$(golangci) run ./...
	$(buf) lint
	$(buf) format --diff --exit-code --path proto/whence
	@if command -v shellcheck >/dev/null; then shellcheck -s bash scripts/* .ci/run; fi

.PHONY: fmt
fmt: ## format Go and protobuf sources
	$(golangci) fmt ./...
	$(buf) format -w --path proto/whence

.PHONY: verify
verify: ## fail unless generated code and go.mod are as committed
	scripts/verify
