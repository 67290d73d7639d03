# absmartly: ABsmartly A/B testing inside PostgreSQL
#
# The build proper is PGXS's: all, install, uninstall, installcheck, clean.  The goals named below work on the project and
# must run where no server headers are installed yet, so PGXS stays out of them.
#
#	make, make install	build and install for the server of PG_CONFIG
#	make installcheck	those regression tests that need no preloading, on a running server
#	make check		everything: set-up, build, install, all tests, on private servers
#	make check-hardened	the same and more on a PostgreSQL that finds faults, which it builds (PARTS="assert sanitize ...")
#	make check-accounting	only the accounting of goals under kills and faults, of a million (ABSMARTLY_ACCOUNTING=N, ABSMARTLY_KILLS=N)
#	make lint, make format	static checks; the sources' layout
#	make demo, demo-stop	a private server with everything on it; its end
#	make collector		the development collector alone
#	make engine-test	the engine's own tests, without a server
#	make fuzz-test		the fuzz targets over the inputs that are kept
#	make conformance	runs the scenarios that all SDKs answer (SCENARIOS=DIR, ONLY=TEXT; default: ../shared/conformance)
#	make conformance-server	the wrapper that answers them, until interrupted (PORT=N)
#	make bench		measures assignment (bench/assign), contexts (bench/context) and events (bench/events)
#	make dist		a release archive from the last commit

EXTENSION = absmartly
VERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" absmartly.control)

PG_CONFIG ?= pg_config
PKG_CONFIG ?= pkg-config

PROJECT_GOALS = check check-hardened check-accounting lint format demo demo-stop collector engine-test engine-programs fuzz-test fuzz-programs conformance \
	conformance-server bench dist version

ifneq (,$(filter $(PROJECT_GOALS),$(MAKECMDGOALS)))

# ---------------------------------------------------------------------------
# Project goals
# ---------------------------------------------------------------------------

.PHONY: $(MAKECMDGOALS) $(PROJECT_GOALS)

# Build goals asked for in the same breath.
BUILD_GOALS = $(filter-out $(PROJECT_GOALS),$(MAKECMDGOALS))
ifneq (,$(BUILD_GOALS))
$(BUILD_GOALS):
	+@$(MAKE) --no-print-directory $@
endif

check:
	@tools/check

check-hardened:
	@tools/check-hardened

check-accounting:
	@ABSMARTLY_ACCOUNTING=$${ABSMARTLY_ACCOUNTING:-1000000} CHECK_TESTS=049_accounting CHECK_SLOWNESS=4 tools/check build tap

lint:
	@tools/lint

format:
	@tools/format

demo:
	@tools/demo

demo-stop:
	@tools/demo --stop

collector:
	@tools/collector

conformance:
	@tools/conformance

conformance-server:
	@tools/conformance --serve

bench:
	@bench/assign
	@bench/context
	@bench/events

dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(VERSION)/ --output=$(EXTENSION)-$(VERSION).zip HEAD

version:
	@echo $(VERSION)

# The engine and the events' encoding know nothing of PostgreSQL, so their tests are plain programs.
# SANITIZE=address,undefined builds them with sanitizers.
ENGINE_CFLAGS = -std=gnu11 -O2 -g -Wall -Wextra -fno-strict-aliasing -D_GNU_SOURCE -Isrc -Isrc/engine \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all) \
	$(shell $(PKG_CONFIG) --cflags libpcre2-16)
