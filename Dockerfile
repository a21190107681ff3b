# syntax=docker/dockerfile:1
#
# The program `stepwell`, for the dashboard and the HTTP API, and for commands on a database:
#
#   docker build --tag stepwell .
#   docker run --rm stepwell help
#   docker run --rm --publish 7180:7180 --env STEPWELL_TOKEN --env DURABLE_DATABASE_URL \
#     stepwell serve --listen 0.0.0.0:7180
#
# A SQLite database has to be in a folder that user 65532 may write to, mounted at /data. Programs
# that share the file must run on the same machine.

# Both images are of Debian 12: the program needs a glibc that is not older than the builder's.
FROM rust:1-slim-bookworm AS build
WORKDIR /source
COPY . .
# The image has the C compiler that SQLite and ring need.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --locked --profile dist --package stepwell-cli \
    && cp target/dist/stepwell /stepwell \
    && mkdir /data

# glibc, the certificates of public authorities and the time zones. There is no shell in it.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /stepwell /usr/local/bin/stepwell
COPY --from=build --chown=65532:65532 /data /data
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/stepwell/
WORKDIR /data
USER 65532:65532
EXPOSE 7180
ENTRYPOINT ["/usr/local/bin/stepwell"]
CMD ["help"]
