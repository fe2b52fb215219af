# flowood: make, make run, make study, make test, make bench, make bench-peer, make data, make clean
CC       ?= cc
CXX      ?= c++
CFLAGS   ?= -O2
STRICT    = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
B         = build

# OpenMP if the compiler has it; OPENMP= switches it off.
OPENMP   := $(shell printf 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null \
              2>/dev/null && echo -fopenmp)
EXAMPLES  = flowood quickstart custom synthetic grey guard
HAS_CXX  := $(shell command -v $(CXX) 2>/dev/null)

all: $(EXAMPLES:%=$(B)/%) $(if $(HAS_CXX),$(B)/embed)

$(B)/%: examples/%.c flowood.h $(wildcard examples/*.h) | $(B)
	$(CC) -std=c99 $(STRICT) $(CFLAGS) $(OPENMP) -I. $< -o $@ -lm

$(B)/guard: CFLAGS += -pthread

$(B)/embed: examples/embed.cpp flowood.h | $(B)
	$(CXX) -std=c++11 $(STRICT) $(CFLAGS) $(OPENMP) -pthread -I. $< -o $@ -lm

$(B)/bench $(B)/growth: $(B)/%: bench/%.c flowood.h | $(B)
	$(CC) -std=c99 $(STRICT) $(CFLAGS) $(OPENMP) -I. $< -o $@ -lm

$(B):
	mkdir -p $@

data:
	sh examples/data.sh

run: all
	sh examples/data.sh || true
	sh examples/run.sh

study: all
	sh examples/data.sh || true
	sh examples/study.sh

test: all
	sh tests/run.sh

bench: $(B)/bench $(B)/growth
	sh examples/data.sh >/dev/null 2>&1 || true
	$(B)/bench
	$(B)/growth | tee $(B)/growth.txt
	awk -f bench/growth.awk $(B)/growth.txt > $(B)/growth.svg

$(B)/peer/bin/python:
	python3 -m venv $(B)/peer
	$(B)/peer/bin/pip install -q --upgrade torch numpy

bench-peer: $(B)/bench $(B)/peer/bin/python
	sh bench/peer.sh

clean:
	rm -rf $(B)

.PHONY: all data run study test bench bench-peer clean
