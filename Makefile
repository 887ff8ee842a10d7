# make demo   build the broker and watch it work
# make test   run all tests, race detector on
# make check  the tests, and what CI checks besides
# make torture  kill, fill, break and damage broker and agent under load: ROUNDS=200 SEED= KIND=
# make bench  measure the broker beside other ways to an MCP server: ARGS='-work tls'
# make counts  what a call takes of the broker, against bench/counts.json: ARGS=-update writes it
# make microbench  the benchmarks of packages
# make e2e    MCP servers and clients from npm through the broker, and sign-in with Chromium

GO ?= go

.PHONY: build demo test check e2e torture bench counts microbench clean

build:
	$(GO) build -o bin/broker ./cmd/broker

demo: build
	bin/broker demo $(ARGS)

test:
	$(GO) test -race ./...

check: test
	$(GO) vet ./...
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }

e2e: build
	e2e/run

torture:
	@GO=$(GO) ROUNDS=$(or $(ROUNDS),200) SEED=$(SEED) KIND='$(KIND)' e2e/torture

bench: build
	$(GO) build -tags unrecorded -o bin/broker-unrecorded ./cmd/broker
	$(GO) build -o bin/bench ./bench
	bin/bench $(ARGS)

counts: build
	$(GO) build -o bin/bench ./bench
	bin/bench -counts bench/counts.json $(ARGS)

microbench:
	$(GO) test -run '^$$' -bench . -benchtime 200ms ./...

clean:
	rm -rf bin
