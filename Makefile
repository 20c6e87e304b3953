VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0)
GOLANGCI := 2.15.0
DESTDIR ?=
PREFIX ?= /usr/local
FUZZTIME ?= 30s
BENCHFLAGS ?=
BENCHIMAGESFLAGS ?=
VMFLAGS ?=

.PHONY: build test test-race test-race-e2e test-sanitize-e2e test-faults test-vm bench bench-images demo lint vet fmt golden fuzz clean docs install uninstall deb selinux
.DEFAULT_GOAL := build

build:
	conmon/build
	network/plugins
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags grpcnotrace -ldflags '-s -w -X main.version=$(VERSION)' -o bin/cri-runtime ./cmd/cri-runtime

test:
	deploy/setup
	$(MAKE) build
	go test -p 1 -timeout 20m ./...

test-race: build
	CGO_ENABLED=1 go test -race -p 1 -timeout 20m $$(go list ./... | grep -v /critest)

# The suite with a daemon under the race detector, and with monitors under ASan and UBSan: reports fail it.
test-race-e2e: build
	CGO_ENABLED=1 go build -race -tags grpcnotrace -o out/cri-runtime-race ./cmd/cri-runtime
	CRI_RUNTIME_BIN='$(CURDIR)/out/cri-runtime-race' go test -count 1 -timeout 60m ./critest

test-sanitize-e2e: build
	conmon/build sanitize conmon/monitor_sanitize '$(CURDIR)/out/report'
	CGO_ENABLED=0 go build -tags grpcnotrace,sanitize -o out/cri-runtime-sanitize ./cmd/cri-runtime
	CRI_RUNTIME_BIN='$(CURDIR)/out/cri-runtime-sanitize' CRITEST_REPORTS='$(CURDIR)/out/report' go test -count 1 -timeout 60m ./critest

test-vm: build
	go run ./critest/vm $(VMFLAGS)

test-faults: build
	go test -count=1 -timeout 120m -v ./critest/faults

bench:
	deploy/setup
	$(MAKE) build
	go run ./critest/bench $(BENCHFLAGS)

bench-images:
	deploy/setup images
	$(MAKE) build
	go run ./critest/benchimages $(BENCHIMAGESFLAGS)

demo:
	deploy/demo

lint: bin/golangci-lint-$(GOLANGCI)
	bin/golangci-lint run ./...

bin/golangci-lint-$(GOLANGCI):
	GOBIN='$(CURDIR)/bin' go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI)
	bin/golangci-lint version --short | grep -qx $(GOLANGCI) && touch $@

vet:
	go vet ./...

fmt: bin/golangci-lint-$(GOLANGCI)
	bin/golangci-lint fmt

golden:
	go test ./oci -update

fuzz: build
	.ci/fuzz $(FUZZTIME)

clean:
	rm -rf bin out conmon/monitor_amd64 conmon/monitor_arm64

# Manual pages and completions, below a directory like /usr/share.
docs:
	rm -rf out/share
	CGO_ENABLED=0 GOOS= GOARCH= go run -trimpath -buildvcs=false -tags docs,grpcnotrace ./cmd/cri-runtime docs out/share

install: build docs
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/install

uninstall:
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/install uninstall

deb: build docs
	deploy/debian/build '$(VERSION)'

# Policy modules for SELinux, in out/selinux.
selinux:
	deploy/selinux/build out/selinux