ENGINE_LIBS = $(shell $(PKG_CONFIG) --libs libpcre2-16) -lm
ENGINE_SOURCES = $(sort $(wildcard src/engine/*.c)) src/events/encoding.c
ENGINE_OBJS = $(patsubst src/%.c,build/%.o,$(ENGINE_SOURCES))
ENGINE_HARNESS = $(filter-out $(wildcard test/engine/test_*.c),$(wildcard test/engine/*.c))
ENGINE_TESTS = $(patsubst test/engine/%.c,build/engine/%,$(sort $(wildcard test/engine/test_*.c)))

engine-test: engine-programs
	@tools/engine-test $(ENGINE_TESTS)

engine-programs: $(ENGINE_TESTS)

.SECONDARY: $(ENGINE_OBJS)

$(ENGINE_OBJS): build/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(ENGINE_CFLAGS) -MMD -MP -c -o $@ $<

build/engine/test_%: test/engine/test_%.c $(ENGINE_HARNESS) $(ENGINE_OBJS)
	@mkdir -p $(@D)
	$(CC) $(ENGINE_CFLAGS) -MMD -MP -MF $@.d -o $@ $(filter %.c %.o,$^) $(LDFLAGS) $(ENGINE_LIBS)

# Fuzz targets, with sanitizers, as programs that run over files (test/fuzz/README.md tells how to fuzz in earnest).
FUZZ_TARGETS = $(patsubst test/fuzz/%.c,build/fuzz/%,$(filter-out %/fuzz_main.c,$(wildcard test/fuzz/fuzz_*.c)))

fuzz-test: fuzz-programs
	@tools/tap --exec tools/fuzz-tap -- $(FUZZ_TARGETS)

fuzz-programs: $(FUZZ_TARGETS)

build/fuzz/fuzz_%: test/fuzz/fuzz_%.c test/fuzz/fuzz_main.c $(wildcard test/fuzz/*.h test/engine/*.h) $(ENGINE_SOURCES) \
		$(wildcard src/engine/*.h) src/events/encoding.h
	@mkdir -p $(@D)
	$(CC) $(ENGINE_CFLAGS) -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $(filter %.c,$^) $(LDFLAGS) $(ENGINE_LIBS)

-include $(wildcard build/engine/*.d build/events/*.d)

else

# ---------------------------------------------------------------------------
# Build
# ---------------------------------------------------------------------------

MODULE_big = absmartly
PGFILEDESC = "absmartly - A/B testing inside PostgreSQL"
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
DATA = $(sort $(wildcard sql/absmartly--*.sql))

# PGXS has a VERSION of its own: the server's.
EXTENSION_VERSION := $(VERSION)

# The server's headers count as system headers: their warnings are not ours.
PG_CPPFLAGS = -I$(srcdir)/src -isystem $(includedir_server) $(shell $(PKG_CONFIG) --cflags libcurl libpcre2-16) \
	-DABSMARTLY_VERSION='"$(EXTENSION_VERSION)"'
PG_CFLAGS = -Wextra -Wno-unused-parameter -fno-semantic-interposition -MMD -MP
SHLIB_LINK = $(shell $(PKG_CONFIG) --libs libcurl libpcre2-16)

# Export what the server looks up and nothing else (the servers before 16 do not ask for that themselves).
ifeq ($(shell uname -s),Linux)
SHLIB_LINK += -Wl,--version-script=$(srcdir)/src/absmartly.map
endif

# Without a worker: tests that need one say so in their first lines.
REGRESS = $(patsubst test/sql/%.sql,%,$(sort $(shell grep -L '^-- needs: preload' test/sql/*.sql 2>/dev/null)))
REGRESS_OPTS = --inputdir=test

EXTRA_CLEAN = build $(OBJS:.o=.d) tmp_check tmp_check_iso output_iso results regression.diffs regression.out \
	log $(EXTENSION)-*.zip

# Bitcode would let the server's JIT inline our functions into its expressions, which it refuses for functions that use
# variables of this module; so it is not made unless asked for (make with_llvm=yes), and clang is no need of the build.
ifneq ($(origin with_llvm),command line)
override with_llvm := no
endif

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

ifneq (,$(wildcard $(PGXS)))

include $(PGXS)

-include $(wildcard $(OBJS:.o=.d))

else

.PHONY: all install uninstall installcheck clean
all install uninstall installcheck:
	@echo "$(PG_CONFIG) finds no server headers: install postgresql-server-dev-NN, or set PG_CONFIG" >&2; exit 1
clean:
	rm -rf $(MODULE_big).so $(OBJS) $(EXTRA_CLEAN)

endif

endif
