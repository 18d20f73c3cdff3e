# Two images, each with exactly the packages and hashes of its lock file (hack/locks, written by `hack/lock`):
#
#   docker build --target operator -t ghcr.io/hftitan/operator:0.1.0 .     no torch, less than 200 MB of Python packages
#   docker build --target trainer  -t ghcr.io/hftitan/trainer:0.1.0 .      torch with its CUDA libraries
#
# Base images: any Debian or Ubuntu. If the base has no Python 3.11 or newer, the distribution's is installed. NVIDIA's
# CUDA images work for the trainer, but are not needed: torch's wheels include CUDA, and the node has the driver.
# Private package index: --secret id=pip,src=$HOME/.config/pip/pip.conf (not stored in any layer).
ARG OPERATOR_BASE=docker.io/library/python:3.11-slim-bookworm
ARG TRAINER_BASE=docker.io/library/python:3.11-slim-bookworm

# --- operator ---------------------------------------------------------------------------------------------------

FROM ${OPERATOR_BASE} AS operator-build
COPY hack/image-python hack/locks/operator.txt hack/locks/build.txt /build/
RUN --mount=type=secret,id=pip /build/image-python /build/operator.txt
COPY pyproject.toml README.md LICENSE /build/source/
COPY crds /build/source/crds
COPY operator /build/source/operator
COPY trainer /build/source/trainer
RUN --mount=type=secret,id=pip /build/image-python /build/operator.txt /build/source

FROM ${OPERATOR_BASE} AS operator
LABEL org.opencontainers.image.title="HFTitanJob operator" \
      org.opencontainers.image.description="Watches HFTitanJob resources and runs their pods" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
COPY hack/image-python /tmp/image-python
RUN /tmp/image-python && rm /tmp/image-python
COPY --from=operator-build /opt/hftitan /opt/hftitan
ENV PATH=/opt/hftitan/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["hftitan"]
CMD ["operator"]

# --- trainer ----------------------------------------------------------------------------------------------------

FROM ${TRAINER_BASE} AS trainer
# `--build-arg CUDA=mounted` leaves out the CUDA libraries and Triton (4 GB). The node must then mount them into the
# virtual environment, at lib/python3.*/site-packages/nvidia and triton.
ARG CUDA=included
LABEL org.opencontainers.image.title="HFTitanJob trainer" \
      org.opencontainers.image.description="Runs one node of an HFTitanJob: torchrun and the trainer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
COPY hack/image-python hack/locks/trainer.txt hack/locks/build.txt /build/
# Triton and Inductor (`training.compile`) need a C compiler to build kernel launchers.
RUN --mount=type=secret,id=pip CUDA=${CUDA} EXTRA_PACKAGES="gcc libc6-dev" /build/image-python /build/trainer.txt
COPY pyproject.toml README.md LICENSE /build/source/
COPY crds /build/source/crds
COPY operator /build/source/operator
COPY trainer /build/source/trainer
RUN --mount=type=secret,id=pip CUDA=${CUDA} /build/image-python /build/trainer.txt /build/source && rm -r /build
# Driver capabilities that the NVIDIA runtime mounts into the container, as in NVIDIA's CUDA images.
ENV PATH=/opt/hftitan/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
EXPOSE 9400
CMD ["hftitan-agent", "-m", "hftitan_trainer"]
