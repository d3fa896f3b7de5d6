# syntax=docker/dockerfile:1
ARG BUILD_IMAGE=rust:1.95-slim-bookworm
ARG RUN_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY askama.toml pricing.toml ./
COPY .cargo .cargo
COPY pgo pgo
RUN cargo build --release --locked && mkdir /data

FROM ${RUN_IMAGE}
COPY --from=build /src/target/release/farebox /usr/local/bin/farebox
# The account nonroot of the image.
COPY --from=build --chown=65532:65532 /data /data
ENV FAREBOX_STORE=/data/farebox.db \
    FAREBOX_ADMIN_LISTEN=0.0.0.0:8081 \
    FAREBOX_ADMIN_PUBLIC=true \
    FAREBOX_LOG_FORMAT=json
VOLUME /data
# Publish 8081 on the host's loopback alone: -p 127.0.0.1:8081:8081
EXPOSE 8080 8081
USER 65532
ENTRYPOINT ["/usr/local/bin/farebox"]
