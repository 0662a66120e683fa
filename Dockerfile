# syntax=docker/dockerfile:1
# The image: one binary, no shell, no root. CA roots are in the binary.
#
#   docker build -t promptmill .
#   docker run --rm promptmill demo
#   docker run -v promptmill:/data -e ANTHROPIC_API_KEY promptmill

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# Dependencies alone, so that this layer lives until the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY fuzz/Cargo.toml fuzz/
RUN mkdir -p src tests/it fuzz/src deploy \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs tests/it/main.rs fuzz/src/lib.rs deploy/papers.rs \
    && cargo build --release --locked \
    && rm -r src

COPY assets assets
COPY config config
COPY migrations migrations
COPY templates templates
COPY src src
# The files may be older than what the layer above built of their namesakes.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked \
    && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/promptmill /usr/local/bin/promptmill
# The default database, promptmill.db, and promptmill.toml are looked for here.
COPY --from=build --chown=65532:65532 /data /data
WORKDIR /data
# What was paid for while the database cannot be reached: the rest of the container is gone with it.
ENV PROMPTMILL_WORKER__STATE_DIR=/data
USER 65532:65532
# Calls get `worker.drain_seconds` to end: give the container a little more (--stop-timeout).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/promptmill"]
CMD ["run"]
