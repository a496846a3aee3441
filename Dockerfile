# Images of Heddle's programs, one target each:
#   docker build --target sidecar -t heddle/sidecar:0.1.0 .
#   docker build --target control-plane -t heddle/control-plane:0.1.0 .
#   docker build --target cli -t heddle/cli:0.1.0 .
#   docker build --target apps -t heddle/apps:0.1.0 .
# Each holds static programs and the authorities by which servers outside the mesh are verified: no shell,
# no libraries, nobody's account but a number.

FROM rust:1.95-bookworm AS build
WORKDIR /heddle
COPY . .
# A target of its own keeps the flags from build scripts and macros, which cannot be static.
RUN target="$(uname -m)-unknown-linux-gnu" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$target" \
        -p heddle-sidecar -p heddle-control-plane -p heddle -p heddle-apps \
    && mkdir /programs && cd "target/$target/release" \
    && cp heddle-sidecar heddle-control-plane heddle users orders storefront /programs/ \
    && for program in /programs/*; do ldd "$program" 2>&1 | grep -q 'statically linked'; done

FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
LABEL org.opencontainers.image.vendor="Heddle" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0"

FROM base AS apps
LABEL org.opencontainers.image.title="heddle-apps" \
    org.opencontainers.image.description="A shop of plain services to try a mesh with"
COPY --from=build /programs/users /programs/orders /programs/storefront /
USER 65532:65532

FROM base AS cli
LABEL org.opencontainers.image.title="heddle" \
    org.opencontainers.image.description="Heddle's command line"
COPY --from=build /programs/heddle /heddle
USER 65532:65532
ENTRYPOINT ["/heddle"]

FROM base AS control-plane
LABEL org.opencontainers.image.title="heddle-control-plane" \
    org.opencontainers.image.description="Heddle's control plane"
COPY --from=build /programs/heddle-control-plane /heddle-control-plane
USER 65532:65532
EXPOSE 7200 7210 7290
ENTRYPOINT ["/heddle-control-plane"]

# The user by whom the rules of a pod tell the sidecar's traffic from the application's.
FROM base AS sidecar
LABEL org.opencontainers.image.title="heddle-sidecar" \
    org.opencontainers.image.description="Heddle's sidecar"
COPY --from=build /programs/heddle-sidecar /heddle-sidecar
USER 7100:7100
EXPOSE 7101 7102 7190
ENTRYPOINT ["/heddle-sidecar"]
