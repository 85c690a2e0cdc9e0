# Everything that is done with this repository; `make` alone lists it.

GO       ?= go
FUZZTIME ?= 30s
LINT      = GOWORK=off $(GO) tool -modfile=$(CURDIR)/tools/go.mod golangci-lint

.DEFAULT_GOAL := help
.PHONY: help test race lint vet fuzz fuzz-list cover quickstart simulate scenarios bench e2e ci

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

test: ## the tests of the library
	$(GO) test ./...

race: ## the same with the race detector, in random order
	$(GO) test -race -shuffle=on ./...

lint: ## golangci-lint; its first build takes minutes
	$(LINT) run ./...
	cd e2e && $(LINT) run ./...
	cd bench && $(LINT) run ./...

vet: ## go vet for other systems
	GOOS=windows $(GO) vet ./...
	GOOS=darwin $(GO) vet ./...
	GOOS=freebsd $(GO) vet ./...

# Every fuzz target, as directory:target. fuzz-list says what there is, and fails where this list is not complete.
FUZZ = \
	internal/reply:FuzzRead internal/reply:FuzzQueueID \
	internal/session:FuzzEHLO \
	internal/domain:FuzzParseAddress internal/domain:FuzzToASCII internal/domain:FuzzTable .:FuzzEnvelope \
	.:FuzzParseRelay .:FuzzTransportMap \
	.:FuzzBody .:FuzzSendMail .:FuzzScanner .:FuzzSpill \
	internal/verdict:FuzzJudge \
	internal/domain:FuzzTransport internal/domain:FuzzPatterns internal/throttle:FuzzParseRate \
	internal/warmup:FuzzRecord .:FuzzFileStore \
	smtptest:FuzzBody smtptest:FuzzServer

fuzz: ## each fuzz target for FUZZTIME (30s)
	@set -e; for target in $(FUZZ); do \
		echo "--- $$target"; \
		$(GO) test -run '^$$' -fuzz "^$${target#*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "./$${target%:*}"; \
	done

fuzz-list: ## the fuzz targets: replies, EHLO, addresses, relay URLs, bodies, verdicts, the fake relay
	@printf '%s\n' $(FUZZ)
	@all=$$(grep -r --include='*_test.go' --exclude-dir=e2e --exclude-dir=bench '^func Fuzz' . | sed -E 's,^\./,,; s,^([^/]*):,./\1:,; s,/[^/]*:func (Fuzz[A-Za-z0-9]*).*,:\1,'); \
	for target in $$all; do \
		case " $(FUZZ) " in *" $$target "*) ;; *) echo "$$target is missing in FUZZ" >&2; exit 1;; esac; \
	done

cover: ## coverage by function in cover.out, its total here
	$(GO) test -coverpkg=./... -coverprofile=cover.out ./...
	@$(GO) tool cover -func=cover.out | tail -n 1

quickstart: ## run the first example
	$(GO) run ./examples/quickstart

simulate: ## a fleet of 100 relays in fake time, 1,000,000 messages: about a minute
	$(GO) run ./examples/simulate -relays 100 -messages 1000000

scenarios: ## grey-slow and failing relays and shares by weight in fake time, at full load, with their figures
	$(GO) test -count=1 -run '^TestScenario' -timeout 20m -v . -scenario.full

bench: ## peers side by side, ten minutes: writes bench/RESULTS.md
	cd bench && $(GO) run . -markdown >RESULTS.md.new && mv RESULTS.md.new RESULTS.md || { rm -f RESULTS.md.new; exit 1; }

e2e: ## send through real Postfix servers; Debian, as root: installs what it needs
	e2e/install.sh
	cd e2e && $(GO) test -count=1 -p 1 -timeout 20m -v ./...

ci: ## all that must pass before a change goes in
	.ci/run
