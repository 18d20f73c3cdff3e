# Two images from one file, each with exactly the packages of its lock (hack/locks, by hash; `hack/lock` renews them):
#
#   docker build --target operator -t ghcr.io/hftitan/operator:0.1.0 .     no torch, below 200 MB of Python packages
#   docker build --target trainer  -t ghcr.io/hftitan/trainer:0.1.0 .      torch with its CUDA libraries
#
# Bases: any Debian or Ubuntu with Python 3.11 or newer, or none of it (then the distribution's is installed); for the
# trainer also NVIDIA's CUDA images, though torch's wheels bring what they need and the driver comes from the node.
# A package index of your own: --secret id=pip,src=$HOME/.config/pip/pip.conf (it stays out of every layer).
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
LABEL org.opencontainers.image.title="HFTitanJob trainer" \
      org.opencontainers.image.description="Runs one node of an HFTitanJob: torchrun and the trainer below it" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
COPY hack/image-python hack/locks/trainer.txt hack/locks/build.txt /build/
# A C compiler: triton and inductor (`training.compile`) build their launchers with it.
RUN --mount=type=secret,id=pip EXTRA_PACKAGES="gcc libc6-dev" /build/image-python /build/trainer.txt
COPY pyproject.toml README.md LICENSE /build/source/
COPY crds /build/source/crds
COPY operator /build/source/operator
COPY trainer /build/source/trainer
RUN --mount=type=secret,id=pip /build/image-python /build/trainer.txt /build/source && rm -r /build
# What the NVIDIA runtime gives a container besides the devices; CUDA's own images say the same.
ENV PATH=/opt/hftitan/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
EXPOSE 9400
CMD ["torchrun", "-m", "hftitan_trainer"]
