# flowood: make, make run, make study, make test, make bench, make bench-peer, make data,
# make install, make uninstall, make clean (see README.md)
CC       ?= cc
CXX      ?= c++
CFLAGS   ?= -O2
STRICT    = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
B         = build
PREFIX   ?= /usr/local
VERSION  := $(shell sed -n 's/^\#define FLOWOOD_VERSION_TEXT "\(.*\)"/\1/p' flowood.h)

# OpenMP if the compiler has it; OPENMP= switches it off.
OPENMP   := $(shell printf 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null \
              2>/dev/null && echo -fopenmp)
EXAMPLES  = flowood quickstart custom synthetic grey guard
HAS_CXX  := $(shell command -v $(CXX) 2>/dev/null)

all: $(EXAMPLES:%=$(B)/%) $(if $(HAS_CXX),$(B)/embed)

# The tool is compiled as a user's program would be: one file, with the implementation in it.
$(B)/flowood: examples/flowood.c flowood.h $(wildcard examples/*.h) | $(B)
	$(CC) -std=c99 $(STRICT) $(CFLAGS) $(OPENMP) -I. $< -o $@ -lm

# The other examples are, too; but here they share one compiled library, so that make is done five
# times as fast, and their line that asks for the implementation is left out.
$(B)/library.o: flowood.h | $(B)
	echo '#include "flowood.h"' | $(CC) -std=c99 $(STRICT) $(CFLAGS) $(OPENMP) -I. \
	    -DFLOWOOD_IMPLEMENTATION -x c -c - -o $@

$(B)/%: examples/%.c $(B)/library.o $(wildcard examples/*.h)
	{ echo '#line 1 "$<"'; sed 's/^#define FLOWOOD_IMPLEMENTATION$$//' $<; } | \
	    $(CC) -std=c99 $(STRICT) $(CFLAGS) $(OPENMP) -pthread -I. -Iexamples -x c - \
	    -x none $(B)/library.o -o $@ -lm

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

# DESTDIR is put before every path, for packagers.
install: $(B)/flowood
	mkdir -p "$(DESTDIR)$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/bin" \
	    "$(DESTDIR)$(PREFIX)/share/pkgconfig"
	install -m 644 flowood.h "$(DESTDIR)$(PREFIX)/include/flowood.h"
	install -m 755 $(B)/flowood "$(DESTDIR)$(PREFIX)/bin/flowood"
	printf '%s\n' 'prefix=$(PREFIX)' 'includedir=$${prefix}/include' '' 'Name: flowood' \
	    'Description: normalizing flows and out-of-distribution detection in one C header' \
	    'Version: $(VERSION)' 'Cflags: -I$${includedir}' 'Libs: -lm' \
	    > "$(DESTDIR)$(PREFIX)/share/pkgconfig/flowood.pc"

uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/include/flowood.h" "$(DESTDIR)$(PREFIX)/bin/flowood" \
	    "$(DESTDIR)$(PREFIX)/share/pkgconfig/flowood.pc"

clean:
	rm -rf $(B)

.PHONY: all data run study test bench bench-peer install uninstall clean
