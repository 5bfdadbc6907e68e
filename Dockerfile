# The two images: `docker build --target operator -t bitnet-operator:0.1.0 .`, and `trainer` likewise.
# docs/images.md says what is in them, how a release pins the base, and how to build behind a mirror.
ARG BASE=python:3.12-slim-bookworm


# --- build: with a pip of its own, which neither image keeps ----------------------------------------------
FROM ${BASE} AS build
# A mirror's settings and authority come as secrets, which no layer holds; without them pip asks PyPI.
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/build/tools/bin:$PATH
WORKDIR /build
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/bitnet


# --- operator: watches BitNetRuns -------------------------------------------------------------------------
FROM build AS operator-build
# The packages come before the source, so that a change of source alone downloads nothing.
COPY requirements/operator.lock requirements/operator.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=pip-ca.crt \
    pip wheel --no-deps --require-hashes --requirement requirements/operator.lock --wheel-dir wheels
COPY . .
# hatchling is pinned in the lock file too: nothing is downloaded here. What only builds the project stays out
# of /opt/bitnet, for pip installs there what the project asks for.
RUN pip install --no-index --find-links wheels hatchling && \
    pip wheel --no-deps --no-build-isolation --wheel-dir wheels . && \
    pip --python /opt/bitnet/bin/python3 install --no-compile --no-index --find-links wheels \
        'bitnet-operator[operator]'
# The operator speaks JSON: the client's class for each API and each kind is 72 MB that it never asks for; kopf
# takes the kinds where they are, and does without where not.
RUN cd /opt/bitnet/lib/python3*/site-packages && \
    rm -r kubernetes/client/api kubernetes/client/models/v*.py && \
    rm -r kubernetes/aio/client/api kubernetes/aio/client/models/v*.py && \
    find . -type d -name tests -prune -exec rm -r {} +

FROM ${BASE} AS operator-root
COPY --from=operator-build /opt/bitnet /opt/bitnet
# Wherever Docker's Python and Debian's keep pip.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip \
        /usr/lib/python3*/ensurepip /usr/share/python-wheels
# Nobody can write bytecode there later, and to compile at each start takes 3 s of a core: what the operator
# imports is compiled now, the standard library's too, which Docker's Python leaves out.
RUN /opt/bitnet/bin/python3 -B -c "import bitnet_operator.main, sys; \
from py_compile import PycInvalidationMode, compile; \
files = {getattr(module, '__file__', None) or '' for module in sys.modules.values()}; \
[compile(file, doraise=True, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH) \
 for file in files if file.endswith('.py')]"

# One layer, for in a layer of its own a removal frees nothing.
FROM scratch AS operator
COPY --from=operator-root / /
ENV PATH=/opt/bitnet/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title=bitnet-operator \
      org.opencontainers.image.description="Watches BitNetRuns and trains them." \
      org.opencontainers.image.version=0.1.0 \
      org.opencontainers.image.licenses=Apache-2.0
# The uid that the chart's Deployment runs as.
USER 65532:65532
# Metrics, health, admission.
EXPOSE 9090 8080 9443
ENTRYPOINT ["bitnet-operator"]


# --- trainer: the pods that train -------------------------------------------------------------------------
# The lock file brings CUDA as Python packages, as torch was built for it; of the node it needs the driver.
FROM build AS trainer-build
COPY requirements/trainer.lock requirements/trainer.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=pip-ca.crt \
    pip --python /opt/bitnet/bin/python3 install --require-hashes --requirement requirements/trainer.lock
COPY . .
RUN pip --python /opt/bitnet/bin/python3 install --no-deps --no-build-isolation .
# scripts/fetch_quickstart.py downloads by pip. It is Python's own, so that nothing is asked for; setuptools, by
# which it reads what an sdist is, the lock file has.
RUN /opt/bitnet/bin/python3 -m ensurepip

FROM ${BASE} AS trainer
# torch's compiler and Triton build what starts a kernel, with Python's headers, which Docker's Python has.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/bitnet
COPY --from=trainer-build /opt/bitnet .
# What examples/quickstart-cluster.yaml calls.
COPY scripts/fetch_quickstart.py scripts/
ENV PATH=/opt/bitnet/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title=bitnet-trainer \
      org.opencontainers.image.description="Trains 1.58-bit (BitNet) language models." \
      org.opencontainers.image.version=0.1.0 \
      org.opencontainers.image.licenses=Apache-2.0
# A run's metrics.
EXPOSE 9400
# It runs as root, to whom the claims that checkpoints go to mostly belong; a run's spec.workers.template may
# set a securityContext.
ENTRYPOINT ["python3", "-m", "bitnet_trainer"]
