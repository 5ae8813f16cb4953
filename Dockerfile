# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /source
# The image's own toolchain; `rust-toolchain.toml` would fetch what only developers need.
ENV RUSTUP_TOOLCHAIN=1.95.0
COPY . .
# A cached target folder is no part of the image: the binary is copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --locked --release --bin branchline \
    && install -D target/release/branchline /out/branchline

FROM debian:bookworm-slim
# Certificates for `amqps://`. All else is in the binary, SQLite included.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --create-home --home-dir /var/lib/branchline branchline
COPY --from=build /out/branchline /usr/local/bin/branchline
USER branchline
# Holds `branchline.toml`, and the database where that is SQLite: make it a volume.
WORKDIR /var/lib/branchline
# SIGTERM finishes the batch in hand.
STOPSIGNAL SIGTERM
ENTRYPOINT ["branchline"]
CMD ["worker"]
