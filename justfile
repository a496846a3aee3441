# What .ci/run does, piece by piece. `just` alone lists it.

default:
    @just --list

# Everything together on this machine.
demo:
    cargo run --release -- demo

test:
    cargo test --workspace

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo deny check bans licenses sources

# Write the manifests of the custom resources anew.
manifests:
    HEDDLE_UPDATE_MANIFESTS=1 cargo test -p heddle-api

# Side by side with Envoy and HAProxy; prints Markdown.
bench *ARGS:
    cargo run --release -p heddle-bench -- {{ARGS}}

# What the Dockerfile's flags make of the programs, alone in their roots; with PROFILE by its own command.
static *PROFILE:
    tests/static {{PROFILE}}

# A minute of fuzzing per target (needs a nightly toolchain and cargo-fuzz).
fuzz SECONDS="60":
    cd fuzz && for target in $(cargo +nightly fuzz list); do \
        mkdir -p corpus/$target && \
        cargo +nightly fuzz run --sanitizer none $target corpus/$target seeds/$target -- \
            -max_total_time={{SECONDS}} || exit 1; \
    done
