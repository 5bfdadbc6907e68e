# The two images: `docker build --target operator -t bitnet-operator:0.1.0 .`, and `trainer` likewise.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/bitnet


# --- operator: watches BitNetRuns -------------------------------------------------------------------------
FROM base AS operator
# The packages come before the source, so that a change of source alone downloads nothing.
COPY requirements/operator.lock requirements/operator.lock
RUN pip install --require-hashes --requirement requirements/operator.lock
COPY . .
# hatchling is pinned in the lock file too: nothing is downloaded here.
RUN pip install --no-deps --no-build-isolation .
# The uid that the chart's Deployment runs as.
USER 65532:65532
EXPOSE 9090 8080
ENTRYPOINT ["bitnet-operator"]


# --- trainer: the pods that train -------------------------------------------------------------------------
# The lock file brings CUDA as Python packages, as torch was built for it; of the node it needs the driver.
FROM base AS trainer
COPY requirements/trainer.lock requirements/trainer.lock
RUN pip install --require-hashes --requirement requirements/trainer.lock
COPY . .
RUN pip install --no-deps --no-build-isolation .
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# It runs as root, to whom the claims that checkpoints go to mostly belong; a run's spec.workers.template may
# set a securityContext.
ENTRYPOINT ["python", "-m", "bitnet_trainer"]
