# The server and the demo model, for a laptop without a GPU or, with docker/compose.gpu.yml, for one with.
#
#   docker compose up                       with Prometheus and Grafana
#   docker build -t lookm-server . && docker run --rm -p 8000:8000 --stop-timeout 45 lookm-server
#
# No compiler in the final image: the C++ kernels are built here, for every x86 generation torch
# knows, and found at start by the processor they run on. (With a GPU there is one: see
# RUNTIME_PACKAGES.) The root filesystem may be read-only; only /tmp is written, and /models, where
# weights are downloaded and GPU kernels kept.

# The Python that requirements.lock was made with.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# Wheels of your own: docker build --build-context wheels=DIRECTORY
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS build
# An index with another build of torch: PyTorch's own CPU index makes the image gigabytes smaller.
ARG TORCH_INDEX_URL=
# What some processors insist on: torchvision (OneVision, Qwen-VL, InternVL, Mistral); SmolVLM:
# torchvision num2words. PDFs: pypdfium2 python-multipart. Videos: av.
ARG EXTRA_PACKAGES=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/lookm
ENV PATH=/opt/lookm/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml requirements.lock docker/dependencies.py ./
# Only what the server needs, at the versions of the lock; the tools of the tests stay out.
# hadolint ignore=SC2086
RUN --mount=type=bind,from=wheels,target=/wheels \
    python dependencies.py pyproject.toml > dependencies.txt \
    && PIP_EXTRA_INDEX_URL="${TORCH_INDEX_URL}" pip install --find-links /wheels \
        --constraint requirements.lock --requirement dependencies.txt setuptools wheel ${EXTRA_PACKAGES}
COPY README.md LICENSE ./
COPY lookm lookm
COPY server server
RUN pip install --no-deps --no-build-isolation .
# One library for each instruction set; one that this machine cannot load is left out.
ENV XDG_CACHE_HOME=/opt/cache
WORKDIR /
RUN for cpu in default avx2 avx512; do \
        ATEN_CPU_CAPABILITY="$cpu" python -c \
            'from lookm.attention.kernels.build import load_kernel; load_kernel()' \
        || echo "no C++ kernels for $cpu"; \
    done && ls /opt/cache/lookm/*.so

FROM ${PYTHON_IMAGE}
# What Triton compiles its way to the driver with, at the first start on a GPU: gcc libc6-dev python3-dev
ARG RUNTIME_PACKAGES=
# hadolint ignore=DL3008,SC2086
RUN if [ -n "${RUNTIME_PACKAGES}" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends ${RUNTIME_PACKAGES} \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/lookm /opt/lookm
COPY --from=build /opt/cache /opt/cache
COPY docker/healthcheck.py /opt/healthcheck.py
# The kernels are there already, so that no compiler is.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin lookm \
    && install --directory --owner lookm --group lookm /models
ENV PATH=/opt/lookm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/opt/cache \
    HF_HOME=/models \
    TRITON_CACHE_DIR=/models/triton \
    LOOKM_HOST=0.0.0.0
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# A big model loads for minutes: until it has, a failing check does not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --start-interval=2s --retries=3 \
    CMD ["python", "/opt/healthcheck.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lookm"]
CMD ["serve"]
