# syntax=docker/dockerfile:1
# The image: one binary, no shell, no root. CA roots are in the binary. docs/deploy.md says how to run it, and
# tests/image builds and runs it without a registry or an engine.
#
#   docker build -t promptmill .
#   docker run --rm --read-only promptmill demo

# Dependencies alone, so that this stage lives until a manifest or the lock file changes.
FROM rust:1.95-slim-bookworm AS dependencies
# The binary carries the list of what it was built of. The tool runs twice, so it is not optimised.
RUN cargo install --quiet --locked --debug cargo-auditable@0.7.7
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY fuzz/Cargo.toml fuzz/
# Whatever a manifest names by its path has to be there, empty as it is.
RUN mkdir -p src tests/it fuzz/src deploy \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs tests/it/main.rs fuzz/src/lib.rs deploy/papers.rs \
    && cargo auditable build --release --locked \
    && rm -r src

FROM dependencies AS build
COPY assets assets
COPY config config
COPY migrations migrations
COPY templates templates
COPY src src
# The files may be older than what the stage above built of their namesakes.
RUN touch src/main.rs src/lib.rs \
    && cargo auditable build --release --locked \
    && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="promptmill" \
    org.opencontainers.image.description="Takes prompts from a SQL table to the Claude Messages API" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/promptmill/
COPY deploy/docker/promptmill.toml /etc/promptmill/promptmill.toml
COPY --from=build /build/target/release/promptmill /usr/local/bin/promptmill
# The default database, promptmill.db, is here, and what was paid for while a database cannot be reached: the rest
# of the container is gone with it.
COPY --from=build --chown=65532:65532 /data /data
VOLUME /data
WORKDIR /data
# A variable and no flag, so that the check of its health reads the same file. Nothing but the volume can be written
# where the root is read-only, so short-lived files go there, too.
ENV PROMPTMILL_CONFIG=/etc/promptmill/promptmill.toml TMPDIR=/data
USER 65532:65532
# Calls get `worker.drain_seconds` (30) to end: give the container more than the 10 seconds that it has by default.
STOPSIGNAL SIGTERM
# Whether it lives. Whether it works is `health --ready`: a database that is away is not mended by a restart.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/promptmill", "health"]
ENTRYPOINT ["/usr/local/bin/promptmill"]
CMD ["run"]
